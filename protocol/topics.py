"""Every MQTT topic in one table: which way it goes, its quality of service and the message it carries."""

from __future__ import annotations

import re
from typing import Literal

from attrs import frozen

from .commands import Command, CommandResult
from .deployments import Deploy, Deployed, Deployment, Recall
from .errors import ProtocolError
from .messages import (
    Amend,
    Ask,
    Assignment,
    CheckIn,
    Chunk,
    DeviceEvent,
    Fresh,
    Message,
    Progress,
    Receipt,
    Retry,
    Status,
    Telemetry,
    Update,
)

ROOT = "shoal/v1"
COORDINATOR_STATUS = f"{ROOT}/coordinator/status"
DEVICE_ID = re.compile(r"[a-z0-9](?:[a-z0-9-]{1,38}[a-z0-9])")

Direction = Literal["up", "down"]


@frozen
class Channel:
    """One leaf below a device's prefix. ``framed`` messages carry bytes behind their JSON."""

    leaf: str
    direction: Direction
    qos: Literal[0, 1]
    message: type[Message]
    framed: bool = False


CHANNELS: dict[str, Channel] = {
    channel.leaf: channel
    for channel in (
        Channel("check-in", "up", 1, CheckIn),
        Channel("assignment", "down", 1, Assignment),
        Channel("retry", "down", 1, Retry),
        Channel("amend", "down", 1, Amend),
        Channel("fresh", "down", 1, Fresh),
        Channel("ask", "up", 1, Ask),
        Channel("progress", "up", 0, Progress),
        Channel("update", "up", 1, Update, framed=True),
        Channel("chunk", "up", 1, Chunk, framed=True),
        Channel("receipt", "down", 1, Receipt),
        Channel("telemetry", "up", 0, Telemetry),
        Channel("event", "up", 1, DeviceEvent),
        Channel("command", "down", 1, Command),
        Channel("result", "up", 1, CommandResult),
        Channel("deploy", "down", 1, Deploy),
        Channel("recall", "down", 1, Recall),
        Channel("deployment", "up", 1, Deployment),
        Channel("deployed", "up", 1, Deployed),
    )
}
STATUS = Channel("coordinator/status", "down", 1, Status)


def device_topic(device: str, leaf: str) -> str:
    """Topic of one device's channel, e.g. ``shoal/v1/d/pi-3/check-in``."""
    if not DEVICE_ID.fullmatch(device):
        raise ProtocolError(f"device id {device!r} is not 3 to 40 of a-z, 0-9 and inner hyphens")
    return f"{ROOT}/d/{device}/{CHANNELS[leaf].leaf}"


def subscriptions(direction: Direction, device: str = "+") -> list[tuple[str, int]]:
    """Topic filters and QoS of all channels of one direction, for one device or (``+``) for all."""
    return [(f"{ROOT}/d/{device}/{c.leaf}", c.qos) for c in CHANNELS.values() if c.direction == direction]


def parse(topic: str) -> tuple[str, Channel]:
    """Device id and channel of a topic."""
    prefix, _, rest = topic.partition(f"{ROOT}/d/")
    device, _, leaf = rest.partition("/")
    if prefix or leaf not in CHANNELS or not DEVICE_ID.fullmatch(device):
        raise ProtocolError(f"topic {topic[:120]!r} is not one of Shoal's")
    return device, CHANNELS[leaf]
