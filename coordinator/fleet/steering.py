"""What operators do to many devices at once. Each device is dealt with by itself, and is named in the journal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from attrs import frozen
from sqlalchemy.orm import Session

from coordinator.errors import ShoalError
from coordinator.services import Services
from coordinator.store import registry
from protocol.commands import COMMANDS

ACTIONS: Final = ("adopt", "release", "pause", "resume", "revoke", "tag", "untag", "group", "command")
LIFE: Final = 3600.0
"""Seconds a device has to carry out a command."""
AT_ONCE: Final = 200
"""Devices in one transaction: between two, the writer answers others."""
ASKING: Final = 16
"""Commands that wait for the writer at the same time; it takes them together."""
UNDOING: Final[Mapping[str, str]] = {"pause": "resume", "resume": "pause", "tag": "untag", "untag": "tag"}


@frozen(kw_only=True)
class Deed:
    """One of ACTIONS; ``value`` is the tag, the group or the kind of command, to be done within ``life`` seconds."""

    action: str
    value: str = ""
    life: float = LIFE

    def __attrs_post_init__(self) -> None:
        if self.action not in ACTIONS:
            raise ShoalError("bad-request", f"action is {self.action[:40]!r}, expected one of {', '.join(ACTIONS)}")
        if self.action == "command" and self.value not in COMMANDS:
            raise ShoalError("bad-request", f"kind is {self.value[:40]!r}, expected one of {', '.join(COMMANDS)}")

    @property
    def undone(self) -> Deed | None:
        """What takes it back, where anything does."""
        action = UNDOING.get(self.action)
        return None if action is None else Deed(action=action, value=self.value)


@frozen
class Outcome:
    """Ids of the devices that are another now, of those that were so already, and {id: why} of those that refused."""

    changed: tuple[str, ...]
    already: tuple[str, ...]
    refused: Mapping[str, str]


def steer(services: Services, deed: Deed, devices: Sequence[str], by: str) -> Outcome:
    """Do it to all of them. What one device refuses (ShoalError conflict or not-found) keeps no other from it."""
    if deed.action == "command":
        return _gathered(devices, _told(services, deed, devices, by))
    answers: dict[str, bool | str] = {}
    for start in range(0, len(devices), AT_ONCE):
        answers |= services.commands.write(_writing(services, deed, devices[start : start + AT_ONCE], by))
    outcome = _gathered(devices, answers)
    if deed.action == "revoke":
        with ThreadPoolExecutor(ASKING) as pool:
            list(pool.map(services.commands.disconnect, outcome.changed))
    return outcome


def _told(services: Services, deed: Deed, devices: Sequence[str], by: str) -> dict[str, bool | str]:
    def tell(device: str) -> bool | str:
        return _tried(lambda: services.commands.command(device, deed.value, life=deed.life, by=by))

    with ThreadPoolExecutor(ASKING) as pool:
        return dict(zip(devices, pool.map(tell, devices), strict=True))


def _writing(
    services: Services, deed: Deed, devices: Sequence[str], by: str
) -> Callable[[Session], dict[str, bool | str]]:
    """{device: whether it changed, or why it refuses}; a writer may run it twice."""
    decide = change(services, deed, by)

    def one(session: Session, device: str) -> object:
        with session.begin_nested():
            return decide(session, device)

    def write(session: Session) -> dict[str, bool | str]:
        return {device: _tried(lambda device=device: one(session, device)) for device in devices}  # type: ignore[misc]

    return write


def change(services: Services, deed: Deed, by: str) -> Callable[[Session, str], object]:
    """What a writer does for one device; it returns False if nothing changed. Not for commands."""
    now, heartbeat, value = services.clock(), services.settings.heartbeat, deed.value
    changes: dict[str, Callable[[Session, str], object]] = {
        "adopt": lambda session, device: registry.adopt(session, device, now, heartbeat, by=by),
        "release": lambda session, device: registry.release(session, device, now, heartbeat, by=by),
        "pause": lambda session, device: registry.pause(session, device, now, heartbeat, by=by),
        "resume": lambda session, device: registry.resume(session, device, now, heartbeat, by=by),
        "revoke": lambda session, device: registry.revoke(session, device, now, heartbeat, by=by),
        "tag": lambda session, device: registry.tag(session, device, value, now, by=by),
        "untag": lambda session, device: registry.untag(session, device, value, now, by=by),
        "group": lambda session, device: registry.regroup(session, device, value, now, by=by),
    }
    return changes[deed.action]


def _tried(do: Callable[[], object]) -> bool | str:
    """Whether anything changed, or why it was refused."""
    try:
        return do() is not False
    except ShoalError as error:
        if error.code not in ("conflict", "not-found"):
            raise
        return error.detail


def _gathered(devices: Sequence[str], answers: Mapping[str, bool | str]) -> Outcome:
    def those(answer: bool) -> Iterator[str]:
        return (device for device in devices if answers[device] is answer)

    refused = {device: answer for device in devices if isinstance(answer := answers[device], str)}
    return Outcome(tuple(those(True)), tuple(those(False)), refused)
