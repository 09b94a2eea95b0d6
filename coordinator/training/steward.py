"""The steward: the one thread that writes. It takes messages, results and commands from one queue, decides with the
engines, commits, and only then acknowledges, answers and returns.

Whatever is waiting when a turn begins shares its transaction: under load many updates cost one fsync.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from attrs import frozen
from sqlalchemy.exc import OperationalError, SQLAlchemyError
from sqlalchemy.orm import Session

from coordinator.errors import ShoalError
from coordinator.store import ledger, registry
from coordinator.store.blobs import Blobs
from coordinator.store.database import Database
from coordinator.store.segments import Segments
from coordinator.store.snapshots import Thinning
from coordinator.training.conversation import Conversation
from coordinator.training.errands import Errands
from coordinator.training.evaluation import Evaluator, Found
from coordinator.training.inputs import Answered, Evaluated
from coordinator.training.rollouts import Rollouts
from coordinator.training.runs import Runs, Trace, prepare
from coordinator.training.turn import Turn

log = logging.getLogger(__name__)

T = TypeVar("T")
WAITING = 10_000
TURN = 200
BEAT = 0.5
"""Seconds between two looks at leases and silent devices."""
BEATS = 50_000
"""Heartbeats that wait at most; the oldest give way."""
REST = 60.0
"""Seconds for which a duty that failed is left alone."""
PAUSE = 0.5
"""Seconds before a turn that could not be committed is tried again."""


@frozen(eq=False)
class _Heard:
    device: str
    leaf: str
    payload: bytes
    acknowledge: Callable[[], None]


@frozen(eq=False)
class _Asked:
    """A command, and where its result goes once it is durable."""

    do: Callable[[Turn], Any]
    result: Future[Any]


@frozen(eq=False)
class _Done:
    """Where a command's result waits for the commit."""

    result: Future[Any]
    value: Any = None
    error: BaseException | None = None

    def tell(self) -> None:
        if self.error is None:
            self.result.set_result(self.value)
        else:
            self.result.set_exception(self.error)


class Steward(threading.Thread):
    """``clock`` gives seconds since 1970; ``send`` publishes (device, leaf, payload); ``cut_off`` ends a device's
    sessions at the broker; ``retain`` thins out what is old, a slice at a time, and returns what is to be done after
    the commit; ``trace`` hears what engines decided, once it is durable. Implements
    :class:`coordinator.services.Commands`."""

    def __init__(
        self,
        database: Database,
        blobs: Blobs,
        segments: Segments,
        *,
        heartbeat: float,
        clock: Callable[[], float] = time.time,
        send: Callable[[str, str, bytes], None],
        cut_off: Callable[[str], object],
        retain: Callable[[Session, float], Sequence[Callable[[], None]]] = lambda _session, _now: (),
        rotate_after: float = 0.0,
        thinning: Thinning = Thinning(),  # noqa: B008 - a value
        trace: Trace | None = None,
    ) -> None:
        super().__init__(name="steward", daemon=True)
        self._database = database
        self._clock = clock
        self._heartbeat = heartbeat
        self._send = send
        self._cut_off = cut_off
        self._retain = retain
        self._segments = segments
        self._queue: queue.Queue[_Heard | _Asked | None] = queue.Queue(WAITING)
        self._evaluator = Evaluator(self._measured, self._answered)
        self._runs = Runs(
            blobs, segments, heartbeat, self._evaluator.submit, self._evaluator.compute, thinning, trace
        )
        self._errands = Errands(heartbeat, rotate_after)
        self._rollouts = Rollouts(heartbeat)
        self._conversation = Conversation(self._runs, self._errands, self._rollouts)
        self._beats: deque[_Heard] = deque(maxlen=BEATS)
        self._looked = 0.0
        self._astray = False
        self._careful = False
        self._stopping = False
        self._ended = False
        self._resting: dict[str, float] = {}

    # -- from other threads --------------------------------------------------------------------------------------

    def hear(self, device: str, leaf: str, payload: bytes, acknowledge: Callable[[], None]) -> None:
        """A device's message; ``acknowledge`` is called once what follows from it is durable. Heartbeats wait for the
        next look at the fleet: they wake nobody up, and may be lost."""
        if self._ended:
            return
        heard = _Heard(device, leaf, payload, acknowledge)
        if leaf == "telemetry":
            self._beats.append(heard)
        else:
            self._queue.put(heard)

    def write(self, change: Callable[[Session], T]) -> T:
        """Run ``change`` in the next transaction and return its result when it is durable, or raise what it raised."""
        return self._ask(lambda turn: change(turn.session))

    def start_run(
        self,
        *,
        model: str,
        recipe: str,
        dataset: str,
        target: float | None,
        seed: int,
        by: str,
        name: str | None = None,
        weights: str = "",
    ) -> str:
        # On the caller's thread: while a large test set is read, devices are still answered.
        wanted = prepare(model=model, recipe_text=recipe, dataset=dataset, target=target, seed=seed, weights=weights)
        return self._ask(lambda turn: self._runs.start(turn, wanted, by=by, name=name))

    def operate(self, run: str, action: str, by: str) -> None:
        self._ask(lambda turn: self._runs.operate(turn, run, action, by))

    def command(self, device: str, kind: str, *, life: float, by: str) -> str:
        return self._ask(lambda turn: self._errands.issue(turn, device, kind, life=life, by=by))

    def disconnect(self, device: str) -> None:
        def depart(turn: Turn) -> None:
            self._runs.depart(turn, device)
            self._conversation.forget(device)

        self._ask(depart)
        self._cut_off(device)

    def stop(self) -> None:
        """Take what is waiting, keep a snapshot of every run, and end."""
        if self.is_alive():
            self._queue.put(None)
        self.join()
        self._evaluator.stop()

    def _ask(self, do: Callable[[Turn], T]) -> T:
        if not self.is_alive():
            raise ShoalError("busy", "The coordinator is starting or stopping: try again in a moment")
        asked = _Asked(do, Future())
        self._queue.put(asked)
        result: T = asked.result.result()
        return result

    def _measured(self, run: str, version: int, test: Found, control: Found | None) -> None:
        result = Evaluated(version, *test, *(control or ()))
        self._queue.put(_Asked(lambda turn: self._runs.measured(turn, run, result), Future()))

    def _answered(self, run: str, number: int, found: dict[str, float]) -> None:
        self._queue.put(_Asked(lambda turn: self._runs.answered(turn, run, Answered(number, found)), Future()))

    # -- the thread ----------------------------------------------------------------------------------------------

    def recover(self) -> None:
        """Before the start: load the runs that are going on. Raises what the store raises."""
        with self._database.write() as session:
            turn = Turn(session, self._now())
            self._runs.recover(turn)
            self._errands.recover(turn)
            self._rollouts.recover(turn)
        self._leave(turn, [], [])

    def run(self) -> None:
        self._evaluator.start()
        batch: list[_Heard | _Asked] = []
        try:
            while not self._stopping:
                if len(batch) < WAITING:
                    batch += self._collect()
                if self._take(batch):
                    batch = []
                else:
                    time.sleep(PAUSE)  # the disk is full, or the database is away: nothing is acknowledged meanwhile
            self._take([], last=True)
        finally:
            self._ended = True
            self._turn_away()

    def _collect(self) -> list[_Heard | _Asked]:
        """Wait for something to do, then take everything that is there."""
        batch: list[_Heard | _Asked] = []
        wait: float | None = max(0.0, self._looked + BEAT - time.monotonic())
        while len(batch) < TURN:
            try:
                item = self._queue.get(timeout=wait) if wait else self._queue.get_nowait()
            except queue.Empty:
                break
            wait = None
            if item is None:
                self._stopping = True
                break
            batch.append(item)
        return batch

    def _take(self, batch: list[_Heard | _Asked], *, last: bool = False) -> bool:
        """One transaction for a batch. False if it could not be committed: then it never happened, and what the
        engines did in it must go as well before anything else is taken."""
        now = self._now()
        done: list[_Done] = []
        try:
            if self._astray:
                self.recover()
                self._astray = False
            with self._database.write() as session:
                turn = Turn(session, now)
                for item in batch:
                    self._one(turn, item, done)
                self._look(turn)
                if last:
                    self._runs.snapshot(turn)
                registry.seen_all(session, turn.signs, now, self._heartbeat)
                self._segments.sync()
        except Exception as error:
            self._astray = True
            foreseen = isinstance(error, (OperationalError, OSError))
            if not (foreseen or self._careful):
                log.warning("turn-taken-again error=%s", error)
                self._careful = True
                return self._take(batch, last=last)
            foreseen = isinstance(error, (SQLAlchemyError, OSError, ShoalError))
            log.error("turn-failed error=%s", error, exc_info=not foreseen)
            self._refuse(batch, error)
            return False
        self._careful = False
        self._leave(turn, batch, done)
        return True

    def _one(self, turn: Turn, item: _Heard | _Asked, done: list[_Done]) -> None:
        """One item; what goes wrong in it does not touch the others. What devices say is taken without a savepoint as
        long as all goes well: after a surprise the whole turn is taken again, with one for each."""
        if isinstance(item, _Heard) and not self._careful:
            self._do(turn, item)
            return
        sends, after, seq = len(turn.sends), len(turn.after), self._runs.seq
        try:
            with turn.session.begin_nested():
                value = self._do(turn, item)
        except (OperationalError, OSError):
            raise  # the store itself is in trouble: the whole turn fails
        except Exception as error:
            del turn.sends[sends:], turn.after[after:]
            if isinstance(item, _Heard) or not isinstance(error, ShoalError):
                log.exception("input-failed")
                ledger.note(turn.session, turn.now, "internal-error", f"{type(error).__name__}: {error}"[:500])
            if self._runs.seq != seq:
                self._runs.recover(turn)  # an engine took an input that is rolled back now
            if isinstance(item, _Asked):
                done.append(_Done(item.result, error=error))
        else:
            if isinstance(item, _Asked):
                done.append(_Done(item.result, value))

    def _do(self, turn: Turn, item: _Heard | _Asked) -> Any:
        if isinstance(item, _Asked):
            return item.do(turn)
        self._conversation.hear(turn, item.device, item.leaf, item.payload)
        return None

    def _look(self, turn: Turn) -> None:
        if time.monotonic() - self._looked < BEAT:
            return
        self._looked = time.monotonic()
        self._tend(turn, "heartbeats", lambda: self._listen(turn))
        for run in list(self._runs.live):
            self._tend(turn, f"the leases of {run}", partial(self._runs.tick, turn, run))
        self._tend(turn, "silent devices", lambda: registry.watch(turn.session, turn.now, self._heartbeat))
        self._tend(turn, "commands", lambda: self._errands.tick(turn))
        self._tend(turn, "rollouts", lambda: self._rollouts.tick(turn))
        self._tend(turn, "retention", lambda: turn.after.extend(self._retain(turn.session, turn.now)))

    def _listen(self, turn: Turn) -> None:
        """The heartbeats that have come since the last look; who was heard is not silent."""
        beats = [self._beats.popleft() for _ in range(len(self._beats))]
        turn.after += [beat.acknowledge for beat in beats]
        self._conversation.beats(turn, [(beat.device, beat.payload) for beat in beats])
        registry.seen_all(turn.session, turn.signs, turn.now, self._heartbeat)
        turn.signs.clear()

    def _tend(self, turn: Turn, duty: str, do: Callable[[], object]) -> None:
        """A duty of the house inside a savepoint; one that fails is left alone for a while."""
        if time.monotonic() < self._resting.get(duty, 0.0):
            return
        sends, after, seq = len(turn.sends), len(turn.after), self._runs.seq
        try:
            with turn.session.begin_nested():
                do()
        except (OperationalError, OSError):
            raise
        except Exception as error:
            log.exception("duty-failed duty=%s", duty)
            self._resting[duty] = time.monotonic() + REST
            del turn.sends[sends:], turn.after[after:]
            text = f"{duty}: {type(error).__name__}: {error}"
            ledger.note(turn.session, turn.now, "internal-error", text[:500])
            if self._runs.seq != seq:
                self._runs.recover(turn)

    def _leave(self, turn: Turn, batch: list[_Heard | _Asked], done: list[_Done]) -> None:
        """Committed: now the world may know. What fails here fails alone: the store is right already."""
        steps: list[Callable[[], object]] = [*turn.after, *(partial(self._send, *sent) for sent in turn.sends)]
        steps += [item.acknowledge for item in batch if isinstance(item, _Heard)]
        steps += [one.tell for one in done]
        for device in turn.gone:
            self._conversation.forget(device)
            steps.append(partial(self._cut_off, device))
        for step in steps:
            try:
                step()
            except Exception:
                log.exception("after-commit-failed")

    def _refuse(self, batch: list[_Heard | _Asked], error: Exception) -> None:
        """Who waits for an answer gets one; what devices said is kept and tried again."""
        for item in batch:
            if isinstance(item, _Asked):
                item.result.set_exception(ShoalError("database-unusable", f"The change could not be stored: {error}"))
        batch[:] = [item for item in batch if isinstance(item, _Heard)]

    def _turn_away(self) -> None:
        """The thread ends: nobody may wait for it for ever."""
        with suppress(queue.Empty):
            while True:
                if isinstance(item := self._queue.get_nowait(), _Asked):
                    item.result.set_exception(ShoalError("busy", "The coordinator is stopping"))

    def _now(self) -> float:
        return round(self._clock(), 6)
