"""What follows from an engine's decisions: rows and messages, all in one transaction."""

from __future__ import annotations

from attrs import define, evolve

from coordinator.store import registry
from coordinator.store.ledger import Ledger
from coordinator.training import journal
from coordinator.training.inputs import (
    Amended,
    Changed,
    Closed,
    Deferred,
    Effect,
    Offered,
    Quarantined,
    Refreshed,
    Settled,
    Versioned,
)
from coordinator.training.live import LiveRun
from coordinator.training.turn import Turn
from protocol.messages import Amend, Assignment, Blob, Fresh, Receipt, Retry


@define
class Consequences:
    """Those of one input. ``pace`` seconds is when a device without work comes back; ``runtime`` is what one that
    checked in trains with; ``place`` is where a delivered body lies; ``lost`` is an assignment that the input makes the
    engine close because its weights are gone."""

    turn: Turn
    run: LiveRun
    book: Ledger
    pace: float
    runtime: str
    place: journal.Place
    lost: str | None

    def of(self, effect: Effect) -> None:
        match effect:
            case Offered():
                self._offer(effect)
            case Deferred():
                self._defer(effect)
            case Amended():
                self.book.amended(effect)
                amend = Amend(assignment=effect.assignment, number=effect.number, plan=effect.plan, reason="")
                self.turn.send(effect.device, "amend", amend)
            case Refreshed():
                self._refresh(effect)
            case Settled():
                self._settle(effect)
            case Closed():
                self._close(effect)
            case Quarantined():
                registry.quarantine(self.turn.session, effect.device, self.turn.now, self.book.heartbeat, effect.reason)
            case Versioned():
                self.book.versioned(effect)
            case Changed():
                self.book.changed(effect)

    def _offer(self, offer: Offered) -> None:
        if offer.again:
            delivery = self.run.delivery_again(self.turn.session, offer, self.runtime)
        else:
            delivery = self.run.delivery(offer, self.runtime)
            self.book.offered(offer, delivery)
        self.turn.seen(offer.device, assignment_id=offer.assignment)
        message = Assignment(
            id=offer.assignment,
            kind="train",
            run=self.run.id,
            check_in=offer.check_in,
            version=offer.version,
            plan=offer.plan,
            lease=max(0.0, offer.expires_at - self.turn.now),
            artifact=Blob(sha256=delivery.artifact, size=delivery.artifact_size),
            weights=Blob(sha256=delivery.weights, size=delivery.weights_size),
        )
        self.turn.send(offer.device, "assignment", message)

    def _defer(self, put_off: Deferred) -> None:
        self.turn.seen(put_off.device, assignment_id=None)
        seconds = self.pace if put_off.seconds is None else put_off.seconds
        self.turn.send(
            put_off.device, "retry", Retry(check_in=put_off.check_in, seconds=seconds, reason=put_off.reason)
        )

    def _refresh(self, refresh: Refreshed) -> None:
        weights = self.run.fresh(refresh)
        self.book.refreshed(refresh, weights)
        fresh = Fresh(
            assignment=refresh.assignment,
            version=refresh.version,
            weights=Blob(sha256=weights[0], size=weights[1]),
            merge=refresh.merge,
            keep=refresh.keep,
        )
        self.turn.send(refresh.device, "fresh", fresh)

    def _settle(self, outcome: Settled) -> None:
        assignment = outcome.update.assignment
        if outcome.ends:
            self.run.released(assignment)
        elif (work := self.run.engine.core.open.get(assignment)) is not None:  # unless the run has ended with it
            self.book.prolonged(assignment, work.expires_at)
        self.book.settled(outcome, self.place)
        self.turn.send(outcome.device, "receipt", receipt(outcome))

    def _close(self, end: Closed) -> None:
        self.run.released(end.assignment)
        self.book.closed(evolve(end, reason="its weights are gone") if end.assignment == self.lost else end)
        if self.turn.signs.get(end.device, {}).get("assignment_id") == end.assignment:
            self.turn.seen(end.device, assignment_id=None)
        if end.tell:
            end_of_it = Amend(assignment=end.assignment, number=(1 << 31) - 1, plan=None, reason=end.reason)
            self.turn.send(end.device, "amend", end_of_it)


def receipt(outcome: Settled) -> Receipt:
    sent = outcome.update
    return Receipt(
        assignment=sent.assignment,
        commit=sent.commit,
        state=outcome.outcome,
        sha256=sent.sha256,
        missing=(),
        reason=outcome.reason[:2000],
    )
