"""What comes while a device trains counts from the next batch on, also where it was trained ahead of time."""

from __future__ import annotations

import math

import numpy as np
import pytest
from attrs import evolve

from coordinator.simulator.course import Committed, Course
from device_agent.conversation import Failed, Merged
from device_agent.dataset import Dataset
from device_agent.runtime import StepResult
from device_agent.trainer import Start, Training, Unfit
from protocol.messages import Assignment, Blob, Fresh, Plan

BLOB = Blob(sha256="0" * 64, size=1)
PLAN = Plan(width=1.0, batch=2, steps=10, learning_rate=1.0, coding="float32")


class Climb:
    """One weight, which every step of a second makes larger by the learning rate."""

    batch, shapes, options = 2, {"w": (1,)}, {}

    def __init__(self, clock):
        self.w, self.clock = np.zeros(1, np.float32), clock

    def step(self, x, y, sample_weight, learning_rate, options):
        self.clock.now += 1
        self.w = self.w + np.float32(learning_rate)
        return StepResult(1.0, 1.0, np.ones(1, np.float32), {})

    def loss(self, x, y, sample_weight, options):
        return 1.0

    def weights(self):
        return {"w": self.w.copy()}

    def states(self):
        yield self.w.copy()

    def change(self, new):
        self.w = new("w", self.w.copy())


class Floor:
    """Where it is trained; ``data`` None: nowhere."""

    def __init__(self, data=True):
        self.data = data

    def training(self, course, stand):
        if not self.data:
            raise Unfit("there is nothing to train on")
        samples = Dataset(np.zeros((4, 1), np.float32), np.zeros(4, np.int32), 2)
        start = Start(assignment="a", version=0, base={"w": np.zeros(1, np.float32)})
        step, clock = Climb(course.clock), course.clock
        return Training(
            step, start, samples, course, checkpoint_every=math.inf, pace=1.0, clock=clock, sleep=clock.sleep
        )

    def read(self, fresh):
        return {"w": np.full(1, 100, np.float32)}

    def left(self, course):
        pass

    def fate(self, act, make):
        return make()


def course(plan=PLAN, **given):
    assignment = Assignment(
        id="a", kind="train", run="r", check_in="c", version=0, plan=plan, lease=60.0, artifact=BLOB, weights=BLOB
    )
    found = Course(assignment, 0.0, None, Floor(**given))
    found.begin()
    return found


def to_the_end(going):
    told = going.settle()
    while not going.over:
        going.step()
        told += going.settle()
    return told


def test_one_commit_is_trained_in_one_go():
    going = course()
    assert going.clock.now == 10
    (made,) = going.settle()
    assert isinstance(made, Committed)
    assert (made.result.steps, made.result.last, made.checkpoint) == (10, True, None)
    assert made.result.difference["w"] == pytest.approx(10)


def test_several_commits_are_trained_batch_by_batch():
    going = course(evolve(PLAN, steps=2, commits=3))
    going.allowed = 3
    assert going.clock.now == 1
    made = to_the_end(going)
    assert [one.result.commit for one in made] == [1, 2, 3]
    assert [one.stand is None for one in made] == [False, False, True]


def test_a_changed_plan_counts_from_the_next_batch_on():
    """At 2.5 s the third batch is being trained: with it three are done, and a fourth is the last."""
    going = course()
    going.amend(evolve(PLAN, steps=4, learning_rate=3.0), 2.5)
    assert (going.turn, going.clock.now) == (1, 3)
    (made,) = to_the_end(going)
    assert (going.clock.now, made.result.steps) == (4, 4)
    assert made.result.difference["w"] == pytest.approx(3 * 1.0 + 3.0)


def test_a_fresh_model_is_merged_at_the_next_batch():
    going = course()
    going.take(Fresh(assignment="a", version=1, weights=BLOB, merge=0.5, keep=0.0), 2.5)
    merged, made = to_the_end(going)
    assert isinstance(merged, Merged)
    assert merged.merge.step == 3
    assert made.result.merges == (merged.merge,)
    # The base is 50 after the merge, the weight 0.5·3 + 50, and seven steps are left.
    assert made.result.difference["w"] == pytest.approx(1.5 + 7)


def test_what_cannot_be_trained_fails_at_once():
    going = course(data=False)
    (failed,) = going.settle()
    assert isinstance(failed, Failed)
    assert (failed.reason, going.clock.now, going.over) == ("there is nothing to train on", 0.0, True)
