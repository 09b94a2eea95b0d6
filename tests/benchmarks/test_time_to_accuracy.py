"""Time to accuracy: recipes that can be read, a target for every seed, ratios and gaps that are what results hold."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import time_to_accuracy
from benchmarks.measure import Unavailable
from benchmarks.time_to_accuracy import JUDGED, Task
from coordinator.compiler.spec import ModelSpec
from coordinator.training.recipe import parse


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setenv("SHOAL_DATA", str(tmp_path))
    images = {"x_train": np.zeros((7000, 2, 2), np.uint8), "x_test": np.zeros((2000, 2, 2), np.uint8)}
    labels = {"y_train": np.arange(7000) % 10, "y_test": np.arange(2000) % 10}
    np.savez(tmp_path / "fashion_mnist.npz", **images, **labels)
    (tmp_path / "har.npz").touch()
    return tmp_path


def test_every_recipe_of_every_task_can_be_read(data):
    for task in time_to_accuracy.tasks(data / "out"):
        assert set(JUDGED) <= set(task.experiments)
        for name, one in task.experiments.items():
            assert parse(one.recipe).name == name
            ModelSpec.from_json(one.model)


def test_the_same_images_are_picked_every_time(data):
    first, again = (time_to_accuracy.fashion(data / out) for out in ("one", "two"))
    one, two = (np.load(task.experiments["fedavg"].data) for task in (first, again))
    assert (one["y_train"] == two["y_train"]).all()
    assert (len(one["y_train"]), len(one["y_test"])) == (6000, 1500)


def test_without_data_it_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("SHOAL_DATA", str(tmp_path))
    with pytest.raises(Unavailable, match=r"har\.npz is missing"):
        time_to_accuracy.har()


def result(seed, *points):
    """A curve of (seconds, accuracy)."""
    seconds, accuracy = zip(*points, strict=True)
    nothing = [0] * len(points)
    counts = dict.fromkeys(("version", "training", "joules", "bytes_up", "bytes_down"), nothing)
    curve = {"seconds": list(seconds), "accuracy": list(accuracy), **counts}
    device = {"away": 0.0, "waiting": 0.0}
    return {"seed": seed, "seconds": 1000.0, "curve": curve, "devices": [device]}


FOUND = {
    # FedAvg ends at 0.9 and 0.8 with the two seeds: targets 0.882 and 0.784
    "fedavg": {
        0: result(0, (10, 0.9), (20, 0.9), (400, 0.9)),
        1: result(1, (10, 0.8), (20, 0.8), (100, 0.8)),
    },
    "fedbuff": {
        0: result(0, (1, 0.9), (2, 0.9), (200, 0.9)),
        1: result(1, (1, 0.8), (2, 0.8), (25, 0.8)),
    },
    "composed": {
        0: result(0, (1, 0.89), (2, 0.89), (100, 0.89)),
        1: result(1, (1, 0.7), (2, 0.7), (3, 0.7)),  # never: counts as the whole 1,000 s
    },
}


def test_every_seed_has_a_target_of_its_own():
    spent = time_to_accuracy.costs(FOUND)
    assert [spent["composed"][seed].reached for seed in (0, 1)] == [True, False]
    assert [spent["composed"][seed].spent["seconds"] for seed in (0, 1)] == [100, 1000]


def test_rows_are_geometric_means_and_a_gap():
    task = Task("made", {}, (0.2, 0.8))
    rows = {row.name.removeprefix("time_to_accuracy.made."): row for row in time_to_accuracy.judged(task, FOUND)}
    assert rows["vs_fedavg"].value == pytest.approx((100 / 400 * 1000 / 100) ** 0.5)
    assert rows["vs_fedbuff"].value == pytest.approx((100 / 200 * 1000 / 25) ** 0.5)
    assert rows["vs_fedbuff"].ratio == pytest.approx(0.8 / rows["vs_fedbuff"].value)
    assert rows["final_gap"].value == pytest.approx(5.5)


def test_the_table_has_a_line_for_every_recipe():
    lines = time_to_accuracy.table(Task("made", {}, (0.2, 0.8)), FOUND).splitlines()
    assert lines[-1].startswith("| composed | 1/2 | 550 ± 636 | 1.58 (")
