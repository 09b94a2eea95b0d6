"""Whether anybody is there to train: a run whose devices are all gone says so, once, and since when."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

from attrs import define, field
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from coordinator.store import ledger, registry
from coordinator.store.models import Assignment, Device, Run
from coordinator.store.queries.runs import WAITING
from coordinator.training.live import LiveRun
from coordinator.training.turn import Turn


@define
class Attendance:
    """Looks once a ``heartbeat`` (seconds). ``_callers`` is the run that each device checked in for last; ``_begun`` is
    when each run was looked at first: devices are given some time to come, also where the coordinator was started anew.
    """

    heartbeat: float
    _callers: dict[str, str] = field(factory=dict)
    _begun: dict[str, float] = field(factory=dict)
    _next: float = 0.0

    def came(self, device: str, run: str) -> None:
        """A device offered itself to a run, and got work or was put off."""
        self._callers[device] = run

    def went(self, device: str) -> None:
        """A device offered itself, and no run has anything to do for it."""
        self._callers.pop(device, None)

    def look(self, turn: Turn, live: Iterable[LiveRun]) -> None:
        """See which runs wait; those of whom that changes are told of in the journal."""
        if turn.now < self._next:
            return
        self._next = turn.now + self.heartbeat
        going = {run.id: run for run in live if run.engine.core.state == "running"}
        self._begun = {run: self._begun.get(run, turn.now) for run in going}
        heard = set(turn.session.scalars(select(Device.id).where(Device.status.in_(registry.PRESENT))))
        reasons = select(Run.id, Run.reason).where(Run.id.in_(going))
        for run, reason in turn.session.execute(reasons).all():
            waits = reason.startswith(WAITING)
            crew = {*going[run].engine.core.at, *(d for d, called in self._callers.items() if called == run)}
            here = crew & heard
            if here and waits:
                _say(turn, run, "", "run-attended", f"{run} goes on: {_name(turn.session, min(here))} is here")
            elif not here and not waits and turn.now - self._begun[run] >= registry.LATE_AFTER * self.heartbeat:
                since = f"{datetime.fromtimestamp(_last(turn.session, run), UTC):%Y-%m-%d %H:%M:%S} UTC"
                text = f"{run} waits for devices: none was heard since {since}"
                _say(turn, run, WAITING + since, "run-waiting", text)


def _last(session: Session, run: str) -> float:
    """When a device that ever worked for the run was heard last; if there was none, when the run was started."""
    mine = select(Assignment.device_id).where(Assignment.run_id == run)
    heard = session.scalar(select(func.max(Device.last_seen_at)).where(Device.id.in_(mine)))
    return heard if heard is not None else session.scalars(select(Run.created_at).where(Run.id == run)).one()


def _name(session: Session, device: str) -> str:
    return session.scalars(select(Device.name).where(Device.id == device)).one()


def _say(turn: Turn, run: str, reason: str, kind: str, text: str) -> None:
    turn.session.execute(update(Run).where(Run.id == run).values(reason=reason))
    ledger.note(turn.session, turn.now, kind, text, run=run)
