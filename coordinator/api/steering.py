"""Groups, tags and commands: of one device, or of all that pass a filter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from attrs import frozen
from sqlalchemy.orm import Session

from coordinator.api.endpoint import Endpoint
from coordinator.auth import admit, services
from coordinator.errors import ShoalError
from coordinator.fleet import steering
from coordinator.fleet.steering import LIFE
from coordinator.operators import Visitor
from coordinator.store import queries, registry
from coordinator.store.queries import CommandRow, DeviceDetail


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
    return _change(device, lambda writing, now, who: registry.tag(writing, device, body.tag, now, by=who.name))


def untag_device(device: str, body: TagRequest) -> DeviceDetail:
    """Take a word from a device."""
    return _change(device, lambda writing, now, who: registry.untag(writing, device, body.tag, now, by=who.name))


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
    who = admit("admin" if body.value == "decommission" else "operator")
    wanted = queries.DeviceFilter(
        status=body.status, group=body.group, text=body.text, flag=body.flag, tag=body.tag
    )
    if not (wanted.conditions() or body.every):
        raise ShoalError("bad-request", "Name the devices: give a status, group, text, flag or tag, or every")
    with services().database.read() as reading:
        ids = queries.device_ids(reading, wanted)
    done = steering.steer(
        services(), steering.Deed(action=body.action, value=body.value, life=body.ttl), ids, who.name
    )
    reason = next(iter(done.refused.values()), "")
    return BulkResult(devices=len(ids), refused=len(done.refused), reason=reason)


def _change(device: str, change: Callable[[Session, float, Visitor], object]) -> DeviceDetail:
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
