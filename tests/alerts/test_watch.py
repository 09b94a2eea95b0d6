"""What the clock alone brings about stands in the journal, once."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from coordinator.alerts import watch
from coordinator.alerts.rules import Rules
from coordinator.alerts.watch import DAY, Watch, span
from coordinator.fleet import authority
from coordinator.operators import mint_api
from coordinator.store.models import Device, Event, ModelVersion, Run
from tests.conftest import BACKENDS
from tests.coordinator.people import START, add_device, add_run


@pytest.fixture(params=BACKENDS)
def backend(request):
    return request.param


@pytest.fixture
def look(home, database, clock):
    """One look; the lines of the kinds that are watched for since the last one."""
    kinds = ("device-late", "run-stalled", "disk-low", "disk-enough", "credential-ending")
    last = [0]

    def look(one: Watch) -> list[str]:
        with database.write() as session:
            later = one.look(session, clock())
        for step in later:
            step()
        with database.read() as session:
            rows = session.query(Event).filter(Event.seq > last[0], Event.kind.in_(kinds)).order_by(Event.seq).all()
            last[0] = rows[-1].seq if rows else last[0]
            return [f"{row.device_id or row.run_id or ''} {row.text}".strip() for row in rows]

    return look


@pytest.fixture
def begin(home):
    def begin(certificates=None, **rules) -> Watch:
        off = {"late_after": 0, "stalled_after": 0, "disk_low": 0, "credential_days": 0}
        return Watch(Rules(**{**off, **rules}), home, certificates or {})

    return begin


def test_a_device_is_late_once_per_silence(begin, look, database, clock):
    with database.write() as session:
        add_device(session, "pico", status="offline", last_seen_at=START - 5000)
        add_device(session, "tre", status="revoked", last_seen_at=START - 5000)
        add_device(session, "cinque", status="new")
    one = begin(late_after=900)
    assert look(one) == [], "after a start everybody has time to come back"
    clock.later(900)
    assert look(one) == ["pico pico was last heard 98 minutes ago"]
    clock.later(60)
    assert look(one) == []
    again = begin(late_after=900)
    look(again)
    clock.later(900)
    assert look(again) == [], "a restart does not make it news"
    with database.write() as session:
        session.get(Device, "pico").last_seen_at = clock()
    clock.later(901)
    assert look(again) == ["pico pico was last heard 15 minutes ago"]


def test_a_run_without_a_version_for_too_long_has_stalled(begin, look, database, clock):
    one = begin(stalled_after=3600)
    with database.write() as session:
        add_run(session, "digits-1", START)
        add_run(session, "digits-2", START)
        session.get(Run, "digits-2").state = "paused"
    clock.later(3601)
    assert look(one) == ["digits-1 digits-1 has had no new version for 60 minutes; it is at version 0"]
    clock.later(60)
    assert look(one) == look(begin(stalled_after=3600)) == []
    with database.write() as session:
        session.add(ModelVersion(run_id="digits-1", version=1, sha256="", step_norm=0.0, updates=1, at=clock()))
        session.get(Run, "digits-1").version = 1
    clock.later(3601)
    assert len(look(one)) == 1
    with database.write() as session:
        session.add(Event(at=clock(), kind="run-recovered", run_id="digits-1", text=""))
    clock.later(3000)
    assert look(begin(stalled_after=3600)) == [], "the coordinator was away"


def test_a_disk_that_fills_up_is_told_of_once_and_again_after_it_was_emptied(begin, look, clock, monkeypatch):
    free = [5e9]
    monkeypatch.setattr(watch.shutil, "disk_usage", lambda _: type("Usage", (), {"free": free[0]}))
    one = begin(disk_low=2.0)

    def then(gigabytes: float) -> list[str]:
        free[0] = gigabytes * 1e9
        clock.later(60)
        return [line.partition(" on ")[0] for line in look(one)]

    assert then(5) == []
    assert then(1.9) == ["1.9 GB are free"]
    assert then(2.1) == [], "not enough more to speak of"
    one = begin(disk_low=2.0)
    assert then(1.5) == [], "a restart does not make it news"
    assert then(3) == ["3.0 GB are free"]
    assert then(1) == ["1.0 GB are free"]


def test_credentials_are_told_of_before_they_end(begin, look, database, clock, home):
    start = datetime.fromtimestamp(START, UTC)
    files = authority.establish(home, now=start)
    with database.write() as session:
        mint_api(session, START, name="grafana", role="viewer", by="ada", ttl=400 * DAY)
        mint_api(session, START, name="local-script", role="viewer", by="ada")
    one = begin(credential_days=14, certificates={"The server's certificate": files.certificate})
    assert look(one) == []
    clock.now = START + 387 * DAY
    (line,) = look(one)
    assert line.endswith(" of grafana ends on 2024-12-18")
    assert look(begin(credential_days=14)) == []
    clock.now = START + 812 * DAY
    assert look(one) == ["The server's certificate ends on 2026-02-16"]


def test_what_lives_for_a_week_is_told_of_in_its_last_tenth(begin, look, database, clock):
    with database.write() as session:
        mint_api(session, START, name="nightly", role="viewer", by="ada", ttl=10 * DAY)
    one = begin(credential_days=14)
    assert look(one) == []
    clock.now = START + 9.1 * DAY
    assert len(look(one)) == 1


LENGTHS = [(90, "90 seconds"), (900, "15 minutes"), (7200, "2 hours"), (3e5, "3 days")]


@pytest.mark.parametrize(("seconds", "text"), LENGTHS)
def test_a_length_of_time_has_one_unit(seconds, text):
    assert span(seconds) == text
