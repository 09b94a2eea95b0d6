"""One seed from beginning to end: the same again, and the same after interruptions."""

from __future__ import annotations

from itertools import count

import pytest
from sqlalchemy import func, select

from coordinator.store import models
from tests.simulator.fleets import experiment, rehearsal, run

SPENT = ("real_seconds", "updates_per_second")


def without_clock(result):
    return {name: value for name, value in result.items() if name not in SPENT}


def interrupted_after(steps):
    """What says "stop" once, after so many events."""
    gone = count(1)
    return lambda: next(gone) == steps


@pytest.mark.parametrize("recipe", ["whale-fl", "fedasync"])
def test_the_same_seed_gives_the_same_result_to_the_last_bit(tmp_path, recipe):
    wanted = experiment(tmp_path, recipe=recipe, until="2s")
    first, second = (run(wanted, tmp_path / name) for name in ("a", "b"))
    assert without_clock(first) == without_clock(second)
    assert first["versions"] > 0


def test_another_seed_gives_another_model(tmp_path):
    wanted = experiment(tmp_path, until="2s")
    assert run(wanted, tmp_path / "a")["sha256"] != run(wanted, tmp_path / "b", seed=1)["sha256"]


RESTLESS = """
name = "restless"
[plan]
batch = 16
steps = 20
learning_rate = 0.2
momentum = 0.5
coding = "int8"
[aggregator]
kind = "fedasmu"
[[policy]]
kind = "adsp"
period = 1
rate = 2
shortest = 0.1
warm_up = 1
epoch = 2
[[policy]]
kind = "fixed"
"""
"""Commits by seconds until the plan is changed, each followed by the fresh model; error feedback and momentum."""
ASKING = """
name = "asking"
[plan]
batch = 16
steps = 20
[aggregator]
kind = "fedasmu"
[[policy]]
kind = "fresh_model"
"""


@pytest.mark.parametrize("recipe", ["whale-fl", RESTLESS, ASKING])
def test_what_was_interrupted_goes_on_to_the_result_it_would_have_had(tmp_path, recipe):
    """Crashes, batteries, outages, error feedback and training under way: nothing of it may get lost."""
    wanted = experiment(tmp_path, recipe=recipe)
    whole = run(wanted, tmp_path / "whole")
    result, stops = None, 0
    for steps in (150, 200, 1, 100, 10**9):
        going = rehearsal(wanted, tmp_path / "parts", keeps=True)
        result = going.run(lambda world: None, interrupted_after(steps)).result
        going.close()
        if result is not None:
            break
        stops += 1
    assert stops == 4
    assert sum(device["crashes"] for device in whole["devices"]) > 0
    assert without_clock(result) == without_clock(whole)


def test_the_ledger_holds_what_the_result_says(tmp_path):
    wanted = experiment(tmp_path, until="2s")
    going = rehearsal(wanted, tmp_path / "a")
    result = going.run(lambda world: None, lambda: False).result
    session = going.session
    row = session.get_one(models.Run, "whale-fl-s0")
    assert (row.simulated, row.state, row.version) == (True, "finished", result["versions"])
    assert session.scalar(select(func.count()).select_from(models.Update)) == sum(result["updates"].values())
    assert session.scalar(select(func.count()).select_from(models.Device)) == 8
    accuracies = select(models.Metric.value).filter_by(name="accuracy").order_by(models.Metric.version)
    assert session.scalars(accuracies).all() == result["curve"]["accuracy"]
    going.close()
