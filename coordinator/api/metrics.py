"""``/metrics`` for Prometheus: counted by the database when it is asked, so a restart loses nothing.

Names follow Prometheus' conventions: base units, ``_total`` for what only grows, labels for what tells series apart.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from typing import Any, Final

from flask import Flask, current_app, request
from sqlalchemy import and_, case, func, select, text
from sqlalchemy.orm import Session
from werkzeug.wrappers import Response

from coordinator import __version__, auth
from coordinator.api import problems
from coordinator.auth import services
from coordinator.errors import ShoalError
from coordinator.store import queries
from coordinator.store.models import (
    Assignment,
    Device,
    Event,
    Input,
    Metric,
    ModelVersion,
    Run,
    Snapshot,
    StatusChange,
    Update,
)

LATELY: Final = 300.0
"""Seconds over which quantiles and sums "lately" are taken."""
LOOPBACK: Final = frozenset({"127.0.0.1", "::1"})


def install(app: Flask) -> None:
    """Give an application the page ``/metrics``."""
    app.add_url_rule("/metrics", "metrics", respond)


def respond() -> Response:
    """All metrics, for viewers; for whoever asks from this machine too, if the settings say so."""
    try:
        from prometheus_client import CollectorRegistry, exposition
    except ImportError:
        detail = "Metrics need prometheus-client: pip install 'shoal[metrics]'"
        return problems.answer(ShoalError("not-found", detail))
    try:
        if not (services().settings.open_metrics and request.remote_addr in LOOPBACK):
            auth.admit("viewer")
        encode, content_type = exposition.choose_encoder(request.headers.get("Accept", ""))
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Collector())
        return Response(encode(registry), content_type=content_type)
    except Exception as error:
        return problems.answer(error)


class _Collector:
    """Reads everything in one session."""

    def describe(self) -> list[Any]:
        return []

    def collect(self) -> Iterator[Any]:
        now = services().clock()
        yield _info(now - current_app.extensions["shoal-started"])
        with services().database.read() as session:
            for part in (_fleet, _runs, _transfers, _store, _broker):
                yield from part(session, now)


def _gauge(name: str, help: str, values: Mapping[Any, float], labels: tuple[str, ...] = ()) -> Any:
    from prometheus_client.core import GaugeMetricFamily

    family = GaugeMetricFamily(f"shoal_{name}", help, labels=labels)
    for label, value in values.items():
        family.add_metric(label, value)
    return family


def _counter(name: str, help: str, values: Mapping[Any, float], labels: tuple[str, ...] = ()) -> Any:
    from prometheus_client.core import CounterMetricFamily

    family = CounterMetricFamily(f"shoal_{name}", help, labels=labels)
    for label, value in values.items():
        family.add_metric(label, value)
    return family


def _info(uptime: float) -> Any:
    labels = ("version",)
    return _gauge("uptime_seconds", "Since the coordinator was started.", {(__version__,): uptime}, labels)


def _fleet(session: Session, now: float) -> Iterator[Any]:
    counts = dict.fromkeys(queries.STATUSES, 0) | queries.status_counts(session)
    found = {(status,): count for status, count in counts.items()}
    yield _gauge("devices", "Devices by their status.", found, ("status",))
    flags = {}
    for flag, raised in queries.FLAGS.items():
        known = raised & Device.status.not_in(("revoked", "offline"))
        flags[flag,] = session.scalar(select(func.count()).select_from(Device).where(known)) or 0
    yield _gauge("devices_flagged", "Devices hot, low on disk, without usable data or spool.", flags, ("flag",))
    changes = session.execute(select(StatusChange.new, func.count()).group_by(StatusChange.new)).all()
    told = {(status,): count for status, count in changes}
    yield _counter("device_status_changes", "Changes to a status.", told, ("status",))


def _runs(session: Session, now: float) -> Iterator[Any]:
    rows = session.execute(select(Run.id, Run.recipe_name, Run.state, Run.version)).all()
    states = {(run, recipe, state): 1 for run, recipe, state, _ in rows}
    yield _gauge("run_state", "1 for the state a run is in.", states, ("run", "recipe", "state"))
    yield _gauge("run_version", "A run's newest version.", {(run,): version for run, _, _, version in rows}, ("run",))
    newest = select(Metric.run_id, func.max(Metric.version).label("version")).group_by(Metric.run_id).subquery()
    same = and_(newest.c.run_id == Metric.run_id, newest.c.version == Metric.version)
    measured = session.execute(select(Metric.run_id, Metric.name, Metric.value).join(newest, same)).all()
    for name, help in (("accuracy", "On the test set, 0 to 1."), ("loss", "On the test set.")):
        yield _gauge(f"run_{name}", help, {(run,): v for run, kind, v in measured if kind == name}, ("run",))
    per_outcome = session.execute(
        select(Update.run_id, Update.outcome, func.count()).group_by(Update.run_id, Update.outcome)
    ).all()
    counted = {(run, outcome): count for run, outcome, count in per_outcome}
    yield _gauge("run_updates", "Updates by what became of them.", counted, ("run", "outcome"))
    merged = session.execute(select(ModelVersion.run_id, func.sum(ModelVersion.updates)).group_by(ModelVersion.run_id))
    yield _counter("run_updates_merged", "Updates merged.", {(run,): int(count) for run, count in merged}, ("run",))
    opened = session.execute(
        select(Assignment.run_id, func.count())
        .where(Assignment.state.in_(("offered", "taken")))
        .group_by(Assignment.run_id)
    ).all()
    out = {(run,): 0 for run, *_ in rows} | {(run,): count for run, count in opened}
    yield _gauge("run_assignments_open", "Assignments out with devices.", out, ("run",))


def _transfers(session: Session, now: float) -> Iterator[Any]:
    lately = Update.at > now - LATELY
    up, down, count, train, link = session.execute(
        select(
            func.sum(Update.bytes_up),
            func.sum(Update.bytes_down),
            func.count(),
            func.avg(Update.seconds_train),
            func.avg(Update.seconds_download + func.coalesce(Update.seconds_upload, 0)),
        ).where(lately)
    ).one()
    per_second = {("up",): float(up or 0) / LATELY, ("down",): float(down or 0) / LATELY}
    yield _gauge("transfer_bytes_per_second", "Over the last five minutes.", per_second, ("direction",))
    yield _gauge("updates_per_second", "Received over the last five minutes.", {(): count / LATELY})
    spent = {("train",): float(train), ("link",): float(link)} if count else {}
    yield _gauge("update_seconds", "Mean time of an update over the last five minutes.", spent, ("part",))


def _store(session: Session, now: float) -> Iterator[Any]:
    newest = {
        (table,): session.scalar(select(func.max(column))) or 0
        for table, column in (("update", Update.id), ("input", Input.seq), ("event", Event.seq))
    }
    yield _counter("store_rows", "Rows ever written, by the number of the last.", newest, ("table",))
    yield _gauge("store_bytes", "Size of the database.", {(): _size(session)})
    free = shutil.disk_usage(services().settings.home).free
    yield _gauge("store_free_bytes", "Free on the disk of the home folder.", {(): free})
    waiting = select(func.count()).select_from(Update).where(Update.outcome == "stored")
    yield _gauge("store_updates_waiting", "Stored, and not yet part of a version.", {(): session.scalar(waiting) or 0})
    taken = session.scalar(select(func.max(Snapshot.at)))
    yield _gauge("store_snapshot_age_seconds", "Since the newest snapshot.", {(): now - taken} if taken else {})


def _size(session: Session) -> float:
    if session.get_bind().dialect.name == "sqlite":
        pages = session.execute(text("SELECT page_count * page_size FROM pragma_page_count, pragma_page_size"))
        return float(pages.scalar() or 0)
    return float(session.scalar(select(func.pg_database_size(func.current_database()))) or 0)


def _broker(session: Session, now: float) -> Iterator[Any]:
    """What the broker carried is known from what it left behind; its own sessions it counts itself."""
    heard = now - 3 * services().settings.heartbeat
    connected = func.sum(case((Device.last_seen_at > heard, 1), else_=0))
    yield _gauge("broker_devices_heard", "Within three heartbeats.", {(): session.scalar(select(connected)) or 0})
    oldest = select(func.min(Device.last_seen_at)).where(Device.status.in_(("idle", "training", "late")))
    seen = session.scalar(oldest)
    yield _gauge("broker_silence_seconds", "Of the longest silent device in reach.", {(): now - seen} if seen else {})
    refused = select(func.count()).select_from(Event).where(Event.kind == "message-refused")
    yield _gauge("broker_messages_refused", "In the journal, at most one in ten seconds and device.",
                 {(): session.scalar(refused) or 0})  # fmt: skip
