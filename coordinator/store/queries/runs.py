"""Runs: the list, one of them, and the numbers behind its charts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

from attrs import field, frozen
from sqlalchemy import Integer, Row, Select, and_, cast, func, literal, null, select, union_all
from sqlalchemy.orm import Session, aliased

from coordinator.errors import ShoalError
from coordinator.store.models import Assignment, Event, Metric, Model, ModelVersion, Run, Update
from coordinator.store.queries.page import Columns, Order, Page, slot

STATES: Final = ("running", "paused", "stopped", "finished")
WAITING: Final = "waiting for devices since "
"""What the reason of a running run begins with whose devices are all gone."""
RATE_SPAN: Final = 300.0
"""Seconds over which updates per minute are counted."""

_newest_evaluated = (
    select(Metric.run_id.label("run_id"), func.max(Metric.version).label("version"))
    .where(Metric.name == "accuracy")
    .group_by(Metric.run_id)
    .subquery()
)
_best = (
    select(Metric.run_id.label("run_id"), func.max(Metric.value).label("value"))
    .where(Metric.name == "accuracy")
    .group_by(Metric.run_id)
    .subquery()
)
_last = aliased(Metric)

SORTS: Final[Columns] = {
    "id": Run.id,
    "recipe": func.lower(Run.recipe_name),
    "model": func.lower(Model.name),
    "state": Run.state,
    "version": Run.version,
    "accuracy": _last.value,
    "best": _best.c.value,
    "created": Run.created_at,
    "ended": Run.ended_at,
}


@frozen(kw_only=True)
class RunRow:
    """A run in the list. Accuracies are 0 to 1 on the coordinator's test set.

    ``since`` is when the state began; ``per_minute`` counts the updates of the last minutes; ``active`` is the
    number of devices that have work of this run.
    """

    id: str
    model: str
    recipe: str
    state: str
    since: float
    reason: str
    version: int
    target: float | None
    last_accuracy: float | None
    best_accuracy: float | None
    outcomes: dict[str, int]
    active: int
    per_minute: float
    simulated: bool
    created_by: str
    created_at: float
    ended_at: float | None

    @property
    def updates(self) -> int:
        return sum(self.outcomes.values())


@frozen(kw_only=True)
class RunDetail:
    """One run in full. Percentiles are over all updates that have a staleness; ``widths`` counts updates."""

    row: RunRow
    recipe_text: str
    seed: int
    initial_sha256: str | None
    dataset: str
    devices: int
    staleness_p50: int | None
    staleness_p95: int | None
    widths: dict[float, int]
    bytes_up: int
    bytes_down: int
    last_update: float | None


@frozen
class RunBrief:
    id: str
    target: float | None
    created_at: float
    ended_at: float | None


@frozen
class CurvePoint:
    """An evaluated version, ``seconds`` after the start, with ``bytes_up`` received from all devices by then."""

    version: int
    seconds: float
    bytes_up: int
    accuracy: float | None
    loss: float | None


@frozen
class Staleness:
    """How many updates had a staleness, by outcome; those that never got one do not count."""

    counts: dict[int, dict[str, int]] = field(factory=dict)

    def percentile(self, share: float) -> int | None:
        """The smallest staleness that ``share`` of the updates do not exceed; None without updates."""
        total = sum(sum(outcomes.values()) for outcomes in self.counts.values())
        reached = 0
        for staleness in sorted(self.counts):
            reached += sum(self.counts[staleness].values())
            if reached >= share * total:
                return staleness
        return None


@frozen(kw_only=True)
class RunSums:
    """What takes a pass over all updates of a run: dear where these are many."""

    devices: int
    outcomes: dict[str, int]
    staleness: Staleness
    widths: dict[float, int]
    bytes_up: int
    bytes_down: int
    last_update: float | None


@frozen
class WidthSpan:
    """Updates that came in a span of time, counted by width."""

    begin: float
    end: float
    counts: dict[float, int]


def runs(session: Session, order: Order, now: float, state: str = "") -> Page[RunRow]:
    """One page of all runs, or of those in one state."""
    if state and state not in STATES:
        raise ShoalError("bad-request", f"state is {state[:40]!r}, expected one of {', '.join(STATES)}")
    conditions = [Run.state == state] if state else []
    total = session.scalar(select(func.count()).select_from(Run).where(*conditions)) or 0
    query = _with_accuracy().where(*conditions).order_by(*order.by(SORTS, Run.id))
    found = session.execute(query.limit(order.size).offset(order.offset)).all()
    return Page(_rows(session, found, now), total, order)


def run(session: Session, id: str, now: float, sums: RunSums | None = None) -> RunDetail:
    """One run by its id, with the ``sums`` given or new ones; ShoalError not-found."""
    found = session.execute(_with_accuracy().where(Run.id == id)).one_or_none()
    if found is None:
        raise _no_run(id)
    entity: Run = found[0]
    sums = sums or run_sums(session, id)
    return RunDetail(
        row=_rows(session, [found], now, {id: sums.outcomes})[0],
        recipe_text=entity.recipe,
        seed=entity.seed,
        initial_sha256=entity.initial_sha256,
        dataset=entity.dataset,
        devices=sums.devices,
        staleness_p50=sums.staleness.percentile(0.5),
        staleness_p95=sums.staleness.percentile(0.95),
        widths=sums.widths,
        bytes_up=sums.bytes_up,
        bytes_down=sums.bytes_down,
        last_update=sums.last_update,
    )


def run_sums(session: Session, id: str) -> RunSums:
    """What all updates of a run come to; of a run that is not there, nothing."""
    devices = session.scalar(select(func.count(Update.device_id.distinct())).where(Update.run_id == id))
    # One pass over the run's updates, as these are many.
    kinds = (Update.staleness, Update.outcome, Update.width)
    sums = session.execute(
        select(*kinds, func.count(), func.sum(Update.bytes_up), func.sum(Update.bytes_down), func.max(Update.at))
        .where(Update.run_id == id)
        .group_by(*kinds)
    ).all()
    delays, outcomes, widths = Staleness(), Counter[str](), Counter[float]()
    for staleness, outcome, width, count, *_ in sums:
        outcomes[outcome] += count
        widths[width] += count
        if staleness is not None:
            kind = delays.counts.setdefault(staleness, {})
            kind[outcome] = kind.get(outcome, 0) + count
    return RunSums(
        devices=devices or 0,
        outcomes=dict(outcomes),
        staleness=delays,
        widths=dict(sorted(widths.items())),
        bytes_up=sum(int(up) for *_, up, _, _ in sums),
        bytes_down=sum(int(down) for *_, down, _ in sums),
        last_update=max((at for *_, at in sums), default=None),
    )


def run_brief(session: Session, id: str) -> RunBrief:
    """What the charts of a run need to know of it; ShoalError not-found."""
    found = session.execute(select(Run.target, Run.created_at, Run.ended_at).where(Run.id == id)).one_or_none()
    if found is None:
        raise _no_run(id)
    return RunBrief(id, *found)


def run_names(session: Session, limit: int = 200) -> tuple[str, ...]:
    """The ids of the newest runs, to choose from."""
    return tuple(session.scalars(select(Run.id).order_by(Run.created_at.desc(), Run.id).limit(limit)))


def curve(session: Session, run: str, after: int = -1) -> tuple[CurvePoint, ...]:
    """The evaluated versions newer than ``after``, oldest first."""
    started = run_brief(session, run).created_at
    accuracy, loss = aliased(Metric), aliased(Metric)
    evaluated = (
        select(Metric.version, func.min(Metric.at).label("at"))
        .where(Metric.run_id == run)
        .group_by(Metric.version)
        .subquery()
    )
    moments = (
        select(evaluated.c.version, func.coalesce(ModelVersion.at, evaluated.c.at).label("at"))
        .outerjoin(ModelVersion, and_(ModelVersion.run_id == run, ModelVersion.version == evaluated.c.version))
        .subquery()
    )
    # One sum along time over updates and versions together: linear, a sum per version would be quadratic.
    both = union_all(
        select(Update.at.label("at"), cast(null(), Integer).label("version"), Update.bytes_up.label("bytes")).where(
            Update.run_id == run
        ),
        select(moments.c.at, moments.c.version, literal(0)),
    ).subquery()
    summed = select(
        both.c.at, both.c.version, func.sum(both.c.bytes).over(order_by=both.c.at).label("bytes")
    ).subquery()
    query = (
        select(summed.c.version, summed.c.at, summed.c.bytes, accuracy.value, loss.value)
        .outerjoin(accuracy, _is(accuracy, run, "accuracy", summed.c.version))
        .outerjoin(loss, _is(loss, run, "loss", summed.c.version))
        .where(summed.c.version > after)
        .order_by(summed.c.version)
    )
    return tuple(
        CurvePoint(version, at - started, int(total), accurate, lost)
        for version, at, total, accurate, lost in session.execute(query)
    )


def staleness(session: Session, run: str) -> Staleness:
    """The histogram of the run's staleness."""
    counts: dict[int, dict[str, int]] = {}
    query = (
        select(Update.staleness, Update.outcome, func.count())
        .where(Update.run_id == run, Update.staleness.is_not(None))
        .group_by(Update.staleness, Update.outcome)
        .order_by(Update.staleness)
    )
    for value, outcome, count in session.execute(query):
        counts.setdefault(int(value or 0), {})[outcome] = int(count)
    return Staleness(counts)


def widths(session: Session, run: str, since: float, until: float, spans: int = 60) -> tuple[WidthSpan, ...]:
    """Updates by width from ``since`` until ``until``, in at most ``spans`` equal spans of whole seconds."""
    origin = int(since)
    seconds = max(1, -(-int(until - origin + 1) // spans))
    place = slot(Update.at, origin, seconds)
    found: dict[int, dict[float, int]] = {}
    query = (
        select(place, Update.width, func.count())
        .where(Update.run_id == run, Update.at >= since, Update.at <= until)
        .group_by(place, Update.width)
        .order_by(place, Update.width)
    )
    for index, width, count in session.execute(query):
        found.setdefault(index, {})[width] = int(count)
    return tuple(
        WidthSpan(float(origin + index * seconds), float(origin + (index + 1) * seconds), counts)
        for index, counts in found.items()
    )


def _no_run(id: str) -> ShoalError:
    return ShoalError("not-found", f"There is no run {id[:80]!r}")


def _outcomes(session: Session, ids: Sequence[str]) -> dict[str, dict[str, int]]:
    """Updates of each run, counted by outcome."""
    found: dict[str, dict[str, int]] = {id: {} for id in ids}
    for id, outcome, count in session.execute(
        select(Update.run_id, Update.outcome, func.count())
        .where(Update.run_id.in_(ids))
        .group_by(Update.run_id, Update.outcome)
    ):
        found[id][outcome] = int(count)
    return found


def _lately(session: Session, ids: Sequence[str], now: float) -> dict[str, int]:
    query = select(Update.run_id, func.count()).where(Update.run_id.in_(ids), Update.at > now - RATE_SPAN)
    return dict(session.execute(query.group_by(Update.run_id)).all())


def _active(session: Session, ids: Sequence[str]) -> dict[str, int]:
    """How many devices have work of each run."""
    query = select(Assignment.run_id, func.count(Assignment.device_id.distinct())).where(
        Assignment.run_id.in_(ids), Assignment.state.in_(("offered", "taken"))
    )
    return dict(session.execute(query.group_by(Assignment.run_id)).all())


def _turned(session: Session, ids: Sequence[str]) -> dict[str | None, float]:
    """When each run was paused or resumed last."""
    query = select(Event.run_id, func.max(Event.at)).where(
        Event.run_id.in_(ids), Event.kind.in_(("run-paused", "run-running"))
    )
    return dict(session.execute(query.group_by(Event.run_id)).all())


def _is(metric: Any, run: str, name: str, version: Any) -> Any:
    return and_(metric.run_id == run, metric.name == name, metric.version == version)


def _with_accuracy() -> Select[*tuple[Any, ...]]:
    return (
        select(Run, Model.name, _last.value, _best.c.value)
        .join(Model, Model.id == Run.model_id)
        .outerjoin(_newest_evaluated, _newest_evaluated.c.run_id == Run.id)
        .outerjoin(_best, _best.c.run_id == Run.id)
        .outerjoin(_last, _is(_last, Run.id, "accuracy", _newest_evaluated.c.version))  # type: ignore[arg-type]
    )


def _rows(
    session: Session,
    found: Sequence[Row[*tuple[Any, ...]]],
    now: float,
    outcomes: Mapping[str, Mapping[str, int]] | None = None,
) -> tuple[RunRow, ...]:
    """Rows of (run, its model's name, last accuracy, best accuracy), with what its updates came to."""
    ids = [run.id for run, *_ in found]
    outcomes = _outcomes(session, ids) if outcomes is None else outcomes
    lately = _lately(session, ids, now)
    active = _active(session, ids)
    turned = _turned(session, ids)
    return tuple(
        RunRow(
            id=run.id,
            model=model,
            recipe=run.recipe_name,
            state=run.state,
            since=run.ended_at or turned.get(run.id) or run.created_at,
            reason=run.reason,
            version=run.version,
            target=run.target,
            last_accuracy=last,
            best_accuracy=best,
            outcomes=dict(outcomes[run.id]),
            active=active.get(run.id, 0),
            per_minute=_per_minute(lately.get(run.id, 0), now - run.created_at),
            simulated=run.simulated,
            created_by=run.created_by,
            created_at=run.created_at,
            ended_at=run.ended_at,
        )
        for run, model, last, best in found
    )


def _per_minute(count: int, age: float) -> float:
    """A run younger than the span is judged by its age, but by no less than ten seconds."""
    return 60 * count / min(RATE_SPAN, max(10.0, age))
