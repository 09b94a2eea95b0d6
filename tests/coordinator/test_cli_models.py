"""``shoal model``: everything it does without a coordinator."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner

from coordinator.cli import main
from coordinator.compiler.contents import contents
from coordinator.compiler.export import export, read_weights
from coordinator.compiler.shapes import initial_weights, layout
from coordinator.compiler.spec import BatchNorm, Conv2D, Dense, Flatten, ModelSpec, Relu
from coordinator.compiler.zoo import ZOO
from device_agent.runtime import backends
from protocol.subnetwork import WIDTHS, Region
from tests.training.house import TOY, House

TINY = ModelSpec("tiny", (4, 4, 1), 2, (Conv2D(4, (3, 3)), BatchNorm(), Relu(), Flatten(), Dense(2)))


@pytest.fixture
def shoal(home, monkeypatch):
    """Run ``shoal`` with some words, in the home folder of the test, and read its JSON."""
    monkeypatch.chdir(home)

    def run(*words, code=0):
        done = CliRunner().invoke(main, ["model", *words], env={"SHOAL_HOME": str(home)})
        assert done.exit_code == code, done.output
        return json.loads(done.stdout) if "--json" in words else done.output

    return run


@pytest.fixture
def tiny(home):
    """The specification and weights of a small network on disk, and samples that it can tell apart."""
    weights = initial_weights(TINY, np.random.default_rng(0))
    (home / "tiny.json").write_text(json.dumps(TINY.to_json()))
    (home / "tiny.safetensors").write_bytes(export(TINY, weights, form="safetensors"))
    rng = np.random.default_rng(1)
    y = rng.integers(0, 2, 80)
    np.savez(home / "data.npz", x=(rng.random((80, 4, 4, 1)) + y[:, None, None, None]).astype(np.float32), y=y)


def test_compile_writes_an_artifact_and_its_manifest(shoal, home):
    found = shoal("compile", "mlp", "--width", "0.5", "--batch", "8", "-o", "half.tflite", "--json")
    manifest = json.loads((home / "half.json").read_text())
    assert manifest == found["manifest"]
    assert manifest["groups"] == {"dense1": 128, "dense2": 64, "classes": 6}
    assert found["bytes"] == (home / "half.tflite").stat().st_size
    assert contents((home / "half.tflite").read_bytes()).signatures == ("train",)
    assert "train" in shoal("compile", "mlp")
    assert (home / "mlp-train.tflite").exists()


def test_inspect_shows_layers_and_what_every_width_costs(shoal):
    found = shoal("inspect", "cnn", "--batch", "8", "--json")
    assert [row["width"] for row in found["widths"]] == list(WIDTHS)
    conv = found["layers"][0]
    assert (conv["shape"], conv["groups"], conv["parameters"], conv["forward_flops"]) == (
        *([28, 28, 32], ["conv1"], 320),
        2 * 28 * 28 * 9 * 32,
    )
    assert "ACTIVATION BYTES" in shoal("inspect", "mlp")


def test_inspect_reads_a_file_back(shoal):
    shoal("compile", "mlp", "--signature", "infer", "--batch", "4", "-o", "m.tflite")
    found = shoal("inspect", "m.tflite", "--json")
    assert found["inputs"][0] == ["x", "float32", [4, 561]]
    assert [name for name, *_ in found["outputs"]] == ["logits", "features"]
    assert "BATCH_MATMUL" in shoal("inspect", "m.tflite")


def test_profile_names_the_expensive_operators(shoal):
    found = shoal("profile", "digits", "--batch", "4", "--json", "--limit", "0")
    assert {row["operator"] for row in found["operators"]} >= {"BATCH_MATMUL", "SOFTMAX"}
    assert sum(row["share"] for row in found["operators"]) == pytest.approx(1)
    assert "operators," in shoal("profile", "digits", "--batch", "4", "--limit", "2")


def test_bench_times_every_runtime(shoal):
    found = shoal("bench", "digits", "--batch", "4", "--seconds", "0.1", "--json")
    assert [row["runtime"] for row in found["runtimes"]] == backends()
    assert all(0 < row["least"] <= row["median"] for row in found["runtimes"])


def test_a_model_goes_out_and_comes_back(shoal, home, tiny):
    """To ONNX, in again, and out as safetensors: the same network, its batch norm folded."""
    data = ("--data", "data.npz")
    shoal("export", "tiny.json", "--weights", "tiny.safetensors", "--format", "onnx", *data, "-o", "tiny.onnx")
    found = shoal("import", "tiny.onnx", "-o", "back.json", "--weights", "back.safetensors", "--json")
    assert (found["input"], found["classes"], found["layers"]) == ([4, 4, 1], 2, 4)
    spec, weights, _ = read_weights((home / "back.safetensors").read_bytes())
    assert spec == ModelSpec.from_json((home / "back.json").read_text())
    assert weights["dense1.weight"].shape == (64, 2)
    assert "specification" in shoal("import", "tiny.onnx")
    assert (home / "tiny.json").exists()


@pytest.mark.parametrize("form", ["tflite", "tflite-int8", "onnx", "safetensors"])
def test_accuracy_before_and_after_is_measured_on_samples_that_did_not_calibrate(shoal, home, tiny, form):
    words = ("tiny.json", "--weights", "tiny.safetensors", "--width", "0.5", "--data", "data.npz", "-o", "out")
    found = shoal("export", *words, "--format", form, "--json")
    assert (found["measured_samples"], found["calibration_samples"]) == (40, 40)
    assert abs(found["accuracy_after"] - found["accuracy_before"]) <= (0.05 if form == "tflite-int8" else 0)
    assert found["bytes"] == (home / "out").stat().st_size


def test_a_run_goes_out_with_the_weights_of_its_newest_version(shoal, home):
    house = House(home).open()
    run = house.start_run()
    a, b = house.enrol("a", "b")
    a.deliver(a.check_in())
    b.deliver(b.check_in())
    weights = b.check_in().weights
    expected = house.blobs.get(weights.sha256)
    try:
        found = shoal("export", run, "--format", "safetensors", "-o", "run.safetensors", "--json")
    finally:
        house.close()
    assert found["version"] == 1
    _, values, _ = read_weights((home / "run.safetensors").read_bytes())
    _, same, _ = read_weights(expected, ModelSpec.from_json(TOY))
    np.testing.assert_equal(values, same)


def test_what_cannot_be_done_is_said_in_a_sentence(shoal, home, tiny):
    (home / "bad.json").write_text('{"name": "x"}')
    (home / "not.onnx").write_text("this is text")
    (home / "not.tflite").write_text("this is text")
    for words, code, sentence in [
        (("compile", "nothing"), 1, "'nothing' is no model: name one of mlp, cnn"),
        (("compile", "gone.json"), 1, "gone.json cannot be read"),
        (("compile", "bad.json"), 1, "input is missing"),
        (("compile", "mlp", "--batch", "3"), 1, "batch 3 is not a power of two"),
        (("compile", "mlp", "--signature", "front"), 1, "needs the name of the layer to cut behind"),
        (("inspect", "not.tflite"), 1, "are not a LiteRT file"),
        (("profile", "mlp", "--batch", "5"), 1, "batch 5 is not a power of two"),
        (("bench", "mlp", "--width", "2"), 2, "--width"),
        (("import", "not.onnx"), 1, "not.onnx: not a"),
        (("export", "mlp"), 2, "is a specification without weights: name them with --weights"),
        (("export", "gone-1"), 1, "There is no run 'gone-1'"),
        (("export", "gone-1", "--weights", "w"), 2, "is a run, which has weights of its own"),
        (("export", "mlp", "--weights", "tiny.safetensors"), 1, "the weights file does not fit"),
        (("export", "tiny.json", "--weights", "tiny.safetensors"), 1, "needs the statistics of its data"),
        (("export", "tiny.json", "--weights", "gone"), 1, "gone cannot be read"),
    ]:
        assert sentence in shoal(*words, code=code), words


def test_the_parameters_of_a_width_are_those_of_the_layout(shoal):
    found = shoal("inspect", "digits", "--json")
    assert found["widths"][0]["parameters"] == Region(layout(ZOO["digits"])).parameters
