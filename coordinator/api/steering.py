"""Groups, tags and commands: of one device, or of all that pass a filter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal

from attrs import frozen
from sqlalchemy.orm import Session

from coordinator.api.endpoint import Endpoint
from coordinator.auth import admit, services
from coordinator.errors import ShoalError
from coordinator.operators import Visitor
from coordinator.store import queries, registry
from coordinator.store.queries import CommandRow, DeviceDetail

LIFE: Final = 3600.0
"""Seconds a device has to carry out a command."""


@frozen(kw_only=True)
class TagRequest:
    """1 to 40 letters, digits, . _ : -"""

    tag: str


@frozen(kw_only=True)
class GroupRequest:
    """The empty group is none."""

    group: str


@frozen(kw_only=True)
class CommandRequest:
    """``kind`` is rotate, pause, resume, restart, identify, collect-logs or decommission, to be done within ``ttl``
    seconds."""

    kind: str
    ttl: float = LIFE


@frozen(kw_only=True)
class BulkRequest:
    """Do ``action`` to all devices that pass the filter; ``value`` is the tag, the group or the kind of command.

    At least one condition must be given, or ``every``: a slip of the hand shall not steer the whole fleet.
    """

    action: Literal["adopt", "release", "pause", "resume", "tag", "untag", "group", "command"]
    value: str = ""
    ttl: float = LIFE
    status: str = ""
    group: str = ""
    text: str = ""
    flag: str = ""
    tag: str = ""
    every: bool = False


@frozen(kw_only=True)
class BulkResult:
    """How many devices passed the filter, and how many of them could not be dealt with, for the first ``reason``."""

    devices: int
    refused: int
    reason: str


def tag_device(device: str, body: TagRequest) -> DeviceDetail:
    """Call a device by one more word."""
    return _change(device, lambda writing, _, __: registry.tag(writing, device, body.tag))


def untag_device(device: str, body: TagRequest) -> DeviceDetail:
    """Take a word from a device."""
    return _change(device, lambda writing, _, __: registry.untag(writing, device, body.tag))


def group_device(device: str, body: GroupRequest) -> DeviceDetail:
    """Move a device into another group."""
    return _change(
        device, lambda writing, now, who: registry.regroup(writing, device, body.group, now, by=who.name)
    )


def command_device(device: str, body: CommandRequest) -> CommandRow:
    """Tell a device to do something once."""
    who = admit("admin" if body.kind == "decommission" else "operator")
    id = services().commands.command(device, body.kind, life=body.ttl, by=who.name)
    return next(row for row in list_commands(device) if row.id == id)


def list_commands(device: str) -> tuple[CommandRow, ...]:
    """What a device was told to do, and what came of it."""
    with services().database.read() as reading:
        queries.device(reading, device)
        return queries.commands(reading, device)


def steer_devices(body: BulkRequest) -> BulkResult:
    """Adopt, release, pause, resume, tag, group or command all devices that pass a filter."""
    who, now = admit("admin" if body.value == "decommission" else "operator"), services().clock()
    wanted = queries.DeviceFilter(
        status=body.status, group=body.group, text=body.text, flag=body.flag, tag=body.tag
    )
    if not (wanted.conditions() or body.every):
        raise ShoalError("bad-request", "Name the devices: give a status, group, text, flag or tag, or every")
    with services().database.read() as reading:
        ids = queries.device_ids(reading, wanted)
    reasons = []
    for device in ids:
        try:
            _steer(body, device, now, who)
        except ShoalError as error:
            if error.code not in ("conflict", "not-found"):
                raise
            reasons.append(error.detail)
    return BulkResult(devices=len(ids), refused=len(reasons), reason=reasons[0] if reasons else "")


def _steer(body: BulkRequest, device: str, now: float, who: Visitor) -> None:
    heartbeat, commands = services().settings.heartbeat, services().commands
    changes: dict[str, Callable[[Session], None]] = {
        "adopt": lambda writing: registry.adopt(writing, device, now, heartbeat, by=who.name),
        "release": lambda writing: registry.release(writing, device, now, heartbeat, by=who.name),
        "pause": lambda writing: registry.pause(writing, device, now, heartbeat, by=who.name),
        "resume": lambda writing: registry.resume(writing, device, now, heartbeat, by=who.name),
        "tag": lambda writing: registry.tag(writing, device, body.value),
        "untag": lambda writing: registry.untag(writing, device, body.value),
        "group": lambda writing: registry.regroup(writing, device, body.value, now, by=who.name),
    }
    if body.action == "command":
        commands.command(device, body.value, life=body.ttl, by=who.name)
    else:
        commands.write(changes[body.action])


def _change(device: str, change: Callable[[Session, float, Visitor], None]) -> DeviceDetail:
    who, now = admit("operator"), services().clock()
    services().commands.write(lambda writing: change(writing, now, who))
    with services().database.read() as reading:
        return queries.device(reading, device)


ENDPOINTS = (
    *(
        Endpoint(method="POST", path=path, call=call, access="operator", body=body, answer=DeviceDetail)
        for path, call, body in (
            ("/devices/<device>/tag", tag_device, TagRequest),
            ("/devices/<device>/untag", untag_device, TagRequest),
            ("/devices/<device>/group", group_device, GroupRequest),
        )
    ),
    Endpoint(
        method="POST",
        path="/devices/<device>/commands",
        call=command_device,
        access="operator",
        body=CommandRequest,
        answer=CommandRow,
        status=201,
    ),
    Endpoint(
        method="GET",
        path="/devices/<device>/commands",
        call=list_commands,
        access="viewer",
        answer=tuple[CommandRow, ...],
    ),
    Endpoint(
        method="POST",
        path="/device-actions",
        call=steer_devices,
        access="operator",
        body=BulkRequest,
        answer=BulkResult,
    ),
)
