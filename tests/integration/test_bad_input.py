"""Whatever devices, networks and disks do wrong: it is said in a sentence where that is due, nothing is lost, and the
healthy device beside trains on."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import select

from coordinator.demo.fleet import Agent
from coordinator.store import models, queries
from protocol import topics
from protocol.messages import DeviceEvent
from protocol.wire import encode
from tests.integration import accounts
from tests.integration.fleet import RECIPE, TIERS, Fleet, Server, told, until
from tests.integration.rogue import Rogue, enrol, problem

SECRET = "a-secret-that-a-device-made-for-itself"
UPWARD = [leaf for leaf, channel in topics.CHANNELS.items() if channel.direction == "up"]


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Fleet, str]]:
    """A fleet whose one healthy agent makes a version of every update. In the end the books are recomputed."""
    with ExitStack() as closing:
        server = Server(tmp_path_factory.mktemp("coordinator"))
        closing.callback(server.kill)
        server.start()
        fleet = Fleet(server, closing)
        run = server.start_run(RECIPE.replace("goal = 3", "goal = 1"))
        (agent,) = fleet.join(TIERS[:1])
        agent.run()
        yield fleet, run
        server.stop()
        accounts.replay(server.home, run)


@pytest.fixture
def server(busy: tuple[Fleet, str]) -> Iterator[Server]:
    """After each test the run goes on, and its books are right."""
    fleet, run = busy
    yield fleet.server
    fleet.server.advances(run)
    accounts.check(fleet.server, fleet.agents, run)


@pytest.fixture
def healthy(busy: tuple[Fleet, str]) -> Agent:
    return busy[0].agents[0]


@pytest.fixture
def rogue(server: Server) -> Iterator[Rogue]:
    with Rogue(server, "rogue") as rogue:
        yield rogue


def events(server: Server, kind: str, device: str | None = None) -> list[str]:
    with server.database().read() as session:
        rows = select(models.Event.text).where(models.Event.kind == kind, models.Event.device_id == device)
        return list(session.scalars(rows.order_by(models.Event.seq)))


def outcome(server: Server, assignment: str) -> tuple[str, str]:
    with server.database().read() as session:
        row = session.scalars(select(models.Update).where(models.Update.assignment_id == assignment)).one()
        return row.outcome, row.reason


# -- joining -----------------------------------------------------------------------------------------------------------


def test_a_token_nobody_made_is_refused(server: Server) -> None:
    answer = enrol(server, "shoal1.0123456789ab." + 43 * "x" + ".-", "stranger", SECRET)
    assert problem(answer)[:2] == (401, "token-invalid")
    assert "mistyped, or it was made by another coordinator" in problem(answer)[2]


def test_a_token_is_good_for_as_many_devices_as_it_says(server: Server) -> None:
    token = server.token("small")
    assert enrol(server, token, "first", SECRET)[0] == 200
    assert enrol(server, token, "first", SECRET)[0] == 200  # the same device asks again
    assert problem(enrol(server, token, "second", SECRET[::-1]))[:2] == (401, "token-invalid")


def test_the_agent_says_why_it_could_not_join(server: Server, healthy: Agent, tmp_path: Path) -> None:
    agent = Agent("late", TIERS[0], tmp_path / "late")
    joining = agent.enrol(server.api.url, "shoal1.0123456789ab." + 43 * "x" + ".-", healthy.home / "nothing.npz")
    assert joining.wait(30) == 5
    assert "does not exist" in agent.log.read_text()
    data = server.home / f"{healthy.name}.npz"
    joining = agent.enrol(server.api.url, "shoal1.0123456789ab." + 43 * "x" + ".-", data)
    assert joining.wait(30) == 4
    assert "refused the enrolment (status 401): This token is not known here" in agent.log.read_text()


# -- messages ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("leaf", UPWARD)
@pytest.mark.parametrize("payload", [b"{", b'\x01\x00\x00\x00[{"assignment":NaN}'], ids=["torn", "wrong"])
def test_what_cannot_be_read_is_entered_in_the_journal(server: Server, leaf: str, payload: bytes) -> None:
    with Rogue(server, f"rogue-{leaf}") as rogue:
        rogue.say(leaf, payload)
        (text,) = until(lambda: events(server, "message-refused", rogue.id), "it is in the journal")
        assert text.startswith(f"{leaf}: ")
        rogue.take()  # it may go on


def test_a_packet_that_is_too_large_ends_the_connection(rogue: Rogue) -> None:
    rogue.client.paho.publish(topics.device_topic(rogue.id, "update"), bytes(300_000), 1)
    assert rogue.client.disconnected.wait(10)
    with rogue.connection() as again:
        assert again.code == 0


def test_what_is_published_for_another_device_reaches_nobody(server: Server, healthy: Agent, rogue: Rogue) -> None:
    slander = encode(DeviceEvent(kind="slander", text="the other one is broken"))
    rogue.say("event", slander, device=healthy.name)
    rogue.say("event", slander)
    until(lambda: events(server, "device-slander", rogue.id), "its own words have arrived")
    assert not events(server, "device-slander", healthy.name)


# -- updates -----------------------------------------------------------------------------------------------------------


def test_a_sound_update_is_taken_once(server: Server, rogue: Rogue) -> None:
    work = rogue.take()
    difference = rogue.nothing_learnt(work)
    first = rogue.deliver(work, difference)
    assert first.state == "stored"
    assert outcome(server, work.id) == ("applied", "")
    other = {name: value + 1 for name, value in difference.items()}
    again = rogue.deliver(work, other)
    assert (again.state, again.sha256) == ("stored", first.sha256)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e7])
def test_an_update_with_impossible_numbers_is_refused(server: Server, rogue: Rogue, value: float) -> None:
    work = rogue.take()
    difference = rogue.nothing_learnt(work)
    next(iter(difference.values())).flat[3] = value
    receipt = rogue.deliver(work, difference)
    assert receipt.state == "refused"
    assert "elements that are not finite" in receipt.reason or "an element of size 1e+07" in receipt.reason
    assert outcome(server, work.id) == ("refused", receipt.reason)
    assert events(server, "update-refused", rogue.id) == [f"{work.id}: {receipt.reason}"]


def test_an_update_of_another_shape_is_refused(server: Server, rogue: Rogue) -> None:
    work = rogue.take()
    difference = rogue.nothing_learnt(work)
    name = next(name for name, value in difference.items() if value.ndim == 2)
    receipt = rogue.deliver(work, {**difference, name: difference[name].T.copy()})
    assert receipt.state == "refused"
    assert name in receipt.reason
    assert outcome(server, work.id)[0] == "refused"


def test_an_announcement_beyond_the_model_is_refused_before_anything_is_allocated(server: Server, rogue: Rogue) -> None:
    work = rogue.take()
    receipt = rogue.deliver(work, rogue.nothing_learnt(work), size=1 << 32, chunk=96 * 1024)
    assert receipt.state == "refused"
    assert f"the update announces {1 << 32} bytes, at most " in receipt.reason
    assert outcome(server, work.id) == ("refused", receipt.reason)


def test_an_update_for_somebody_elses_assignment_is_unknown(server: Server, rogue: Rogue) -> None:
    with Rogue(server, "neighbour") as neighbour:
        theirs = neighbour.take()
        receipt = rogue.deliver(theirs, neighbour.nothing_learnt(theirs))
        assert (receipt.state, receipt.reason) == ("unknown", "there is no such assignment for this device")
        refused = f"an update came for assignment {theirs.id}, which is not this device's"
        assert until(lambda: events(server, "message-refused", rogue.id), "it is in the journal") == [refused]
        assert neighbour.deliver(theirs, neighbour.nothing_learnt(theirs)).state == "stored"


# -- identity ----------------------------------------------------------------------------------------------------------


def test_a_wrong_password_is_not_let_in(rogue: Rogue) -> None:
    with rogue.connection(password="guessed") as guesser:
        assert guesser.code == 5
    assert not rogue.client.disconnected.is_set()


def test_a_revoked_device_is_shut_out_at_once(server: Server, rogue: Rogue) -> None:
    work = rogue.take()
    assert rogue.fetch(work.weights.sha256)[0] == 200
    assert server.api.post("devices", rogue.id, "revoke")["row"]["status"] == "revoked"
    assert rogue.client.disconnected.wait(10)
    with rogue.connection() as again:
        assert again.code == 5
    assert problem(rogue.fetch(work.weights.sha256))[:2] == (401, "not-authenticated")
    with server.database().read() as session:
        row = session.get_one(models.Assignment, work.id)
        assert (row.state, row.reason) == ("cancelled", "the device was revoked")


def test_a_device_fetches_only_what_it_was_assigned(server: Server, rogue: Rogue) -> None:
    with Rogue(server, "neighbour") as neighbour:
        theirs = neighbour.take()
        assert problem(rogue.fetch(theirs.weights.sha256))[:2] == (403, "not-allowed")


# -- homes -------------------------------------------------------------------------------------------------------------


def test_an_agent_with_a_corrupt_spool_moves_it_aside_and_goes_on(server: Server, healthy: Agent) -> None:
    until(lambda: told(healthy, "settled"), "it trains")
    healthy.stop()
    healthy.wait()
    for path in healthy.home.glob("spool.db*"):
        path.unlink() if path.suffix != ".db" else path.write_bytes(b"SQLite format 3\0" + 8192 * b"rubbish ")
    known = set(told(healthy, "settled"))
    healthy.run()
    until(lambda: set(told(healthy, "settled")) - known, "it trains again")
    assert (healthy.home / "spool.corrupt-1").exists()
    (text,) = until(lambda: events(server, "device-spool-damaged", healthy.name), "the coordinator was told")
    assert text == "the spool was damaged and is now spool.corrupt-1; updates not yet sent are lost"


def test_an_agent_without_room_for_its_spool_says_so_and_goes_on_when_there_is_some(
    server: Server, healthy: Agent
) -> None:
    until(lambda: told(healthy, "settled"), "it trains")
    assert healthy.process is not None
    unlimited = resource.prlimit(healthy.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(healthy.process.pid, resource.RLIMIT_FSIZE, (4096, unlimited[1]))
    until(lambda: "no-spool" in server.api.get("devices", healthy.name)["row"]["flags"], "its page says so")
    (reason,) = until(lambda: events(server, "device-spool-unusable", healthy.name), "and its journal why")
    with server.database().read() as session:
        attention = queries.overview(session, time.time()).attention
    (trouble,) = (one for one in attention if one.kind == "no-spool")
    assert trouble.cases[0].note == reason
    resource.prlimit(healthy.process.pid, resource.RLIMIT_FSIZE, unlimited)
    until(lambda: events(server, "device-spool-usable", healthy.name), "it can write again")


def test_two_agents_do_not_share_a_home(server: Server, healthy: Agent) -> None:
    second = Agent(healthy.name, healthy.tier, healthy.home)
    second.run()
    assert second.process is not None
    try:
        assert second.process.wait(30) == 7
    finally:
        second.kill()
    assert f"another agent runs in {healthy.home}" in healthy.log.read_text()


@pytest.mark.parametrize("place", ["occupied", "unwritable"])
def test_a_coordinator_needs_a_home_of_its_own(server: Server, tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    home = server.home if place == "occupied" else tmp_path / "file" / "below"
    found = Server.attempt("--home", str(home), "--port", "0", "--mqtt-port", "0")
    assert found.returncode == 1
    said = "Another coordinator is running in" if place == "occupied" else "cannot be written: Not a directory"
    assert said in found.stderr
    assert "Traceback" not in found.stderr


@pytest.mark.parametrize("option", ["--port", "--mqtt-port"])
def test_a_coordinator_names_the_port_it_cannot_have(server: Server, tmp_path: Path, option: str) -> None:
    ports = {"--port": "0", "--mqtt-port": "0", option: str(server.port)}
    found = Server.attempt("--home", str(tmp_path / "home"), *(word for pair in ports.items() for word in pair))
    assert found.returncode == 1
    assert "The port is already in use." in found.stderr
    assert str(server.port) in found.stderr
    assert "Traceback" not in found.stderr
