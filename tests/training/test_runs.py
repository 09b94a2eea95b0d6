"""Runs: what starts one, what steers it, what ends it."""

from __future__ import annotations

import json

import numpy as np
import pytest

from coordinator.errors import ShoalError
from coordinator.store import models
from coordinator.training.recipe import parse
from coordinator.training.runs import read_spec

from .house import RECIPE, START, TOY


@pytest.fixture
def test_set(tmp_path):
    """Twelve samples for the toy model."""
    rng = np.random.default_rng(0)
    path = tmp_path / "test.npz"
    np.savez(path, x=rng.normal(size=(12, 4)), y=rng.integers(0, 3, 12))
    return path


def metrics(house, run):
    return {(m.version, m.name) for m in house.rows(models.Metric, run_id=run)}


def test_a_run_is_a_row_with_everything_it_is_made_of(house, test_set):
    run = house.start_run(dataset=str(test_set), target=1.0, seed=7)
    row = house.row(models.Run)
    assert (run, row.id, row.state, row.version, row.seed, row.target) == ("toy-1", "toy-1", "running", 0, 7, 1.0)
    assert (row.created_by, row.created_at, row.dataset) == ("ada", START, str(test_set))
    assert parse(row.recipe) == parse(RECIPE)
    assert house.row(models.Model).spec == json.loads(json.dumps(read_spec(TOY).to_json()))
    version = house.row(models.ModelVersion)
    assert (version.version, version.updates, version.step_norm) == (0, 0, 0.0)
    assert house.events("run-started") == ["ada started toy-1: toy by custom"]


def test_equal_seeds_make_equal_weights(house):
    house.start_run(seed=1), house.start_run(seed=1), house.start_run(seed=2)
    one, two, three = (version.sha256 for version in house.rows(models.ModelVersion))
    assert one == two != three
    assert len(house.rows(models.Model)) == 1


TARGETS = '{"name": "t", "input": [2], "classes": 2, "loss": "mean_squared_error", "layers": [{"dense": {"units": 2}}]}'


@pytest.mark.parametrize(
    ("name", "run"),
    [("Kitchen sink!", "kitchen-sink-1"), ("厨", "run-1"), (None, "toy-1"), ("x" * 80, f"{'x' * 30}-1")],
)
def test_a_runs_id_is_made_of_its_name(house, name, run):
    assert house.start_run(name=name) == run
    assert house.start_run(name=name) == run[:-1] + "2"


def test_names_that_look_like_other_runs_get_ids_of_their_own(house):
    started = [house.start_run(name=name) for name in ("a", "a-1", "a", "a-1", "a")]
    assert len(set(started)) == 5


def test_a_model_of_the_zoo_by_name():
    assert read_spec("digits").input == (64,)


@pytest.mark.parametrize(
    ("given", "code", "sentence"),
    [
        ({"model": "no-such-model"}, "bad-model", r"\(known models: .*digits.*\)"),
        ({"model": '{"name": "x"}'}, "bad-model", "input"),
        ({"model": "{"}, "bad-model", "JSON"),
        ({"recipe": "no-such-recipe"}, "bad-recipe", "There is no recipe 'no-such-recipe', only"),
        ({"dataset": "/no/such/file.npz"}, "bad-dataset", "is not an npz file"),
        ({"target": 0.5}, "bad-request", "when the target is reached: name a dataset, or let the devices measure"),
        ({"target": 0.0, "dataset": "x"}, "bad-request", "target is 0.0, expected an accuracy above 0 and up to 1"),
        ({"target": 1.5, "dataset": "x"}, "bad-request", "target is 1.5, expected"),
        ({"model": TARGETS}, "bad-model", "learns targets: a run trains classifiers, by labels"),
        ({"target": float("nan"), "dataset": "x"}, "bad-request", "target is nan, expected"),
        ({"seed": -1}, "bad-request", "seed is -1, expected a whole number from 0 to 2147483647"),
        ({"seed": 1 << 31}, "bad-request", "seed is 2147483648, expected"),
    ],
)
def test_a_run_that_cannot_start_says_why_and_leaves_nothing(house, given, code, sentence):
    with pytest.raises(ShoalError, match=sentence) as refused:
        house.start_run(**given)
    assert refused.value.code == code
    assert (house.rows(models.Run), house.rows(models.Model), house.engines()) == ([], [], {})


def test_a_test_set_of_another_shape_is_refused(house, tmp_path):
    np.savez(tmp_path / "other.npz", x=np.ones((3, 5)), y=[0, 1, 2])
    with pytest.raises(ShoalError, match=r"holds x \(3, 5\) and y \(3,\), the model takes \(4,\)"):
        house.start_run(dataset=str(tmp_path / "other.npz"))


# -- steering ----------------------------------------------------------------------------------------------------


def test_pause_resume_stop(house):
    run = house.start_run()
    for action, state in (("pause", "paused"), ("resume", "running"), ("pause", "paused"), ("stop", "stopped")):
        house.steward.operate(run, action, "ada")
        row = house.row(models.Run)
        assert row.state == state
        assert row.reason.endswith("by ada")
        assert (row.ended_at is not None) == (state == "stopped")
    assert house.engines() == {}
    assert house.events("run-stopped") == ["stopped by ada"]


@pytest.mark.parametrize(
    ("before", "action", "code", "sentence"),
    [
        ((), "reboot", "bad-request", "'reboot' is no command for a run, expected pause, resume or stop"),
        ((), "resume", "conflict", "Run toy-1 is running: it cannot resume"),
        (("pause",), "pause", "conflict", "Run toy-1 is paused: it cannot pause"),
        (("stop",), "stop", "conflict", "Run toy-1 is over: it cannot stop"),
    ],
)
def test_commands_that_do_not_apply(house, before, action, code, sentence):
    run = house.start_run()
    for one in before:
        house.steward.operate(run, one, "ada")
    inputs = len(house.rows(models.Input))
    with pytest.raises(ShoalError, match=sentence) as refused:
        house.steward.operate(run, action, "ada")
    assert refused.value.code == code
    assert len(house.rows(models.Input)) == inputs


def test_a_run_nobody_knows(house):
    with pytest.raises(ShoalError, match="There is no run 'toy-9'"):
        house.steward.operate("toy-9", "stop", "ada")


def test_a_run_that_has_ended_takes_its_weights_from_the_disk_and_leaves_its_artifacts(house):
    run = house.start_run()
    (pi,) = house.enrol("pi")
    work = pi.check_in()
    house.steward.operate(run, "stop", "ada")
    house.until(lambda: not house.blobs.path(work.weights.sha256).exists())
    assert house.blobs.path(work.artifact.sha256).exists()
    assert house.row(models.Snapshot).seq == 2


# -- evaluation --------------------------------------------------------------------------------------------------


def test_versions_are_measured(house, test_set):
    run = house.start_run(dataset=str(test_set))
    house.until(lambda: metrics(house, run) == {(0, "accuracy"), (0, "loss")})
    a, b = house.enrol("a", "b")
    a.work(), b.work()
    house.until(lambda: (1, "accuracy") in metrics(house, run))
    assert [i.kind for i in house.rows(models.Input)].count("evaluated") == 2
    accuracy = house.row(models.Metric, version=0, name="accuracy").value
    assert accuracy * 12 == pytest.approx(round(accuracy * 12))


def test_a_run_without_a_test_set_is_not_measured(house):
    house.start_run()
    a, b = house.enrol("a", "b")
    a.work(), b.work()
    assert house.row(models.Run).version == 1
    assert house.rows(models.Metric) == []


def test_a_run_ends_at_its_target(house, tmp_path):
    # one sample of every class, all alike: whatever the model answers, a third of it is right
    np.savez(tmp_path / "even.npz", x=np.ones((3, 4)), y=[0, 1, 2])
    run = house.start_run(dataset=str(tmp_path / "even.npz"), target=0.3)
    house.until(lambda: house.row(models.Run).state == "finished")
    row = house.row(models.Run)
    assert row.reason == "version 0 reached 0.3333, the target is 0.3"
    assert row.ended_at is not None
    house.until(lambda: house.engines() == {})
    with pytest.raises(ShoalError, match="is over"):
        house.steward.operate(run, "stop", "ada")


def test_a_result_for_a_run_that_is_over_is_only_written_down(house):
    run = house.start_run()
    house.steward.operate(run, "stop", "ada")
    inputs = len(house.rows(models.Input))
    house.steward._measured(run, 0, (0.5, 1.25), None)
    house.until(lambda: metrics(house, run) == {(0, "accuracy"), (0, "loss")})
    assert len(house.rows(models.Input)) == inputs


def test_a_measurement_that_was_lost_is_made_again_after_a_start(house, test_set, tmp_path):
    run = house.start_run(dataset=str(test_set))
    house.until(lambda: metrics(house, run))
    other = house.crashed(tmp_path / "image")
    other.steward.write(lambda session: session.query(models.Metric).delete())
    other.reopened()
    other.until(lambda: metrics(other, run) == {(0, "accuracy"), (0, "loss")})
    other.close()


def test_a_test_set_that_has_gone_does_not_keep_the_house_from_opening(house, test_set):
    run = house.start_run(dataset=str(test_set))
    house.until(lambda: metrics(house, run))
    test_set.unlink()
    house.reopened()
    (event,) = house.events("dataset-lost")
    assert event.startswith(f"{run} goes on, but its versions are not measured: {test_set} is not an npz file")
    a, b = house.enrol("a", "b")
    a.work(), b.work()
    assert house.row(models.Run).version == 1
