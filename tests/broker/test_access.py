"""The access rule, case by case: user, action, topic -> granted or not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.broker.access import COORDINATOR, STATUS, Action, may

GRANTED: list[tuple[str, Action, str]] = [
    ("a", "publish", "shoal/v1/d/a/update"),
    ("a", "publish", "shoal/v1/d/a/up/7/c/3"),
    ("a", "publish", "shoal/v1/d/a/../b"),  # a level called "..": still below a
    ("a", "subscribe", "shoal/v1/d/a/receipt"),
    ("a", "subscribe", "shoal/v1/d/a/#"),
    ("a", "subscribe", "shoal/v1/d/a/+"),
    ("a", "subscribe", "shoal/v1/d/a/+/x/+"),
    ("a", "subscribe", "shoal/v1/d/a/x/#"),
    ("a", "subscribe", STATUS),
    ("ein gerät", "publish", "shoal/v1/d/ein gerät/update"),
    (COORDINATOR, "publish", STATUS),
    (COORDINATOR, "publish", "shoal/v1/d/a/assignment"),
    (COORDINATOR, "subscribe", "shoal/v1/d/+/update"),
    (COORDINATOR, "subscribe", "shoal/#"),
    (COORDINATOR, "subscribe", "shoal/+/d/#"),
]

REFUSED: list[tuple[str, Action, str]] = [
    # other devices, also those whose id begins alike
    ("a", "publish", "shoal/v1/d/b/update"),
    ("a", "subscribe", "shoal/v1/d/b/#"),
    ("a", "publish", "shoal/v1/d/ab/update"),
    ("ab", "publish", "shoal/v1/d/a/update"),
    ("b", "publish", "shoal/v1/d/a/../b"),
    ("a", "publish", "shoal/v1/d/A/update"),
    # not below the device's own level
    ("a", "publish", "shoal/v1/d/a"),
    ("a", "publish", "shoal/v1/d/a/"),
    ("a", "subscribe", "shoal/v1/d/a"),
    ("a", "subscribe", "shoal/v1/d/a/"),
    ("a", "subscribe", "shoal/v1/d/a#"),
    ("a", "subscribe", "shoal/v1/d/a+/x"),
    ("a", "publish", "shoal/v1/x/a/update"),
    ("a", "publish", "shoal/v2/d/a/update"),
    ("a", "publish", "/shoal/v1/d/a/update"),
    # empty levels
    ("a", "publish", "shoal/v1/d/a//update"),
    ("a", "publish", "shoal/v1/d//a/update"),
    ("a", "subscribe", "shoal/v1/d/a//#"),
    ("a", "publish", ""),
    ("a", "subscribe", ""),
    # wildcards: never in a name, in a filter only whole levels behind the prefix
    ("a", "publish", "shoal/v1/d/a/#"),
    ("a", "publish", "shoal/v1/d/a/+/x"),
    ("a", "subscribe", "#"),
    ("a", "subscribe", "+/v1/d/a/x"),
    ("a", "subscribe", "shoal/#"),
    ("a", "subscribe", "shoal/v1/d/+/receipt"),
    ("a", "subscribe", "shoal/v1/+/a/receipt"),
    ("a", "subscribe", "shoal/v1/d/a/#/x"),
    ("a", "subscribe", "shoal/v1/d/a/x#"),
    ("a", "subscribe", "shoal/v1/d/a/x+/y"),
    # what belongs to the coordinator or the broker
    ("a", "publish", STATUS),
    ("a", "subscribe", "shoal/v1/coordinator/+"),
    ("a", "subscribe", "shoal/v1/coordinator/status/#"),
    ("a", "subscribe", "$SYS/#"),
    ("a", "subscribe", "$share/g/shoal/v1/d/a/#"),
    ("a", "publish", "shoal/v1/d/a/x\0y"),
    # user names that would reach further than one level
    ("", "publish", "shoal/v1/d//update"),
    ("+", "subscribe", "shoal/v1/d/+/update"),
    ("#", "subscribe", "shoal/v1/d/#"),
    ("a/b", "publish", "shoal/v1/d/a/b/update"),
    ("a\0", "publish", "shoal/v1/d/a\0/update"),
    # the coordinator below shoal/ only
    (COORDINATOR, "subscribe", "#"),
    (COORDINATOR, "subscribe", "+/v1/d/a/x"),
    (COORDINATOR, "subscribe", "$SYS/#"),
    (COORDINATOR, "subscribe", "shoal"),
    (COORDINATOR, "publish", "shoal/v1/d/+/assignment"),
    (COORDINATOR, "publish", "elsewhere/x"),
    ("Coordinator", "publish", STATUS),
]


@pytest.mark.parametrize(("username", "action", "topic"), GRANTED)
def test_granted(username: str, action: Action, topic: str) -> None:
    assert may(username, topic, action)


@pytest.mark.parametrize(("username", "action", "topic"), REFUSED)
def test_refused(username: str, action: Action, topic: str) -> None:
    assert not may(username, topic, action)


levels = st.sampled_from(["a", "b", "ab", "+", "#", "", "..", "d", "v1", "shoal", "coordinator"])


@given(st.lists(levels, max_size=7).map("/".join), st.sampled_from(["publish", "subscribe"]))
def test_two_devices_share_nothing_but_the_status(topic: str, action: Action) -> None:
    assert not (may("a", topic, action) and may("b", topic, action)) or topic == STATUS
