"""Attempts to join or to stay with what one should not have: refused, and in the journal."""

from __future__ import annotations

import pytest
from sqlalchemy import update

from coordinator.fleet import enrolment, tokens
from coordinator.store import credentials, registry
from coordinator.store.models import Credential, Device, Event
from protocol.wire import unstructure
from tests.coordinator.people import HEARTBEAT, START, basic, request_of, secret_of


@pytest.fixture
def client(app):
    return app.test_client()


@pytest.fixture
def token(services):
    with services.database.write() as session:
        return tokens.create(session, START, uses=1, ttl=60, by="ada")


def enrol(client, board, token, **changes):
    return client.post("/api/v1/enrol", json=unstructure(request_of(board, token, **changes)))


def audited(services):
    with services.database.read() as session:
        return [event.text for event in session.query(Event).filter_by(kind="enrolment-refused")]


def test_a_used_token_is_refused_to_another_board(client, services, token):
    assert enrol(client, "pico", token).status_code == 200
    assert enrol(client, "eve", token).status_code == 401
    (line,) = audited(services)
    assert line.startswith(f"eve at 127.0.0.1 tried to join with token {token.split('.')[1]}: This token has been used")
    assert token.split(".")[2] not in line


def test_a_replayed_enrolment_is_the_same_device_and_makes_nothing_new(client, services, token):
    """Who has recorded the request has the secret as well: TLS is what keeps it from them."""
    first, again = enrol(client, "pico", token), enrol(client, "pico", token)
    assert first.json == again.json
    with services.database.read() as session:
        assert session.query(Device).count() == 1
        assert len(credentials.accounts(session)) == 1


def test_a_replay_after_revocation_is_refused(client, services, token):
    enrol(client, "pico", token)
    with services.database.write() as session:
        registry.revoke(session, "pico", START, HEARTBEAT, by="ada")
    assert enrol(client, "pico", token).status_code == 401
    assert "was revoked" in audited(services)[0]


def test_an_expired_token_is_refused_whatever_the_board_believes_the_time_is(client, services, token, clock):
    clock.later(61)
    assert enrol(client, "pico", token).status_code == 401
    assert "has expired" in audited(services)[0]


def test_a_guesser_is_told_nothing_and_stopped(client, services, token, clock):
    """One bit wrong is as wrong as all, and twenty attempts are all there are."""
    kind, name, secret, print_ = token.split(".")
    guesses = [f"{kind}.{name}.{secret[:-1]}{'A' if secret[-1] != 'A' else 'B'}.{print_}"]
    guesses += [f"{kind}.{number:012x}.{'x' * 43}.{print_}" for number in range(19)]
    said = {enrol(client, "eve", guess).json["detail"] for guess in guesses}
    assert len(said) == 1
    assert enrol(client, "eve", token).status_code == 429
    assert len(audited(services)) == 20
    clock.later(601)
    assert enrol(client, "pico", token).status_code == 401  # it has expired meanwhile


def test_two_boards_from_one_card_that_was_copied_before_it_joined(client, services, token):
    """Each makes its own secret: the second comes too late, and the journal shows it."""
    assert enrol(client, "pico", token, secret="1" * 40).status_code == 200
    assert enrol(client, "pico", token, secret="2" * 40).status_code == 401
    assert len(audited(services)) == 1


class TestRotation:
    @pytest.fixture
    def pico(self, client, token):
        assert enrol(client, "pico", token).status_code == 200
        return "pico"

    def propose(self, client, secret, login=None):
        return client.post("/api/v1/device/secret", json={"secret": secret}, headers=basic("pico", login))

    def prove(self, client, secret):
        return client.post("/api/v1/device/secret/proof", headers=basic("pico", secret))

    def test_the_next_secret_takes_the_place_of_the_present_one_once_it_is_proved(self, client, services, pico):
        told = []
        object.__setattr__(services, "admit", lambda *who: told.append(who))
        assert self.propose(client, "n" * 40).status_code == 200
        assert told == []
        assert self.prove(client, "n" * 40).status_code == 200
        assert self.prove(client, "n" * 40).status_code == 200  # the answer was lost
        assert told == [("pico", "n" * 40)] * 2
        assert self.propose(client, "m" * 40).status_code == 401
        assert self.propose(client, "m" * 40, login="n" * 40).status_code == 200

    def test_nobody_else_can_set_it(self, client, pico):
        assert self.propose(client, "n" * 40, login="wrong").status_code == 401
        assert self.prove(client, "n" * 40).status_code == 401
        assert self.propose(client, "short").status_code == 400

    def test_a_recorded_enrolment_does_not_bring_the_old_secret_back(self, client, services, pico, token):
        self.propose(client, "n" * 40)
        assert enrol(client, "pico", token).status_code == 200  # not proved yet: the first one counts
        assert self.prove(client, "n" * 40).status_code == 200
        assert enrol(client, "pico", token).status_code == 401
        assert "replaced" in audited(services)[0]

    def test_an_old_secret_never_returns(self, client, pico):
        self.propose(client, "n" * 40)
        self.prove(client, "n" * 40)
        assert self.propose(client, secret_of("pico"), login="n" * 40).status_code == 409


def test_a_secret_from_before_there_were_verifiers_gets_one_when_the_device_shows_it(client, services, token):
    told = []
    object.__setattr__(services, "admit", lambda *who: told.append(who))
    enrol(client, "pico", token)
    with services.database.write() as session:
        session.execute(update(Credential).values(verifier=""))
        assert (credentials.accounts(session), credentials.unverified(session)) == ([], ["pico"])
    told.clear()
    path = "/api/v1/device/secret/proof"
    assert client.post(path, headers=basic("pico", "wrong")).status_code == 401
    assert told == []
    for _ in range(2):
        client.get(f"/api/v1/device/blobs/{'a' * 64}", headers=basic("pico"))
    assert told == [("pico", secret_of("pico"))]
    with services.database.read() as session:
        ((device, verifier),) = credentials.accounts(session)
    assert (device, verifier[:7]) == ("pico", "$7$101$")


def test_a_secret_of_a_pending_device_fetches_nothing(client, services):
    with services.database.write() as session:
        token = tokens.create(session, START, manual=True, by="ada")
        enrolment.enrol(session, request_of("nova", token), START)
    found = client.get(f"/api/v1/device/blobs/{'a' * 64}", headers=basic("nova"))
    assert found.status_code == 403
