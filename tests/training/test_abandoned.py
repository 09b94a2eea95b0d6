"""Everybody leaves in the middle of a run: the engine falls silent, and goes on when somebody returns."""

from __future__ import annotations

import pytest
from attrs import evolve

from coordinator.training.recipe import parse, presets
from coordinator.training.stopping import Stop

from .unwaiting import World

STEPS = {f"pi-{number}": 0.1 + 0.02 * number for number in range(8)}
"""Seconds per step."""
BOTH = presets()["whale-asmu-adsp"] + '\n[[policy]]\nkind = "fresh_model"\n'
RECIPES = {**presets(), "with-fresh-model": BOTH}
HOUR = 3600.0


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("absence", [20.0, 24 * HOUR], ids=["for-a-moment", "for-a-day"])
def test_when_all_leave_the_engine_falls_silent_and_when_one_returns_the_run_goes_on_to_its_end(name, absence):
    """What still comes is bounded: the leases' ends, and what members had wanted to be woken for."""
    made = World(parse(RECIPES[name]), STEPS)
    core = made.engine.core
    made.run(24 * HOUR)
    assert (made.engine.deadline, core.inputs) == (None, 0)  # nobody has come yet
    for number, device in enumerate(made.devices):
        made.join(device, 0.05 * number)
    made.run(12)
    assert core.version > 0
    for device in made.devices:
        made.leave(device)
    made.run(1)  # what was under way has come
    inputs, version = core.inputs, core.version
    made.run(absence)
    assert core.inputs - inputs <= len(STEPS) + 25
    if absence > HOUR:
        assert core.open == {}
        assert made.engine.deadline is None
        assert core.version - version <= 1  # the round that was going on ends by its time limit
    version = core.version
    rules = Stop(bytes=core.standing.bytes + 8_000)
    made.engine.setting = evolve(made.engine.setting, recipe=evolve(made.engine.setting.recipe, stop=rules))
    made.join("pi-3")
    made.run(HOUR)
    assert core.version > version
    assert core.state == "stopped"
    assert made.engine.deadline is None
