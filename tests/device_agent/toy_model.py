"""A model small enough to know its answers by heart, as the files of a release.

It takes four numbers and puts out the first three, as far as they are positive: the largest one is the class. Hidden
unit n carries number n, so that half of the eight units is as good as all, and a quarter knows two classes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from coordinator.compiler.compile import compile_model
from coordinator.compiler.shapes import layout
from coordinator.compiler.spec import Dense, ModelSpec, Relu
from device_agent.data.loading import Loaded, split
from device_agent.dataset import checked
from device_agent.releases import Release
from device_agent.shelf import Placed, Pointer, Shelf
from protocol import model_card, tensors
from protocol.deployments import Manifest
from protocol.model_card import ModelCard, ModelSize
from protocol.subnetwork import Region, nested
from protocol.weights import Array, Weights
from protocol.wire import decode, encode
from tests.device_agent.released import manifest, signed

SPEC = ModelSpec("toy", (4,), 3, (Dense(8), Relu(), Dense(3)))
BACKENDS = ("litert", "numpy")


def knowing() -> Weights:
    """The weights of the model that is always right."""
    hidden, out = np.zeros((4, 8), np.float32), np.zeros((8, 3), np.float32)
    for n in range(3):
        hidden[n, n] = out[n, n] = 1
    return {
        "dense1.weight": hidden, "dense1.bias": np.zeros(8, np.float32),
        "dense2.weight": out, "dense2.bias": np.zeros(3, np.float32),
    }  # fmt: skip


def wrong() -> Weights:
    """One that always names the class after."""
    weights = knowing()
    weights["dense2.weight"] = np.roll(weights["dense2.weight"], 1, axis=1)
    return weights


def files(
    weights: Weights | None = None, widths: tuple[float, ...] = (1.0, 0.5), spec: ModelSpec = SPEC, **card: Any
) -> dict[str, bytes]:
    """By name, as a release lists them."""
    axes, found, sizes = layout(spec), {}, []
    for width in widths:
        part = nested(axes, width)
        cut = Region(axes, part).cut(knowing() if weights is None else weights)
        made = compile_model(spec, part, 1, "infer")
        found[model_card.artifact(width, "litert")] = made.content
        found[model_card.artifact(width, "numpy")] = made.program
        found[model_card.weights(width)] = tensors.encode(cut)
        sizes.append(ModelSize(width=width, flops=1, bytes=4 * made.manifest.parameters, memory=1000))
    told = {"model": spec.name, "input": spec.input, "classes": spec.classes, **card}
    found[model_card.CARD] = encode(ModelCard(run="toy-1", version=3, sha256="0" * 64, sizes=tuple(sizes), **told))
    return found


def facts(*widths: float, **more: float) -> dict[str, float]:
    return {f"memory-{width:g}": 1000.0 * width for width in widths or (1.0, 0.5)} | {
        name.replace("_", "-"): value for name, value in more.items()
    }


def release(
    folder: Path, number: int = 1, content: dict[str, bytes] | None = None, told: dict[str, float] | None = None
) -> Release:
    """One whose files were fetched into ``folder``."""
    content = files() if content is None else content
    text = manifest("model", number, content, facts=facts() if told is None else told)
    made = Release(f"e{number}", text, signed(text), decode(Manifest, text.encode()), folder)
    folder.mkdir(exist_ok=True)
    for name, data in content.items():
        made.path(name).write_bytes(data)
    return made


def deployed(home: Path, made: Release, width: float = 1.0) -> Shelf:
    """A home in which the release is in use."""
    shelf = Shelf(home)
    shelf.place(made, [file.name for file in made.manifest.files])
    placed = Placed(version=made.manifest.version, manifest=made.sha256, width=width)
    shelf.point(Pointer(now=placed))
    shelf.tidy()
    return shelf


def samples(count: int = 60) -> tuple[Array, Any]:
    """Samples and their classes."""
    rng = np.random.default_rng(0)
    x = rng.random((count, 4), np.float32)
    return x, x[:, :3].argmax(axis=1)


def data(holdout: float = 0.5) -> Loaded:
    x, y = samples()
    return split(checked(x, y, np.array(3)), holdout, 0)
