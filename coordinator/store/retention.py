"""What is kept for how long: heartbeats are rolled up and pruned, old events, inputs and update bodies go, the ledger
stays.

Everything is done in slices of a few milliseconds inside the steward's transactions, so nobody waits for it and a kill
leaves either a whole slice or none. What recovery or the replay of a kept input needs is never touched.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

from attrs import define, field, frozen
from sqlalchemy import ColumnElement, Delete, Float, Select, case, cast, delete, func, literal, or_, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import InstrumentedAttribute, Session

from coordinator.store.blobs import Blobs
from coordinator.store.models import Device, Event, Input, Instant, Run, Snapshot, Telemetry, Telemetry1h, Telemetry5m

log = logging.getLogger(__name__)

Later = Callable[[], None]

SHORT: Final = 300
LONG: Final = 3600
"""Seconds of a span that heartbeats are rolled up into."""
SLICE: Final = 1000
"""Rows that one slice removes."""
DEVICES: Final = 200
"""Devices that one slice rolls up."""
REST: Final = 30.0
"""Seconds after which a task that had nothing to do looks again; after an error it waits ten times as long."""

ENDED: Final = ("stopped", "finished")


@frozen(kw_only=True)
class Keep:
    """Seconds for which rows are kept; 0 keeps them for ever. Rows of the ledger always are."""

    telemetry: float = 48 * 3600.0
    telemetry_5m: float = 30 * 86_400.0
    events: float = 365 * 86_400.0
    inputs: float = 30 * 86_400.0
    """Inputs with the bodies of updates, beyond what recovery needs: for as long a run can be replayed."""


@define
class _RollUp:
    """Where rolling up into one table has come to: everything before ``begin`` is done."""

    into: type[Telemetry5m] | type[Telemetry1h]
    seconds: int
    begin: float | None = None
    last: str = ""
    """The last device of the span that begins there."""

    def move(self, begin: float, last: str = "") -> None:
        """Only once it is committed: pruning trusts in it."""
        self.begin, self.last = begin, last


@define
class Retention:
    """Belongs to the steward's thread; ``segments`` is the folder of update bodies."""

    keep: Keep
    blobs: Blobs
    segments: Path
    _short: _RollUp = field(init=False, factory=lambda: _RollUp(Telemetry5m, SHORT))
    _long: _RollUp = field(init=False, factory=lambda: _RollUp(Telemetry1h, LONG))
    _due: dict[str, float] = field(init=False, factory=dict)

    def tend(self, session: Session, now: float) -> list[Later]:
        """One slice of the first task that has something to do. Returns what is to be done once it is committed."""
        later: list[Later] = []
        for task in (self._roll_up, self._prune_telemetry, self._prune_events, self._prune_inputs):
            if self._due.get(task.__name__, 0.0) > now:
                continue
            mark = len(later)
            try:
                with session.begin_nested():
                    more = task(session, now, later)
            except (OperationalError, OSError):
                raise  # the store itself is in trouble
            except Exception:
                log.exception("retention-failed task=%s", task.__name__)
                del later[mark:]
                self._due[task.__name__] = now + 10 * REST
                continue
            if more:
                break
            self._due[task.__name__] = now + REST
        return later

    # -- telemetry ---------------------------------------------------------------------------------------------------

    def _roll_up(self, session: Session, now: float, later: list[Later]) -> bool:
        if self._advance(session, self._short, Telemetry.at, now - 10, _of_heartbeats, later):
            return True
        return self._advance(session, self._long, Telemetry5m.at, self._short.begin or 0.0, _of_spans, later)

    def _advance(
        self,
        session: Session,
        done: _RollUp,
        source: InstrumentedAttribute[float],
        until: float,
        summary: Callable[[float, int, Sequence[str]], Select[Any]],
        later: list[Later],
    ) -> bool:
        """Roll up the next devices of the present span, if it lies before ``until`` as a whole."""
        if done.begin is None:
            done.begin = session.scalar(select(func.max(done.into.at))) or _span(session, source, 0.0, done.seconds)
        if done.begin is None or done.begin + done.seconds > until:
            return False
        begin, over = done.begin, until - until % done.seconds
        if not done.last:  # spans in which nothing was heard are passed over
            begin = min(over, _span(session, source, begin, done.seconds) or over)
        if begin == over:
            later.append(partial(done.move, over))
            return True
        devices = select(Device.id).where(Device.id > done.last).order_by(Device.id).limit(DEVICES)
        ids = session.scalars(devices).all()
        rows = summary(begin, done.seconds, ids)
        # A span that was begun before a restart is done once more.
        session.execute(_insert(session, done.into).from_select(_NAMES, rows).on_conflict_do_nothing())
        whole = len(ids) < DEVICES
        later.append(partial(done.move, begin + done.seconds) if whole else partial(done.move, begin, ids[-1]))
        return True

    def _prune_telemetry(self, session: Session, now: float, _: list[Later]) -> bool:
        more = False
        if self.keep.telemetry and self._short.begin is not None:
            cut = min(now - self.keep.telemetry, self._short.begin)
            more = _remove(session, _oldest(Telemetry.id, Telemetry.at, cut))
        if self.keep.telemetry_5m and self._long.begin is not None:
            cut = min(now - self.keep.telemetry_5m, self._long.begin)
            first = session.scalar(select(func.min(Telemetry5m.at)))
            if first is not None and first < cut:
                more = _remove(session, delete(Telemetry5m).where(Telemetry5m.at == first)) or more
        return more

    # -- journal and inputs ------------------------------------------------------------------------------------------

    def _prune_events(self, session: Session, now: float, _: list[Later]) -> bool:
        if not self.keep.events:
            return False
        # Simulated runs live in a time of their own, long ago.
        live = or_(Event.run_id.is_(None), Event.run_id.not_in(select(Run.id).where(Run.simulated)))
        return _remove(session, _oldest(Event.seq, Event.at, now - self.keep.events, live))

    def _prune_inputs(self, session: Session, now: float, later: list[Later]) -> bool:
        if not self.keep.inputs:
            return False
        self._drop_old_snapshots(session, now - self.keep.inputs, later)
        needed = _recovered_from(session)
        oldest = session.execute(select(Input.seq, Input.at).order_by(Input.seq).limit(SLICE)).all()
        gone = 0
        for seq, at in oldest:
            if seq > needed or at >= now - self.keep.inputs:
                break
            gone = seq
        if gone:
            session.execute(delete(Input).where(Input.seq <= gone))
        self._drop_segments(session, later)
        return gone > 0

    def _drop_old_snapshots(self, session: Session, cut: float, later: list[Later]) -> None:
        """Of a run that ended long ago only the last snapshot is kept: it holds the final model."""
        last = select(func.max(Snapshot.seq)).where(Snapshot.run_id == Run.id).correlate(Run).scalar_subquery()
        found = session.execute(
            select(Snapshot.run_id, Snapshot.seq, Snapshot.sha256)
            .join(Run, Run.id == Snapshot.run_id)
            .where(Run.state.in_(ENDED), Run.ended_at < cut, Snapshot.seq < last)
            .limit(SLICE)
        ).all()
        for run, seq, sha256 in found:
            session.execute(delete(Snapshot).where(Snapshot.run_id == run, Snapshot.seq == seq))
            if session.scalar(select(Snapshot.seq).where(Snapshot.sha256 == sha256).limit(1)) is None:
                later.append(partial(self.blobs.remove, sha256))

    def _drop_segments(self, session: Session, later: list[Later]) -> None:
        """Segment files that lie before the first body a kept input names. Bodies are appended in the inputs' order."""
        numbers = sorted(int(path.stem) for path in self.segments.glob("*.segment"))
        if len(numbers) < 2:
            return
        body = session.scalar(select(Input.body).where(Input.kind == "delivered").order_by(Input.seq).limit(1))
        floor = int(body["place"][0]) if body is not None else numbers[-1]
        for number in numbers[:-1]:  # the last one is being written to
            if number < floor:
                later.append(partial(_unlink, self.segments / f"{number:08d}.segment"))


_NAMES: Final = [column.name for column in Telemetry5m.__table__.columns]


def _recovered_from(session: Session) -> int:
    """The last input that no recovery reads any more, and that is not the newest: numbers must not come again."""
    newest = session.scalar(select(func.max(Input.seq))) or 0
    first = select(func.min(Snapshot.seq)).where(Snapshot.run_id == Run.id).correlate(Run).scalar_subquery()
    going = session.scalars(select(func.coalesce(first, 0)).where(Run.state.not_in(ENDED), ~Run.simulated)).all()
    return min([newest - 1, *going])


def _span(session: Session, source: InstrumentedAttribute[float], since: float, seconds: int) -> float | None:
    """When the first span from ``since`` on begins that has any rows."""
    first = session.scalar(select(func.min(source)).where(source >= since))
    return None if first is None else first - first % seconds


def _of_heartbeats(begin: float, seconds: int, devices: Sequence[str]) -> Select[Any]:
    t = Telemetry
    return (
        select(
            t.device_id,
            literal(begin, Instant),
            func.count(),
            func.max(t.uptime),
            func.avg(t.load),
            func.avg(t.temperature),
            func.max(t.temperature),
            func.max(t.memory),
            func.min(t.memory_free),
            func.min(t.disk_free),
            func.max(t.spool),
        )
        .where(t.device_id.in_(devices), t.at >= begin, t.at < begin + seconds)
        .group_by(t.device_id)
    )


def _of_spans(begin: float, seconds: int, devices: Sequence[str]) -> Select[Any]:
    t = Telemetry5m

    def mean(column: InstrumentedAttribute[float | None]) -> Any:
        return cast(func.sum(column * t.beats) / func.sum(case((column.is_not(None), t.beats))), Float)

    return (
        select(
            t.device_id,
            literal(begin, Instant),
            func.sum(t.beats),
            func.max(t.uptime),
            mean(t.load),
            mean(t.temperature),
            func.max(t.temperature_max),
            func.max(t.memory),
            func.min(t.memory_free_min),
            func.min(t.disk_free_min),
            func.max(t.spool_max),
        )
        .where(t.device_id.in_(devices), t.at >= begin, t.at < begin + seconds)
        .group_by(t.device_id)
    )


def _insert(session: Session, table: Any) -> Any:
    dialect = sqlite if session.get_bind().dialect.name == "sqlite" else postgresql
    return dialect.insert(table)


def _oldest(
    key: InstrumentedAttribute[int], at: InstrumentedAttribute[float], cut: float, *conditions: ColumnElement[bool]
) -> Delete:
    """The oldest rows from before ``cut``, but never the newest: SQLite would give its number again."""
    old = select(key).where(at < cut, *conditions).order_by(at).limit(SLICE).scalar_subquery()
    return delete(key.class_).where(key.in_(old), key < select(func.max(key)).scalar_subquery())


def _remove(session: Session, statement: Delete) -> bool:
    done: Any = session.execute(statement.execution_options(synchronize_session=False))
    return bool(done.rowcount)


def _unlink(path: Path) -> None:
    with suppress(OSError):
        path.unlink(missing_ok=True)
