"""An enrolment token admits as many devices as it says, until it ends."""

from __future__ import annotations

import pytest
from sqlalchemy import select

from coordinator.errors import ShoalError
from coordinator.fleet import tokens
from coordinator.store.models import Base, EnrolmentToken, Event
from tests.conftest import BACKENDS
from tests.coordinator.people import START

DAY = 86_400.0


@pytest.fixture(params=BACKENDS)
def backend(request):
    return request.param


@pytest.fixture
def session(database):
    with database.write() as session:
        yield session


def refusal(session, text, now=START):
    with pytest.raises(ShoalError) as caught:
        tokens.claim(session, tokens.find(session, text), now)
    assert caught.value.code == "token-invalid"
    return caught.value.detail


def test_a_token_names_itself_its_secret_and_the_authority(session):
    fingerprint = "A" * 27
    prefix, token_id, secret, seal = tokens.create(session, START, by="ada", fingerprint=fingerprint).split(".")
    assert (prefix, len(token_id), len(secret), seal) == ("shoal1", 12, 43, fingerprint)
    assert tokens.create(session, START, by="ada").endswith(".-")


def test_the_secret_is_stored_nowhere(session):
    secret = tokens.create(session, START, by="ada").split(".")[2]
    session.flush()
    dump = str([session.execute(select(table)).all() for table in Base.metadata.sorted_tables])
    assert secret not in dump
    assert "token-created" in dump


def test_a_token_is_used_up(session):
    text = tokens.create(session, START, uses=2, group="kitchen", by="ada")
    assert tokens.claim(session, tokens.find(session, text), START).uses == 1
    assert tokens.claim(session, tokens.find(session, text), START).uses == 2
    assert "used as often as it may be" in refusal(session, text)


def test_a_token_ends(session):
    text = tokens.create(session, START, ttl=60, by="ada")
    assert "expired" in refusal(session, text, START + 60)
    assert tokens.claim(session, tokens.find(session, text), START + 59).uses == 1


def test_a_revoked_token_is_refused_and_cannot_be_revoked_twice(session):
    text = tokens.create(session, START, by="ada")
    token_id = text.split(".")[1]
    tokens.revoke(session, token_id, START + 1, by="olga")
    assert "revoked" in refusal(session, text)
    with pytest.raises(ShoalError, match="already revoked"):
        tokens.revoke(session, token_id, START + 2, by="olga")
    with pytest.raises(ShoalError, match="no token 'nothing'"):
        tokens.revoke(session, "nothing", START, by="olga")
    assert session.scalars(select(Event.text).where(Event.kind == "token-revoked")).all() == [
        f"olga revoked token {token_id}"
    ]


def test_who_does_not_know_the_secret_learns_nothing_about_the_token(session):
    """Mistyped, foreign, malformed, even of a revoked token: always the same sentence."""
    text = tokens.create(session, START, by="ada")
    prefix, token_id, secret, seal = text.split(".")
    other = ("B" if secret[0] != "B" else "C") + secret[1:]
    tokens.revoke(session, token_id, START, by="ada")
    wrong = [
        f"{prefix}.{token_id}.{other}.{seal}",
        f"{prefix}.000000000000.{secret}.{seal}",
        "shoal1",
        "",
        text + "x",
        text.replace(".", ":"),
    ]
    assert len({refusal(session, one) for one in wrong}) == 1


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"uses": 0}, "uses is 0, expected 1 to 10000"),
        ({"uses": 10_001}, "uses is 10001"),
        ({"ttl": 0}, "ttl is 0"),
        ({"ttl": 400 * DAY}, "ttl is 3.456e.07, expected 1 to 31622400 seconds"),
        ({"group": "g" * 81}, "group has 81 characters"),
    ],
)
def test_a_token_without_bounds_is_not_made(session, options, sentence):
    with pytest.raises(ShoalError, match=sentence):
        tokens.create(session, START, by="ada", **options)
    assert session.scalars(select(EnrolmentToken)).all() == []


def test_the_list_has_the_newest_first_and_says_how_each_stands(session):
    first = tokens.create(session, START, by="ada", ttl=10)
    second = tokens.create(session, START + 1, by="ada")
    third = tokens.create(session, START + 2, by="ada")
    tokens.claim(session, tokens.find(session, third), START + 3)
    tokens.revoke(session, second.split(".")[1], START + 3, by="ada")
    listed = tokens.listed(session)
    assert [token.id for token in listed] == [text.split(".")[1] for text in (third, second, first)]
    assert [tokens.status(token, START + 30) for token in listed] == ["used", "revoked", "expired"]
    assert tokens.status(listed[2], START + 3) == "valid"


def test_what_the_database_says_decides_not_what_was_read_before(session):
    text = tokens.create(session, START, uses=1, by="ada")
    read_before = tokens.find(session, text)
    session.connection().exec_driver_sql("UPDATE enrolment_token SET uses = 1")
    assert read_before.uses == 0
    assert "used as often" in refusal(session, text)
