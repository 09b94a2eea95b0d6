"""What an engine decided, as rows: assignments, updates, versions, metrics, events."""

from __future__ import annotations

from attrs import frozen
from sqlalchemy import bindparam, insert, select, update
from sqlalchemy.orm import Session

from coordinator.store import registry
from coordinator.store.models import (
    Amendment,
    Assignment,
    Device,
    Event,
    Metric,
    ModelVersion,
    Refresh,
    Run,
    Update,
    table_of,
)
from coordinator.training.inputs import (
    Amended,
    Changed,
    Closed,
    Evaluated,
    Offered,
    Refreshed,
    Settled,
    Versioned,
)
from protocol.messages import Holdout
from protocol.wire import unstructure

OPEN = ("offered", "taken")

# Made once: these are what every update and every assignment costs.
_assignments, _updates, _runs = table_of(Assignment), table_of(Update), table_of(Run)
_this = _assignments.c.id == bindparam("assignment")
_key = (_updates.c.assignment_id == bindparam("assignment"), _updates.c.commit == bindparam("number"))
_OFFER = insert(_assignments)
_VERSION, _NOTE = insert(table_of(ModelVersion)), insert(table_of(Event))
_OFFERED = select(_assignments.c.width, _assignments.c.offered_at).where(_this)
_BEAT = select(table_of(Device).c.telemetry).where(table_of(Device).c.id == bindparam("device"))
_SETTLE = insert(_updates)
_KNOWN = (
    select(
        _assignments.c.run_id, _assignments.c.device_id, _updates.c.outcome, _updates.c.sha256, _updates.c.reason
    )
    .outerjoin_from(
        _assignments,
        _updates,
        (_updates.c.assignment_id == _assignments.c.id) & (_updates.c.commit == bindparam("number")),
    )
    .where(_this)
)
_APPLY = (
    update(_updates)
    .where(*_key)
    .values(outcome="applied", applied_version=bindparam("version"), weight=bindparam("factor"))
)
_ADVANCE = update(_runs).where(_runs.c.id == bindparam("run")).values(version=bindparam("newest"))
_TAKE = (
    update(_assignments)
    .where(_this, _assignments.c.device_id == bindparam("device"), _assignments.c.state == "offered")
    .values(state="taken", taken_at=bindparam("now"))
)
_END = (
    update(_assignments)
    .where(_this, _assignments.c.state.in_(OPEN))
    .values(state=bindparam("ended"), reason=bindparam("why"), closed_at=bindparam("now"))
)


_AMEND, _REFRESH = insert(table_of(Amendment)), insert(table_of(Refresh))
_PROLONG = update(_assignments).where(_this).values(expires_at=bindparam("until"))


@frozen
class Delivery:
    """What an assignment makes its device fetch: hashes of artifact and weights, sizes in bytes."""

    artifact: str
    artifact_size: int
    weights: str
    weights_size: int


@frozen
class Ledger:
    """Writes what follows from one engine input of one run, at time ``now``, into the transaction of ``session``."""

    session: Session
    run: str
    now: float
    heartbeat: float

    def offered(self, offer: Offered, delivery: Delivery) -> None:
        row = {
            "id": offer.assignment,
            "run_id": self.run,
            "device_id": offer.device,
            "kind": "train",
            "version": offer.version,
            "width": offer.plan.width,
            "plan": unstructure(offer.plan),
            "explanation": offer.explanation,
            "state": "offered",
            "reason": "",
            "artifact_sha256": delivery.artifact,
            "weights_sha256": delivery.weights,
            "bytes_down": delivery.artifact_size + delivery.weights_size,
            **self._heard(offer.device),
            "offered_at": self.now,
            "expires_at": offer.expires_at,
        }
        self.session.execute(_OFFER, row)

    def settled(self, outcome: Settled, place: tuple[int, int]) -> None:
        """One row for every update, whatever became of it, and the end of its assignment, if it is. ``place`` is where
        its body lies."""
        sent = outcome.update
        width, offered_at = self.session.execute(_OFFERED, {"assignment": sent.assignment}).one()
        row = {
            "assignment_id": sent.assignment,
            "commit": sent.commit,
            "run_id": self.run,
            "device_id": outcome.device,
            "base_version": sent.lineage.newest,
            "merges": [unstructure(merge) for merge in sent.lineage.merges] or None,
            "staleness": outcome.staleness,
            "width": width,
            "samples": sent.samples,
            "steps": sent.steps,
            "loss": sent.loss,
            "accuracy": sent.accuracy,
            "norm": outcome.norm,
            "scores": outcome.scores or None,
            **_holdout(sent.holdout),
            "bytes_up": sent.size,
            "bytes_down": sent.bytes_down,
            "seconds_download": sent.timings.download,
            "seconds_train": sent.timings.train,
            "seconds_upload": sent.timings.upload,
            "seconds_total": round(self.now - offered_at, 6),
            "outcome": outcome.outcome,
            "reason": outcome.reason,
            "sha256": sent.sha256,
            "segment": place[0],
            "offset": place[1],
            "at": self.now,
        }
        self.session.execute(_SETTLE, row)
        if outcome.outcome != "expired" and outcome.ends:
            self._end(sent.assignment, "closed", outcome.reason)
        if outcome.outcome in ("refused", "expired"):
            self.event(f"update-{outcome.outcome}", f"{sent.assignment}: {outcome.reason}", device=outcome.device)

    def amended(self, change: Amended) -> None:
        """The plan of an assignment changed."""
        row = {"assignment_id": change.assignment, "number": change.number, "plan": unstructure(change.plan)}
        self.session.execute(_AMEND, {**row, "at": self.now})

    def refreshed(self, refresh: Refreshed, weights: tuple[str, int]) -> None:
        """A device is to merge a newer model; ``weights`` are hash and size of what it fetches."""
        row = {"assignment_id": refresh.assignment, "version": refresh.version, "at": self.now}
        how = {"merge": refresh.merge, "keep": refresh.keep, "weights_sha256": weights[0], "bytes_down": weights[1]}
        self.session.execute(_REFRESH, row | how)

    def prolonged(self, assignment: str, expires_at: float) -> None:
        """A commit came that is not the last: the lease begins anew."""
        self.session.execute(_PROLONG, {"assignment": assignment, "until": expires_at})

    def closed(self, end: Closed) -> None:
        self._end(end.assignment, end.state, end.reason)
        if self.session.scalar(select(Device.assignment_id).where(Device.id == end.device)) == end.assignment:
            registry.note(self.session, end.device, self.now, self.heartbeat, assignment_id=None)
        self.event(f"assignment-{end.state}", f"{end.assignment}: {end.reason}", device=end.device)

    def versioned(self, version: Versioned) -> None:
        """A new version, and the updates that went into it."""
        row = {
            "run_id": self.run,
            "version": version.version,
            "sha256": version.sha256,
            "step_norm": version.step_norm,
            "updates": len(version.contributors),
            "at": self.now,
        }
        self.session.execute(_VERSION, row)
        merged = []
        for contributor in version.contributors:
            assignment, _, commit = contributor.key.rpartition("/")
            key = {"assignment": assignment, "number": int(commit)}
            merged.append({**key, "version": version.version, "factor": contributor.weight})
        if merged:
            self.session.connection().execute(_APPLY, merged)
        if version.reason:
            self.event("model-changed", f"version {version.version}: {version.reason}")
        self.session.execute(_ADVANCE, {"run": self.run, "newest": version.version})

    def evaluated(self, result: Evaluated) -> None:
        found = {"accuracy": result.accuracy, "loss": result.loss}
        if result.control_accuracy is not None and result.control_loss is not None:
            found |= {"control_accuracy": result.control_accuracy, "control_loss": result.control_loss}
        for name, value in found.items():
            self.session.merge(Metric(run_id=self.run, version=result.version, name=name, value=value, at=self.now))

    def changed(self, change: Changed) -> None:
        values = {"state": change.state, "reason": change.reason}
        ended = {"ended_at": self.now} if change.state in ("stopped", "finished") else {}
        self.session.execute(update(Run).where(Run.id == self.run).values(**values, **ended))
        self.event(f"run-{change.state}", change.reason)

    def event(self, kind: str, text: str, *, device: str | None = None) -> None:
        """Append to the journal that people read."""
        note(self.session, self.now, kind, text, run=self.run, device=device)

    def _heard(self, device: str) -> dict[str, float | None]:
        """What the device last said of itself."""
        told = self.session.scalar(_BEAT, {"device": device}) or {}
        return {name: told.get(name) for name in ("temperature", "load")}

    def _end(self, assignment: str, state: str, reason: str) -> None:
        ended = {"assignment": assignment, "ended": state, "why": reason, "now": self.now}
        self.session.execute(_END, ended)


def _holdout(said: Holdout | None) -> dict[str, float | None]:
    names = ("samples", "loss", "accuracy")
    return {f"holdout_{name}": None if said is None else getattr(said, name) for name in names}


def note(
    session: Session, now: float, kind: str, text: str, *, run: str | None = None, device: str | None = None
) -> None:
    """Append to the journal that people read."""
    session.execute(_NOTE, {"at": now, "kind": kind, "text": text, "run_id": run, "device_id": device})


def take(session: Session, now: float, device: str, assignment: str) -> None:
    """The device says that it has begun."""
    session.execute(_TAKE, {"assignment": assignment, "device": device, "now": now})


@frozen
class Entry:
    """An update that is in the ledger."""

    outcome: str
    sha256: str
    reason: str


def known(session: Session, assignment: str, commit: int) -> tuple[tuple[str, str] | None, Entry | None]:
    """(run, device) of an assignment, open or not, and what is in the ledger under this key already."""
    row = session.execute(_KNOWN, {"assignment": assignment, "number": commit}).one_or_none()
    if row is None:
        return None, None
    run, device, *entry = row
    return (run, device), None if entry[0] is None else Entry(*entry)


def offered_at(session: Session, assignment: str) -> float | None:
    """When an assignment was offered, if that is written down already."""
    row = session.execute(_OFFERED, {"assignment": assignment}).one_or_none()
    return None if row is None else row.offered_at


def delivery(session: Session, assignment: str) -> tuple[str, str]:
    """(artifact, weights) hashes that an assignment names."""
    row = session.execute(
        select(Assignment.artifact_sha256, Assignment.weights_sha256).where(Assignment.id == assignment)
    ).one()
    return row.artifact_sha256, row.weights_sha256


def open_weights(session: Session, run: str) -> list[tuple[str, str]]:
    """(assignment, weights hash) of everything that devices with open assignments of a run may still fetch."""
    mine = (Assignment.run_id == run, Assignment.state.in_(OPEN))
    given = select(Assignment.id, Assignment.weights_sha256).where(*mine)
    fresh = select(Assignment.id, Refresh.weights_sha256).join(Refresh, Refresh.assignment_id == Assignment.id)
    return [(a, w) for query in (given, fresh.where(*mine)) for a, w in session.execute(query)]
