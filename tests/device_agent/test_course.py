"""A deployment comes to its end whatever happens on its way, and the device runs one complete release at any moment."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from attrs import define, field

from device_agent import course as courses
from device_agent import releases
from device_agent.address import parse
from device_agent.course import Course, Signs, Stopped
from device_agent.download import Blobs
from device_agent.executions import NAME, STARTS, Execution, Executions, count_start
from device_agent.identity import write_durably
from device_agent.releases import Release, Setback, Trial, Verdict
from protocol.deployments import Deploy, Deployed, Manifest
from tests.device_agent.released import KEY, deploy, manifest, signed

WORDS = {"words": b"be kind"}


class PowerCut(BaseException):
    """Nothing after this happens in this process."""


@define
class Poem:
    """A kind of release that is one file: the poem on the wall."""

    wall: Path
    good: bool | None = True
    deadly: bool = False
    reason: str | None = None
    trouble: Exception | None = None
    name: str = "model"
    restarts: bool = False

    def fit(self, manifest: Manifest) -> str | None:
        return self.reason

    def files(self, manifest: Manifest) -> tuple[str, ...]:
        return ("words",)

    def stage(self, release: Release) -> None:
        write_durably(self.wall / "next", release.path("words").read_bytes())

    def switch(self, release: Release) -> None:
        if self.trouble is not None:
            raise self.trouble
        if not (self.wall / "before").exists():
            write_durably(self.wall / "before", (self.wall / "now").read_bytes())
        write_durably(self.wall / "now", f"{release.manifest.version} {release.sha256}".encode())

    def judge(self, release: Release, trial: Trial) -> Verdict | None:
        if self.deadly:
            raise PowerCut
        text = "" if self.good else "it does not rhyme"
        return None if self.good is None else Verdict(self.good, text, {"lines": 1.0})

    def back(self) -> None:
        if (self.wall / "before").exists():
            os.replace(self.wall / "before", self.wall / "now")

    def commit(self) -> None:
        (self.wall / "before").unlink(missing_ok=True)

    def current(self) -> Deployed | None:
        version, sha256 = (self.wall / "now").read_text().split()
        return Deployed(kind="model", version=version, manifest=sha256)


OLD = "0.1 " + "0" * 64


@define
class Device:
    """One that is switched off and on: every :meth:`run` is a process of its own."""

    home: Path
    kind: Poem
    key: str | None = KEY
    signs: Signs = field(default=Signs(busy=False, connected=True, answered=True))

    def told(self, order: Deploy) -> None:
        executions = Executions(self.home)
        executions.current = Execution(
            id=order.id, manifest=order.manifest, signature=order.signature, lock=order.lock, trial=order.trial,
            back=order.back, deadline=time.time() + order.seconds,
        )  # fmt: skip
        executions.save()

    def run(self) -> list[str]:
        """The states that were told."""
        said: list[str] = []
        count_start(self.home)
        executions = Executions(self.home)
        folder = self.home / "releases"
        blobs = Blobs(folder, 0, parse("http://localhost:1"), "pi", "s", "files")

        def tell(_: str | None) -> None:
            known = executions.current or executions.past[-1]
            said.append(known.state)

        course = Course(self.key, folder, blobs, {"model": self.kind}, executions, tell)
        course.signs = self.signs
        course.stopping.wait = lambda timeout=None: False  # type: ignore[method-assign]  # nobody waits here
        try:
            course.tidy()
            if executions.current is not None:
                course.carry_out(executions.current)
        except Stopped:
            pass
        return said

    @property
    def end(self) -> Execution:
        executions = Executions(self.home)
        assert executions.current is None
        return executions.past[-1]

    @property
    def wall(self) -> str:
        return (self.home / "now").read_text()


@pytest.fixture
def device(tmp_path: Path) -> Device:
    (tmp_path / "now").write_text(OLD)
    put(tmp_path, WORDS["words"])
    return Device(tmp_path, Poem(tmp_path))


def put(home: Path, data: bytes) -> None:
    """As if it had been fetched."""
    (home / "releases").mkdir(exist_ok=True)
    (home / "releases" / hashlib.sha256(data).hexdigest()).write_bytes(data)


def test_a_good_release_goes_through_all_states_and_stays(device: Device) -> None:
    text = manifest("model", 7, WORDS)
    device.told(deploy(text))
    assert device.run() == [
        "downloading", "verifying", "staged", "switching", "probation", "succeeded"
    ]  # fmt: skip
    assert device.wall == "7.0 " + hashlib.sha256(text.encode()).hexdigest()
    assert not (device.home / "before").exists()
    assert not (device.home / "releases").exists(), "nothing is left of what was fetched"
    assert (device.end.facts, device.end.number) == ({"lines": 1.0}, 7)


def test_a_bad_release_goes_back_and_says_why(device: Device) -> None:
    device.kind.good = False
    device.told(deploy(manifest("model", 7, WORDS)))
    assert device.run()[-1] == "rolled-back"
    assert device.end.text == "it does not rhyme"
    assert device.wall == OLD


def test_what_breaks_in_the_switch_goes_back(device: Device) -> None:
    device.kind.trouble = RuntimeError("the chalk broke")
    device.told(deploy(manifest("model", 7, WORDS)))
    assert device.run()[-1] == "rolled-back"
    assert device.end.text == "the chalk broke"
    assert device.wall == OLD


def test_no_verdict_in_time_is_a_bad_one(device: Device) -> None:
    device.kind.good = None
    device.told(deploy(manifest("model", 7, WORDS), trial=1))
    assert device.run()[-1] == "rolled-back"
    assert device.end.text == "it was not proved within 1 seconds"
    assert device.wall == OLD


def test_what_it_runs_already_is_a_success_without_a_switch(device: Device) -> None:
    text = manifest("model", 7, WORDS)
    for id in ("e1", "e2"):
        device.told(deploy(text, id))
        said = device.run()
    assert said == ["succeeded"]
    assert device.end.text == "this device runs it already"


def deployable(**more: Any) -> Deploy:
    return deploy(manifest("model", 7, WORDS, **more))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: deploy(manifest("model", 7, WORDS), signature="0" * 128), "its signature is not that of the key"),
        (lambda: deploy(manifest("model"), signature=signed(manifest("config"))), "its signature is not"),
        (lambda: deploy("{}"), "its manifest is not one"),
        (lambda: deploy(manifest("agent")), "this agent takes no releases of the kind agent"),
        (lambda: deployable(expires_at=1.0), "the release has expired"),
    ],
)  # fmt: skip
def test_what_may_not_be_is_rejected(device: Device, make: Callable[[], Deploy], reason: str) -> None:
    device.told(make())
    assert device.run() == ["rejected"]
    assert device.end.text.startswith(reason)
    assert device.wall == OLD


def test_a_device_that_joined_without_a_key_takes_none(device: Device) -> None:
    device.key = None
    device.told(deployable())
    assert device.run() == ["rejected"]


def test_what_the_kind_says_of_this_device_is_the_reason(device: Device) -> None:
    device.kind.reason = "the wall is too small"
    device.told(deployable())
    assert device.run() == ["rejected"]
    assert device.end.text == "the wall is too small"


def test_without_openssl_nothing_is_taken(
    device: Device, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    device.told(deployable())
    assert device.run() == ["rejected"]
    assert "openssl cannot be run" in device.end.text


def test_openssl_that_hangs_is_no_verdict(device: Device, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    slow = tmp_path / "openssl"
    slow.write_text("#!/bin/sh\nexec /bin/sleep 60\n")
    slow.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(releases, "PATIENCE", 0.1)
    device.told(deployable())
    assert device.run() == ["failed"]
    assert device.end.retry


def test_below_the_floor_of_a_release_it_had_is_forbidden_for_ever(device: Device) -> None:
    """An older one is fine above it; the order to go back is not signed, and lifts nothing."""
    for order, end in [
        (deploy(manifest("model", 7, WORDS, floor=6), "e1"), "succeeded"),
        (deploy(manifest("model", 5, WORDS), "e2"), "rejected"),
        (deploy(manifest("model", 6, WORDS), "e3"), "succeeded"),
        (deploy(manifest("model", 5, WORDS), "e4", back=True), "rejected"),
    ]:
        put(device.home, WORDS["words"])
        device.told(order)
        assert device.run()[-1] == end, order.id


def test_no_room_is_no_fault_of_the_release(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(courses, "ROOM", 1 << 60)
    device.told(deployable())
    assert device.run()[-1] == "failed"
    assert device.end.retry
    assert device.end.text.startswith("there is no room for it")


def test_what_cannot_be_fetched_may_be_tried_again(device: Device) -> None:
    put(device.home, b"")
    text = manifest("model", 7, {"words": b"another poem"})
    device.told(deploy(text, seconds=0.2))
    assert device.run()[-1] == "failed"
    assert device.end.retry


def test_training_in_hand_is_waited_for_as_long_as_the_lock(device: Device) -> None:
    device.signs = Signs(busy=True, connected=True)
    device.told(deploy(manifest("model", 7, WORDS), lock=0.2))
    assert device.run() == [
        "downloading", "verifying", "staged", "waiting", "switching", "probation", "succeeded"
    ]  # fmt: skip


def test_an_agent_goes_on_with_what_another_one_has_written(device: Device) -> None:
    """As after an update and after a rollback: with more fields than it knows, and with fewer."""
    device.told(deploy(manifest("model", 7, WORDS)))
    saved = json.loads((device.home / NAME).read_text())
    saved["current"]["colour"] = "blue"
    del saved["current"]["facts"]
    (device.home / NAME).write_text(json.dumps(saved))
    assert device.run()[-1] == "succeeded"


def test_what_is_on_trial_without_anybodys_knowing_goes_back(device: Device) -> None:
    device.kind.deadly = True
    device.told(deploy(manifest("model", 7, WORDS)))
    with pytest.raises(PowerCut):
        device.run()
    assert device.wall != OLD
    (device.home / NAME).write_text("{")
    device.run()
    assert device.wall == OLD


def test_started_too_often_on_trial_it_goes_back(device: Device) -> None:
    device.told(deploy(manifest("model", 7, WORDS)))
    device.kind.deadly = True
    for _ in range(1 + STARTS):
        with pytest.raises(PowerCut):
            device.run()
    assert device.wall != OLD
    device.kind.deadly, device.kind.good = False, None
    assert device.run()[-1] == "rolled-back"
    assert device.end.text == f"the agent was started {STARTS} times on trial, and it was not proved"
    assert device.wall == OLD


@pytest.mark.parametrize(
    ("trouble", "end"), [(Setback("no chalk", retry=True), "failed"), (releases.Unfit("no chalk"), "rejected")]
)
def test_a_switch_that_was_not_made_is_no_rollback(device: Device, trouble: Exception, end: str) -> None:
    device.told(deploy(manifest("model", 7, WORDS)))
    device.kind.trouble = trouble
    assert device.run()[-1] == end
    assert (device.end.text, device.end.retry) == ("no chalk", end == "failed")
    assert device.wall == OLD


@contextmanager
def cut(at: int) -> Iterator[list[str]]:
    """The power fails before the ``at``-th change of the disk. Yields the changes."""
    seen: list[str] = []
    real = {name: getattr(os, name) for name in ("open", "replace", "unlink", "fsync", "rmdir")}

    def counted(name: str) -> Callable[..., Any]:
        def change(*args: Any, **kwargs: Any) -> Any:
            reading = name == "open" and not args[1] & (os.O_WRONLY | os.O_RDWR)
            if not reading:
                seen.append(name)
                if len(seen) == at:
                    raise PowerCut
            return real[name](*args, **kwargs)

        return change

    patched = pytest.MonkeyPatch()
    for name in real:
        patched.setattr(os, name, counted(name))
    try:
        yield seen
    except PowerCut:
        pass
    finally:
        patched.undo()


@pytest.mark.parametrize("good", [True, False])
def test_a_power_cut_at_any_change_of_the_disk_leaves_a_whole_release_and_an_end(
    device: Device, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory, good: bool
) -> None:
    """After the cut the wall holds the old or the new poem; from the next start on all goes as it would have gone."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr(courses, "verify", lambda *_: None)  # other tests have it; a process each time takes long
    text = manifest("model", 7, WORDS)
    new = "7.0 " + hashlib.sha256(text.encode()).hexdigest()
    cuts, done = 0, False
    while not done:
        cuts += 1
        home = tmp_path_factory.mktemp("home")
        (home / "now").write_text(OLD)
        put(home, WORDS["words"])
        again = Device(home, Poem(home, good=good))
        again.told(deploy(text))
        with cut(at=cuts) as seen:
            again.run()
        done = len(seen) < cuts
        assert again.wall in (OLD, new)
        put(home, WORDS["words"])  # it would be fetched again
        again.run()
        assert again.end.state == ("succeeded" if good else "rolled-back"), f"cut before change {cuts}: {seen[-1:]}"
        assert again.wall == (new if good else OLD)
        assert not (home / "before").exists()
    assert cuts > 30


def test_the_signature_is_over_the_very_bytes(tmp_path: Path) -> None:
    """Against openssl's own making of it."""
    text = manifest("config", 1, settings="pace = 2\n")
    releases.verify(KEY, text, signed(text))
    for wrong in (text + "\n", text.replace("pace", "Pace")):
        with pytest.raises(releases.Unfit):
            releases.verify(KEY, wrong, signed(text))
    assert subprocess.run(["openssl", "version"], check=True, capture_output=True).stdout
