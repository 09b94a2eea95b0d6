"""Who may publish and subscribe where: one pure rule, the same for every broker driver.

A device's user name is its id. It owns the topics below ``shoal/v1/d/<id>/`` and reads the coordinator's
status; the coordinator owns everything below ``shoal/``. Whatever is not granted here is refused.
"""

from __future__ import annotations

from typing import Literal

Action = Literal["publish", "subscribe"]

COORDINATOR = "coordinator"
"""The coordinator's own user name; no device may carry this id."""

STATUS = "shoal/v1/coordinator/status"
"""Whether the coordinator is there: the only retained topic, and the only one all devices read."""

_EVERYTHING = "shoal/"
_DEVICES = "shoal/v1/d/"


def may(username: str, topic: str, action: Action) -> bool:
    """Whether `username` may `action` on `topic`: a topic's name to publish, a topic filter to subscribe.

    Topics are compared literally, level by level; MQTT knows no ``..``. Topics with an empty level, a NUL or
    a misplaced wildcard are refused for everybody.
    """
    if not is_username(username):
        return False
    owned = _EVERYTHING if username == COORDINATOR else f"{_DEVICES}{username}/"
    if topic.startswith(owned):
        rest = topic[len(owned) :].split("/")
        return _is_filter(rest) if action == "subscribe" else _is_name(rest)
    return action == "subscribe" and topic == STATUS


def is_username(username: str) -> bool:
    """Whether a user name can be one level of a topic: not reaching across levels, matching nobody else's."""
    return username != "" and not any(character in username for character in "/+#\0")


def _is_name(levels: list[str]) -> bool:
    return all(level and not any(character in level for character in "+#\0") for level in levels)


def _is_filter(levels: list[str]) -> bool:
    """``+`` stands for a whole level, ``#`` for all remaining ones, at the end."""
    *inner, last = levels
    return (last == "#" or last == "+" or _is_name([last])) and _is_name([x for x in inner if x != "+"])
