"""The claims' experiments are whole: every recipe can be read, and what is told about results is what they hold."""

from __future__ import annotations

import pytest

from benchmarks.reproductions import adsp, fedasmu, trial, whale_fl
from coordinator.compiler.spec import ModelSpec
from coordinator.simulator.experiment import complete
from coordinator.simulator.population import builtin, parse
from coordinator.training.recipe import parse as read_recipe

RECIPES = {f"{one.NAME} {name}": recipe for one in (adsp, fedasmu, whale_fl) for name, recipe in one.RECIPES.items()}


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_complete(name):
    assert read_recipe(complete(RECIPES[name])).name == name.split()[1]


def test_the_small_model_takes_the_features():
    spec = ModelSpec.from_json(trial.SMALL)
    assert (spec.input, spec.classes) == ((561,), 6)


def test_every_device_of_the_changing_fleet_changes(tmp_path):
    changing = parse(builtin()["whale-paper"].replace("} }\n", whale_fl.CHANGES), tmp_path)
    assert {group.compute.change_low for group in changing.groups} == {0.3}
    assert {group.compute.change_every for group in changing.groups} == {120.0}


def test_widths_are_means_over_the_updates_of_a_part_of_the_time():
    class Entry:
        results = {0: {"widths": {"counts": {"1": [1, 0, 0, 0], "0.5": [1, 0, 0, 4]}}}}

    assert trial.widths(Entry(), parts=2) == [0.75, 0.5]
