"""The whole agent as a process is told what to run: settings of the fleet, and another agent."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from attrs import define, field

from coordinator.compiler.spec import Dense, ModelSpec, Relu
from coordinator.fleet import bundles
from coordinator.fleet.board.system import Board, run
from coordinator.fleet.board.trial import Trials
from coordinator.fleet.board.update import Updater
from coordinator.fleet.board.update_units import STATE
from coordinator.fleet.bundles import Target
from device_agent import cli
from device_agent.runtime import backends
from device_agent.upgrade import VARIABLE, target
from protocol.deployments import REPORTED
from protocol.messages import Plan
from tests.device_agent.released import KEY, deploy, manifest
from tests.device_agent.stand_in import StandIn

pytestmark = pytest.mark.skipif(not backends(), reason="no training runtime is installed")

SPEC = ModelSpec("tiny", (8,), 3, (Dense(16), Relu(), Dense(3)))
PLAN = Plan(width=0.5, batch=4, steps=20, learning_rate=0.1, coding="int8")
ROOT = Path(__file__).parents[2]


@define
class Device:
    """A device whose system is a folder: its agent is a process, whose unit and updater are here."""

    root: Path
    source: Path = ROOT
    agent: subprocess.Popen[bytes] | None = None
    updater: bool = False
    lock: threading.RLock = field(factory=threading.RLock)

    @property
    def home(self) -> Path:
        return self.root / "var/lib/shoal-agent"

    def enrol(self, coordinator: StandIn) -> None:
        rng = np.random.default_rng(0)
        y = rng.integers(0, 3, 30)
        self.home.mkdir(parents=True)
        np.savez(self.home / "data.npz", x=rng.normal(size=(30, 8)).astype(np.float32), y=y)
        arguments = ["--url", coordinator.url, "--token", coordinator.token, "--data", str(self.home / "data.npz")]
        assert cli.main(["enrol", *arguments, "--home", str(self.home)]) == 0

    def start(self) -> None:
        with self.lock:
            if self.updater and (self.root / STATE[1:] / "trial.json").exists():
                Trials(self.board).started()
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(self.source), "PYTHONSAFEPATH": "1"}
            if self.updater:
                environment[VARIABLE] = str(self.root / STATE[1:])
            command = [sys.executable, "-m", "device_agent.cli", "run", "--home", str(self.home)]
            with open(self.root / "log", "ab") as log:
                self.agent = subprocess.Popen(command, cwd="/", stderr=log, env=environment)

    def kill(self, number: int = signal.SIGKILL) -> None:
        with self.lock:
            if self.agent is not None:
                self.agent.send_signal(number)
                self.agent.wait()

    def restart(self) -> None:
        with self.lock:
            self.kill(signal.SIGTERM)
            self.start()

    @property
    def board(self) -> Board:
        return Board(self.root, self.run)

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Programs of the system as root starts them."""
        if command[:2] == ("systemctl", "restart"):
            threading.Thread(target=self.restart).start()  # nobody waits for it
        if command[0] == "runuser":
            words = [word.replace("/usr/bin/python3", sys.executable) for word in command[4:]]
            return run(*words, check=check)
        return run(*command, check=check) if command[0] == "openssl" else subprocess.CompletedProcess(command, 0, "")

    def log(self) -> str:
        return (self.root / "log").read_text()


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    made = Device(tmp_path / "root")
    yield made
    made.kill()


@pytest.fixture
def coordinator(tmp_path: Path) -> Iterator[StandIn]:
    with StandIn(SPEC, PLAN, 0, tmp_path / "ca") as stand_in:
        stand_in.release_key = KEY
        yield stand_in


def states(coordinator: StandIn, id: str) -> list[str]:
    """Those that were told of a deployment, each once and in the order of their numbers."""
    told = {one.number: one.state for one in coordinator.deployments if one.id == id}
    return [state for _, state in sorted(told.items())]


def ended(coordinator: StandIn, id: str) -> Callable[[], bool]:
    return lambda: bool(set(states(coordinator, id)) & {"succeeded", "failed", "rejected", "rolled-back"})


def test_settings_of_the_fleet_are_tried_kept_and_told(coordinator: StandIn, device: Device) -> None:
    device.enrol(coordinator)
    (device.home / "agent.toml").write_text((device.home / "agent.toml").read_text() + "threads = 1\n")
    device.start()
    assert coordinator.until(lambda: bool(coordinator.check_ins))
    assert "deploy" in coordinator.check_ins[0].features
    coordinator.say("deploy", deploy(manifest("config", 1, settings="threads = 2\nheartbeat = 0.25\n"), "good"))
    assert coordinator.until(ended(coordinator, "good"))
    told = states(coordinator, "good")  # one that passes quickly may go unheard
    assert told == [state for state in (*REPORTED, "succeeded") if state in told]
    assert coordinator.until(lambda: any(one.kind == "config" and one.version == "1.0" for one in coordinator.deployed))
    heard = len(coordinator.deployments)
    coordinator.say("deploy", deploy(manifest("config", 1, settings="threads = 2\nheartbeat = 0.25\n"), "good"))
    assert coordinator.until(lambda: len(coordinator.deployments) > heard), "asked again, its end is told again"
    assert coordinator.deployments[-1].state == "succeeded"
    coordinator.say("deploy", deploy(manifest("config", 2, settings='url = "http://elsewhere"\n'), "foreign"))
    assert coordinator.until(ended(coordinator, "foreign"))
    assert states(coordinator, "foreign")[-1] == "rejected"


def test_settings_with_which_it_never_connects_go_back(coordinator: StandIn, device: Device) -> None:
    """Each start on trial ends before there is a connection, as with a board that runs out of memory."""
    device.enrol(coordinator)
    device.start()
    assert coordinator.until(lambda: bool(coordinator.check_ins))
    coordinator.say("deploy", deploy(manifest("config", 1, settings="threads = 2\n"), "bad"))
    assert coordinator.until(lambda: "switching" in states(coordinator, "bad"))
    device.kill()
    note = device.home / "deployments.json"
    saved = json.loads(note.read_text())
    saved["current"].update(state="probation", starts=3)
    note.write_text(json.dumps(saved))
    (device.home / "fleet.toml").write_text("threads = 2\n")
    (device.home / "fleet.toml.before").write_text("")
    device.start()
    assert coordinator.until(ended(coordinator, "bad"))
    assert coordinator.deployments[-1].state == "rolled-back"
    assert coordinator.deployments[-1].text == (
        "with these settings the agent was started 3 times and never connected"
    )  # fmt: skip
    assert (device.home / "fleet.toml").read_text() == ""


def test_without_an_updater_another_agent_is_rejected_with_a_sentence(coordinator: StandIn, device: Device) -> None:
    device.enrol(coordinator)
    device.start()
    assert coordinator.until(lambda: bool(coordinator.check_ins))
    coordinator.say("deploy", deploy(manifest("agent", 1, {target(): b""}), "e1"))
    assert coordinator.until(ended(coordinator, "e1"))
    assert states(coordinator, "e1")[-1] == "rejected"
    assert "no updater" in coordinator.deployments[-1].text


def built(folder: Path) -> bytes:
    """A bundle of the agent as it is here; what it needs besides comes from this Python."""
    arch, _, version = target().rpartition("-cp")
    made = bundles.build(Target(arch, f"{version[0]}.{version[1:]}", (), board=("numpy",)), folder)
    return made.read()


def altered(bundle: bytes, changes: dict[str, bytes]) -> bytes:
    """The bundle with files added or replaced."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(bundle)) as old, tarfile.open(fileobj=packed, mode="w:xz", preset=0) as new:
        for one in old:
            if one.name not in changes:
                new.addfile(one, old.extractfile(one))
        for name, content in changes.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            new.addfile(info, io.BytesIO(content))
    return packed.getvalue()


def test_another_agent_takes_over_and_a_broken_one_does_not(
    coordinator: StandIn, device: Device, tmp_path: Path
) -> None:
    """A bundle that starts and never connects goes back; a good one stays; each is told by who runs afterwards."""
    first = built(tmp_path / "bundles")
    fake = Board(device.root, device.run)
    packed = tmp_path / "first.tar.xz"
    packed.write_bytes(first)
    place = device.root / "opt/shoal/releases/first"
    place.parent.mkdir(parents=True)
    fake.extract(packed, place)
    fake.point("first")
    text = base64.b64encode(bytes.fromhex("302a300506032b6570032100" + KEY)).decode()
    fake.write("/etc/shoal/release.key.pem", f"-----BEGIN PUBLIC KEY-----\n{text}\n-----END PUBLIC KEY-----\n")
    device.source, device.updater = device.root / "opt/shoal/current", True
    Trials(fake)
    device.enrol(coordinator)
    device.start()
    assert coordinator.until(lambda: bool(coordinator.check_ins))
    stop = threading.Event()

    def watch() -> None:
        """The path unit."""
        while not stop.wait(0.05):
            if (device.home / "update/request.json").exists():
                Updater(fake, target()).take()

    unit = threading.Thread(target=watch)
    unit.start()
    try:
        broken = altered(first, {"device_agent/link.py": (ROOT / "device_agent/link.py").read_bytes().replace(
            b"self._report(Up())", b"pass")})  # fmt: skip
        release(coordinator, "broken", 1, broken, trial=8)
        assert (device.root / "opt/shoal/current").resolve().name == "first"
        assert coordinator.deployments[-1].state == "rolled-back", coordinator.deployments[-1].text
        assert "did not prove itself" in coordinator.deployments[-1].text
        good = altered(first, {"news.txt": b"better"})
        release(coordinator, "good", 2, good, trial=120)
        assert coordinator.deployments[-1].state == "succeeded", coordinator.deployments[-1].text
        assert (device.root / "opt/shoal/current/news.txt").read_bytes() == b"better"
        assert coordinator.until(lambda: coordinator.deployed[-1].version == "2.0")
    finally:
        stop.set()
        unit.join()


def release(coordinator: StandIn, id: str, number: int, bundle: bytes, trial: float) -> None:
    coordinator._blob(bundle)
    coordinator.say("deploy", deploy(manifest("agent", number, {target(): bundle}), id, trial=trial))
    assert coordinator.until(ended(coordinator, id), timeout=120), states(coordinator, id)
