"""A training house in one folder: real database, real files, real steward; devices speak to it without a broker."""

from __future__ import annotations

import hashlib
import shutil
import threading
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
from attrs import evolve
from sqlalchemy import select

from coordinator.compiler.shapes import layout
from coordinator.compiler.spec import ModelSpec
from coordinator.settings import sqlite_url
from coordinator.store import models
from coordinator.store.blobs import Blobs
from coordinator.store.database import Database
from coordinator.store.segments import Segments
from coordinator.store.snapshots import Thinning
from coordinator.training.steward import Steward
from protocol import coding, tensors
from protocol.commands import Command
from protocol.deployments import Deploy
from protocol.messages import Assignment, CheckIn, Chunk, Lineage, Receipt, Retry, Timings, Update
from protocol.subnetwork import Region, nested
from protocol.weights import zeros_like
from protocol.wire import decode, encode, frame

TOY = (
    '{"name": "toy", "input": [4], "classes": 3,'
    ' "layers": [{"dense": {"units": 8}}, "relu", {"dense": {"units": 3}}]}'
)
LAYOUT = layout(ModelSpec.from_json(TOY))
RECIPE = """
[plan]
batch = 4
steps = 5
learning_rate = 0.1
lease = 60

[aggregator]
kind = "fedbuff"
goal = 2
"""
HALF = RECIPE + '[[policy]]\nkind = "fixed"\nwidth = 0.5\n'
FEDASMU = RECIPE.replace('"fedbuff"\ngoal = 2', '"fedasmu"')
WHALE = RECIPE + '[[policy]]\nkind = "whale_fl"\ndelay = 0\nhalf_window = 0\n'
FEDAVG = RECIPE.replace('"fedbuff"', '"fedavg"\ntimeout = 30') + '[[policy]]\nkind = "cohort"\ngoal = 2\n'
SSP = RECIPE + '[[policy]]\nkind = "ssp"\nbound = 1000\n'
HEARTBEAT = 10.0
START = 1_700_000_000.0
PATIENCE = 10.0
ANSWERS = {"command": Command, "assignment": Assignment, "retry": Retry, "receipt": Receipt}


class Clock:
    """Stands still until a test moves it."""

    now = START

    def __call__(self) -> float:
        return self.now


class House:
    """``open`` starts a steward on the folder; ``close`` ends it as a clean shutdown does."""

    def __init__(self, home: Path, clock: Clock | None = None) -> None:
        self.home = home
        self.clock = clock or Clock()
        self.sent = defaultdict(list)
        self.cut_off = []
        self.dead_letters = False
        self.trace = None
        self.thinning = Thinning()

    def open(self) -> House:
        self.database = Database(sqlite_url(self.home / "shoal.db"))
        self.blobs = Blobs(self.home / "blobs")
        self.segments = Segments(self.home / "segments", limit=20_000)
        self.steward = Steward(
            self.database, self.blobs, self.segments,
            heartbeat=HEARTBEAT, clock=self.clock, send=self._send, cut_off=self.cut_off.append,
            thinning=self.thinning, trace=self.trace,
        )  # fmt: skip
        self.steward.recover()
        self.steward.start()
        return self

    def close(self) -> None:
        if self.steward.is_alive():
            self.steward.stop()
        self.segments.close()
        self.database.close()

    def reopened(self) -> House:
        self.close()
        return self.open()

    def crashed(self, folder: Path) -> House:
        """Another house on the files as they are at this moment, as if the power had failed now."""
        self.steward.write(lambda _: shutil.copytree(self.home, folder))
        return House(folder, self.clock).open()

    def _send(self, device: str, leaf: str, payload: bytes) -> None:
        if self.dead_letters:
            raise OSError("the broker is gone")
        self.sent[device].append(decode(ANSWERS[leaf], payload))

    # -- what tests do -------------------------------------------------------------------------------------------

    def enrol(self, *names: str, group: str = "") -> list[Device]:
        def add(session) -> None:
            session.add_all(
                models.Device(id=n, name=n, group=group, capability={}, enrolled_at=START, status_at=START)
                for n in names
            )

        self.steward.write(add)
        return [Device(self, name) for name in names]

    def start_run(self, recipe=RECIPE, model=TOY, **given) -> str:
        given = {"dataset": "", "target": None, "seed": 1, "by": "ada"} | given
        return self.steward.start_run(model=model, recipe=recipe, **given)

    def hear(self, device: str, leaf: str, payload: bytes) -> threading.Event:
        """Pass a message on; the event is set once it is acknowledged."""
        acknowledged = threading.Event()
        self.steward.hear(device, leaf, payload, acknowledged.set)
        return acknowledged

    def tell(self, device: str, leaf: str, payload: bytes) -> list:
        """Pass a message on, and return what its device is told because of it."""
        before = len(self.sent[device])
        assert self.hear(device, leaf, payload).wait(PATIENCE)
        return self.sent[device][before:]

    def rows(self, table, **conditions) -> list:
        with self.database.read() as session:
            found = session.scalars(select(table).filter_by(**conditions)).all()
            session.expunge_all()
        return list(found)

    def row(self, table, **conditions):
        (found,) = self.rows(table, **conditions)
        return found

    def events(self, kind: str) -> list[str]:
        return [event.text for event in self.rows(models.Event, kind=kind)]

    def until(self, condition) -> None:
        """Wait for something that another thread brings about."""
        end = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < end, "it did not happen"
            time.sleep(0.005)

    def engines(self) -> dict:
        return {run: live.engine for run, live in self.steward._runs.live.items()}


class Device:
    """A scripted device: every call waits for the coordinator's answer."""

    def __init__(self, house: House, name: str) -> None:
        self.house = house
        self.name = name
        self.number = 0

    def check_in(self, **changes):
        """Assignment or Retry; None if there was no answer."""
        self.number += 1
        said = CheckIn(
            id=f"{self.name}.{self.number}", protocol=1, agent="0.1.0", runtime="tflite-2.14",
            features=("train", "int8"), samples=50, input=(4,), classes=3, held=None, unsent=(),
        )  # fmt: skip
        heard = self.house.tell(self.name, "check-in", encode(evolve(said, **changes)))
        answers = [answer for answer in heard if not isinstance(answer, Command | Deploy)]
        assert all(answer.check_in == said.id for answer in answers)
        return answers[0] if answers else None

    def announce(self, update: Update, body: bytes = b""):
        """The receipt of an update that is announced, with its body if that travels whole."""
        (receipt,) = self.house.tell(self.name, "update", frame(update, body))
        assert (receipt.assignment, receipt.commit) == update.key
        return receipt

    def chunk(self, update: Update, body: bytes, index: int) -> list[Receipt]:
        chunk = Chunk(assignment=update.assignment, commit=update.commit, index=index)
        piece = body[index * update.chunk : (index + 1) * update.chunk]
        return self.house.tell(self.name, "chunk", frame(chunk, piece))

    def deliver(self, assignment: Assignment, value=1.0, **changes):
        return self.announce(*trained(assignment, value, **changes))

    def work(self, value=1.0):
        """Check in and deliver."""
        return self.deliver(self.check_in(), value)


def trained(assignment: Assignment, value=1.0, *, body: bytes | None = None, **changes) -> tuple[Update, bytes]:
    """Update and body: every element of the difference is ``value``, or drawn if that is a generator."""
    shapes = Region(LAYOUT, nested(LAYOUT, assignment.plan.width)).shapes
    drawn = value.normal if isinstance(value, np.random.Generator) else lambda size: np.full(size, value)
    difference = {name: drawn(size=shape).astype(np.float32) for name, shape in shapes.items()}
    if body is None:
        finite = np.isfinite(difference["dense1.bias"]).all()
        encoded = coding.encode(difference, assignment.plan.coding, zeros_like(difference))[0] if finite else difference
        body = tensors.encode(encoded)
    update = Update(
        assignment=assignment.id, commit=1, run=assignment.run,
        lineage=Lineage(version=assignment.version, shape_epoch=0), samples=20, steps=5, loss=0.5, accuracy=0.75,
        squared_gradient=dict.fromkeys(shapes, 0.25), squared_gradient_peak=dict.fromkeys(shapes, 0.5),
        timings=Timings(download=1.0, train=2.0, upload=None), bytes_down=1000, coding=assignment.plan.coding,
        size=len(body), sha256=hashlib.sha256(body).hexdigest(), chunk=0,
    )  # fmt: skip
    return evolve(update, **changes), body
