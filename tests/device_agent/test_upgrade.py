"""The agent's part of its own update: what it leaves for the updater, what it says of itself, what it believes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from attrs import define, field

from coordinator.fleet.board import download, update_units
from coordinator.fleet.board.units import HOME
from device_agent import __version__, upgrade
from device_agent.releases import Release, Setback, Trial, Unfit
from device_agent.runtime import NUMPY
from device_agent.upgrade import VARIABLE, Upgrade, target
from protocol.deployments import Deployed, Manifest
from protocol.wire import decode
from tests.device_agent.released import manifest, signed

BUNDLE = b"bundle"
WELL = Trial(seconds=3, left=100, starts=1, connected=True, answered=True)


@define
class Board:
    """An updater's folder, and the agent as one of its releases."""

    root: Path
    happens: list[Callable[[], None]] = field(factory=list)

    @property
    def home(self) -> Path:
        return self.root / "home"

    def agent(self, release: str = "old", updater: bool = True) -> Upgrade:
        """``happens`` is what the updater does while the agent sleeps, one after the other."""
        environ = {VARIABLE: str(self.root / "updater")} if updater else {}
        program = self.root / "releases" / release / "device_agent" / "upgrade.py"
        return Upgrade(self.home, NUMPY, environ, program, self.sleep)

    def sleep(self, _: float) -> None:
        if self.happens:
            self.happens.pop(0)()

    def note(self, name: str, **values: Any) -> None:
        (self.root / "updater" / name).write_text(json.dumps(values))

    def asked(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.home / "update" / "request.json").read_text())
        return found


@pytest.fixture
def board(tmp_path: Path) -> Board:
    for name in ("home", "updater"):
        (tmp_path / name).mkdir()
    return Board(tmp_path)


@pytest.fixture
def release(tmp_path: Path) -> Release:
    text = manifest("agent", 2, {target(): BUNDLE})
    folder = tmp_path / "fetched"
    folder.mkdir()
    made = Release("e1", text, signed(text), decode(Manifest, text.encode()), folder, 60)
    made.path(target()).write_bytes(BUNDLE)
    return made


def test_without_an_updater_it_says_what_to_do(board: Board, release: Release) -> None:
    said = board.agent(updater=False).fit(release.manifest)
    assert said is not None
    assert "no updater" in said
    assert board.agent().fit(release.manifest) is None


def test_a_release_for_other_boards_is_none_for_this(board: Board) -> None:
    text = manifest("agent", 2, {"riscv64-cp313": BUNDLE})
    said = board.agent().fit(decode(Manifest, text.encode()))
    assert said == f"the release has no bundle for {target()}, there is: riscv64-cp313"


def test_both_sides_call_this_board_the_same() -> None:
    assert target() == download.target()
    assert update_units.INCOMING == upgrade.FOLDER
    assert f"{HOME}/{upgrade.FOLDER}/request.json" in update_units.UNITS["shoal-update.path"]
    assert f"Environment={VARIABLE}={update_units.STATE}" in update_units.UNITS["shoal-agent.service.d/update.conf"]


def test_it_asks_with_all_that_root_has_to_know(board: Board, release: Release) -> None:
    agent = board.agent()
    agent.stage(release)
    assert [path.read_bytes() for path in (board.home / "update").iterdir()] == [BUNDLE]
    seen: list[dict[str, Any]] = []
    board.happens = [
        lambda: seen.append(board.asked()),
        lambda: board.note("result.json", id="e1", state="succeeded", text="", retry=False),
    ]
    agent.switch(release)
    assert seen == [{"id": "e1", "manifest": release.text, "signature": release.signature, "trial": 60}]


@pytest.mark.parametrize(("state", "error"), [("rejected", Unfit), ("failed", Setback)])
def test_what_the_updater_refuses_was_not_switched(
    board: Board, release: Release, state: str, error: type[Exception]
) -> None:
    agent = board.agent()
    agent.stage(release)
    board.happens = [lambda: board.note("result.json", id="e1", state=state, text="no room", retry=True)]
    with pytest.raises(error, match="no room"):
        agent.switch(release)


def test_a_result_of_another_deployment_says_nothing(board: Board, release: Release) -> None:
    board.note("result.json", id="e0", state="rejected", text="", retry=False)
    agent = board.agent()
    agent.stage(release)
    board.happens = [lambda: board.note("result.json", id="e1", state="succeeded", text="", retry=False)]
    agent.switch(release)


def test_an_updater_that_never_answers_is_given_up(
    board: Board, release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upgrade, "UNHEARD", 2.0)
    agent = board.agent()
    agent.stage(release)
    with pytest.raises(Setback) as said:
        agent.switch(release)
    assert said.value.retry
    assert not (board.home / "update" / "request.json").exists(), "or it would be done when nobody expects it"


def test_the_new_agent_knows_that_it_is_on_trial(board: Board, release: Release) -> None:
    board.note("trial.json", id="e1", release="new", manifest=release.sha256, version="2.0")
    agent = board.agent("new")
    agent.switch(release)
    assert not (board.home / "update").exists(), "nothing is asked for again"
    assert agent.current() == release.deployed


def test_it_says_that_it_is_well_only_when_it_is(board: Board, release: Release) -> None:
    board.note("trial.json", id="e1", release="new", manifest=release.sha256, version="2.0")
    (board.home / "update").mkdir()
    new, confirm = board.agent("new"), board.home / "update" / "confirm.json"
    for connected, answered in ((False, False), (True, False), (False, True)):
        assert new.judge(release, Trial(1, 50, 1, connected, answered)) is None
    assert board.agent("old").judge(release, WELL) is None, "the old one does not speak for the new one"
    assert not confirm.exists()
    board.happens = [lambda: board.note("result.json", id="e1", state="succeeded", text="", retry=False)]
    verdict = new.judge(release, WELL)
    assert verdict is not None
    assert (verdict.good, verdict.facts) == (True, {"seconds": 3.0})
    assert json.loads(confirm.read_text()) == {"manifest": release.sha256}


def test_an_agent_that_could_not_train_does_not_say_that_it_is_well(board: Board, release: Release) -> None:
    board.note("trial.json", id="e1", release="new", manifest=release.sha256, version="2.0")
    agent = board.agent("new")
    agent._backend = "abacus"
    with pytest.raises(Setback, match="abacus"):
        agent.judge(release, WELL)


def test_the_old_agent_tells_of_the_rollback(board: Board, release: Release) -> None:
    board.note("result.json", id="e1", state="rolled-back", text="started 3 times", retry=False)
    verdict = board.agent().judge(release, WELL)
    assert verdict is not None
    assert (verdict.good, verdict.switched, verdict.text) == (False, True, "started 3 times")


def test_going_back_is_asked_for_only_during_a_trial(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = board.agent("new")
    agent.back()
    assert not (board.home / "update").exists()
    board.note("trial.json", release="new")
    board.happens = [lambda: (board.root / "updater" / "trial.json").unlink()]
    agent.back()
    assert board.asked() == {"back": True}
    board.note("trial.json", release="new")
    monkeypatch.setattr(upgrade, "UNHEARD", 2.0)
    with pytest.raises(Setback):
        agent.back()


def test_what_runs_is_what_the_updater_has_proved(board: Board, release: Release) -> None:
    assert board.agent().current() == Deployed(kind="agent", version=__version__)
    board.note("state.json", release="old", manifest=release.sha256, version="2.0")
    assert board.agent("old").current() == release.deployed
    assert board.agent("new").current() == Deployed(kind="agent", version=__version__)
