"""Measuring versions: against numbers worked out by hand, and one at a time off the steward's thread."""

from __future__ import annotations

import math
import os
import queue
import threading
from contextlib import suppress

import numpy as np
import pytest

from coordinator.compiler.compile import compile_model
from coordinator.compiler.shapes import initial_weights
from coordinator.compiler.spec import ModelSpec
from coordinator.errors import ShoalError
from coordinator.training.evaluation import (
    BATCH,
    WORST,
    Dataset,
    Evaluation,
    Evaluator,
    batch_statistics,
    read_dataset,
)
from device_agent.runtime import TrainStep
from protocol.errors import ProtocolError

SPEC = ModelSpec.from_json('{"name": "linear", "input": [2], "classes": 2, "layers": [{"dense": {"units": 2}}]}')
IDENTITY = {"dense1.weight": np.eye(2, dtype=np.float32), "dense1.bias": np.zeros(2, np.float32)}


def dataset(x, y):
    return Dataset(np.array(x, np.float32), np.array(y, np.int32))


def test_accuracy_and_loss_by_hand():
    # logits (ln 3, 0): probabilities ¾ and ¼. Right once and wrong once: −½·ln ¾ − ½·ln ¼
    evaluation = Evaluation(SPEC, dataset([[math.log(3), 0], [math.log(3), 0]], [0, 1]))
    accuracy, loss = evaluation.measure(IDENTITY)
    assert accuracy == 0.5
    assert loss == pytest.approx(-(math.log(0.75) + math.log(0.25)) / 2)


def test_a_test_set_of_more_than_one_batch_counts_every_sample():
    count = BATCH + 44
    y = np.arange(count) % 2
    evaluation = Evaluation(SPEC, dataset(np.eye(2)[y] * 50, y))
    assert evaluation.measure(IDENTITY) == (1.0, pytest.approx(0, abs=1e-6))
    turned = IDENTITY | {"dense1.weight": IDENTITY["dense1.weight"][::-1].copy()}
    assert evaluation.measure(turned) == (0.0, pytest.approx(50))


def test_a_model_that_has_diverged_has_the_worst_loss_and_no_nan():
    evaluation = Evaluation(SPEC, dataset([[1e10, 1e10]], [1]))
    _, loss = evaluation.measure({n: v * np.float32(3e38) for n, v in IDENTITY.items()})
    assert loss == WORST


def test_a_batch_norm_takes_its_statistics_from_the_test_samples():
    # two samples: their hidden values are 1 and 3, normalised −1 and 1, scaled to the logits (±10, 0)
    text = """{"name": "norm", "input": [1], "classes": 2, "layers":
        [{"dense": {"units": 1}}, {"batch_norm": {"epsilon": 1e-9}}, {"dense": {"units": 2}}]}"""
    spec = ModelSpec.from_json(text)
    one, none = np.ones(1, np.float32), np.zeros(1, np.float32)
    weights = initial_weights(spec, np.random.default_rng(0))
    (first, norm, last) = [name.partition(".")[0] for name in list(weights)[::2]]
    given = {f"{first}.weight": one.reshape(1, 1), f"{first}.bias": none, f"{norm}.scale": one, f"{norm}.shift": none}
    given |= {f"{last}.weight": np.array([[10, 0]], np.float32), f"{last}.bias": np.zeros(2, np.float32)}
    assert given.keys() == weights.keys()
    accuracy, loss = Evaluation(spec, dataset([[1], [3]], [1, 0])).measure(given)
    assert accuracy == 1.0
    assert loss == pytest.approx(math.log(1 + math.exp(-10)), rel=1e-3)


def test_batches_are_joined_by_the_law_of_total_variance():
    text = """{"name": "norm", "input": [2], "classes": 2, "layers": ["batch_norm", {"dense": {"units": 2}}]}"""
    spec = ModelSpec.from_json(text)
    x = np.array([[0, 1], [0, 2], [4, 3], [4, 5], [10, 8]], np.float32)  # in batches of 2, the last one padded
    probe = TrainStep(compile_model(spec, batch=2).content)
    found = batch_statistics(spec, probe, initial_weights(spec, np.random.default_rng(0)), x)
    (mean,) = (value for name, value in found.items() if name.endswith(".mean"))
    (variance,) = (value for name, value in found.items() if name.endswith(".variance"))
    np.testing.assert_allclose(mean, x.mean(0), rtol=1e-6)
    np.testing.assert_allclose(variance, x.var(0), rtol=1e-6)


def test_a_model_that_was_cut_down_is_measured_as_it_is():
    """Of two hidden channels the second is cut away; the first says x, and the logits are (x, 0)."""
    text = '{"name": "two", "input": [1], "classes": 2, "layers": [{"dense": {"units": 2}}, {"dense": {"units": 2}}]}'
    evaluation = Evaluation(ModelSpec.from_json(text), dataset([[math.log(3)]], [0]))
    none = np.zeros(2, np.float32)
    whole = {"dense1.weight": [[1, 1]], "dense1.bias": none, "dense2.weight": [[1, 0], [0, 1]], "dense2.bias": none}
    cut = {"dense1.weight": [[1]], "dense1.bias": none[:1], "dense2.weight": [[1, 0]], "dense2.bias": none}
    for weights, chance in ((whole, 0.5), (cut, 0.75), (whole, 0.5)):
        weights = {name: np.array(value, np.float32) for name, value in weights.items()}
        assert evaluation.measure(weights)[1] == pytest.approx(-math.log(chance))


def test_weights_of_no_part_of_the_model_are_not_measured():
    with pytest.raises(ProtocolError, match="no subnetwork of the model has tensors of these shapes"):
        Evaluation(SPEC, dataset([[1, 2]], [0])).measure({"dense1.weight": np.eye(3, dtype=np.float32)})


# -- reading -----------------------------------------------------------------------------------------------------


def stored(folder, **arrays):
    path = folder / "test.npz"
    np.savez(path, **arrays)
    return path


def test_a_test_set_is_read_as_float32_and_int32(tmp_path):
    found = read_dataset(stored(tmp_path, x=np.ones((3, 2)), y=np.array([0, 1, 1], np.uint8)), SPEC)
    assert (found.x.dtype, found.y.dtype) == (np.float32, np.int32)
    assert found.y.tolist() == [0, 1, 1]


def test_bytes_are_pictures(tmp_path):
    found = read_dataset(stored(tmp_path, x=np.array([[0, 255]], np.uint8), y=[1]), SPEC)
    assert found.x.tolist() == [[0.0, 1.0]]


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"x": np.ones((3, 2))}, "is not an npz file with arrays x and y"),
        ({"x": np.ones((3, 3)), "y": [0, 0, 0]}, r"holds x \(3, 3\) and y \(3,\), the model takes \(2,\)"),
        ({"x": np.ones((3, 2)), "y": [0, 0]}, "the model takes"),
        ({"x": np.ones((0, 2)), "y": np.zeros(0, int)}, "the model takes"),
        ({"x": np.ones((1, 2)), "y": [2]}, "labels must be whole numbers from 0 to 1"),
        ({"x": np.ones((1, 2)), "y": [-1]}, "labels must be whole numbers from 0 to 1"),
        ({"x": np.ones((1, 2)), "y": [0.5]}, "labels must be whole numbers from 0 to 1"),
        ({"x": np.array([[1, np.nan]]), "y": [0]}, "x must hold finite numbers"),
        ({"x": np.array([["a", "b"]]), "y": [0]}, "x must hold finite numbers"),
        ({"x": np.array([[None, None]]), "y": [0]}, "is not an npz file"),  # pickled objects are not read
    ],
)
def test_a_test_set_that_does_not_fit_is_refused(tmp_path, arrays, sentence):
    with pytest.raises(ShoalError, match=sentence) as refused:
        read_dataset(stored(tmp_path, **arrays), SPEC)
    assert refused.value.code == "bad-dataset"


@pytest.mark.parametrize("content", [None, b"", b"no zip", b"PK\x03\x04"])
def test_a_file_that_is_none_is_refused(tmp_path, content):
    path = tmp_path / "test.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ShoalError, match="is not an npz file with arrays x and y"):
        read_dataset(path, SPEC)


def test_one_array_alone_is_refused(tmp_path):
    np.save(tmp_path / "test.npy", np.ones((3, 2)))
    with pytest.raises(ShoalError, match="is not an npz file with arrays x and y") as refused:
        read_dataset(tmp_path / "test.npy", SPEC)
    assert refused.value.code == "bad-dataset"


def test_a_pipe_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "test.npz")
    with pytest.raises(ShoalError, match="there is no such file"):
        read_dataset(tmp_path / "test.npz", SPEC)


def test_a_damaged_archive_is_refused(tmp_path):
    path = tmp_path / "test.npz"
    np.savez_compressed(path, x=np.arange(4000.0).reshape(2000, 2), y=np.zeros(2000, int))
    whole = path.read_bytes()
    for place in range(40, len(whole), 97):
        path.write_bytes(whole[:place] + bytes(8) + whole[place + 8 :])
        with suppress(ShoalError):  # nothing else, wherever it is damaged
            read_dataset(path, SPEC)
    path.write_bytes(whole[:60] + b"\xff" * 40 + whole[100:])
    with pytest.raises(ShoalError, match="is not an npz file"):
        read_dataset(path, SPEC)


# -- the thread --------------------------------------------------------------------------------------------------


class Slow:
    """Measures when it is allowed to."""

    has_control = False

    def __init__(self) -> None:
        self.begun, self.go = threading.Semaphore(0), threading.Semaphore(0)

    def measure(self, weights):
        self.begun.release()
        assert self.go.acquire(timeout=10)
        if weights is None:
            raise ValueError("nothing to measure")
        return weights, 0.0


@pytest.fixture
def measured():
    """An evaluator that runs, and where its results come."""
    results = queue.SimpleQueue()
    evaluator = Evaluator(lambda *result: results.put(result), lambda *found: results.put(found))
    evaluator.start()
    yield evaluator, results
    evaluator.stop()
    assert not evaluator.is_alive()


def test_versions_that_were_overtaken_are_skipped(measured):
    evaluator, results = measured
    slow = Slow()
    evaluator.submit("run-1", slow, 1, 0.1)
    assert slow.begun.acquire(timeout=10)
    for version in (2, 3, 4):
        evaluator.submit("run-1", slow, version, version / 10)
    slow.go.release(2)
    assert [results.get(timeout=10) for _ in range(2)] == [
        ("run-1", 1, (0.1, 0.0), None),
        ("run-1", 4, (0.4, 0.0), None),
    ]


def test_runs_do_not_overtake_each_other(measured):
    evaluator, results = measured
    slow = Slow()
    slow.go.release(3)
    for run in ("a", "b", "c"):
        evaluator.submit(run, slow, 1, 0.5)
    assert sorted(results.get(timeout=10)[0] for _ in range(3)) == ["a", "b", "c"]


def test_a_measurement_that_fails_does_not_end_the_thread(measured, caplog):
    evaluator, results = measured
    slow = Slow()
    slow.go.release(2)
    evaluator.submit("run-1", slow, 1, None)
    assert slow.begun.acquire(timeout=10)
    evaluator.submit("run-1", slow, 2, 0.2)
    assert results.get(timeout=10) == ("run-1", 2, (0.2, 0.0), None)
    assert "evaluation-failed run=run-1 version=1" in caplog.text


def test_questions_are_all_answered_and_go_first(measured):
    evaluator, results = measured
    slow = Slow()
    evaluator.submit("run-1", slow, 1, 0.1)
    assert slow.begun.acquire(timeout=10)
    evaluator.submit("run-1", slow, 2, 0.2)
    evaluator.compute("run-1", 7, lambda: {"x": 1.0})
    evaluator.compute("run-2", 8, lambda: {"x": 1 / 0})
    slow.go.release(2)
    assert [results.get(timeout=10) for _ in range(4)] == [
        ("run-1", 1, (0.1, 0.0), None),
        ("run-1", 7, {"x": 1.0}),
        ("run-2", 8, {"failed": 1.0}),
        ("run-1", 2, (0.2, 0.0), None),
    ]


def test_a_control_set_is_measured_beside_the_test_set(tmp_path):
    x, y = np.eye(2, dtype=np.float32), np.array([0, 1])
    path = tmp_path / "data.npz"
    np.savez(path, x=x, y=y, control_x=x, control_y=1 - y)
    evaluation = Evaluation(SPEC, read_dataset(path, SPEC))
    assert (evaluation.measure(IDENTITY)[0], evaluation.control(IDENTITY)[0]) == (1.0, 0.0)
    np.savez(path, x=x, y=y, control_x=x)
    with pytest.raises(ShoalError, match="control_y"):
        read_dataset(path, SPEC)


def test_the_network_measures_what_it_is_given_each_time():
    rng = np.random.default_rng(0)
    evaluation = Evaluation(SPEC, dataset(rng.normal(size=(20, 2)), rng.integers(0, 2, 20)))
    first = initial_weights(SPEC, np.random.default_rng(1))
    before = evaluation.measure(first)
    assert evaluation.measure(IDENTITY) != before
    assert evaluation.measure(first) == before
