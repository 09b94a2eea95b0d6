"""Training with real artifacts and real files: what an interrupted assignment commits is what a whole one commits."""

from __future__ import annotations

import hashlib
import json
import queue
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attrs import evolve

from coordinator.compiler.compile import compile_model
from coordinator.compiler.optimiser import Training
from coordinator.compiler.shapes import initial_weights, layout
from coordinator.compiler.spec import Dense, Dropout, ModelSpec, Relu
from device_agent.address import parse
from device_agent.bench import Finished
from device_agent.checkpoint import Checkpoints
from device_agent.conversation import Checkpointed, Failed, FreshFailed, Merged
from device_agent.dataset import checked
from device_agent.download import Blobs
from device_agent.gate import Gate
from device_agent.position import Checkpoint
from device_agent.runtime import backends
from device_agent.workshop import Workshop
from protocol import tensors, wire
from protocol.messages import Assignment, Blob, Fresh, Plan
from protocol.subnetwork import Region, Subnetwork, layout_to_json
from protocol.weights import Weights

pytestmark = pytest.mark.skipif(backends()[:1] == ["numpy"], reason="no LiteRT runtime is installed")

SPEC = ModelSpec("small", (6,), 3, (Dense(8), Relu(), Dropout(0.25), Dense(3)))
LAYOUT = layout(SPEC)
PART = Region(LAYOUT, Subnetwork({"dense1": (6, 0, 3)}))
PLAN = Plan(
    width=0.5, batch=4, steps=6, learning_rate=0.1, coding="int8", commits=3, momentum=0.9, clip=0.0, proximal=0.1
)
MADE = Training(momentum=True, clip=True, proximal=True)


class Room:
    """A workshop with its cache filled, and what it reports."""

    def __init__(self, home: Path, every: float = 1e-9, limit: int = 1 << 20) -> None:
        rng = np.random.default_rng(4)
        y = rng.integers(0, 3, 23)
        data = checked((rng.normal(size=(23, 6)) + y[:, None]).astype(np.float32), y, np.int64(3))
        self.reports: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._cache = home / "blobs"
        self._cache.mkdir(exist_ok=True)
        self.checkpoints = Checkpoints(home, limit)
        blobs = Blobs(self._cache, 1 << 24, parse("http://127.0.0.1:9", None), "d", "s")
        self.shop = Workshop(blobs, Gate(), self.checkpoints, None, 1, 1.0, every, self.reports.put)
        self.shop.dataset = data
        self.start = PART.cut(initial_weights(SPEC, np.random.default_rng(1)))
        artifact = compile_model(SPEC, _counts(), PLAN.batch, training=MADE).content
        self.assignment = Assignment(
            id="a1",
            kind="train",
            run="run",
            check_in="c",
            version=5,
            plan=PLAN,
            lease=60,
            artifact=self.blob(artifact),
            weights=self.blob(self.described(self.start)),
        )

    def described(self, weights: Weights, region: Region = PART) -> bytes:
        kept = {name: list(c) if isinstance(c, tuple) else c for name, c in region.subnetwork.channels.items()}
        return tensors.encode(weights, {"layout": json.dumps(layout_to_json(LAYOUT)), "channels": json.dumps(kept)})

    def blob(self, data: bytes) -> Blob:
        blob = Blob(sha256=hashlib.sha256(data).hexdigest(), size=len(data))
        (self._cache / blob.sha256).write_bytes(data)
        return blob

    def fresh(self, version: int, data: bytes, merge: float = 0.5) -> Fresh:
        return Fresh(assignment="a1", version=version, weights=self.blob(data), merge=merge, keep=0.25)

    def train(self, commits: int = 0, checkpoint: Checkpoint | None = None, allowed: int = 99) -> None:
        self.shop.train(self.assignment, commits, checkpoint)
        self.shop.allow("a1", allowed)

    def until(self, kind: type, last: bool = True) -> list[Any]:
        """Everything reported up to the first of a kind; of commits up to the last."""
        seen: list[Any] = []
        while True:
            report = self.reports.get(timeout=20)
            seen.append(report)
            if isinstance(report, Finished):
                self.shop.taken("a1")
            if isinstance(report, Failed) and kind is not Failed:
                raise AssertionError(report)
            if isinstance(report, kind) and not (last and isinstance(report, Finished) and not report.result.last):
                return seen


def _counts() -> Subnetwork:
    """Of as many channels as PART, the first ones: the same shapes."""
    return Subnetwork({"dense1": 3})


@pytest.fixture
def rooms(tmp_path: Path) -> Iterator[Any]:
    opened: list[Room] = []

    def room(**options: Any) -> Room:
        opened.append(Room(tmp_path, **options))
        opened[-1].shop.open()
        return opened[-1]

    yield room
    for each in opened:
        each.shop.close(5)


def commits(reports: list[Any]) -> list[Finished]:
    return [report for report in reports if isinstance(report, Finished)]


def same(one: Finished, other: Finished) -> None:
    np.testing.assert_equal(one.result.difference, other.result.difference)
    assert evolve(one.result, difference={}, seconds=0) == evolve(other.result, difference={}, seconds=0)


def test_wherever_it_is_interrupted_it_makes_the_same_commits(rooms: Any) -> None:
    """Momentum, the proximal anchor, dropout and half an epoch go on as they were."""
    whole = commits(_run(rooms(every=1e9)))
    assert [done.result.commit for done in whole] == [1, 2, 3]
    reports = _run(rooms())
    for done, expected in zip(commits(reports), whole, strict=True):
        same(done, expected)
    places = [report.checkpoint for report in reports if isinstance(report, Checkpointed)]
    places += [done.checkpoint for done in commits(reports) if done.checkpoint]
    assert sorted({place.position.step for place in places}) == list(range(1, 18))
    for place in places[::3]:
        room = rooms()
        room.train(place.position.commit, place)
        rest = commits(room.until(Finished))
        assert len(rest) == 3 - place.position.commit
        for done in rest:
            same(done, whole[done.result.commit - 1])


def _run(room: Room) -> list[Any]:
    room.train()
    return room.until(Finished)


def test_a_listed_subnetwork_travels_with_its_commits(rooms: Any) -> None:
    (first, *_) = commits(_run(rooms()))
    assert first.region.subnetwork.channels["dense1"] == (6, 0, 3)
    assert json.loads(first.region_text)["channels"]["dense1"] == [6, 0, 3]
    assert first.region.shapes["dense1.weight"] == (6, 3)


def test_a_lost_checkpoint_ends_what_was_committed_and_lets_begin_anew_what_was_not(rooms: Any) -> None:
    room = rooms()
    reports = _run(room)
    whole = commits(reports)
    early = next(report.checkpoint for report in reports if isinstance(report, Checkpointed))
    late = whole[0].checkpoint
    room.checkpoints.clear(())
    room.train(0, early)
    for done, expected in zip(commits(room.until(Finished)), whole, strict=True):
        same(done, expected)
    room.train(1, late)
    assert "the checkpoint cannot be read" in room.until(Failed)[-1].reason
    room.train(1, None)
    assert "where it stood then is lost" in room.until(Failed)[-1].reason


def test_a_fresh_model_is_merged_and_one_that_does_not_fit_is_told(rooms: Any) -> None:
    room = rooms(every=1e9)
    room.assignment = evolve(room.assignment, plan=evolve(PLAN, steps=1_000_000))
    room.train()
    other = Region(LAYOUT, Subnetwork({"dense1": 3}))
    room.shop.merge("a1", room.fresh(6, room.described(room.start, other)))
    assert "not the part of the model" in room.until(FreshFailed)[-1].reason
    room.shop.merge("a1", room.fresh(7, room.described(room.start)))
    merge = room.until(Merged)[-1].merge
    assert (merge.version, merge.merge, merge.keep) == (7, 0.5, 0.25)
    assert merge.loss_before is not None
    room.shop.stop("a1")


def test_commits_without_room_for_their_checkpoints_are_refused_at_once(rooms: Any) -> None:
    room = rooms(limit=100)
    room.train()
    assert "its checkpoints need" in room.until(Failed)[-1].reason
    room.assignment = evolve(room.assignment, plan=evolve(PLAN, commits=1))
    room.train()
    assert len(commits(room.until(Finished))) == 1


def test_a_stopped_assignment_makes_room_for_the_next(rooms: Any) -> None:
    room = rooms(every=1e9)
    endless = evolve(room.assignment, plan=evolve(PLAN, steps=1_000_000))
    room.shop.train(endless, 0, None)
    room.shop.stop("a1")
    room.train()
    assert len(commits(room.until(Finished))) == 3


def test_where_it_stands_must_fit_into_the_spool(rooms: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "MAX_MESSAGE", 500)
    room = rooms()
    room.train()
    assert "over the limit of 500" in room.until(Failed)[-1].reason
