"""Commands to devices that wait for their answer. Runs on the steward's thread, inside a transaction.

A command is sent when it is issued, and again while its device is heard and has not answered: clean sessions forget
what comes while a device is away. Devices carry out an id once.
"""

from __future__ import annotations

from typing import Final

from attrs import define, field

from coordinator.store import commands, credentials, models, registry
from coordinator.training.turn import Turn
from protocol.commands import Command, CommandResult

AGAIN: Final = 10.0
"""Seconds after which a command without an answer is sent again."""
LOOK: Final = 60.0
"""Seconds between two looks at how old the devices' secrets are."""
AT_ONCE: Final = 20
"""Devices that are told to rotate at each look: each opens a connection or two."""
ROTATION: Final = 86_400.0
"""Seconds a device has to rotate; then it is told again."""


@define
class _Errand:
    kind: str
    expires_at: float
    sent: float


@define
class Errands:
    """``rotate_after`` is the age in seconds at which secrets are to be replaced, 0 for never."""

    heartbeat: float
    rotate_after: float = 0.0
    _open: dict[str, dict[str, _Errand]] = field(factory=dict)
    _looked: float = 0.0

    def recover(self, turn: Turn) -> None:
        """Forget everything, and read what is open."""
        self._open.clear()
        for row in commands.waiting(turn.session):
            self._open.setdefault(row.device_id, {})[row.id] = _Errand(row.kind, row.expires_at, 0.0)

    def issue(self, turn: Turn, device: str, kind: str, *, life: float, by: str) -> str:
        row = commands.issue(turn.session, device, kind, turn.now, life=life, by=by)
        errand = _Errand(kind, row.expires_at, 0.0)
        self._open.setdefault(device, {})[row.id] = errand
        self._send(turn, device, row.id, errand)
        return row.id

    def heard(self, turn: Turn, device: str, *, anew: bool = False) -> None:
        """A sign of life: who was told something and has not answered is told again, after a while or, if it may have
        come ``anew``, at once."""
        for id, errand in self._open.get(device, {}).items():
            if (anew or turn.now - errand.sent >= AGAIN) and errand.expires_at > turn.now:
                self._send(turn, device, id, errand)

    def answered(self, turn: Turn, device: str, result: CommandResult) -> bool:
        """Note what came of a command. True if the device is gone with it: it has forgotten who it is."""
        row = commands.settle(turn.session, result.id, device, result.state, result.text, turn.now)
        self._open.get(device, {}).pop(result.id, None)
        gone = row is not None and row.kind == "decommission" and result.state == "done"
        if gone and row is not None:
            registry.revoke(turn.session, device, turn.now, self.heartbeat, by=row.created_by)
        return gone

    def forget(self, device: str) -> None:
        self._open.pop(device, None)

    def tick(self, turn: Turn) -> None:
        """What has not been answered in time has ended; whose secret is old is told to make a new one."""
        commands.expire(turn.session, turn.now)
        for device, errands in list(self._open.items()):
            for id in [id for id, errand in errands.items() if errand.expires_at <= turn.now]:
                del errands[id]
            if not errands:
                del self._open[device]
        if self.rotate_after and turn.now - self._looked >= LOOK:
            self._looked = turn.now
            self._rotate(turn)

    def _rotate(self, turn: Turn) -> None:
        told = {device for device, errands in self._open.items() if any(e.kind == "rotate" for e in errands.values())}
        old = credentials.aged(turn.session, turn.now - self.rotate_after, AT_ONCE + len(told))
        for device in [one for one in old if one not in told][:AT_ONCE]:
            row = turn.session.get(models.Device, device)
            if row is not None and row.status in ("idle", "training"):
                self.issue(turn, device, "rotate", life=ROTATION, by="the coordinator")

    def _send(self, turn: Turn, device: str, id: str, errand: _Errand) -> None:
        errand.sent = turn.now
        message = Command(id=id, kind=errand.kind, seconds=round(errand.expires_at - turn.now, 3))
        turn.send(device, "command", message)
