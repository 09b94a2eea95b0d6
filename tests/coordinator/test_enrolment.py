"""A device joins with a token and a secret of its own, once, even if it asks twice."""

from __future__ import annotations

import pytest
from sqlalchemy import func, select

from coordinator.errors import ShoalError
from coordinator.fleet import enrolment, tokens
from coordinator.settings import Settings
from coordinator.store import credentials, registry
from coordinator.store.models import Credential, Device, EnrolmentToken, Event
from protocol.topics import DEVICE_ID
from tests.conftest import BACKENDS
from tests.coordinator.people import HEARTBEAT, START, request_of, secret_of


@pytest.fixture(params=BACKENDS)
def backend(request):
    return request.param


@pytest.fixture
def session(database):
    with database.write() as session:
        yield session


@pytest.fixture
def token(session):
    return tokens.create(session, START, group="kitchen", uses=20, ttl=60, by="ada")


def test_a_new_device_has_its_name_its_group_and_its_secret(session, token):
    device = enrolment.enrol(session, request_of("pico", token), START + 1)
    assert (device.id, device.name, device.group, device.status) == ("pico", "pico", "kitchen", "new")
    assert device.capability["cores"] == 4
    assert credentials.secret_matches(session, "pico", secret_of("pico"))
    event = session.scalars(select(Event).where(Event.kind == "device-enrolled")).one()
    assert event.device_id == "pico"
    assert event.text.startswith("pico joined with token")


def test_the_same_device_asking_again_is_the_same_device_and_no_second_use(session):
    token = tokens.create(session, START, uses=1, ttl=60, by="ada")
    first = enrolment.enrol(session, request_of("pico", token), START)
    again = enrolment.enrol(session, request_of("pico", token), START + 3600)
    assert again.id == first.id
    assert session.scalars(select(EnrolmentToken.uses)).all() == [1]
    assert session.scalar(select(func.count()).select_from(Credential)) == 1


def test_another_secret_with_a_used_token_is_refused_and_leaves_nothing_behind(session):
    token = tokens.create(session, START, uses=1, by="ada")
    enrolment.enrol(session, request_of("pico", token), START)
    with pytest.raises(ShoalError, match="used as often") as caught:
        enrolment.enrol(session, request_of("eve", token), START)
    assert caught.value.code == "token-invalid"
    assert session.scalars(select(Device.id)).all() == ["pico"]


def test_a_revoked_device_cannot_come_back_with_its_old_secret(session, token):
    enrolment.enrol(session, request_of("pico", token), START)
    registry.revoke(session, "pico", START, HEARTBEAT, by="ada")
    with pytest.raises(ShoalError, match="was revoked"):
        enrolment.enrol(session, request_of("pico", token), START)
    anew = enrolment.enrol(session, request_of("pico", token, secret="s" * 32), START)
    assert (anew.id, anew.name) == ("pico-2", "pico-2")


@pytest.mark.parametrize(
    ("wished", "device_id"),
    [
        ("pico", "pico"),
        ("Kitchen_Pi.3", "kitchen-pi-3"),
        ("pi", "device-pi"),
        ("1-", "device-1"),
        ("coordinator", "device-coordinator"),
        ("a" * 80, "a" * 40),
        ("a" * 39 + "--b", "a" * 39),
    ],
)
def test_the_id_is_made_from_the_wished_name(session, token, wished, device_id):
    device = enrolment.enrol(session, request_of("pico", token, name=wished), START)
    assert (device.id, device.name) == (device_id, wished)
    assert DEVICE_ID.fullmatch(device.id)


@pytest.mark.parametrize("wished", ["pico", "x" * 80, "a-2"])
def test_names_and_ids_stay_unique(session, token, wished):
    made = [
        enrolment.enrol(session, request_of("pico", token, name=wished, secret=f"{number:032}"), START)
        for number in range(12)
    ]
    assert len({device.id for device in made}) == len({device.name for device in made}) == 12
    assert all(DEVICE_ID.fullmatch(device.id) and len(device.name) <= 80 for device in made)
    assert made[1].id.endswith("-2")
    assert made[11].name.endswith("-12")


def test_two_names_with_one_slug_get_two_ids(session, token):
    first = enrolment.enrol(session, request_of("pico", token, name="Pi.3", secret="1" * 32), START)
    second = enrolment.enrol(session, request_of("pico", token, name="pi-3", secret="2" * 32), START)
    assert (first.id, second.id, second.name) == ("pi-3", "pi-3-2", "pi-3-2")


def test_the_reply_names_the_host_that_the_device_has_reached_unless_the_settings_name_one(session, token):
    device = enrolment.enrol(session, request_of("pico", token), START)
    reply = enrolment.reply(device, Settings(mqtt_port=1883, heartbeat=5), "10.0.0.7")
    assert (reply.device, reply.broker_host, reply.broker_port, reply.broker_tls, reply.heartbeat) == (
        "pico",
        "10.0.0.7",
        1883,
        False,
        5,
    )
    assert enrolment.reply(device, Settings(name="shoal.example"), "10.0.0.7").broker_host == "shoal.example"
