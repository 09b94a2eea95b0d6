"""Runs that begin with given weights: the same after a start, a crash and the end, and nothing that does not fit."""

from __future__ import annotations

import hashlib
import os

import numpy as np
import pytest
from sqlalchemy import select

from coordinator.compiler.export import weights_file
from coordinator.compiler.shapes import initial_weights
from coordinator.errors import ShoalError
from coordinator.store import lineage, models
from coordinator.training import live
from coordinator.training.runs import read_spec
from protocol import tensors
from protocol.weights import digest

from .house import RECIPE, TOY

SPEC = read_spec(TOY)
GIVEN = {name: value + 0.25 for name, value in initial_weights(SPEC, np.random.default_rng(9)).items()}
ONE = RECIPE.replace("goal = 2", "goal = 1")


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "given.safetensors"
    path.write_bytes(weights_file(SPEC, GIVEN, {"statistic/norm1.mean": np.zeros(3, np.float32)}))
    return path


def test_version_0_has_them_and_devices_begin_with_them(house, file):
    run = house.start_run(weights=str(file))
    (a,) = house.enrol("a")
    sent, _ = tensors.decode(house.blobs.get(a.check_in().weights.sha256))
    assert digest(sent) == digest(GIVEN) == house.row(models.ModelVersion, run_id=run, version=0).sha256
    kept = house.row(models.Run, id=run).initial_sha256
    assert tensors.decode(house.blobs.get(kept))[0].keys() == GIVEN.keys()
    with house.database.read() as session:
        assert lineage.origin(session, run)["initial_sha256"] == kept


def test_without_a_file_the_seed_draws_them(house):
    run = house.start_run(seed=4)
    assert house.row(models.Run, id=run).initial_sha256 is None
    drawn = initial_weights(SPEC, np.random.default_rng(4))
    assert house.row(models.ModelVersion, run_id=run).sha256 == digest(drawn)


def test_the_run_goes_on_after_a_crash_without_the_file(house, file, tmp_path):
    run = house.start_run(ONE, weights=str(file))
    (a,) = house.enrol("a")
    a.work()
    file.unlink()
    again = house.crashed(tmp_path / "after")  # no snapshot was taken: everything is replayed from the first weights on
    assert not again.rows(models.Snapshot)
    assert again.engines()[run].snapshot() == house.engines()[run].snapshot()
    again.close()


def test_they_outlive_the_run(house, file):
    run = house.start_run(ONE, weights=str(file))
    (a,) = house.enrol("a")
    a.work()
    house.steward.operate(run, "stop", "ada")
    house.until(lambda: run not in house.engines())
    assert house.blobs.get(house.row(models.Run, id=run).initial_sha256)
    house.reopened()
    with house.database.read() as session:
        _, weights, version = live.weights_of(session, house.blobs, house.segments.read, run)
    assert version == 1
    np.testing.assert_allclose(weights["dense1.bias"] - GIVEN["dense1.bias"], 1, rtol=1e-6)


def test_a_run_whose_first_weights_are_gone_does_not_keep_others_from_going_on(house, file):
    lost, well = house.start_run(weights=str(file)), house.start_run()
    house.blobs.remove(house.row(models.Run, id=lost).initial_sha256)
    house.reopened()
    assert house.engines().keys() == {well}
    (sentence,) = house.events("run-unrecoverable")
    assert f"The weights that run {lost} began with are gone" in sentence


def altered(**changes):
    return weights_file(SPEC, {n: v for n, v in (GIVEN | changes).items() if v is not None}, {})


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (altered(**{"dense1.weight": np.zeros((5, 8), np.float32)}), r"'dense1.weight' has shape \(5, 8\), expec"),
        (altered(**{"dense2.bias": None}), "dense2.bias.* stand on one side only"),
        (altered(extra=np.zeros(1, np.float32)), "extra.* stand on one side only"),
        (altered(**{"dense1.bias": np.full(8, np.nan, np.float32)}), "'dense1.bias' must hold finite float32 numbers"),
        (b"no weights", "the weights file does not fit"),
        (bytes((1 << 24) + 1000), "bytes, expected at most"),
        (None, "cannot be read: there is no such file"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_started(house, tmp_path, content, sentence):
    path = tmp_path / "given.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ShoalError, match=sentence) as refused:
        house.start_run(weights=str(path))
    assert refused.value.code == "bad-model"
    with house.database.read() as session:
        assert session.scalars(select(models.Run)).all() == []


def test_a_pipe_is_refused_at_once(house, tmp_path):
    os.mkfifo(tmp_path / "given")
    with pytest.raises(ShoalError, match="there is no such file"):
        house.start_run(weights=str(tmp_path / "given"))


def test_runs_that_begin_alike_share_the_blob(house, file):
    names = [house.row(models.Run, id=house.start_run(weights=str(file), seed=n)).initial_sha256 for n in (1, 2)]
    assert names[0] == names[1] == hashlib.sha256(weights_file(SPEC, GIVEN, {})).hexdigest()
