"""docs/models.md names every layer, field, loss, signature, input and output there is."""

from __future__ import annotations

import json
import re
from pathlib import Path

import attrs
import pytest

from coordinator.compiler.compile import compile_model
from coordinator.compiler.optimiser import Training
from coordinator.compiler.signatures import SIGNATURES, SPLIT
from coordinator.compiler.spec import KINDS, OBJECTIVES, ModelSpec

PAGE = (Path(__file__).parent.parent.parent / "docs" / "models.md").read_text(encoding="utf-8")
ROWS = [line.split("|")[1:-1] for line in PAGE.splitlines() if line.startswith("| `")]


def row(name: str) -> str:
    """The cells of the row that starts with ``name``."""
    found = [cells for cells in ROWS if f"`{name}`" in cells[0]]
    assert found, f"docs/models.md has no row for {name}"
    return "|".join(found[0])


@pytest.mark.parametrize("kind", [*KINDS, *OBJECTIVES])
def test_every_field_stands_in_the_row_of_its_kind(kind):
    described = {**KINDS, **OBJECTIVES}[kind]
    for attribute in attrs.fields(described):
        if attribute.name in ("name", "input"):
            assert f"`{attribute.name}`*" in PAGE
            continue
        assert f"`{attribute.name}`" in row(kind)
        sparse = bool(attribute.metadata.get("sparse"))
        assert (f"`{attribute.name}`*" in row(kind)) == sparse


@pytest.mark.parametrize("kind", KINDS)
def test_every_tensor_stands_in_the_row_of_its_kind(kind):
    values = {"units": 2, "filters": 2, "kernel": (1, 1), "vocabulary": 2, "size": (1, 1), "shape": (1,), "groups": 1}
    values |= {"rate": 0.5, "inputs": ("a", "b")}
    if kind == "embedding":
        values["size"] = 2
    if kind == "conv1d":
        values["kernel"] = 1
    required = [a.name for a in attrs.fields(KINDS[kind]) if a.default is attrs.NOTHING]
    for tensor in KINDS[kind](**{name: values[name] for name in required}).tensors():
        assert f"`{tensor}`" in row(kind) or (tensor in ("bias", "weight") and f"`{tensor}`" in PAGE)


def test_the_page_names_no_kind_there_is_not():
    layers = PAGE.partition("## Layers")[2].partition("## Losses")[0]
    named = {
        name
        for line in layers.splitlines()
        if line.startswith("| `")
        for name in re.findall(r"`(\w+)`", line.split("|")[1])
    }
    assert named == KINDS.keys()


@pytest.mark.parametrize("signature", SIGNATURES)
def test_every_input_and_output_is_named(signature):
    spec = ModelSpec.from_json(
        {
            "name": "m",
            "input": [4],
            "classes": 2,
            "layers": [
                {"dense": {"units": 4}},
                "batch_norm",
                {"dropout": {"rate": 0.5, "name": "cut"}},
                {"dense": {"units": 2}},
            ],
        }
    )
    everything = Training(True, True, True, True, True)
    cut = "cut" if signature in SPLIT else None
    manifest = compile_model(spec, batch=2, signature=signature, training=everything, cut=cut).manifest
    for name in (*manifest.inputs, *manifest.outputs):
        pattern = re.sub(r"/.*", "/", name)
        assert f"`{pattern}" in PAGE
    for name in manifest.outputs:
        if name != "squared_gradient" and not name.startswith(("statistic/", "new_momentum/")):
            assert f"`{re.sub('/.*', '/', name)}" in row(signature) or signature == "back_train"


def test_members_of_the_json():
    spec = json.loads(json.dumps(ModelSpec.from_json(re.search(r"```json\n(.*?)```", PAGE, re.DOTALL)[1]).to_json()))
    for member in (*spec, "loss", "scaler"):
        assert row(member)
