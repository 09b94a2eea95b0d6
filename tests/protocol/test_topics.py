"""Topics: one table, and a parser that accepts exactly what the builder makes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import ProtocolError
from protocol.messages import Chunk, Message, Update
from protocol.topics import CHANNELS, COORDINATOR_STATUS, DEVICE_ID, STATUS, device_topic, parse, subscriptions

from .samples import EXAMPLES, QUICK

device_ids = st.from_regex(DEVICE_ID, fullmatch=True)


@QUICK
@given(device_ids, st.sampled_from(sorted(CHANNELS)))
def test_a_topic_leads_back_to_its_device_and_channel(device, leaf):
    assert parse(device_topic(device, leaf)) == (device, CHANNELS[leaf])


@QUICK
@given(st.text(st.sampled_from("shoal/v1d-+#\0 piA_é"), max_size=40))
def test_text_is_a_topic_or_a_protocol_error(text):
    for topic in (text, f"shoal/v1/d/{text}", f"shoal/v1/d/{text}/update", f"shoal/v1/d/pi-3/{text}"):
        try:
            device, channel = parse(topic)
        except ProtocolError:
            continue
        assert device_topic(device, channel.leaf) == topic


def test_topics_look_like_this():
    assert device_topic("pi-3", "check-in") == "shoal/v1/d/pi-3/check-in"
    assert COORDINATOR_STATUS == "shoal/v1/coordinator/status"
    assert COORDINATOR_STATUS.endswith(STATUS.leaf)


@pytest.mark.parametrize("device", ["abc", "a-b", "0" * 40, "a--b"])
def test_device_ids(device):
    assert parse(device_topic(device, "event"))[0] == device


@pytest.mark.parametrize("device", ["", "ab", "-ab", "ab-", "a" * 41, "Abc", "a_b", "a/b", "+", "#", "abc\n", "äbc"])
def test_what_is_no_device_id_gets_no_topic(device):
    with pytest.raises(ProtocolError, match="is not 3 to 40 of a-z, 0-9 and inner hyphens"):
        device_topic(device, "event")
    with pytest.raises(ProtocolError, match="is not one of Shoal's"):
        parse(f"shoal/v1/d/{device}/event")


@pytest.mark.parametrize(
    "topic",
    [
        "",
        "shoal/v1/d/pi-3",
        "shoal/v1/d/pi-3/",
        "shoal/v1/d/pi-3/odd",
        "shoal/v1/d/pi-3/event/x",
        "/shoal/v1/d/pi-3/event",
        "x/shoal/v1/d/pi-3/event",
        "shoal/v2/d/pi-3/event",
        "shoal/v1/coordinator/status",
        "shoal/v1/d/shoal/v1/d/pi-3/event",
        "x" * 70_000,
    ],
)
def test_foreign_topics_are_refused_in_a_short_sentence(topic):
    with pytest.raises(ProtocolError, match="is not one of Shoal's") as refusal:
        parse(topic)
    assert len(str(refusal.value)) < 200


def test_subscriptions_are_the_channels_of_one_direction():
    assert subscriptions("down", "pi-3") == [
        ("shoal/v1/d/pi-3/assignment", 1),
        ("shoal/v1/d/pi-3/retry", 1),
        ("shoal/v1/d/pi-3/amend", 1),
        ("shoal/v1/d/pi-3/fresh", 1),
        ("shoal/v1/d/pi-3/receipt", 1),
        ("shoal/v1/d/pi-3/command", 1),
        ("shoal/v1/d/pi-3/deploy", 1),
        ("shoal/v1/d/pi-3/recall", 1),
    ]
    up = dict(subscriptions("up"))
    assert set(up) == {f"shoal/v1/d/+/{leaf}" for leaf, channel in CHANNELS.items() if channel.direction == "up"}
    assert {topic for topic, qos in up.items() if qos == 0} == {"shoal/v1/d/+/progress", "shoal/v1/d/+/telemetry"}


def test_every_channel_carries_a_message_class_of_its_own():
    carried = [channel.message for channel in (*CHANNELS.values(), STATUS)]
    assert len(set(carried)) == len(carried)
    assert all(issubclass(kind, Message) and kind in EXAMPLES for kind in carried)
    assert {channel.message for channel in CHANNELS.values() if channel.framed} == {Update, Chunk}
