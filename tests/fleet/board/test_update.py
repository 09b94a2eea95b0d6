"""The updater in a folder that stands for a board: whatever comes, and whenever the power fails, a whole release is
current and the agent can be started."""

from __future__ import annotations

import base64
import compileall
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from attrs import define, field

from coordinator.fleet import board as boards
from coordinator.fleet.board.system import Board, run
from coordinator.fleet.board.trial import STARTS, Trials
from coordinator.fleet.board.update import Updater
from coordinator.fleet.board.update_units import UNITS
from tests.device_agent.released import KEY, manifest, signed

FITS = "aarch64-cp313"


class PowerCut(BaseException):
    """Nothing after this happens in this process."""


def bundle(version: str, **files: str) -> bytes:
    """A bundle that says which version it is; the same bytes for the same version."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:xz") as archive:
        for name, text in {"bundle.json": '{"board": []}', "device_agent/version": version, **files}.items():
            info = tarfile.TarInfo(name)
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text.encode()))
    return packed.getvalue()


OLD, NEW = bundle("1"), bundle("2")


def name(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


@define
class Lab:
    """A board: root's programs and the agent's folder. ``well`` says whether the agent of a version proves itself."""

    root: Path
    well: Callable[[str], bool] = field(default=lambda version: True)
    restarts: int = 0
    starts: bool = True

    @property
    def board(self) -> Board:
        return Board(self.root, self.run)

    @property
    def incoming(self) -> Path:
        return self.root / "var/lib/shoal-agent/update"

    @property
    def current(self) -> str:
        """The version that is current: a whole release, or the test ends here."""
        place = self.root / "opt/shoal/current"
        assert (place / ".complete").exists(), "a whole release is current"
        assert json.loads((place / "bundle.json").read_text()) == {"board": []}
        return (place / "device_agent/version").read_text()

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        if command[0] == "openssl":
            return run(*command, check=check)
        if command[:2] == ("systemctl", "restart"):
            self.start_agent()
        code = 0 if self.starts or command[0] != "runuser" else 1
        return subprocess.CompletedProcess(command, code, "Traceback")

    def start_agent(self) -> None:
        """The agent that is current starts; if it is the one on trial, and well, it says so."""
        self.restarts += 1
        version, trial = self.current, self.result("trial.json")
        if trial and trial["release"] == Trials(self.board).current and self.well(version):
            (self.incoming / "confirm.json").write_text(json.dumps({"manifest": trial["manifest"]}))

    def result(self, of: str = "result.json") -> dict[str, Any] | None:
        return Trials(self.board).read(of)

    def ask(self, content: bytes, number: int = 2, **more: Any) -> str:
        """Leave a request as the agent does; the manifest's text."""
        self.incoming.mkdir(parents=True, exist_ok=True)
        text = manifest("agent", number, {FITS: content}, **more)
        (self.incoming / hashlib.sha256(content).hexdigest()).write_bytes(content)
        self.write({"id": f"e{number}", "manifest": text, "signature": signed(text), "trial": 1})
        return text

    def write(self, request: dict[str, Any]) -> None:
        (self.incoming / "request.json").write_text(json.dumps(request))

    def take(self) -> None:
        """No time passes between two looks, but for the clock's own."""
        Updater(self.board, FITS).take(lambda _: None)

    def boot(self) -> None:
        """Power is on: the agent's start is counted, it starts, and what was on trial is looked at."""
        if (self.root / "var/lib/shoal-update/trial.json").exists():
            Trials(self.board).started()
        self.start_agent()
        self.take()


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return made(tmp_path)


def made(root: Path) -> Lab:
    """A board with the old release, as the installer leaves it."""
    lab = Lab(root)
    place = root / "opt/shoal/releases" / name(OLD)
    place.parent.mkdir(parents=True)
    packed = root / "old.tar.xz"
    packed.write_bytes(OLD)
    lab.board.extract(packed, place)
    lab.board.point(name(OLD))
    lab.board.path("/etc/shoal").mkdir(parents=True)
    lab.incoming.mkdir(parents=True)
    key = "-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n"
    lab.board.write("/etc/shoal/release.key.pem", key.format(der()))
    return lab


def der() -> str:
    return base64.b64encode(bytes.fromhex("302a300506032b6570032100" + KEY)).decode()


def test_a_good_release_is_current_and_remembered(lab: Lab) -> None:
    text = lab.ask(NEW, floor=2)
    lab.take()
    assert lab.current == "2"
    assert lab.result() == {"id": "e2", "state": "succeeded", "text": "", "retry": False}
    state = lab.result("state.json")
    assert state is not None
    assert (state["release"], state["manifest"]) == (name(NEW), hashlib.sha256(text.encode()).hexdigest())
    assert (state["number"], state["floor"], state["before"]) == (2, 2, name(OLD))
    assert lab.restarts == 1
    assert not list(lab.incoming.glob("request.json"))


def test_one_that_does_not_prove_itself_goes_back_and_is_not_taken_again(lab: Lab) -> None:
    lab.well = lambda version: version == "1"
    text = lab.ask(NEW)
    Updater(lab.board, FITS).take(lambda _: time.sleep(1.01))
    assert lab.current == "1"
    assert lab.result() == {
        "id": "e2", "state": "rolled-back", "retry": False,
        "text": "the agent did not prove itself within 1 seconds",
    }  # fmt: skip
    lab.write({"id": "e3", "manifest": text, "signature": signed(text), "trial": 1})
    lab.take()
    said = lab.result()
    assert said is not None
    assert (said["id"], said["state"]) == ("e3", "rejected")
    assert "went back" in said["text"]


def test_three_starts_without_proof_are_enough(lab: Lab) -> None:
    lab.well = lambda version: version == "1"
    on_trial(lab)
    for _ in range(STARTS):
        Trials(lab.board).started()
        assert lab.current == "2"
    Trials(lab.board).started()
    assert lab.current == "1", "before the agent is started a fourth time"
    assert lab.result()["text"] == "the agent was started 3 times and did not prove itself"  # type: ignore[index]


def test_the_failed_unit_goes_back(lab: Lab) -> None:
    on_trial(lab)
    Trials(lab.board).back("the unit has failed with it")
    assert lab.current == "1"
    assert lab.result()["state"] == "rolled-back"  # type: ignore[index]
    Trials(lab.board).back("again")
    assert lab.result()["text"] == "the unit has failed with it", "nothing is on trial any more"  # type: ignore[index]


def test_the_agent_may_ask_to_go_back(lab: Lab) -> None:
    on_trial(lab)
    lab.write({"back": True})
    lab.take()
    assert lab.current == "1"
    assert lab.result()["text"] == "the agent asked to go back"  # type: ignore[index]


def test_without_a_trial_nobody_goes_back(lab: Lab) -> None:
    lab.write({"back": True})
    lab.take()
    Trials(lab.board).started()
    Trials(lab.board).back("x")
    assert (lab.current, lab.restarts, lab.result()) == ("1", 0, None)


def on_trial(lab: Lab) -> None:
    """The new release is current and on trial, and the updater is gone."""
    well, lab.well = lab.well, lambda version: False
    lab.ask(NEW)

    def gone(_: float) -> None:
        if lab.current == "2":
            raise PowerCut

    with pytest.raises(PowerCut):
        Updater(lab.board, FITS).take(gone)
    lab.well = well


def test_two_releases_are_kept(lab: Lab) -> None:
    for number in range(2, 5):
        lab.ask(bundle(str(number)), number)
        lab.take()
        assert lab.current == str(number)
    kept = {path.name for path in (lab.root / "opt/shoal/releases").iterdir()}
    assert kept == {name(bundle("4")), name(bundle("3"))}


def test_the_release_before_needs_no_bundle(lab: Lab) -> None:
    lab.ask(NEW)
    lab.take()
    text = manifest("agent", 1, {FITS: OLD})
    lab.write({"id": "e9", "manifest": text, "signature": signed(text), "trial": 1})
    lab.take()
    assert lab.current == "1"
    assert lab.result()["state"] == "succeeded"  # type: ignore[index]


def test_a_copy_of_a_bundle_of_another_content_is_refused(lab: Lab) -> None:
    lab.ask(NEW)
    sha256 = hashlib.sha256(NEW).hexdigest()
    for wrong in (NEW[:-1], NEW + b"x", bytes(len(NEW)), b""):
        text = manifest("agent", 2, {FITS: NEW})
        (lab.incoming / sha256).write_bytes(wrong)
        lab.write({"id": "e2", "manifest": text, "signature": signed(text), "trial": 1})
        lab.take()
        assert lab.current == "1"
        assert lab.result()["retry"], wrong  # type: ignore[index]
    assert [path.name for path in (lab.root / "opt/shoal/releases").iterdir()] == [name(OLD)]


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"kind": "model"}, "no release of the agent"),
        ({"number": 3}, "takes none below 5"),
        ({"expires_at": 1.0}, "expired"),
        ({"files": {"armv7l-cp311": NEW}}, f"no bundle for {FITS}"),
    ],
)
def test_a_signed_release_that_may_not_be_here_is_refused(lab: Lab, more: dict[str, Any], says: str) -> None:
    Trials(lab.board).keep("state.json", {"floor": 5})
    text = manifest(**{"kind": "agent", "number": 6, "files": {FITS: NEW}, **more})
    lab.write({"id": "e1", "manifest": text, "signature": signed(text), "trial": 1})
    lab.take()
    said = lab.result()
    assert said is not None
    assert (said["state"], lab.current) == ("rejected", "1")
    assert says in said["text"]


@pytest.mark.parametrize("text", ["{}", "[]", "nonsense", '{"files": [{}]}', '{"files": 7}', "[" * 5000])
def test_nonsense_that_is_signed_is_refused(lab: Lab, text: str) -> None:
    lab.write({"id": "e1", "manifest": text, "signature": signed(text), "trial": 1})
    lab.take()
    assert lab.result()["state"] == "rejected"  # type: ignore[index]


def test_a_signature_of_somebody_else_is_refused(lab: Lab) -> None:
    text = lab.ask(NEW)
    lab.write({"id": "e2", "manifest": text.replace("2.0", "2.1"), "signature": signed(text), "trial": 1})
    lab.take()
    assert lab.current == "1"
    assert "signature" in lab.result()["text"]  # type: ignore[index]


def test_without_openssl_or_a_key_nothing_is_taken(lab: Lab, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    lab.ask(NEW)
    (lab.root / "etc/shoal/release.key.pem").rename(tmp_path / "key")
    lab.take()
    assert "no key" in lab.result()["text"]  # type: ignore[index]
    (tmp_path / "key").rename(lab.root / "etc/shoal/release.key.pem")
    monkeypatch.setenv("PATH", str(tmp_path))
    lab.ask(NEW)
    lab.take()
    assert "openssl cannot be run" in lab.result()["text"]  # type: ignore[index]
    assert lab.current == "1"


def test_an_agent_that_does_not_even_start_is_no_trial(lab: Lab) -> None:
    lab.starts = False
    lab.ask(NEW)
    lab.take()
    said = lab.result()
    assert said is not None
    assert (said["state"], said["retry"], lab.restarts) == ("failed", False, 0)
    assert "does not start" in said["text"]


def linked(lab: Lab) -> None:
    """The folder is a link to where root alone may write."""
    lab.incoming.rmdir()
    lab.incoming.symlink_to(lab.root / "etc/shoal")
    (lab.root / "etc/shoal/request.json").write_text("{}")


def a_link_for_a_file(lab: Lab) -> None:
    (lab.incoming / "request.json").symlink_to(lab.root / "etc/shoal/release.key.pem")


def a_pipe(lab: Lab) -> None:
    os.mkfifo(lab.incoming / "request.json")


def a_folder(lab: Lab) -> None:
    (lab.incoming / "request.json" / "deep" / "er").mkdir(parents=True)
    (lab.incoming / "request.json" / "link").symlink_to(lab.root / "etc/shoal")


def too_long(lab: Lab) -> None:
    (lab.incoming / "request.json").write_bytes(b" " * (1 << 20))


def too_deep(lab: Lab) -> None:
    (lab.incoming / "request.json").write_text("[" * 100_000)


def no_text(lab: Lab) -> None:
    lab.write({"id": "e1", "manifest": "\ud800", "signature": "0" * 128, "trial": 5})


def of_other_types(lab: Lab) -> None:
    lab.write({"id": ["../../etc"], "manifest": {}, "signature": 7, "trial": "long"})


def a_trial_for_ever(lab: Lab) -> None:
    text = manifest("agent", 2, {FITS: NEW})
    lab.write({"id": "e1", "manifest": text, "signature": signed(text), "trial": 1e300})


def a_linked_bundle(lab: Lab) -> None:
    lab.ask(NEW)
    bundle_file = lab.incoming / hashlib.sha256(NEW).hexdigest()
    bundle_file.rename(lab.root / "elsewhere")
    bundle_file.symlink_to(lab.root / "elsewhere")


def a_bundle_that_is_a_pipe(lab: Lab) -> None:
    lab.ask(NEW)
    (lab.incoming / hashlib.sha256(NEW).hexdigest()).unlink()
    os.mkfifo(lab.incoming / hashlib.sha256(NEW).hexdigest())


def a_bundle_that_climbs(lab: Lab) -> None:
    lab.ask(bundle("2", **{"../outside": "x"}))


@pytest.mark.parametrize(
    "hostile",
    [
        linked, a_link_for_a_file, a_pipe, a_folder, too_long, too_deep, no_text, of_other_types, a_trial_for_ever,
        a_linked_bundle, a_bundle_that_is_a_pipe, a_bundle_that_climbs,
    ],
)  # fmt: skip
def test_what_the_agents_user_writes_is_believed_by_nobody(lab: Lab, hostile: Callable[[Lab], None]) -> None:
    hostile(lab)
    before = {path: path.read_bytes() for path in (lab.root / "etc").rglob("*") if path.is_file()}
    lab.take()
    assert lab.current == "1"
    assert lab.restarts == 0
    assert {path: path.read_bytes() for path in (lab.root / "etc").rglob("*") if path.is_file()} == before
    assert hostile is linked or not os.path.lexists(lab.incoming / "request.json"), "or systemd would call again"
    assert not (lab.root / "opt/shoal/releases/outside").exists()
    assert not (lab.root / "opt/shoal/outside").exists()


def test_nobody_else_can_hold_the_lock(lab: Lab) -> None:
    Trials(lab.board).started()
    assert (lab.root / "var/lib/shoal-update/lock").stat().st_mode & 0o077 == 0


def test_a_damaged_note_of_a_trial_ends_it(lab: Lab) -> None:
    on_trial(lab)
    (lab.root / "var/lib/shoal-update/trial.json").write_bytes(b"\0" * 100)
    lab.boot()
    assert lab.current == "1"
    assert lab.result("trial.json") is None


def test_a_full_disk_does_not_keep_it_from_going_back(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    on_trial(lab)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Board, "write", full)
    Trials(lab.board).started()
    assert lab.current == "1"
    assert not Trials(lab.board).on


CHANGES = ("open", "replace", "unlink", "rename", "symlink", "mkdir", "rmdir", "fsync", "sync")


@contextmanager
def cut(at: int) -> Iterator[list[str]]:
    """The power fails before the ``at``-th change of the disk. Yields the changes."""
    seen: list[str] = []
    real = {one: getattr(os, one) for one in CHANGES}

    def counted(one: str) -> Callable[..., Any]:
        def change(*args: Any, **kwargs: Any) -> Any:
            if one != "open" or args[1] & (os.O_WRONLY | os.O_RDWR):
                seen.append(one)
                if len(seen) == at:
                    raise PowerCut
            return None if one in ("fsync", "sync") else real[one](*args, **kwargs)

        return change

    patched = pytest.MonkeyPatch()
    for one in real:
        patched.setattr(os, one, counted(one))
    try:
        yield seen
    except PowerCut:
        pass
    finally:
        patched.undo()


@pytest.mark.parametrize("good", [True, False])
def test_the_power_may_fail_before_any_change_of_the_disk(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, good: bool
) -> None:
    """At once after it a whole release is current; once the power stays, the update ends as it would have, or was not
    begun and is asked for again."""
    monkeypatch.setattr(os, "sync", lambda: None)
    monkeypatch.setattr(os, "fsync", lambda _: None)
    # Both start processes, and change nothing that matters here.
    monkeypatch.setattr(compileall, "compile_dir", lambda *_, **__: None)
    monkeypatch.setattr(Updater, "_verify", lambda *_: None)
    cuts, done = 0, False
    while not done:
        cuts += 1
        lab = made(tmp_path_factory.mktemp("board"))
        lab.well = (lambda version: True) if good else (lambda version: version == "1")
        lab.ask(NEW)
        with cut(at=cuts) as seen:
            hurried(lab)
        done = len(seen) < cuts
        assert lab.current in ("1", "2"), f"after the cut before change {cuts}, {seen[-1:]}"
        for _ in range(2):  # the second finds nothing to do
            rebooted(lab)
        if lab.result() is None:  # the request was lost with the power; the agent, which knows, asks again
            assert lab.current == "1"
            lab.ask(NEW)
            hurried(lab)
        assert lab.current == ("2" if good else "1"), f"after the cut before change {cuts}, {seen[-1:]}"
        assert lab.result()["state"] == ("succeeded" if good else "rolled-back")  # type: ignore[index]
        assert not Trials(lab.board).on
    assert cuts > 30


def hurried(lab: Lab) -> None:
    """As ``take``, for an agent that is asked back as soon as it was looked at: no time has to pass."""
    looks = 0

    def look(_: float) -> None:
        nonlocal looks
        looks += 1
        if looks > 2:
            lab.write({"back": True})

    Updater(lab.board, FITS).take(look)


def rebooted(lab: Lab) -> None:
    if Trials(lab.board).on:
        Trials(lab.board).started()
    lab.start_agent()
    hurried(lab)


def test_it_may_fail_again_and_again_while_the_new_release_is_on_trial(lab: Lab) -> None:
    on_trial(lab)
    for _ in range(5):
        Trials(lab.board).started()
        assert lab.current in ("1", "2")
    lab.boot()
    assert lab.current == "1"


def test_a_power_cut_in_the_trial_does_not_spoil_a_good_release(lab: Lab) -> None:
    on_trial(lab)
    for _ in range(STARTS - 1):
        Trials(lab.board).started()
    lab.boot()
    assert (lab.current, lab.result()["state"]) == ("2", "succeeded")  # type: ignore[index]


def test_the_updater_travels_as_one_file_of_the_standard_library(tmp_path: Path) -> None:
    """Isolated Python: nothing of this machine's packages is there."""
    program = tmp_path / "shoal-update"
    program.write_bytes(boards.updater())
    done = subprocess.run([sys.executable, "-IS", str(program)], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "shoal-update take" in done.stderr
    assert program.read_bytes().startswith(b"#!/usr/bin/python3 -IS\n")


def test_an_installer_in_a_file_makes_the_same_updater(tmp_path: Path) -> None:
    (tmp_path / "install.pyz").write_bytes(boards.program())
    code = "import sys; sys.path.insert(0, sys.argv[1]); import board; sys.stdout.buffer.write(board.updater())"
    command = [sys.executable, "-IS", "-c", code, str(tmp_path / "install.pyz")]
    assert subprocess.run(command, check=True, capture_output=True).stdout == boards.updater()


def test_the_agent_starts_even_if_the_updater_does_not() -> None:
    drop_in = UNITS["shoal-agent.service.d/update.conf"]
    (line,) = [line for line in drop_in.splitlines() if line.startswith("ExecStartPre=")]
    assert line.startswith("ExecStartPre=-+"), "its failure is ignored, and it runs as root"
