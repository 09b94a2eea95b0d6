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
from math import inf
from pathlib import Path
from typing import Any, Final

from attrs import define, field, frozen
from sqlalchemy import ColumnElement, Delete, Float, Select, case, cast, delete, func, literal, or_, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import InstrumentedAttribute, Session

from coordinator.settings import Settings
from coordinator.store import partitions
from coordinator.store.blobs import Blobs
from coordinator.store.database import Database
from coordinator.store.models import Device, Event, Input, Instant, Run, Snapshot, Telemetry, Telemetry1h, Telemetry5m
from coordinator.store.snapshots import NEEDED, needed_from, promoted

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
    """Seconds for which rows are kept, and how much of them at most; 0 is no limit. Rows of the ledger always are."""

    telemetry: float = 48 * 3600.0
    telemetry_5m: float = 30 * 86_400.0
    events: float = 365 * 86_400.0
    lines: int = 0
    """Events, the newest."""
    inputs: float = 30 * 86_400.0
    """Inputs with the bodies of updates, beyond what recovery needs: for as long a run can be replayed."""
    bodies: float = 0.0
    """Bytes of the bodies of updates; what recovery needs is not counted against."""
    blobs: float = 0.0
    """Bytes of the blobs; above it, snapshots that only tell of the past go, the oldest first."""

    @classmethod
    def of(cls, settings: Settings) -> Keep:
        return cls(
            telemetry=settings.keep_telemetry * 3600,
            telemetry_5m=settings.keep_telemetry_5m * 86_400,
            events=settings.keep_events * 86_400,
            lines=settings.max_events,
            inputs=settings.keep_inputs * 86_400,
            bodies=settings.max_bodies * 1e9,
            blobs=settings.max_blobs * 1e9,
        )


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
    busy: bool = field(init=False, default=False)
    """Whether the last slice did something, so that there may be more."""

    def tend(self, session: Session, now: float) -> list[Later]:
        """One slice of the first task that has something to do. Returns what is to be done once it is committed."""
        later: list[Later] = []
        pruning = (self._prune_telemetry, self._prune_events, self._prune_inputs, self._prune_blobs)
        for task in (self._look_ahead, self._roll_up, *pruning):
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
                self.busy = True
                return later
            self._due[task.__name__] = now + REST
        self.busy = False
        return later

    def prune(self, database: Database, now: float) -> None:
        """Everything there is to do, slice by slice, beside no steward."""
        self.busy = True
        while self.busy:
            with database.write() as session:
                later = self.tend(session, now)
            for step in later:
                step()

    # -- telemetry ---------------------------------------------------------------------------------------------------

    def _look_ahead(self, session: Session, now: float, _: list[Later]) -> bool:
        return partitions.partitioned(session) and partitions.look_ahead(session, now) > 0

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
            if partitions.partitioned(session):
                more = partitions.drop(session, cut) + partitions.remove(session, cut, SLICE) > 0
            else:
                more = _remove(session, _oldest(Telemetry.id, Telemetry.at, cut))
        if self.keep.telemetry_5m and self._long.begin is not None:
            cut = min(now - self.keep.telemetry_5m, self._long.begin)
            first = session.scalar(select(func.min(Telemetry5m.at)))
            if first is not None and first < cut:
                more = _remove(session, delete(Telemetry5m).where(Telemetry5m.at == first)) or more
        return more

    # -- journal and inputs ------------------------------------------------------------------------------------------

    def _prune_events(self, session: Session, now: float, _: list[Later]) -> bool:
        more = False
        if self.keep.events:
            # Simulated runs live in a time of their own, long ago.
            live = or_(Event.run_id.is_(None), Event.run_id.not_in(select(Run.id).where(Run.simulated)))
            more = _remove(session, _oldest(Event.seq, Event.at, now - self.keep.events, live))
        if self.keep.lines:
            newest = session.scalar(select(func.max(Event.seq))) or 0
            old = select(Event.seq).where(Event.seq <= newest - self.keep.lines).order_by(Event.seq).limit(SLICE)
            more = _remove(session, delete(Event).where(Event.seq.in_(old.scalar_subquery()))) or more
        return more

    def _prune_inputs(self, session: Session, now: float, later: list[Later]) -> bool:
        young = now - self.keep.inputs if self.keep.inputs else -inf
        full = self._overfull()
        if not self.keep.inputs and full is None:
            return False
        if self.keep.inputs:
            self._drop_old_snapshots(session, young, later)
        needed = _recovered_from(session)
        oldest = session.execute(select(Input.seq, Input.at, Input.kind, Input.body).order_by(Input.seq).limit(SLICE))
        gone = 0
        for seq, at, kind, body in oldest:
            if kind == "delivered" and full is not None and int(body["place"][0]) > full:
                full = None
            if seq > needed or (at >= young and full is None):
                break
            gone = seq
        if gone:
            session.execute(delete(Input).where(Input.seq <= gone))
        self._drop_segments(session, later)
        return gone > 0

    def _overfull(self) -> int | None:
        """The last segment that has to go for the others to fit."""
        if not self.keep.bodies:
            return None
        paths = sorted(self.segments.glob("*.segment"))[:-1]  # the last one is being written to
        over = sum(path.stat().st_size for path in paths) - self.keep.bodies
        last = None
        for path in paths:
            if over <= 0:
                break
            over, last = over - path.stat().st_size, int(path.stem)
        return last

    def _prune_blobs(self, session: Session, now: float, later: list[Later]) -> bool:
        """One snapshot that no recovery reads: of a run that goes on all but the newest two, else all but the last."""
        if not self.keep.blobs or _size(self.blobs.folder) <= self.keep.blobs:
            return False
        ranked = (
            select(
                Snapshot.run_id,
                Snapshot.seq,
                Snapshot.sha256,
                Snapshot.at,
                case((Run.state.in_(ENDED), 1), else_=NEEDED).label("needed"),
                promoted().label("promoted"),
                func.row_number().over(partition_by=Snapshot.run_id, order_by=Snapshot.seq.desc()).label("place"),
            )
            .join(Run, Run.id == Snapshot.run_id)
            .subquery()
        )
        spare = select(ranked).where(ranked.c.place > ranked.c.needed, ~ranked.c.promoted)
        found = session.execute(spare.order_by(ranked.c.at, ranked.c.seq).limit(1)).one_or_none()
        if found is not None:
            self._drop_snapshot(session, found.run_id, found.seq, found.sha256, later)
        return found is not None

    def _drop_old_snapshots(self, session: Session, cut: float, later: list[Later]) -> None:
        """Of a run that ended long ago only the last snapshot is kept: it holds the final model."""
        last = select(func.max(Snapshot.seq)).where(Snapshot.run_id == Run.id).correlate(Run).scalar_subquery()
        found = session.execute(
            select(Snapshot.run_id, Snapshot.seq, Snapshot.sha256)
            .join(Run, Run.id == Snapshot.run_id)
            .where(Run.state.in_(ENDED), Run.ended_at < cut, Snapshot.seq < last, ~promoted())
            .limit(SLICE)
        ).all()
        for run, seq, sha256 in found:
            self._drop_snapshot(session, run, seq, sha256, later)

    def _drop_snapshot(self, session: Session, run: str, seq: int, sha256: str, later: list[Later]) -> None:
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
    going = session.scalars(select(Run.id).where(Run.state.not_in(ENDED), ~Run.simulated)).all()
    return min([newest - 1, *(needed_from(session, run) for run in going)])


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


def _size(folder: Path) -> int:
    """Bytes of all files below a folder; those that go meanwhile count nothing."""
    total = 0
    for path in folder.glob("*/*"):
        with suppress(OSError):
            total += path.stat().st_size
    return total


def _unlink(path: Path) -> None:
    with suppress(OSError):
        path.unlink(missing_ok=True)
