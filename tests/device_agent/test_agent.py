"""The whole agent as a process: real broker, real HTTP, real training."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from attrs import evolve

from coordinator.compiler.spec import Dense, ModelSpec, Relu
from device_agent import cli
from device_agent.runtime import backends
from protocol.messages import Amend, Ask, Plan
from tests.device_agent.stand_in import DEVICE, StandIn

pytestmark = pytest.mark.skipif(not backends(), reason="no training runtime is installed")

SPEC = ModelSpec("tiny", (8,), 3, (Dense(16), Relu(), Dense(3)))
LARGE = ModelSpec("large", (200,), 3, (Dense(200), Relu(), Dense(3)))
PLAN = Plan(width=0.5, batch=4, steps=20, learning_rate=0.1, coding="int8")
ROOT = Path(__file__).parents[2]
Process = subprocess.Popen[bytes]
Start = Callable[[StandIn, ModelSpec], Process]
Stop = Callable[[Process], str]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Enrol if need be, and start an agent; whatever still runs at the end is killed."""
    running: list[Process] = []

    def begin(coordinator: StandIn, spec: ModelSpec) -> Process:
        home, data = tmp_path / "home", tmp_path / "data.npz"
        if not data.exists():
            rng = np.random.default_rng(0)
            y = rng.integers(0, spec.classes, 30)
            x = rng.normal(size=(30, *spec.input)) + y[:, None]
            np.savez(data, x=x.astype(np.float32), y=y)
            arguments = ["--url", coordinator.url, "--token", coordinator.token, "--data", str(data)]
            assert cli.main(["enrol", *arguments, "--home", str(home)]) == 0
        with open(tmp_path / "log", "wb") as log:
            command = [sys.executable, "-m", "device_agent.cli", "run", "--home", str(home)]
            environ = {**os.environ, "OMP_NUM_THREADS": "1"}
            running.append(subprocess.Popen(command, cwd=ROOT, stderr=log, env=environ))
        return running[-1]

    yield begin
    for process in running:
        process.kill()
        process.wait()


@pytest.fixture
def stop(tmp_path: Path) -> Stop:
    """End an agent politely; what it logged."""

    def end(process: Process) -> str:
        process.terminate()
        code = process.wait(timeout=10)
        log = (tmp_path / "log").read_text()
        assert code == 0, log
        assert "Traceback" not in log
        return log

    return end


def test_updates_over_tls_are_differences_that_learn(start: Start, stop: Stop, tmp_path: Path) -> None:
    with StandIn(SPEC, PLAN, 3, tmp_path / "ca", tls=True) as coordinator:
        agent = start(coordinator, SPEC)
        assert coordinator.until(lambda: len(coordinator.stored) == 3 and len(coordinator.check_ins) == 4)
        log = stop(agent)
        secret = json.loads((tmp_path / "home" / "identity.json").read_text())["secret"]
    assert secret not in log
    for update, difference in coordinator.stored.values():
        assert {name: value.shape for name, value in difference.items()} == coordinator.region.shapes
        assert any(value.any() for value in difference.values())
        # 20 batches of 4 from 30 samples: two epochs of 7 full batches and one of 2, then 4 more.
        assert (update.steps, update.samples) == (20, 4 * 20 - 2 * 2)
        assert update.squared_gradient.keys() == coordinator.region.shapes.keys()
    downloads = [update.bytes_down for update, _ in coordinator.stored.values()]
    assert downloads[0] == coordinator.artifact.size + coordinator.weights.size
    assert downloads[1:] == [0, 0], "the cache has both blobs already"
    assert {"telemetry", "progress"} <= set(coordinator.received)


def test_status_beside_a_running_agent(
    start: Start, stop: Stop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with StandIn(SPEC, PLAN, 0, tmp_path / "ca") as coordinator:
        agent = start(coordinator, SPEC)
        assert coordinator.until(lambda: coordinator.received.count("telemetry") >= 2)
        capsys.readouterr()
        assert cli.main(["status", "--home", str(tmp_path / "home"), "--json"]) == 0
        status = json.loads(capsys.readouterr().out)
        stop(agent)
    assert status["running"]
    assert status["connected"]
    assert status["state"] == "idle"


def test_killed_while_training_it_takes_up_the_same_assignment(
    start: Start, stop: Stop, tmp_path: Path
) -> None:
    slow = evolve(PLAN, steps=1_000_000)
    with StandIn(SPEC, slow, 1, tmp_path / "ca") as coordinator:
        first = start(coordinator, SPEC)
        assert coordinator.until(lambda: "progress" in coordinator.received)
        first.send_signal(signal.SIGKILL)
        first.wait()
        coordinator.plan = PLAN
        second = start(coordinator, SPEC)
        assert coordinator.until(lambda: len(coordinator.stored) == 1)
        stop(second)
    assert [check_in.held for check_in in coordinator.check_ins][:2] == [None, "a1"]
    assert list(coordinator.stored) == [("a1", 1)]


def test_an_update_without_a_receipt_survives_a_kill(start: Start, stop: Stop, tmp_path: Path) -> None:
    with StandIn(SPEC, PLAN, 1, tmp_path / "ca") as coordinator:
        coordinator.answer = lambda update: "missing"  # never a final word
        first = start(coordinator, SPEC)
        assert coordinator.until(lambda: "update" in coordinator.received)
        first.send_signal(signal.SIGKILL)
        first.wait()
        coordinator.answer = lambda update: "stored"
        second = start(coordinator, SPEC)
        assert coordinator.until(lambda: len(coordinator.stored) == 1)
        stop(second)
    assert list(coordinator.stored) == [("a1", 1)]


def _kill_again_and_again(start: Start, stop: Stop, coordinator: StandIn, kills: int) -> None:
    """Kill the agent at drawn moments, then let it finish all its work."""
    rng = np.random.default_rng(kills)
    for _ in range(kills):
        agent = start(coordinator, SPEC)
        seen = len(coordinator.received)
        assert coordinator.until(lambda seen=seen: len(coordinator.received) > seen)
        time.sleep(rng.uniform(0, 0.15))
        agent.send_signal(signal.SIGKILL)
        agent.wait()
    seen = len(coordinator.received)
    agent = start(coordinator, SPEC)
    assert coordinator.until(lambda: len(coordinator.received) > seen)
    assert coordinator.until(lambda: len(coordinator.stored) == 5 * kills, timeout=30 + kills)
    stop(agent)


@pytest.mark.parametrize("kills", [4, pytest.param(100, marks=pytest.mark.soak)])
def test_killed_again_and_again_every_assignment_is_stored_once(
    start: Start, stop: Stop, tmp_path: Path, kills: int
) -> None:
    with StandIn(SPEC, PLAN, 5 * kills, tmp_path / "ca") as coordinator:
        _kill_again_and_again(start, stop, coordinator, kills)
    assert sorted(coordinator.stored) == sorted((f"a{n}", 1) for n in range(1, 5 * kills + 1))
    assert coordinator.twofold == []


def test_a_chunked_upload_survives_a_restart_of_the_broker(start: Start, stop: Stop, tmp_path: Path) -> None:
    plan = evolve(PLAN, width=1.0, coding="float32")
    with StandIn(LARGE, plan, 1, tmp_path / "ca") as coordinator:
        coordinator.deaf = True
        agent = start(coordinator, LARGE)
        assert coordinator.until(lambda: "chunk" in coordinator.received)
        coordinator.restart_broker()
        coordinator.deaf = False
        assert coordinator.until(lambda: len(coordinator.stored) == 1)
        log = stop(agent)
    ((update, _),) = coordinator.stored.values()
    assert update.size > 160_000
    assert update.chunk == 4 * 1024
    assert log.count(" connected host=") == 2


def test_a_blob_that_is_gone_costs_one_assignment(start: Start, stop: Stop, tmp_path: Path) -> None:
    with StandIn(SPEC, PLAN, 2, tmp_path / "ca") as coordinator:
        weights = coordinator.blobs.pop(coordinator.weights.sha256)
        agent = start(coordinator, SPEC)
        assert coordinator.until(lambda: "event" in coordinator.received)
        coordinator.blobs[coordinator.weights.sha256] = weights
        assert coordinator.until(lambda: len(coordinator.stored) == 1)
        log = stop(agent)
    assert "download-failed" in log
    assert "is gone" in log


def test_data_that_does_not_fit_the_model_is_said(start: Start, stop: Stop, tmp_path: Path) -> None:
    with StandIn(LARGE, PLAN, 1, tmp_path / "ca") as coordinator:
        agent = start(coordinator, SPEC)
        assert coordinator.until(lambda: "event" in coordinator.received)
        log = stop(agent)
    assert "the artifact takes samples of shape (200,), the data has (8,)" in log


def test_it_ends_promptly_whatever_it_does(start: Start, tmp_path: Path) -> None:
    with StandIn(SPEC, evolve(PLAN, steps=1_000_000), 1, tmp_path / "ca") as coordinator:
        agent = start(coordinator, SPEC)
        assert coordinator.until(lambda: "progress" in coordinator.received)
        agent.send_signal(signal.SIGINT)
        assert agent.wait(5) == 0


def test_a_refused_password_is_waited_out(start: Start, stop: Stop, tmp_path: Path) -> None:
    with StandIn(SPEC, PLAN, 1, tmp_path / "ca") as coordinator:
        start(coordinator, SPEC).kill()
        secret = coordinator._passwords.pop(DEVICE)
        agent = start(coordinator, SPEC)
        deadline = time.monotonic() + 30
        while "broker-refused" not in (tmp_path / "log").read_text() and time.monotonic() < deadline:
            time.sleep(0.02)
        coordinator._passwords[DEVICE] = secret
        assert coordinator.until(lambda: len(coordinator.stored) == 1)
        assert "broker-refused" in stop(agent)


# Training that does not wait.


def test_commits_go_out_while_training_goes_on(start: Start, stop: Stop, tmp_path: Path) -> None:
    with StandIn(SPEC, evolve(PLAN, commits=3, momentum=0.9), 2, tmp_path / "ca") as coordinator:
        agent = start(coordinator, SPEC)
        assert coordinator.until(lambda: len(coordinator.stored) == 6)
        stop(agent)
    assert list(coordinator.stored) == [(name, commit) for name in ("a2", "a1") for commit in (1, 2, 3)]
    assert [update.last for update, _ in coordinator.stored.values()] == [False, False, True] * 2
    assert coordinator.twofold == []


def test_a_fresh_model_is_asked_for_fetched_and_merged_while_training_goes_on(
    start: Start, stop: Stop, tmp_path: Path
) -> None:
    slow = evolve(PLAN, width=1.0, coding="float32", steps=1_000_000, learning_rate=1e-5)
    plan = evolve(slow, seconds=0.5, commits=1000, refresh=5)
    with StandIn(SPEC, plan, 1, tmp_path / "ca") as coordinator:
        agent = start(coordinator, SPEC)
        assert coordinator.until(lambda: bool(coordinator.asks))
        coordinator.send_fresh("a1", 3, {}, 1.0, 0.0)
        assert coordinator.until(lambda: bool(coordinator.events))
        fresh = {name: value + 1 for name, value in coordinator.start.items()}
        coordinator.send_fresh("a1", 4, fresh, 1.0, 0.0)
        assert coordinator.until(lambda: any(update.lineage.merges for update, _ in coordinator.stored.values()))
        one = evolve(plan, commits=1)
        coordinator.say("amend", Amend(assignment="a1", number=1, plan=one, reason="enough"))
        assert coordinator.until(lambda: coordinator.check_ins[-1].held is None and len(coordinator.check_ins) > 1)
        stop(agent)
    assert coordinator.asks == [Ask(assignment="a1", commit=1, step=5, version=0)]
    (event,) = coordinator.events
    assert event.kind == "fresh-failed"
    assert "goes on without version 3" in event.text
    updates = [update for update, _ in coordinator.stored.values()]
    at = next(n for n, update in enumerate(updates) if update.lineage.merges)
    (merge,) = updates[at].lineage.merges
    assert (merge.version, merge.merge, merge.keep) == (4, 1.0, 0.0)
    assert merge.loss_before is not None
    assert updates[at].bytes_down > 0
    assert [update.lineage.version for update in updates[: at + 2]] == [0] * (at + 1) + [4] * len(updates[at + 1 :][:1])
    # Relative to the fresh model, from the merge on, it has hardly moved.
    moved = [abs(value).max() for _, difference in coordinator.stored.values() for value in difference.values()]
    assert max(moved) < 0.5
    assert [update.commit for update in updates] == list(range(1, len(updates) + 1))
