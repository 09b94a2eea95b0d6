"""Rollouts to many boards that answer through the steward: aborted by the rule, and the same whoever is killed."""

from __future__ import annotations

import random
import shutil

import pytest
from attrs import define, field

from coordinator.fleet import orders, releases
from coordinator.fleet.orders import Target
from coordinator.fleet.releases import ReleaseKey
from coordinator.fleet.rules import Rules
from coordinator.store import models
from coordinator.training import steward
from protocol.deployments import Deploy, Deployment, Recall
from protocol.messages import CheckIn, Telemetry
from protocol.wire import encode
from tests.training.house import ANSWERS, House

STEP = 30.0
"""Seconds of the clock between two rounds."""
BEAT = Telemetry(
    boot="b-1", uptime=12.5, state="idle", assignment=None, step=None, load=0.5, temperature=48.0, memory=1 << 30,
    memory_free=1 << 28, disk_free=None, spool=0, training=9.5, since=1.0, cpu=0.25, throttled=(), battery=None,
    mains=True, metered=False, goodput=None, phases={}, waiting=None,
)  # fmt: skip
COURSE = ("accepted", "downloading", "verifying", "switching", "probation")


@define
class Board:
    """Takes a release through its course, one state a round. What it says it repeats until it was acknowledged."""

    name: str
    bad: bool
    order: str = ""
    said: int = 0
    ended: dict[str, Deployment] = field(factory=dict)
    unsent: list[Deployment] = field(factory=list)

    def told(self, message: object) -> None:
        if isinstance(message, Deploy) and message.id not in self.ended and message.id != self.order:
            self.order, self.said = message.id, 0
        elif isinstance(message, Deploy) and message.id in self.ended:
            self.unsent.append(self.ended[message.id])
        elif isinstance(message, Recall) and message.id == self.order and self.said < 4:
            self.order = ""

    def advance(self) -> None:
        if not self.order:
            return
        state = COURSE[self.said] if self.said < len(COURSE) else "rolled-back" if self.bad else "succeeded"
        self.said += 1
        report = Deployment(id=self.order, number=self.said, state=state)
        self.unsent.append(report)
        if self.said > len(COURSE):
            self.ended[self.order], self.order = report, ""


@define
class Field:
    """All boards, before a coordinator that may die at any moment."""

    house: House
    boards: dict[str, Board]
    chance: random.Random
    lost: float = 0.0
    read: dict[str, int] = field(factory=dict)

    def meet(self) -> None:
        """Everybody says what it can do."""
        said = CheckIn(
            id="x", protocol=1, agent="0.1.0", runtime="tflite-2.14", features=("train", "deploy"), samples=50,
            input=(4,), classes=3, held=None, unsent=(),
        )  # fmt: skip
        for event in [self.house.hear(name, "check-in", encode(said)) for name in self.boards]:
            assert event.wait(30)

    def round(self) -> None:
        self.house.clock.now += STEP
        beat = encode(BEAT)
        acknowledged = [self.house.hear(name, "telemetry", beat) for name in self.boards]
        for board in self.boards.values():
            heard = self.house.sent[board.name]
            for message in heard[self.read.get(board.name, 0) :]:
                board.told(message)
            self.read[board.name] = len(heard)
            board.advance()
            kept = []
            for report in board.unsent:
                if self.chance.random() < self.lost:
                    kept.append(report)
                else:
                    acknowledged.append(self.house.hear(board.name, "deployment", encode(report)))
            board.unsent = kept
        for event in acknowledged:
            assert event.wait(30)
        self.looked()

    def looked(self) -> None:
        """The steward has looked at the rollouts at this time."""
        courses, now = self.house.steward._rollouts._courses, self.house.clock.now
        looks = lambda: [course.looked for course in list(courses.values())]  # noqa: E731 - read by another thread
        self.house.until(lambda: now in looks() or not open_rollouts(self.house))

    def crash(self, folder) -> None:
        """The power fails; another coordinator goes on with the files as they are."""
        old, self.house = self.house, self.house.crashed(folder)
        old.close()
        self.read.clear()


def open_rollouts(house: House) -> list[models.Rollout]:
    return [row for row in house.rows(models.Rollout) if row.ended_at is None]


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(steward, "BEAT", 0.005)
    monkeypatch.setitem(ANSWERS, "deploy", Deploy)
    monkeypatch.setitem(ANSWERS, "recall", Recall)


def opened(folder, migrated, count: int, lost: float = 0.0) -> Field:
    """A house with so many boards, every tenth of which goes back from any release."""
    folder.mkdir()
    shutil.copy(migrated, folder / "shoal.db")
    house = House(folder).open()
    names = [f"board-{number:03d}" for number in range(count)]
    house.enrol(*names)
    boards = {name: Board(name, bad=number % 10 == 3) for number, name in enumerate(names)}
    return Field(house, boards, random.Random(1), lost)


def begun(field: Field, **rules) -> None:
    house = field.house
    field.meet()

    def begin(session) -> None:
        key = ReleaseKey.of(house.home)
        made = releases.create(session, key, kind="config", version="night", now=house.clock.now, by="ada")
        orders.start(session, made.id, Target(every=True), Rules(**rules), house.clock.now, 10.0, by="ada")

    house.steward.write(begin)


def ran(field: Field, rounds: int = 2000) -> models.Rollout:
    for _ in range(rounds):
        field.round()
        row = field.house.row(models.Rollout)
        if row.ended_at is not None:
            return row
    raise AssertionError("it came to no end")


def outcome(house: House) -> dict[str, str]:
    return {one.device_id: one.state for one in house.rows(models.Execution)}


def test_a_release_that_every_tenth_of_200_boards_goes_back_from_is_aborted(tmp_path, migrated, quick):
    field = opened(tmp_path / "home", migrated, 200)
    begun(field, waves=(0.05, 0.5, 1), soak=0.0, success=0.5, abort_share=0.05, parallel=50)
    row = ran(field)
    states = list(outcome(field.house).values())
    good, bad = states.count("succeeded"), states.count("rolled-back")
    assert row.state == "aborted", row.reason
    assert bad >= max(2, 0.05 * (good + bad))
    assert states.count("cancelled") == 200 - good - bad > 50
    assert good + bad <= 110  # who was in the first two waves, and under way
    field.house.close()


@pytest.mark.parametrize(
    ("count", "kills", "soak"), [(30, 4, 0.0), pytest.param(200, 20, 600.0, marks=pytest.mark.soak)]
)
def test_a_coordinator_that_dies_again_and_again_ends_where_it_would_have(
    tmp_path, migrated, quick, count, kills, soak
):
    field = opened(tmp_path / "home-0", migrated, count, lost=0.3)
    begun(field, waves=(0.1, 0.5, 1), soak=soak, success=0.0, abort_share=1.0, parallel=10)
    for kill in range(1, kills + 1):
        for _ in range(field.chance.randrange(1, 8)):
            field.round()
        field.crash(tmp_path / f"home-{kill}")
    row = ran(field)
    assert row.state == "completed"
    expected = {name: "rolled-back" if board.bad else "succeeded" for name, board in field.boards.items()}
    assert outcome(field.house) == expected
    changes = field.house.rows(models.ExecutionChange)
    ends = [one.execution_id for one in changes if one.state in ("succeeded", "rolled-back")]
    assert len(ends) == len(set(ends)) == count  # nobody's end was counted twice
    assert not any(one.state == "timed-out" for one in changes)
    field.house.close()
