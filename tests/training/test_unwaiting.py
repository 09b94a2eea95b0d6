"""ADSP at work: sixteen devices of different speeds train on without waiting, in virtual time."""

from __future__ import annotations

import pytest
from attrs import evolve

from coordinator.strategies import AGGREGATORS, Adsp
from coordinator.training.inputs import Amended, Closed, Offered, Refreshed, Settled
from coordinator.training.recipe import parse, presets

from .unwaiting import World

STEPS = {f"pi-{number:02}": 0.5 + 0.1 * number for number in range(16)}
"""Seconds per step: the slowest device is four times as slow as the quickest."""
RECIPE = """
[plan]
batch = 4
steps = 20
learning_rate = 0.1

[aggregator]
kind = "adsp_sum"

[[policy]]
kind = "adsp"
shortest = 1
"""


def world(recipe=RECIPE, steps=STEPS, **options) -> World:
    made = World(parse(recipe), steps, **options)
    for number, name in enumerate(made.devices):
        made.join(name, 0.3 * number)
    return made


def of(kind, made):
    return [effect for _, effect in made.effects if isinstance(effect, kind)]


def test_devices_never_wait_and_commit_equally_often():
    made = world(RECIPE + "epoch = 0\nrate = 3\n")
    made.run(600)
    begin = {device.name: len(device.commits) for device in made.devices.values()}
    made.run(600)
    counts = [len(device.commits) for device in made.devices.values()]
    assert max(counts) - min(counts) <= 1
    assert all(29 <= len(device.commits) - begin[device.name] <= 31 for device in made.devices.values())
    assert min(device.busy / 1200 for device in made.devices.values()) > 0.98
    assert {settled.outcome for settled in of(Settled, made)} == {"stored"}
    assert of(Closed, made) == []
    assert made.engine.core.version == len(of(Settled, made))


def test_with_every_commit_the_fresh_model_is_pulled_and_little_is_amended():
    made = world(RECIPE + "epoch = 0\nrate = 3\n")
    made.run(600)
    going_on = [settled for settled in of(Settled, made) if not settled.ends]
    assert len(of(Refreshed, made)) == len(going_on)
    assert all(refreshed.merge == refreshed.keep == 1 for refreshed in of(Refreshed, made))
    late = [effect for at, effect in made.effects if at > made.now - 300]
    amended, commits = (sum(isinstance(effect, kind) for effect in late) for kind in (Amended, Settled))
    assert amended < 0.2 * commits


def test_the_search_finds_that_more_commits_learn_faster():
    """After trials of eight periods and of four C is 3, and the loss lower than where it had stayed 1."""
    searching, staying = world(), world(RECIPE + "epoch = 0\n")
    for made in (searching, staying):
        made.run(900)
    settled = [adsp.search.settled for adsp, _ in (made.engine._members.states for made in (searching, staying))]
    assert settled == [3, 1]
    assert searching.loss() < 0.8 * staying.loss()
    assert min(device.busy / 900 for device in searching.devices.values()) > 0.98
    counts = [len(device.commits) for device in searching.devices.values()]
    assert max(counts) - min(counts) <= 1


def test_a_device_that_slows_down_keeps_its_number_of_commits():
    made = world(RECIPE + "epoch = 0\nrate = 2\n")
    made.run(300)
    made.devices["pi-00"].step *= 4
    made.run(600)
    counts = [len(device.commits) for device in made.devices.values()]
    assert max(counts) - min(counts) <= 1


def test_a_device_that_joins_late_starts_level():
    made = World(parse(RECIPE + "epoch = 0\nrate = 2\n"), STEPS)
    names = list(made.devices)
    for name in names[:-1]:
        made.join(name)
    made.run(600)
    made.join(names[-1])
    made.run(600)
    late, others = len(made.devices[names[-1]].commits), [len(made.devices[name].commits) for name in names[:-1]]
    assert 19 <= late <= 22  # no storm: what it had missed is not made up for
    assert min(others) >= 38


def test_agents_that_cannot_train_on_still_commit_equally_often():
    made = world(RECIPE + "epoch = 0\nrate = 3\n", features=("train", "int8"))
    before = made.loss()
    made.run(900)
    assert made.loss() < 0.2 * before
    counts = [len(device.commits) for device in made.devices.values()]
    assert max(counts) - min(counts) <= 3


# What only one device in the fleet has to teach, a majority by coordinates never takes.
MAJORITY = {"median", "trimmed_mean"}


UNWAITING = sorted(kind for kind, cls in AGGREGATORS.items() if not cls().synchronous and kind not in MAJORITY)


@pytest.mark.parametrize("kind", UNWAITING)
def test_with_any_asynchronous_aggregator_adsp_supplies_the_rate(kind):
    made = world(RECIPE.replace("adsp_sum", kind) + "epoch = 0\nrate = 3\n")
    before = made.loss()
    made.run(600)
    assert made.loss() < 0.5 * before
    assert {settled.outcome for settled in of(Settled, made)} == {"stored"}
    counts = [len(device.commits) for device in made.devices.values()]
    assert max(counts) - min(counts) <= 1


def test_the_composed_recipe_holds_widths_during_a_trial_and_lets_them_grow_after():
    recipe = parse(presets()["whale-asmu-adsp"])
    whale, adsp = recipe.policies
    slower = evolve(adsp, period=60.0, shortest=1.0, warm_up=6.0, epoch=2000.0)
    made = World(evolve(recipe, policies=(whale, slower)), STEPS)
    assert isinstance(slower, Adsp)
    for name in made.devices:
        made.join(name)
    before = made.loss()
    made.run(1500)
    offers = [(at - made.now + 1500, effect) for at, effect in made.effects if isinstance(effect, Offered)]
    held = [at for at, offer in offers if "held" in offer.explanation or "trial" in offer.explanation["adsp"]]
    widths = {name: [(at, o.plan.width) for at, o in offers if o.device == name] for name in made.devices}
    assert held
    for taken in widths.values():
        assert len({width for at, width in taken if min(held) <= at <= max(held)}) <= 2  # one before, one from then on
    assert {width for taken in widths.values() for _, width in taken} > {0.125}
    assert made.loss() < before
    assert min(device.busy / 1500 for device in made.devices.values()) > 0.95
    first = offers[0][1].explanation
    assert {"whale_fl", "adsp"} <= first.keys()
    assert first["adsp"]["seconds"] == offers[0][1].plan.seconds


@pytest.mark.parametrize("first", [True, False], ids=["before-adsp", "after-adsp"])
def test_fresh_models_are_merged_in_the_middle_of_what_adsp_has_devices_train(first):
    """Beside those that come with commits: once an assignment, with a weight of the device's own, and learned from."""
    adsp = 'kind = "adsp"\nshortest = 1\nepoch = 0\nrate = 3\nperiods = 2\n'
    members = ['kind = "fresh_model"\n', adsp] if first else [adsp, 'kind = "fresh_model"\n']
    recipe = RECIPE.partition("[aggregator]")[0] + '[aggregator]\nkind = "fedasmu"\n'
    made = world(recipe + "".join(f"\n[[policy]]\n{member}" for member in members))
    before = made.loss()
    made.run(900)
    assert {settled.outcome for settled in of(Settled, made)} == {"stored"}
    asked = [fresh for fresh in of(Refreshed, made) if fresh.keep == 0]
    pulled = [fresh for fresh in of(Refreshed, made) if fresh.keep == 1]
    assignments = len(of(Offered, made))
    assert 0.5 * assignments < len(asked) <= assignments
    assert all(0 < fresh.merge < 1 for fresh in asked)
    assert len(pulled) > 2 * len(asked)
    askers = made.engine._members.states[0 if first else 1].devices
    assert sum(asker.gamma != 1.0 for asker in askers.values()) > len(STEPS) / 2
    assert sum(bool(asker.table.any()) for asker in askers.values()) > len(STEPS) / 2
    assert made.loss() < 0.5 * before
    assert min(device.busy / 900 for device in made.devices.values()) > 0.97


def test_recovery_in_mid_trial_decides_the_same():
    one, other = world(), world()
    for made in (one, other):
        made.run(300)
    snapshot = other.engine.snapshot()
    other.engine.restore(snapshot)
    assert other.engine.core.wake_at is not None
    for made in (one, other):
        made.run(300)
    assert one.engine.snapshot() == other.engine.snapshot()
