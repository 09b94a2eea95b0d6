"""Rollouts under way: what devices are told and tell of releases. Runs on the steward's thread, inside a transaction.

Everything is in rows; what is kept here is which devices are to be told again, and what need not be asked twice.
"""

from __future__ import annotations

from typing import Final

from attrs import define, field
from sqlalchemy import select
from sqlalchemy.orm import Session

from coordinator.fleet import orders, record, rollout
from coordinator.fleet.rollout import ACTIVE, NOTIFIED, QUEUED, Execution, Rollout, Standing
from coordinator.fleet.rules import Rules
from coordinator.store import models
from coordinator.store.models import Device, DeviceRelease, Release
from coordinator.store.registry import OFFLINE_AFTER
from coordinator.training.turn import Turn
from protocol.deployments import Deploy, Deployed, Deployment, Recall

AGAIN: Final = 10.0
"""Seconds after which a device that has not answered is told again."""
REMINDER: Final = 60.0
"""The same for one that has taken the release and has not said anything since."""
LOOK: Final = 2.0
"""Seconds between two looks at a rollout in which nothing happens."""
NEWCOMERS: Final = 30.0
"""Seconds between two looks for devices that have joined."""
FEATURE: Final = "deploy"
STOPPABLE: Final = ("accepted", "downloading", "verifying", "staged", "waiting")
_ROWS: Final = 500


@define
class _Order:
    """A device was told; ``heard`` is when, or when it last said something of it."""

    rollout: int
    state: str
    heard: float = 0.0


@define
class _Course:
    """The executions of a rollout as their rows are, and which devices went back from its release before."""

    executions: dict[str, Execution]
    barred: set[str]
    joined: float
    mark: object = None
    looked: float = 0.0


@define
class Rollouts:
    """``heartbeat`` in seconds: who was not heard for a multiple of it is not there."""

    heartbeat: float
    _courses: dict[int, _Course] = field(factory=dict)
    _orders: dict[str, dict[str, _Order]] = field(factory=dict)
    """By device and execution: what was told and has not ended."""
    _features: dict[str, tuple[str, ...] | None] = field(factory=dict)
    """None where nobody knows."""
    _heard: dict[str, float] = field(factory=dict)
    _gone: set[str] = field(factory=set)
    _since: float = 0.0

    def recover(self, turn: Turn) -> None:
        """Forget everything, and read what is under way."""
        self._courses.clear()
        self._orders.clear()
        self._features.clear()
        self._since = turn.now
        for row in record.under_way(turn.session):
            self._load(turn, row)

    # -- what devices say ----------------------------------------------------------------------------------------

    def heard(self, turn: Turn, device: str, *, anew: bool = False) -> None:
        """A sign of life: who was told of a release and has not ended with it is told again, after a while or, if it
        may have come ``anew``, at once."""
        self._heard[device] = turn.now
        for id, order in self._orders.get(device, {}).items():
            patience = AGAIN if order.state == NOTIFIED else REMINDER
            if turn.now - order.heard >= patience or (anew and order.state == NOTIFIED and turn.now > order.heard):
                self._deploy(turn, id, order)

    def checked_in(self, turn: Turn, device: str, features: tuple[str, ...]) -> None:
        """What its agent can do, kept with its capability."""
        if self._features.get(device) == features:
            return
        capability = turn.session.scalar(select(Device.capability).where(Device.id == device)) or {}
        if tuple(capability.get("features", ())) != features:
            turn.seen(device, capability={**capability, "features": list(features)})
        self._features[device] = features

    def reported(self, turn: Turn, device: str, told: Deployment) -> None:
        """How far an execution is. What is said of one that is not this device's says nothing."""
        row = turn.session.get(models.Execution, told.id.partition(".")[0])
        if row is None or row.device_id != device:
            return
        before = record.execution_of(row)
        if told.id != before.order:
            return  # of an attempt whose end was told
        of = turn.session.get_one(models.Rollout, row.rollout_id)
        after = rollout.report(before, Rules.of(of.rules), told, turn.now)
        if after is None:
            if before.ended and told.state in STOPPABLE:
                turn.send(device, "recall", Recall(id=told.id))
            return
        facts = {**(row.facts or {}), **told.facts}
        record.keep_executions(turn.session, _name(turn.session, row.release_id), [(before, after)], turn.now)
        if told.facts:
            turn.session.get_one(models.Execution, row.id).facts = facts
        self._follow(turn, of.id, after)
        self._stir(of.id if not after.ended else None)  # another rollout may have waited for this device

    def deployed(self, turn: Turn, device: str, told: Deployed) -> None:
        """What it runs now."""
        known = None
        if told.manifest is not None:
            wanted = select(Release.id).where(Release.sha256 == told.manifest, Release.kind == told.kind)
            known = turn.session.scalar(wanted)
        row = turn.session.get(DeviceRelease, (device, told.kind))
        if row is None:
            row = DeviceRelease(device_id=device, kind=told.kind, version=told.version, release_id=known, at=turn.now)
            turn.session.add(row)
        elif (row.version, row.release_id) != (told.version, known):
            row.version, row.release_id, row.at = told.version, known, turn.now
        turn.session.flush()

    def forget(self, device: str) -> None:
        """It was shut out."""
        self._orders.pop(device, None)
        self._features.pop(device, None)
        self._gone.add(device)
        self._stir()

    # -- what follows --------------------------------------------------------------------------------------------

    def tick(self, turn: Turn) -> None:
        """Look at every rollout in which something has happened, and at the others now and then."""
        rows = record.under_way(turn.session)
        if any(row.id not in self._courses for row in rows):
            self._courses.clear()  # a new one has taken devices over from the others
        for over in self._courses.keys() - {row.id for row in rows}:
            del self._courses[over]
        try:
            for row in rows:
                course = self._courses.get(row.id) or self._load(turn, row)
                if course.mark != _mark(row) or not 0 <= turn.now - course.looked < LOOK:
                    self._look(turn, row, course)
        except Exception:
            self._courses.clear()  # what is in it may not have come to be
            raise

    def _look(self, turn: Turn, row: models.Rollout, course: _Course) -> None:
        release = turn.session.get_one(Release, row.release_id)
        if row.state == "running" and turn.now - course.joined >= NEWCOMERS:
            course.joined = turn.now
            if orders.join(turn.session, row, release.kind, turn.now):
                course = self._load(turn, row)
        value, before = record.rollout_of(row), course.executions
        standing = self._standing(turn, row.id, value, course)
        after, changed = rollout.tick(value, before.values(), standing, turn.now, self._since)
        pairs = [(before[one.id], one) for one in changed]
        record.keep_executions(turn.session, f"{release.kind} {release.version}", pairs, turn.now)
        for old, one in pairs:
            self._follow(turn, row.id, one, asked=False)
            self._tell(turn, release.kind, old, one)
        record.keep_rollout(turn.session, row, after, turn.now)
        course.mark, course.looked = _mark(row), turn.now

    def _load(self, turn: Turn, row: models.Rollout) -> _Course:
        """What is known of a rollout, from its rows."""
        executions = {one.id: one for one in record.executions_of(turn.session, row.id)}
        barred = set() if row.rules.get("force") else orders.barred(turn.session, row.id)
        before = self._courses.get(row.id)
        joined = before.joined if before else row.created_at
        course = self._courses[row.id] = _Course(executions, barred, joined)
        self._learn(turn, {one.device for one in executions.values() if not one.ended})
        for one in executions.values():
            if one.state in ACTIVE:
                self._follow(turn, row.id, one, asked=False)
        return course

    def _stir(self, row: int | None = None) -> None:
        """Look at a rollout, or at all, with the next tick."""
        for number, course in self._courses.items():
            if row in (None, number):
                course.mark = None

    def _tell(self, turn: Turn, kind: str, before: Execution, one: Execution) -> None:
        """What a device has to hear of a decision."""
        if one.state == NOTIFIED:
            execution = turn.session.get_one(models.Execution, one.id)
            execution.before_id = orders.running(turn.session, one.device, kind)
            self._deploy(turn, one.id, self._orders[one.device][one.id])
        elif before.state in (NOTIFIED, *STOPPABLE) and one.ended:
            turn.send(one.device, "recall", Recall(id=before.order))

    def _deploy(self, turn: Turn, id: str, order: _Order) -> None:
        row = turn.session.get(models.Execution, id)
        if row is None or row.state not in ACTIVE:
            return  # what was decided in a turn that failed
        of = turn.session.get_one(models.Rollout, row.rollout_id)
        if of.state == "paused" and row.state == NOTIFIED:
            return
        rules, release = Rules.of(of.rules), turn.session.get_one(Release, row.release_id)
        begun = turn.now if row.accepted_at is None else row.accepted_at
        message = Deploy(
            id=record.execution_of(row).order,
            manifest=release.manifest,
            signature=release.signature,
            seconds=max(0.0, round(begun + rules.seconds + rules.lock - turn.now, 3)),
            lock=rules.lock,
            trial=rules.trial,
            back=of.back_of is not None,
        )
        order.heard = turn.now
        turn.send(row.device_id, "deploy", message)

    def _standing(self, turn: Turn, row: int, value: Rollout, course: _Course) -> dict[str, Standing]:
        """Of every device that is not through, or has just succeeded."""
        since = turn.now - OFFLINE_AFTER * self.heartbeat
        found = {}
        for one in course.executions.values():
            if one.ended and (one.wave != value.wave or one.state != "succeeded"):
                continue
            features = self._features.get(one.device)
            there = self._heard.get(one.device, 0.0) >= since
            found[one.device] = Standing(
                live=there and (one.state != QUEUED or features is not None),
                busy=self._busy(one.device, row),
                barred=_reason(features, one.device in course.barred) if one.state == QUEUED else "",
                gone=one.device in self._gone,
            )
        return found

    def _busy(self, device: str, row: int) -> bool:
        """Devices do one thing at a time, whatever its kind."""
        return any(one.rollout != row for one in self._orders.get(device, {}).values())

    def _learn(self, turn: Turn, devices: set[str]) -> None:
        """What the agents of these devices can do, and who of them was shut out, where nobody has asked yet."""
        unknown = sorted(devices - self._features.keys())
        for first in range(0, len(unknown), _ROWS):
            some = select(Device.id, Device.capability, Device.revoked_at)
            for device, capability, revoked in turn.session.execute(
                some.where(Device.id.in_(unknown[first : first + _ROWS]))
            ):
                self._features[device] = tuple(capability["features"]) if "features" in capability else None
                if revoked is not None:
                    self._gone.add(device)

    def _follow(self, turn: Turn, row: int, one: Execution, *, asked: bool = True) -> None:
        """Keep in mind how an execution is, and who has to be told again, and who no more; ``asked``: it has just said
        something."""
        if row in self._courses:
            self._courses[row].executions[one.id] = one
        mine = self._orders.setdefault(one.device, {})
        if one.state in ACTIVE:
            order = mine.setdefault(one.id, _Order(row, one.state))
            order.state = one.state
            order.heard = turn.now if asked else order.heard
        else:
            mine.pop(one.id, None)
        if not mine:
            del self._orders[one.device]


def _mark(row: models.Rollout) -> object:
    """Changes with whatever an operator does."""
    return row.state, row.pause, row.wave, row.state_at


def _reason(features: tuple[str, ...] | None, barred: bool) -> str:
    if features is not None and FEATURE not in features:
        return "its agent takes no releases: it is too old, or joined before there was a key to check them with"
    return "it went back from this release before; force offers it again" if barred else ""


def _name(session: Session, release: int) -> str:
    row = session.get_one(Release, release)
    return f"{row.kind} {row.version}"
