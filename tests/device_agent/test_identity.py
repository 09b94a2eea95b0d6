"""Enrolment against a real HTTP server, over TLS and in the clear."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator.compiler.spec import Dense, ModelSpec
from device_agent import identity
from device_agent.errors import HomeError, NotEnrolled, Refused, Unreachable, UsageError
from device_agent.identity import Identity, load, parse_token
from protocol.messages import Capability, Plan
from tests.device_agent.stand_in import StandIn

SPEC = ModelSpec("tiny", (4,), 2, (Dense(2),))
PLAN = Plan(width=1.0, batch=4, steps=1, learning_rate=0.1, coding="float32")
CAPABILITY = Capability(machine="m", system="s", python="3", runtimes=(), memory=1, cores=1)


@pytest.fixture(params=["https", "http"])
def coordinator(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StandIn]:
    with StandIn(SPEC, PLAN, 0, tmp_path / "ca", tls=request.param == "https") as coordinator:
        yield coordinator


@pytest.fixture
def secure(tmp_path: Path) -> Iterator[StandIn]:
    with StandIn(SPEC, PLAN, 0, tmp_path / "ca", tls=True) as coordinator:
        yield coordinator


def enrol(coordinator: StandIn, home: Path, token: str = "") -> Identity:
    return identity.enrol(home, coordinator.url, parse_token(token or coordinator.token), "board", CAPABILITY)


def test_a_device_enrols(coordinator: StandIn, tmp_path: Path) -> None:
    home = tmp_path / "home"
    known = enrol(coordinator, home)
    assert known.device == "pi-1"
    assert load(home) == known
    assert coordinator.claimed == {coordinator.token: known.secret}
    assert (known.authority is None) == coordinator.url.startswith("http:")
    assert {path.stat().st_mode & 0o077 for path in home.iterdir()} == {0}, "nobody else may read it"


def test_asking_again_is_harmless(coordinator: StandIn, tmp_path: Path) -> None:
    assert enrol(coordinator, tmp_path / "home") == enrol(coordinator, tmp_path / "home")


def test_a_power_cut_after_the_answer_does_not_waste_the_token(coordinator: StandIn, tmp_path: Path) -> None:
    home = tmp_path / "home"
    first = enrol(coordinator, home)
    # What is on the disk if the power goes before the identity was written.
    (home / "identity.json").unlink()
    pending = {"token": "abc", "secret": first.secret}
    (home / "enrolment.json").write_text(json.dumps(pending))
    assert enrol(coordinator, home) == first


def test_the_secret_is_on_disk_before_it_is_sent(secure: StandIn, tmp_path: Path) -> None:
    home = tmp_path / "home"
    with pytest.raises(Refused):
        enrol(secure, home, secure.token.replace("secret", "wrong"))
    sent = json.loads((home / "enrolment.json").read_text())["secret"]
    assert list(secure.claimed.values()) == [sent]
    assert not (home / "identity.json").exists()


def test_another_token_gets_another_secret(secure: StandIn, tmp_path: Path) -> None:
    home = tmp_path / "home"
    with pytest.raises(Refused):
        enrol(secure, home, secure.token.replace("abc", "xyz"))
    enrol(secure, home)
    assert len(set(secure.claimed.values())) == 2


def test_a_used_token_is_refused_with_the_coordinators_words(coordinator: StandIn, tmp_path: Path) -> None:
    enrol(coordinator, tmp_path / "first")
    with pytest.raises(Refused, match=r"the token was used before \[token-used\]"):
        enrol(coordinator, tmp_path / "second")


def test_an_impostor_learns_nothing(secure: StandIn, tmp_path: Path) -> None:
    wrong = secure.token.rpartition(".")[0] + "." + "A" * 27
    with pytest.raises(Refused, match="not the coordinator that issued this token"):
        enrol(secure, tmp_path / "home", wrong)
    assert secure.claimed == {}


def test_nobody_there(tmp_path: Path) -> None:
    token = parse_token("shoal1.abc.secret.-")
    with pytest.raises(Unreachable, match=r"127\.0\.0\.1:1 cannot be reached"):
        identity.enrol(tmp_path, "http://127.0.0.1:1", token, "board", CAPABILITY)


@pytest.mark.parametrize(
    ("url", "token", "sentence"),
    [
        ("http://192.0.2.1", "shoal1.a.b.-", "in the clear"),
        ("http://127.0.0.1", "shoal1.a.b.print", "issued for a coordinator on https"),
        ("https://127.0.0.1", "shoal1.a.b.-", "issued for a coordinator on plain http"),
        ("coordinator:8443", "shoal1.a.b.c", "not of the form https://host:port"),
        ("https://user:pw@host", "shoal1.a.b.c", "not of the form"),
        ("https://host:99999", "shoal1.a.b.c", "not valid"),
    ],
)
def test_addresses_that_cannot_be(tmp_path: Path, url: str, token: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        identity.enrol(tmp_path, url, parse_token(token), "board", CAPABILITY)


@pytest.mark.parametrize("text", ["", "shoal1.a.b", "shoal2.a.b.c", "shoal1..b.c", "shoal1.a.b.c.d"])
def test_tokens_that_are_none(text: str) -> None:
    with pytest.raises(UsageError, match="not of the form"):
        parse_token(text)


def test_a_home_belongs_to_one_device(secure: StandIn, tmp_path: Path) -> None:
    home = tmp_path / "home"
    enrol(secure, home)
    with pytest.raises(UsageError, match="already belongs to device pi-1"):
        enrol(secure, home, secure.token.replace("abc", "xyz"))


def test_secrets_are_not_shown(secure: StandIn, tmp_path: Path) -> None:
    known = enrol(secure, tmp_path / "home")
    assert known.secret not in repr(known)
    assert "secret" not in repr(parse_token(secure.token))


def test_no_identity_and_a_damaged_one(tmp_path: Path) -> None:
    with pytest.raises(NotEnrolled, match="run 'shoal-agent enrol'"):
        load(tmp_path)
    (tmp_path / "identity.json").write_text('{"device": ')
    with pytest.raises(HomeError, match="damaged"):
        load(tmp_path)
