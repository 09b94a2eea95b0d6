"""One seed of an experiment from its beginning to its end, with checkpoints from which it goes on."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from attrs import define, frozen
from sqlalchemy import insert, select
from sqlalchemy.orm import Session

from coordinator.settings import sqlite_url
from coordinator.simulator import record as records
from coordinator.simulator import result
from coordinator.simulator.attic import Attic
from coordinator.simulator.bench import Bench
from coordinator.simulator.course import Stand
from coordinator.simulator.desk import HEARTBEAT, Desk
from coordinator.simulator.experiment import Prepared, muster
from coordinator.simulator.record import Checkpoint, Record, as_array
from coordinator.simulator.world import BEGIN, Pace, World
from coordinator.store import models
from coordinator.store.database import Database
from coordinator.store.ledger import Ledger
from coordinator.training.evaluation import Dataset, Evaluation
from coordinator.training.inputs import Changed, Operated
from coordinator.training.live import LiveRun
from protocol.weights import digest

CHECKPOINT: Final = 60.0
"""Seconds of real time between two checkpoints."""
GLANCE: Final = 0.5
"""Seconds of real time between two reports of progress."""

Told = Callable[[World], None]


@frozen
class Outcome:
    """``result`` is None if it was interrupted; it can go on then."""

    result: dict[str, Any] | None


@define
class Rehearsal:
    """One seed in its folder ``home``, which holds its database, its record and its checkpoints."""

    prepared: Prepared
    seed: int
    home: Path
    database: Database
    session: Session
    live: LiveRun
    attic: Attic
    pace: Pace
    world: World
    keeps: bool
    _started: float = 0.0

    def run(self, told: Told, interrupted: Callable[[], bool]) -> Outcome:
        """Go on until it ends or is interrupted."""
        self._started = looked = kept = time.monotonic()
        world = self.world
        count = 0
        while world.step():
            count += 1
            if interrupted():
                self._keep()
                return Outcome(None)
            if count % 64 == 0 and (now := time.monotonic()) - looked >= GLANCE:
                looked = now
                told(world)
                if now - kept >= CHECKPOINT:
                    kept = now
                    self._keep()
        told(world)
        return Outcome(self._conclude())

    def close(self) -> None:
        self.world.record.close()
        self.session.close()
        self.database.close()

    # -- survival ------------------------------------------------------------------------------------------------

    def _keep(self) -> None:
        """A checkpoint: the commit of its snapshot's row makes it the one that counts."""
        if not self.keeps:
            return
        world = self.world
        entries = world.record.entries
        sent = {_key(one): spooled for board in world.boards.values() for one, spooled in board.spool.updates.items()}
        checkpoint = Checkpoint(
            entries,
            world.steps,
            {id: as_array(board.spool.residual) for id, board in world.boards.items() if board.spool.residual},
            {one: as_array(spooled.body) for one, spooled in sent.items()},
            {one: spooled.region for one, spooled in sent.items()},
            **records.standing(_stands(world)),
            blobs={sha256: as_array(content) for sha256, content in self.attic.content.items()},
            idle=dict(world.desk.idle),
            measured=self.pace.measured,
        )
        records.save(self._checkpoint(entries), checkpoint)
        world.record.flush()
        self.live.snapshot(self.session, entries, world.now)
        self.session.commit()
        for old in self.home.glob("checkpoint-*"):
            if old != self._checkpoint(entries):
                old.unlink()

    def _checkpoint(self, entries: int) -> Path:
        return self.home / f"checkpoint-{entries}"

    def remember(self, past: Checkpoint) -> None:
        """Live through what was before the checkpoint, then take over the state it holds."""
        world = self.world
        while world.steps < past.steps and world.step():
            pass
        world.record.go_on()
        self.attic.content = {sha256: content.tobytes() for sha256, content in past.blobs.items()}
        self.live.recover(self.session, _no_bodies)
        world.desk.idle = dict(past.idle)
        shut_out = select(models.Device.id, models.Device.quarantine).where(models.Device.quarantined_at.is_not(None))
        world.desk.quarantined = {row.id: row.quarantine or "" for row in self.session.execute(shut_out)}
        self.pace.measured = past.measured
        for id, board in world.boards.items():
            board.spool.residual = past.residuals[id].tobytes() if id in past.residuals else None
            board.spool.stand = past.stand(f"{id} spool")
            if (course := board.practice.course) is not None:
                course.resume(past.stand(id))

    # -- the end -------------------------------------------------------------------------------------------------

    def _conclude(self) -> dict[str, Any]:
        world = self.world
        for board in world.boards.values():
            board.close(world.now)
        world.desk.tell(Operated("stop", "the simulation"), world.now)
        Ledger(self.session, self.live.id, world.now, HEARTBEAT).changed(Changed("finished", world.ended))
        self.live.snapshot(self.session, world.record.entries + 1, world.now)
        self.session.commit()
        took = time.monotonic() - self._started
        return result.summary(self.session, self.live, self.prepared, self.seed, world, took)


def open_rehearsal(prepared: Prepared, seed: int, home: Path, *, keeps: bool = True) -> Rehearsal:
    """A new one, or where one in ``home`` was at its last checkpoint. Without ``keeps`` none are made."""
    home.mkdir(parents=True, exist_ok=True)
    database = Database(sqlite_url(home / "shoal.db"))
    database.upgrade()
    session = Session(database.engine)
    attic = Attic(home / "blobs")
    dealt = prepared.dealt(seed)
    run = f"{prepared.recipe.name.lower()[:30]}-s{seed}"
    row = session.get(models.Run, run) or _new_run(session, prepared, run, seed)
    live = LiveRun(row, prepared.spec, None, attic)
    past = _past(session, live, home)
    control = Dataset(prepared.x[dealt.control], prepared.collection.y[dealt.control])
    test = Dataset(prepared.x[dealt.test], prepared.collection.y[dealt.test], control)
    pace = Pace(prepared.experiment.fineness)
    desk = Desk(live, Evaluation(prepared.spec, test), session, {}, pace.due)
    record = Record(home / "record.jsonl" if keeps else None, past)
    world = World(desk, Bench(attic), prepared.until, record)
    world.boards = muster(prepared, dealt, seed, world)
    desk.groups.update({id: board.group.label for id, board in world.boards.items()})
    rehearsal = Rehearsal(prepared, seed, home, database, session, live, attic, pace, world, keeps)
    if past is None:
        _enrol(session, live, world)
    world.begin()
    if past is not None:
        rehearsal.remember(past)
    return rehearsal


def _key(update: tuple[str, int]) -> str:
    return "{}/{}".format(*update)


def _stands(world: World) -> dict[str, Stand]:
    """Where training stands on every board, and in its spool."""
    courses = {id: board.practice.course for id, board in world.boards.items()}
    now = {id: course.stand() for id, course in courses.items() if course is not None}
    kept = {f"{id} spool": board.spool.stand for id, board in world.boards.items()}
    return {name: stand for name, stand in (now | kept).items() if stand is not None}


def _past(session: Session, live: LiveRun, home: Path) -> Checkpoint | None:
    mine = models.Snapshot.run_id == live.id
    newest = select(models.Snapshot.seq).where(mine).order_by(models.Snapshot.seq.desc())
    entries = session.scalar(newest.limit(1))
    return None if entries is None else records.load(home / f"checkpoint-{entries}")


def _new_run(session: Session, prepared: Prepared, run: str, seed: int) -> models.Run:
    spec = prepared.spec
    model = models.Model(name=spec.name, spec_sha256=spec.sha256, spec=spec.to_json(), created_at=BEGIN)
    session.add(model)
    session.flush()
    row = models.Run(
        id=run,
        model_id=model.id,
        recipe=prepared.recipe.to_toml(),
        recipe_name=prepared.recipe.name,
        seed=seed,
        target=None,
        dataset=prepared.collection.name,
        control=True,
        simulated=True,
        state="running",
        created_by="simulation",
        created_at=BEGIN,
    )
    session.add(row)
    session.flush()
    return row


def _enrol(session: Session, live: LiveRun, world: World) -> None:
    """The rows a run begins with: its devices and version 0."""
    rows = [
        {
            "id": id,
            "name": id,
            "group": board.group.label,
            "capability": {},
            "enrolled_at": BEGIN,
            "status": "offline",
            "status_at": BEGIN,
            "runtime": "simulated",
            "samples": len(board.dataset),
        }
        for id, board in world.boards.items()
    ]
    session.execute(insert(models.table_of(models.Device)), rows)
    first = {"run_id": live.id, "version": 0, "sha256": digest(live.engine.core.weights), "step_norm": 0.0}
    session.execute(insert(models.ModelVersion).values(**first, updates=0, at=BEGIN))


def _no_bodies(segment: int, offset: int, size: int) -> bytes:
    raise LookupError("a simulation keeps no bodies of updates")
