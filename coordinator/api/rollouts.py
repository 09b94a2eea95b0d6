"""Rollouts over HTTP: begun, watched, steered, and brought back; and the files of releases for devices."""

from __future__ import annotations

from typing import Final, Literal

from attrs import asdict, frozen
from flask import g, send_file
from sqlalchemy.orm import Session
from werkzeug.wrappers import Response

from coordinator.api.endpoint import Endpoint, File
from coordinator.auth import admit, services
from coordinator.errors import ShoalError
from coordinator.fleet import orders
from coordinator.fleet.orders import Target
from coordinator.fleet.rules import Rules
from coordinator.store import queries
from coordinator.store.queries import (
    ChangeRow,
    DeployedRow,
    ExecutionRow,
    Order,
    Page,
    RolloutDetail,
    RolloutRow,
)

_TARGET: Final = ("release", "devices", "group", "tag", "every")


@frozen(kw_only=True)
class RolloutRequest:
    """``release`` by its id or as agent-0.2.0, for ``devices`` (ids), a ``group``, those with a ``tag``, or ``every``
    one. The others are rules; null is as usual. ``waves`` are cumulative shares, the last of them 1; times are
    seconds."""

    release: str
    devices: tuple[str, ...] = ()
    group: str = ""
    tag: str = ""
    every: bool = False
    waves: tuple[float, ...] | None = None
    success: float | None = None
    soak: float | None = None
    approval: bool = False
    abort_least: int | None = None
    abort_share: float | None = None
    abort_after: int | None = None
    parallel: int | None = None
    seconds: float | None = None
    step: float | None = None
    lock: float | None = None
    trial: float | None = None
    expiry: float | None = None
    attempts: int | None = None
    back_off: tuple[float, ...] | None = None
    force: bool = False

    @property
    def rules(self) -> Rules:
        given = asdict(self)
        return Rules.of({n: v for n, v in given.items() if n not in _TARGET and v is not None})

    @property
    def target(self) -> Target:
        return Target(devices=self.devices, group=self.group, tag=self.tag, every=self.every)


@frozen(kw_only=True)
class BackRequest:
    """``parallel`` devices go back at a time; 0 is as many as is usual for a way back."""

    parallel: int = 0


@frozen(kw_only=True)
class ExecutionQuery:
    """``state`` leaves the others out; a minus in front of ``sort`` reverses it."""

    state: str = ""
    sort: str = "place"
    page: int = 1
    size: int = 100


@frozen(kw_only=True)
class DeviceReleases:
    """What a device says it ``runs``, by kind, and what it was ``told`` to run, the newest first."""

    runs: tuple[DeployedRow, ...]
    told: tuple[ExecutionRow, ...]


def list_rollouts() -> tuple[RolloutRow, ...]:
    """The newest 100 rollouts, the newest first."""
    with services().database.read() as reading:
        return queries.rollouts(reading)


def show_rollout(rollout: str) -> RolloutDetail:
    """One rollout with its waves."""
    with services().database.read() as reading:
        return queries.rollout(reading, _number(rollout))


def start_rollout(body: RolloutRequest) -> RolloutDetail:
    """Begin to bring a release to devices."""
    who, now, heartbeat = admit("operator"), services().clock(), services().settings.heartbeat
    with services().database.read() as reading:
        release = queries.release(reading, body.release).row.id
    rules, target = body.rules, body.target

    def change(writing: Session) -> int:
        return orders.start(writing, release, target, rules, now, heartbeat, by=who.name).id

    return show_rollout(str(services().commands.write(change)))


def pause_rollout(rollout: str) -> RolloutDetail:
    """Tell nobody new; who is under way goes on."""
    return _operate(rollout, "pause")


def resume_rollout(rollout: str) -> RolloutDetail:
    """Go on; after a gate that did not hold, with the next wave."""
    return _operate(rollout, "resume")


def approve_rollout(rollout: str) -> RolloutDetail:
    """Let the next wave of a rollout begin that waits for approval."""
    return _operate(rollout, "approve")


def abort_rollout(rollout: str) -> RolloutDetail:
    """Nobody begins any more; who is under way comes to an end by itself."""
    return _operate(rollout, "abort")


def back_rollout(rollout: str, body: BackRequest) -> RolloutDetail:
    """Bring its devices back to what each had before, by a rollout of its own; the answer is that one."""
    who, now, heartbeat = admit("operator"), services().clock(), services().settings.heartbeat
    number = _number(rollout)

    def change(writing: Session) -> int:
        return orders.back(writing, number, now, heartbeat, by=who.name, parallel=body.parallel).id

    return show_rollout(str(services().commands.write(change)))


def list_executions(rollout: str, query: ExecutionQuery) -> Page[ExecutionRow]:
    """The devices of a rollout, sorted and in pages."""
    order = Order.parse(query.sort, query.page, query.size)
    with services().database.read() as reading:
        queries.rollout(reading, _number(rollout))
        return queries.executions(reading, _number(rollout), order, query.state)


def show_course(execution: str) -> tuple[ChangeRow, ...]:
    """Every state that one device of a rollout was in, in order."""
    with services().database.read() as reading:
        return queries.course(reading, execution)


def device_releases(device: str) -> DeviceReleases:
    """What a device runs, and what it was told to run."""
    with services().database.read() as reading:
        queries.device(reading, device)
        return DeviceReleases(runs=queries.deployed(reading, device), told=queries.executions_of(reading, device))


def release_file(sha256: str) -> Response:
    """A file of a release that this device is to take; may be asked for in ranges."""
    path = services().blobs.path(sha256)
    with services().database.read() as reading:
        needed = orders.needed_by(reading, g.device, sha256)
    if needed == "never":
        raise ShoalError("not-allowed", "No release that this device is to take names this file")
    if needed == "before":
        raise ShoalError("not-found", "The rollout that names this file is over for this device")
    if not path.is_file():
        raise ShoalError("not-found", f"File {sha256} is gone from the coordinator's disk")
    response = send_file(path.absolute(), mimetype="application/octet-stream", etag=sha256, max_age=0)
    response.headers["Cache-Control"] = "private, no-cache"
    return response


def _operate(rollout: str, action: Literal["pause", "resume", "approve", "abort"]) -> RolloutDetail:
    who, now, number = admit("operator"), services().clock(), _number(rollout)
    services().commands.write(lambda writing: orders.operate(writing, number, action, now, by=who.name))
    return show_rollout(rollout)


def _number(rollout: str) -> int:
    if not (rollout.isdecimal() and len(rollout) < 16):
        raise ShoalError("not-found", f"There is no rollout {rollout[:40]!r}, expected a number")
    return int(rollout)


ENDPOINTS = (
    Endpoint(method="GET", path="/rollouts", call=list_rollouts, access="viewer", answer=tuple[RolloutRow, ...]),
    Endpoint(method="GET", path="/rollouts/<rollout>", call=show_rollout, access="viewer", answer=RolloutDetail),
    Endpoint(
        method="POST",
        path="/rollouts",
        call=start_rollout,
        access="operator",
        body=RolloutRequest,
        answer=RolloutDetail,
        status=201,
    ),
    *(
        Endpoint(method="POST", path=path, call=call, access="operator", answer=RolloutDetail)
        for path, call in (
            ("/rollouts/<rollout>/pause", pause_rollout),
            ("/rollouts/<rollout>/resume", resume_rollout),
            ("/rollouts/<rollout>/approve", approve_rollout),
            ("/rollouts/<rollout>/abort", abort_rollout),
        )
    ),
    Endpoint(
        method="POST",
        path="/rollouts/<rollout>/back",
        call=back_rollout,
        access="operator",
        body=BackRequest,
        answer=RolloutDetail,
        status=201,
    ),
    Endpoint(
        method="GET",
        path="/rollouts/<rollout>/executions",
        call=list_executions,
        access="viewer",
        query=ExecutionQuery,
        answer=Page[ExecutionRow],
    ),
    Endpoint(
        method="GET",
        path="/executions/<execution>",
        call=show_course,
        access="viewer",
        answer=tuple[ChangeRow, ...],
    ),
    Endpoint(
        method="GET",
        path="/devices/<device>/releases",
        call=device_releases,
        access="viewer",
        answer=DeviceReleases,
    ),
    Endpoint(
        method="GET",
        path="/device/files/<sha256>",
        call=release_file,
        access="device",
        answer=File("application/octet-stream"),
    ),
)
