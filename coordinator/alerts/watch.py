"""What the clock alone brings about, journaled once: devices that stay silent, runs that stall, a disk that fills up,
credentials that end. Belongs to the steward's thread, and runs inside its transactions.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cryptography import x509
from sqlalchemy import and_, func, insert, or_, select
from sqlalchemy.orm import Session

from coordinator.alerts.rules import Rules
from coordinator.store.models import ApiToken, Device, Event, Instant, ModelVersion, Run, table_of

Later = Callable[[], None]

SOON: Final = 10.0
SELDOM: Final = 3600.0
"""Seconds between two looks; credentials are looked at seldom."""
DAY: Final = 86_400.0
CHUNK: Final = 500
"""Devices that one question is about."""
ENOUGH: Final = 1.1
"""Times ``disk_low`` that must be free before the disk counts as low once more."""


class Watch:
    """``home`` is the folder whose disk is watched, ``certificates`` are PEM files by what they are called."""

    def __init__(self, rules: Rules, home: Path, certificates: Mapping[str, Path]) -> None:
        self._rules = rules
        self._home = home
        self._certificates = certificates
        self._began: float | None = None
        self._due: dict[str, float] = {}
        self._silent: dict[str, float] = {}
        """Devices that were told of, and when they had been heard."""
        self._low: bool | None = None
        self._told: set[str] | None = None

    def look(self, session: Session, now: float) -> list[Later]:
        """Journal what is new. Returns what is to be done once it is committed."""
        if self._began is None:
            self._began = now
        later: list[Later] = []
        tasks: tuple[tuple[float, Callable[[Session, float, list[Later]], None]], ...] = (
            (self._rules.late_after and SOON, self._late),
            (self._rules.stalled_after and SOON, self._stalled),
            (self._rules.disk_low and SOON, self._disk),
            (self._rules.credential_days and SELDOM, self._ending),
        )
        for every, task in tasks:
            if every and self._due.get(task.__name__, 0.0) <= now:
                self._due[task.__name__] = now + every
                task(session, now, later)
        return later

    def _late(self, session: Session, now: float, later: list[Later]) -> None:
        """Devices that were to be heard and were not; after a start each has its time to come back."""
        before = now - self._rules.late_after
        if self._began is None or self._began > before:
            return
        found = session.execute(
            select(Device.id, Device.name, Device.last_seen_at)
            .where(Device.status.in_(("late", "offline")), Device.last_seen_at < before)
            .order_by(Device.last_seen_at)
        )
        silent = {id: (name, seen) for id, name, seen in found if seen is not None and self._silent.get(id) != seen}
        told = _told(session, list(silent))
        lines = [
            {
                "at": now,
                "kind": "device-late",
                "device_id": id,
                "text": f"{name} was last heard {span(now - seen)} ago",
            }
            for id, (name, seen) in silent.items()
            if told.get(id, 0.0) <= seen
        ]
        if lines:
            session.execute(insert(table_of(Event)), lines)
        later.append(lambda: self._silent.update({id: seen for id, (_, seen) in silent.items()}))

    def _stalled(self, session: Session, now: float, _: list[Later]) -> None:
        """Runs that are to make versions and do not; what was done to a run counts as well."""
        before = now - self._rules.stalled_after
        newest = and_(ModelVersion.run_id == Run.id, ModelVersion.version == Run.version)
        rows = session.execute(
            select(Run.id, Run.version, func.coalesce(ModelVersion.at, Run.created_at, type_=Instant))
            .outerjoin(ModelVersion, newest)
            .where(Run.state == "running", Run.simulated.is_(False))
        ).all()
        for id, version, made in rows:
            if made >= before:
                continue
            mine = select(Event.kind, Event.at).where(Event.run_id == id, Event.kind.startswith("run-"))
            kind, at = session.execute(mine.order_by(Event.seq.desc()).limit(1)).one_or_none() or ("", 0.0)
            told = kind == "run-stalled" and at > made
            if not told and (since := max(made, at)) < before:
                text = f"{id} has had no new version for {span(now - since)}; it is at version {version}"
                session.add(Event(at=now, kind="run-stalled", run_id=id, text=text))
        session.flush()

    def _disk(self, session: Session, now: float, later: list[Later]) -> None:
        free = shutil.disk_usage(self._home).free / 1e9
        low = free < self._rules.disk_low * (ENOUGH if self._low else 1.0)
        if self._low is None:
            kinds = or_(Event.kind == "disk-low", Event.kind == "disk-enough")
            last = session.scalar(select(Event.kind).where(kinds).order_by(Event.seq.desc()).limit(1))
            self._low = last == "disk-low"
        if low != self._low:
            kind = "disk-low" if low else "disk-enough"
            session.add(Event(at=now, kind=kind, text=f"{free:.1f} GB are free on the disk of {self._home}"))
            session.flush()
            later.append(lambda: setattr(self, "_low", low))

    def _ending(self, session: Session, now: float, later: list[Later]) -> None:
        notice = self._rules.credential_days * DAY
        if self._told is None:
            said = select(Event.text).where(Event.kind == "credential-ending", Event.at > now - notice - DAY)
            self._told = set(session.scalars(said))
        told, ends = self._told, self._ends(session, now)
        news = {
            f"{what} ends on {datetime.fromtimestamp(at, UTC):%Y-%m-%d}" for what, at, early in ends if at - now < early
        } - told
        for text in sorted(news):
            session.add(Event(at=now, kind="credential-ending", text=text))
        session.flush()
        later.append(lambda: told.update(news))

    def _ends(self, session: Session, now: float) -> list[tuple[str, float, float]]:
        """What ends, when, and how early that is told: of what does not live long, in its last tenth."""
        notice = self._rules.credential_days * DAY
        tokens = session.execute(
            select(ApiToken.id, ApiToken.operator, ApiToken.created_at, ApiToken.expires_at).where(
                ApiToken.kind == "api", ApiToken.revoked_at.is_(None), ApiToken.expires_at > now
            )
        )
        found = []
        for id, operator, created, end in tokens:
            if end is not None:
                found.append((f"API token {id} of {operator}", end, min(notice, (end - created) / 10)))
        for name, path in self._certificates.items():
            if (certificate := _certificate(path)) is not None:
                found.append((name, certificate.not_valid_after_utc.timestamp(), notice))
        return found


def _told(session: Session, devices: Sequence[str]) -> dict[str, float]:
    """When each of these devices was last journaled as late."""
    found: dict[str, float] = {}
    for start in range(0, len(devices), CHUNK):
        these = Event.device_id.in_(devices[start : start + CHUNK])
        query = select(Event.device_id, Event.at).where(these, Event.kind == "device-late").order_by(Event.seq)
        found |= {str(device): at for device, at in session.execute(query)}
    return found


def span(seconds: float) -> str:
    """A length of time in one unit, as people say it."""
    for unit, size in (("days", DAY), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} seconds"


def _certificate(path: Path) -> x509.Certificate | None:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError):
        return None  # whoever needs it says so
