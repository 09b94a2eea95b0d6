"""``shoal simulate`` and what can be done with its folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from click.testing import CliRunner
from sqlalchemy import func, select

from coordinator.cli import main
from coordinator.settings import sqlite_url
from coordinator.store import models
from coordinator.store.blobs import Blobs
from coordinator.store.database import Database
from coordinator.training.live import weights_of
from protocol.weights import digest
from tests.simulator.fleets import ROUGH

FEW = ("--population", "pi-mixed", "--data", "digits", "--devices", "6")


def shoal(*arguments):
    return CliRunner().invoke(main, [str(one) for one in arguments])


def test_from_simulation_to_report(tmp_path):
    """Two recipes with two seeds: results, a database for both seeds, a comparison, a report, the lists of history."""
    for recipe in ("fedbuff", "whale-fl"):
        arguments = ("simulate", recipe, *FEW, "--until", "40 updates", "--seeds", "0-1", "--engine", "inline")
        done = shoal(*arguments, "--out", tmp_path / recipe)
        assert done.exit_code == 0, done.output
    again = shoal(*arguments, "--out", tmp_path / "whale-fl")
    assert "Already there: seed 0, 1" in again.output
    assert sorted(path.name for path in (tmp_path / "whale-fl").iterdir()) == [
        "blobs", "experiment.json", "seed-0.json", "seed-1.json", "shoal.db",
    ]  # fmt: skip
    compared = shoal("compare", tmp_path / "fedbuff", tmp_path / "whale-fl", "--html", tmp_path / "report.html")
    assert compared.exit_code == 0, compared.output
    assert "whale-fl" in compared.output
    assert (tmp_path / "report.html").stat().st_size > 1_000_000
    listed = shoal("history", "runs", "--home", tmp_path / "whale-fl")
    assert "whale-fl-s0" in listed.output
    assert "whale-fl-s1" in listed.output
    database = Database(sqlite_url(tmp_path / "whale-fl" / "shoal.db"))
    with database.read() as session:
        assert session.scalars(select(models.Run.simulated)).all() == [True, True]
        assert session.scalar(select(func.count()).select_from(models.Device)) == 6
        for seed in (0, 1):
            found = json.loads((tmp_path / "whale-fl" / f"seed-{seed}.json").read_text())
            newest = select(models.ModelVersion.sha256).filter_by(run_id=found["run"], version=found["versions"])
            assert session.scalar(newest) == found["sha256"]
    database.close()


def test_tasks_of_a_ray_cluster_find_what_processes_find(tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed (pip install 'shoal[ray]')")
    found = {}
    for engine in ("inline", "ray"):
        given = ("fedbuff", *FEW, "--until", "12 updates", "--seeds", "0-1", "--engine", engine, "--cores", "2")
        done = shoal("simulate", *given, "--out", tmp_path / engine)
        assert done.exit_code == 0, done.output
        found[engine] = [json.loads((tmp_path / engine / f"seed-{seed}.json").read_text()) for seed in (0, 1)]
    assert [one["sha256"] for one in found["ray"]] == [one["sha256"] for one in found["inline"]]
    assert not (tmp_path / "ray" / "seed-0").exists()


def test_the_model_of_a_simulation_can_be_taken_out(tmp_path):
    arguments = ("simulate", "fedbuff", *FEW, "--until", "12 updates", "--engine", "inline", "--out", tmp_path / "out")
    assert shoal(*arguments).exit_code == 0
    database = Database(sqlite_url(tmp_path / "out" / "shoal.db"))
    with database.read() as session:
        _, weights, version = weights_of(session, Blobs(tmp_path / "out" / "blobs"), None, "fedbuff-s0")
    database.close()
    found = json.loads((tmp_path / "out" / "seed-0.json").read_text())
    assert (version, digest(weights)) == (found["versions"], found["sha256"])


def test_ctrl_c_leaves_what_the_same_command_goes_on_from(tmp_path, monkeypatch):
    (tmp_path / "rough.toml").write_text(ROUGH)
    given = ["fedasync", "--population", "rough.toml", "--data", "digits", "--devices", "8", "--out", "out"]
    command = [sys.executable, "-m", "coordinator.cli", "simulate", *given, "--until", "400 updates"]
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    first = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background shell has it ignored
    )  # fmt: skip
    record = tmp_path / "out" / "seed-0" / "record.jsonl"
    end = time.monotonic() + 60
    while not (record.exists() and record.stat().st_size > 5_000):
        assert time.monotonic() < end
        assert first.poll() is None, first.stderr.read()
        time.sleep(0.02)
    first.send_signal(signal.SIGINT)
    told = first.communicate(timeout=60)[1]
    assert first.returncode == 1
    assert "The same command goes on from here." in told
    assert list((tmp_path / "out" / "seed-0").glob("checkpoint-*"))
    monkeypatch.chdir(tmp_path)
    done = shoal("simulate", *given, "--until", "400 updates", "--engine", "inline")
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "out" / "seed-0.json").read_text())
    assert sum(found["updates"].values()) == 400


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"--population": "moon"}, "There is no population 'moon'"),
        ({"--data": "nothing.npz"}, "nothing.npz cannot be read as an npz file: there is no such file"),
        ({"--devices": "2000"}, "2000 devices are more than the 1295 samples there are to share"),
        ({"--until": "accuracy>=1.1 or 1h"}, "no model reaches an accuracy of 1.1"),
        ({"--until": "accuracy>=0.9"}, "may never come true"),
        ({"--split": "subject"}, "digits has no array subject"),
        ({"--seeds": "a"}, "seeds is 'a', expected e.g. 0-2 or 0,3,7"),
        ({"--model": "cnn"}, "digits holds samples of shape (64,), model cnn takes (28, 28, 1)"),
    ],
)
def test_bad_input_is_answered_with_a_sentence(tmp_path, changed, sentence):
    options = {"--population": "pi-mixed", "--data": "digits", "--until": "1h", "--out": str(tmp_path / "out")}
    options |= changed
    done = shoal("simulate", "fedbuff", *[part for pair in options.items() for part in pair])
    assert done.exit_code == 1
    assert sentence in " ".join(done.output.split())


def test_a_folder_holds_one_experiment(tmp_path):
    arguments = ("--until", "4 updates", "--engine", "inline", "--out", tmp_path / "out")
    assert shoal("simulate", "fedbuff", *FEW, *arguments).exit_code == 0
    done = shoal("simulate", "fedasync", *FEW, *arguments)
    assert done.exit_code == 1
    assert "holds another experiment (its recipe differs)" in done.output
