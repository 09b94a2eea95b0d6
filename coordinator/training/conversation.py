"""What devices say over MQTT, and what they are answered. Runs on the steward's thread, inside a transaction."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from attrs import define, field
from sqlalchemy import bindparam, insert, select

from coordinator.store import ledger, models
from coordinator.store.ledger import Ledger
from coordinator.strategies.base import DeviceView
from coordinator.training.consequences import receipt
from coordinator.training.errands import Errands
from coordinator.training.inputs import Asked, CheckedIn, Delivered, Rejected, Settled
from coordinator.training.live import LiveRun
from coordinator.training.rollouts import Rollouts
from coordinator.training.runs import Runs
from coordinator.training.turn import Turn
from coordinator.training.twins import Twins
from protocol.commands import CommandResult
from protocol.deployments import Deployed, Deployment
from protocol.errors import ProtocolError
from protocol.messages import PROTOCOL, Ask, CheckIn, Chunk, DeviceEvent, Progress, Receipt, Retry, Telemetry, Update
from protocol.transfer import Receiver
from protocol.wire import decode, unframe, unstructure

log = logging.getLogger(__name__)

OVERHEAD = 64 * 1024
"""Bytes that an update's body may hold beyond four per parameter."""

_BEAT = insert(models.table_of(models.Telemetry))
_devices = models.table_of(models.Device)
_STANDING = select(
    _devices.c.group,
    _devices.c.pending_at,
    _devices.c.paused_at,
    _devices.c.quarantined_at,
    _devices.c.quarantine,
).where(_devices.c.id == bindparam("device"))
_MEASURED = ("uptime", "load", "temperature", "memory", "memory_free", "disk_free", "spool")

CHECK_INS = 50
"""Check-ins per second that devices without work may cause together."""

PATIENCE = 10.0
"""Seconds between two complaints about one device in the journal."""


@define
class Conversation:
    """``_transfers`` holds the body that each device is sending, at most one at a time."""

    runs: Runs
    errands: Errands
    rollouts: Rollouts
    _twins: Twins = field(factory=Twins)
    _transfers: dict[str, Receiver] = field(factory=dict)
    _enrolled: set[str] = field(factory=set)
    _complained: dict[str, float] = field(factory=dict)
    _idle: dict[str, float] = field(factory=dict)

    def hear(self, turn: Turn, device: str, leaf: str, payload: bytes) -> None:
        """Take one message. Whatever is wrong with it ends in the journal, never in an exception."""
        if not self._knows(turn, device):
            log.warning("refused device=%s reason=it is not enrolled, or was revoked", device)
            return
        turn.seen(device)
        self.errands.heard(turn, device, anew=leaf == "check-in")
        self.rollouts.heard(turn, device, anew=leaf == "check-in")
        try:
            match leaf:
                case "check-in":
                    self._check_in(turn, device, decode(CheckIn, payload))
                case "update":
                    self._update(turn, device, *unframe(Update, payload))
                case "chunk":
                    self._chunk(turn, device, *unframe(Chunk, payload))
                case "ask":
                    self._ask(turn, device, decode(Ask, payload))
                case "progress":
                    ledger.take(turn.session, turn.now, device, decode(Progress, payload).assignment)
                case "result":
                    self._result(turn, device, decode(CommandResult, payload))
                case "deployment":
                    self.rollouts.reported(turn, device, decode(Deployment, payload))
                case "deployed":
                    self.rollouts.deployed(turn, device, decode(Deployed, payload))
                case "event":
                    told = decode(DeviceEvent, payload)
                    ledger.note(turn.session, turn.now, f"device-{told.kind}"[:40], told.text, device=device)
        except ProtocolError as error:
            self._complain(turn, device, f"{leaf}: {error}")

    def beats(self, turn: Turn, beats: Iterable[tuple[str, bytes]]) -> None:
        """Take heartbeats, with one statement for all of them: a large fleet says little else."""
        rows = []
        for device, payload in beats:
            if not self._knows(turn, device):
                continue
            try:
                told = unstructure(decode(Telemetry, payload))
            except ProtocolError as error:
                turn.seen(device)
                self._complain(turn, device, f"telemetry: {error}")
                continue
            turn.seen(device, telemetry=told)
            self.errands.heard(turn, device)
            self.rollouts.heard(turn, device)
            rows.append({"device_id": device, "at": turn.now, **{name: told[name] for name in _MEASURED}})
            if sentence := self._twins.heard(device, told["boot"], turn.now):
                log.warning("device-cloned device=%s", device)
                ledger.note(turn.session, turn.now, "device-cloned", sentence, device=device)
        if rows:
            turn.session.execute(_BEAT, rows)

    def forget(self, device: str) -> None:
        """It was shut out: what it may still say counts for nothing."""
        self._enrolled.discard(device)
        self._transfers.pop(device, None)
        self._twins.forget(device)
        self.errands.forget(device)
        self.rollouts.forget(device)

    def _knows(self, turn: Turn, device: str) -> bool:
        if device not in self._enrolled:
            known = select(models.Device.id).where(models.Device.id == device, models.Device.revoked_at.is_(None))
            if turn.session.scalar(known) is None:
                return False
            self._enrolled.add(device)
        return True

    # -- work ----------------------------------------------------------------------------------------------------

    def _check_in(self, turn: Turn, device: str, check_in: CheckIn) -> None:
        # Who was not asked has told before, or will; what its owner does not want to be known is forgotten.
        told = {} if check_in.labels is None else {"labels": list(check_in.labels) or None}
        turn.seen(device, agent=check_in.agent, runtime=check_in.runtime, samples=check_in.samples, **told)
        self.rollouts.checked_in(turn, device, check_in.features)
        row = turn.session.execute(_STANDING, {"device": device}).one()
        run = self.runs.fitting(device, check_in)
        if check_in.protocol != PROTOCOL:
            reason = f"the agent speaks protocol {check_in.protocol}, this coordinator {PROTOCOL}"
        elif row.pending_at is not None:
            reason = "the device waits for an operator to adopt it"
        elif row.paused_at is not None:
            reason = "the device is paused"
        elif row.quarantined_at is not None:
            reason = f"the device is in quarantine: {row.quarantine}"[:2000]
        elif run is None:
            shape = "×".join(map(str, check_in.input))
            reason = f"no run is going on that wants data of shape {shape} with {check_in.classes} classes"
        else:
            view = DeviceView(device, row.group, check_in.samples)
            self._idle.pop(device, None)
            self.runs.check_in(turn, run, CheckedIn(view, check_in))
            return
        turn.seen(device, assignment_id=None)
        turn.send(device, "retry", Retry(check_in=check_in.id, seconds=self._pace(turn, device), reason=reason))

    def _pace(self, turn: Turn, device: str) -> float:
        """Seconds until a device without work comes back: all of them together check in 50 times a second at most."""
        self._idle[device] = turn.now
        if len(self._idle) > 2 * CHECK_INS:
            self._idle = {d: at for d, at in self._idle.items() if turn.now - at < 3600}
        self.runs.pace = max(2.0, len(self._idle) / CHECK_INS)
        return self.runs.pace

    def _ask(self, turn: Turn, device: str, ask: Ask) -> None:
        """A device wants the fresh model for work of a run that is going on; any other question is late."""
        for run in self.runs.live.values():
            if ask.assignment in run.engine.core.open:
                self.runs.handle(turn, run, Asked(device, ask))
                return

    # -- updates -------------------------------------------------------------------------------------------------

    def _update(self, turn: Turn, device: str, update: Update, body: bytes) -> None:
        owner, entry = ledger.known(turn.session, *update.key)
        if owner is None or owner != (update.run, device):
            self._complain(
                turn, device, f"an update came for assignment {update.assignment}, which is not this device's"
            )
            turn.send(device, "receipt", _receipt(update, "unknown", "there is no such assignment for this device"))
            return
        if entry is not None:
            state = "stored" if entry.outcome == "applied" else entry.outcome
            turn.send(device, "receipt", _receipt(update, state, entry.reason, entry.sha256))
            return
        run = self.runs.live.get(update.run)
        work = run.engine.core.open.get(update.assignment) if run else None
        if run is None or work is None:
            late = Settled(device, update, "expired", "the assignment was closed before the update came", None, None)
            Ledger(turn.session, update.run, turn.now, self.runs.heartbeat).settled(late, (0, 0))
            turn.send(device, "receipt", receipt(late))
            return
        try:
            limit = 4 * run.engine.region(work.plan).parameters + OVERHEAD
            receiver = self._receiver(device, update, limit)
            if not update.chunk:
                receiver.whole(body)
            self._advance(turn, device, run, receiver, asked=True)
        except ProtocolError as error:
            self._transfers.pop(device, None)
            self.runs.handle(turn, run, Rejected(device, update, str(error)))

    def _receiver(self, device: str, update: Update, limit: int) -> Receiver:
        """The transfer that this announcement continues, or a new one."""
        receiver = self._transfers.get(device)
        if receiver is None or receiver.update != update:
            receiver = self._transfers[device] = Receiver(update, limit)
        return receiver

    def _chunk(self, turn: Turn, device: str, chunk: Chunk, data: bytes) -> None:
        receiver = self._transfers.get(device)
        if receiver is None or receiver.update.key != (chunk.assignment, chunk.commit):
            return  # the coordinator was restarted in between: the device will announce again
        run = self.runs.live.get(receiver.update.run)
        if run is None or chunk.assignment not in run.engine.core.open:
            del self._transfers[device]  # closed meanwhile: the device hears so when it announces again
            return
        try:
            receiver.chunk(chunk.index, data)
            self._advance(turn, device, run, receiver, asked=False)
        except ProtocolError as error:
            del self._transfers[device]
            self.runs.handle(turn, run, Rejected(device, receiver.update, str(error)))

    def _advance(self, turn: Turn, device: str, run: LiveRun, receiver: Receiver, *, asked: bool) -> None:
        """Deliver a complete body; otherwise tell what is missing, if that was asked."""
        if missing := receiver.missing():
            if asked:
                turn.send(device, "receipt", _receipt(receiver.update, "missing", "", missing=missing))
            return
        body = receiver.body()
        turn.after.append(lambda: self._forget(device, receiver))  # should the commit fail, the body is still here
        place = self.runs.segments.append(body)
        self.runs.handle(turn, run, Delivered(device, receiver.update, body), place)

    def _forget(self, device: str, receiver: Receiver) -> None:
        if self._transfers.get(device) is receiver:
            del self._transfers[device]

    # -- commands ------------------------------------------------------------------------------------------------

    def _result(self, turn: Turn, device: str, result: CommandResult) -> None:
        if self.errands.answered(turn, device, result):
            self.runs.depart(turn, device)
            turn.gone.append(device)

    def _complain(self, turn: Turn, device: str, text: str) -> None:
        """At most one line in the journal per device and ten seconds: nobody may flood it."""
        log.warning("refused device=%s reason=%s", device, text)
        if turn.now - self._complained.get(device, 0.0) >= PATIENCE:
            self._complained[device] = turn.now
            ledger.note(turn.session, turn.now, "message-refused", text[:2000], device=device)


def _receipt(
    update: Update, state: str, reason: str, sha256: str = "", missing: tuple[tuple[int, int], ...] = ()
) -> Receipt:
    return Receipt(
        assignment=update.assignment,
        commit=update.commit,
        state=state,
        sha256=sha256 or update.sha256,
        missing=missing,
        reason=reason[:2000],
    )
