"""How a release reaches devices, wave by wave: the decisions, without a clock, a database or a device.

:func:`tick` goes from what is known now to what follows from it, and nothing is remembered beside the rows it is given:
a coordinator that is stopped at any moment goes on where it was.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from math import ceil
from typing import Any, Final

from attrs import define, evolve, frozen

from coordinator.errors import ShoalError
from coordinator.fleet.rules import Rules
from protocol import deployments
from protocol.deployments import REPORTED, Deployment

QUEUED: Final = "queued"
NOTIFIED: Final = "notified"
ACTIVE: Final = (NOTIFIED, *REPORTED)
"""Told, and not at an end."""
BAD: Final = ("failed", "timed-out", "rolled-back")
"""What speaks against a release."""
TAKEN_BACK: Final = ("timed-out", "cancelled", "expired", "superseded")
"""Ended on our side alone: what the device tells later is the truth."""
ENDED: Final = (*deployments.ENDED, *TAKEN_BACK)

OPEN: Final = ("running", "paused")
GRACE: Final = 150.0
"""Seconds after a start of the coordinator in which nobody is judged by silence: devices are still coming back."""
JITTER: Final = 0.2
"""The share by which a back-off is longer or shorter."""


@frozen(kw_only=True)
class Rollout:
    """``pause`` says for whom a paused one waits: operator, gate or approval. ``passed_at``: since when the gate of the
    wave holds."""

    id: int
    rules: Rules
    state: str = "running"
    pause: str = ""
    reason: str = ""
    wave: int = 0
    wave_at: float
    passed_at: float | None = None
    created_at: float
    state_at: float
    ended_at: float | None = None

    def into(self, state: str, now: float, reason: str, pause: str = "", **changes: Any) -> Rollout:
        return evolve(self, state=state, state_at=now, reason=reason, pause=pause, **changes)

    def next_wave(self, now: float, reason: str) -> Rollout:
        return self.into("running", now, reason, wave=self.wave + 1, wave_at=now, passed_at=None)


@frozen(kw_only=True)
class Execution:
    """One device of a rollout; the columns of its row that decide anything."""

    id: str
    device: str
    wave: int
    place: int
    state: str = QUEUED
    state_at: float
    text: str = ""
    report: int = 0
    attempts: int = 0
    retry_at: float | None = None
    accepted_at: float | None = None
    step_until: float | None = None
    until: float | None = None

    @property
    def order(self) -> str:
        """The id under which the device knows this attempt: an end that was told is the end of that one only."""
        return f"{self.id}.{self.attempts}" if self.attempts else self.id

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    def into(self, state: str, now: float, text: str = "", **changes: Any) -> Execution:
        """In ``state``, with the timers stopped unless ``changes`` says otherwise."""
        since = self.state_at if state == self.state else now
        timers: dict[str, Any] = {"step_until": None, "until": None}
        return evolve(self, state=state, state_at=since, text=text, **{**timers, **changes})


@frozen
class Standing:
    """What is known of a device at this moment. ``live``: it was heard lately, and what its agent can do is known.
    ``busy``: an execution of another rollout is under way on it. ``barred``: why it will never be offered this release.
    ``gone``: it was revoked."""

    live: bool = False
    busy: bool = False
    barred: str = ""
    gone: bool = False


NOWHERE: Final = Standing()


def cohorts(live: Mapping[str, bool], rollout: int, rules: Rules) -> list[tuple[str, int, int]]:
    """(device, wave, place) of every device of a new rollout, given which of them are ``live``.

    The order is that of sha256(rollout, device), so that not always the same ones go first; but those who are there go
    before the others in the first wave, which is the one that everybody waits for. Waves that would be empty are none.
    """
    order = sorted(live, key=lambda device: hashlib.sha256(f"{rollout}/{device}".encode()).digest())
    ends = sorted({max(1, ceil(share * len(order) - 1e-9)) for share in rules.waves}) if order else []
    first = sorted(order, key=lambda device: not live[device])[: ends[0]] if ends else []
    taken = set(first)
    found, begin = [], 0
    queue = [*first, *(device for device in order if device not in taken)]
    for wave, end in enumerate(ends):
        found += [(device, wave, place) for place, device in enumerate(queue[begin:end])]
        begin = end
    return found


def tick(
    rollout: Rollout,
    executions: Iterable[Execution],
    standing: Mapping[str, Standing],
    now: float,
    since: float = 0.0,
) -> tuple[Rollout, list[Execution]]:
    """What follows: the rollout, and the executions that have changed, in order of wave and place.

    ``standing`` is by device; who is not in it is not there. ``since``: since when devices are listened to.
    """
    before = {one.id: one for one in sorted(executions, key=lambda one: (one.wave, one.place, one.id))}
    look = _Look(rollout, dict(before), standing, now, now - since >= GRACE)
    look.take_time()
    look.abort()
    look.gate()
    look.notify()
    look.end()
    return look.rollout, [one for one in look.executions.values() if one is not before[one.id]]


@define
class _Look:
    """One tick. ``attentive``: devices had the time to be heard, so that silence means something."""

    rollout: Rollout
    executions: dict[str, Execution]
    standing: Mapping[str, Standing]
    now: float
    attentive: bool

    def take_time(self) -> None:
        """What time has brought about."""
        for one in list(self.executions.values()):
            if not one.ended and (changed := self._aged(one)) is not None:
                self.executions[one.id] = changed

    def _aged(self, one: Execution) -> Execution | None:
        rules, now, standing = self.rollout.rules, self.now, self._of(one)
        if standing.gone:
            return one.into("cancelled", now, "the device was revoked")
        if not self.attentive:
            return None
        if one.state in (QUEUED, NOTIFIED) and now >= self.rollout.created_at + rules.expiry:
            return one.into("expired", now, f"it was not begun within {_span(rules.expiry)}")
        if one.state == NOTIFIED and not standing.live:
            return one.into(QUEUED, now, "it fell silent before it took the release")
        if one.until is not None and now >= one.until:
            return one.into("timed-out", now, f"it did not come to an end in time: {one.state}")
        if one.step_until is not None and now >= one.step_until:
            return one.into("timed-out", now, f"nothing was heard of it for {_span(rules.step)}: {one.state}")
        return None

    def abort(self) -> None:
        """Too many have failed: who has not begun will not. Who is under way comes to an end by itself."""
        rules, counted = self.rollout.rules, self._count()
        bad, finished = _bad(counted), _finished(counted)
        over = finished >= rules.abort_after and bad >= max(rules.abort_least, rules.abort_share * finished)
        if over and self.rollout.state in OPEN:
            reason = f"{bad} of {finished} devices that came to an end failed, timed out or went back"
            self.rollout = abort(self.rollout, self.now, reason)
        if self.rollout.state == "aborted":
            for one in list(self.executions.values()):
                if one.state in (QUEUED, NOTIFIED):
                    self.executions[one.id] = one.into("cancelled", self.now, "the rollout was aborted")

    def gate(self) -> None:
        """Whether the wave is through, and what comes then."""
        rollout, rules, now = self.rollout, self.rollout.rules, self.now
        last = max((one.wave for one in self.executions.values()), default=0)
        wave = [one for one in self.executions.values() if one.wave == rollout.wave]
        if rollout.state != "running" or rollout.wave >= last or any(self._holds_up(one) for one in wave):
            return
        judged = [one for one in wave if one.state == "succeeded" or not one.ended]
        if not self.attentive and not all(self._of(one).live for one in judged):
            return
        counted = self._count(wave)
        good, finished = counted.get("succeeded", 0), _finished(counted)
        if finished and good < rules.success * finished:
            reason = f"{good} of {finished} devices succeeded, expected {rules.success:.0%}"
            self.rollout = rollout.into("paused", now, reason, "gate")
        elif not finished:
            self._step_forward()
        elif rollout.passed_at is None:
            self.rollout = evolve(rollout, passed_at=now, reason=f"{good} of {finished} devices succeeded")
            self.gate()  # the soak may be none
        elif now >= rollout.passed_at + rules.soak:
            self._pass(good, finished)

    def _pass(self, good: int, finished: int) -> None:
        """The soak is over."""
        rollout, rules, now = self.rollout, self.rollout.rules, self.now
        fresh = [one for one in self.executions.values() if one.wave == rollout.wave and one.state == "succeeded"]
        there = sum(self._of(one).live for one in fresh)
        if there < rules.success * len(fresh):
            reason = f"{len(fresh) - there} of {len(fresh)} devices that succeeded have fallen silent since"
            self.rollout = rollout.into("paused", now, reason, "gate")
        elif rules.approval:
            reason = f"{good} of {finished} devices succeeded; the next wave waits for approval"
            self.rollout = rollout.into("paused", now, reason, "approval")
        else:
            self.rollout = rollout.next_wave(now, f"{good} of {finished} devices succeeded")

    def _holds_up(self, one: Execution) -> bool:
        """Whether the wave waits for this device; not for one that is not there or cannot at present."""
        if one.state != QUEUED:
            return not one.ended
        return self._of(one).live and one.attempts < self.rollout.rules.attempts

    def _step_forward(self) -> None:
        """Nobody of the wave can tell whether the release is good: somebody who is there goes in their place."""
        later = (one for one in self.executions.values() if one.wave > self.rollout.wave and one.state == QUEUED)
        one = next((one for one in later if self._of(one).live), None)
        if one is not None:
            self.executions[one.id] = evolve(one, wave=self.rollout.wave)

    def notify(self) -> None:
        """Whose turn it is is told, as far as there is room."""
        if self.rollout.state != "running":
            return
        room = self.rollout.rules.parallel - sum(one.state in ACTIVE for one in self.executions.values())
        for one in list(self.executions.values()):
            standing = self._of(one)
            due = one.state == QUEUED and one.wave <= self.rollout.wave and standing.live and not standing.busy
            if not due or (one.retry_at is not None and self.now < one.retry_at):
                continue
            if standing.barred:
                self.executions[one.id] = one.into("rejected", self.now, standing.barred)
            elif room > 0:
                room -= 1
                until = self.now + self.rollout.rules.step
                self.executions[one.id] = one.into(NOTIFIED, self.now, step_until=until)

    def end(self) -> None:
        """Nothing is left to do."""
        rollout, now = self.rollout, self.now
        if rollout.ended_at is not None or any(not one.ended for one in self.executions.values()):
            return
        counted = self._count()
        if rollout.state in OPEN:
            given_up = counted and not counted.keys() - set(TAKEN_BACK[1:])
            rollout = rollout.into("cancelled" if given_up else "completed", now, summary(counted))
        self.rollout = evolve(rollout, ended_at=now)

    def _of(self, one: Execution) -> Standing:
        return self.standing.get(one.device, NOWHERE)

    def _count(self, executions: Iterable[Execution] | None = None) -> dict[str, int]:
        counted: dict[str, int] = {}
        for one in self.executions.values() if executions is None else executions:
            counted[one.state] = counted.get(one.state, 0) + 1
        return counted


def report(one: Execution, rules: Rules, told: Deployment, now: float) -> Execution | None:
    """What an execution becomes by what its device tells; None if that says nothing new.

    ``told`` is of the present attempt (:attr:`Execution.order`).
    """
    if told.number <= one.report:
        return None
    heard = evolve(one, report=told.number)
    if one.ended:
        corrects = one.state in TAKEN_BACK and told.state in deployments.ENDED and not told.retry
        return heard.into(told.state, now, told.text) if corrects else None
    if told.state == "failed" and told.retry:
        wait = rules.back_off[min(one.attempts, len(rules.back_off) - 1)] * _jitter(one)
        again = {"attempts": one.attempts + 1, "retry_at": now + wait, "report": 0, "accepted_at": None}
        return one.into(QUEUED, now, told.text, **again)
    if told.state in deployments.ENDED:
        return heard.into(told.state, now, told.text)
    accepted = now if one.accepted_at is None else one.accepted_at
    most = accepted + rules.lock + rules.seconds
    if told.state == "waiting":  # training decides how long: only the lock and the whole time bound it
        return heard.into(told.state, now, told.text, accepted_at=accepted, until=most)
    until = accepted + rules.seconds if one.until is None else one.until
    if one.state == "waiting":
        until = min(until, now + rules.seconds)
    step = min(now + rules.step, until)
    return heard.into(told.state, now, told.text, accepted_at=accepted, until=until, step_until=step)


def pause(rollout: Rollout, now: float, by: str) -> Rollout:
    """Nobody new is told; who is under way goes on. ShoalError conflict unless it runs."""
    _expect(rollout, "running")
    return rollout.into("paused", now, f"paused by {by}", "operator")


def resume(rollout: Rollout, now: float, by: str) -> Rollout:
    """Go on; after a gate that did not hold, with the next wave. ShoalError conflict unless it may be resumed."""
    _expect(rollout, "paused")
    if rollout.pause == "approval":
        raise ShoalError("conflict", f"Rollout {rollout.id} waits for approval: approve or abort it")
    if rollout.pause == "gate":
        return rollout.next_wave(now, f"resumed by {by}, though {rollout.reason}")
    return rollout.into("running", now, f"resumed by {by}")


def approve(rollout: Rollout, now: float, by: str) -> Rollout:
    """Let the next wave begin. ShoalError conflict unless it waits for that."""
    if (rollout.state, rollout.pause) != ("paused", "approval"):
        raise ShoalError("conflict", f"Rollout {rollout.id} is {rollout.state} and does not wait for approval")
    return rollout.next_wave(now, f"approved by {by}")


def abort(rollout: Rollout, now: float, reason: str) -> Rollout:
    """With the next tick nobody begins any more. ShoalError conflict if it is over."""
    _expect(rollout, *OPEN)
    return rollout.into("aborted", now, reason)


def summary(counted: Mapping[str, int]) -> str:
    """E.g. ``198 of 200 devices succeeded, 2 rejected``."""
    good, total = counted.get("succeeded", 0), sum(counted.values())
    others = [f"{counted[state]} {state}" for state in ENDED[1:] if counted.get(state)]
    return ", ".join([f"{good} of {total} devices succeeded", *others])


def _expect(rollout: Rollout, *states: str) -> None:
    if rollout.state not in states:
        raise ShoalError("conflict", f"Rollout {rollout.id} is {rollout.state}, not {' or '.join(states)}")


def _bad(counted: Mapping[str, int]) -> int:
    return sum(counted.get(state, 0) for state in BAD)


def _finished(counted: Mapping[str, int]) -> int:
    """Those whose end says something of the release."""
    return counted.get("succeeded", 0) + _bad(counted)


def _jitter(one: Execution) -> float:
    """1 ± JITTER, the same for the same attempt whenever it is asked for."""
    drawn = hashlib.sha256(f"{one.id}/{one.attempts}".encode()).digest()
    return 1 + JITTER * (int.from_bytes(drawn[:4], "big") / (1 << 31) - 1)


def _span(seconds: float) -> str:
    for unit, size in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size and seconds % size == 0:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:g} seconds"
