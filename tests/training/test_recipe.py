"""Recipes: strict TOML in, the same recipe out."""

from __future__ import annotations

import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.errors import ShoalError
from coordinator.strategies import (
    POLICIES,
    AdaComm,
    Adsp,
    AdspSum,
    Clip,
    Cohort,
    FedASMU,
    FedAsync,
    FedAvg,
    FedBuff,
    FedRolex,
    Fixed,
    FreshModel,
    HeteroFL,
    HeteroFLDynamic,
    LabelFlip,
    Outlier,
    Rate,
    Ssp,
    WhaleFL,
)
from coordinator.training.recipe import BasePlan, Recipe, load, parse, presets
from protocol.messages import Plan
from protocol.subnetwork import WIDTHS

BUFFER = '[aggregator]\nkind = "fedbuff"\n'


@pytest.mark.parametrize("name", sorted(presets()))
def test_a_preset_is_a_recipe_of_its_name_and_comes_back_from_its_own_toml(name):
    recipe = load(name)
    assert recipe.name == name
    assert parse(recipe.to_toml()) == recipe
    assert parse(presets()[name]) == recipe


def test_the_presets():
    parsed = {name: load(name) for name in presets()}
    members = {
        name: [type(m) for m in (r.aggregator, *r.policies, *r.transforms, *r.gates)] for name, r in parsed.items()
    }
    assert members == {
        "fedasmu": [FedASMU, HeteroFL, FreshModel],
        "adacomm": [FedAvg, Ssp, AdaComm, Fixed],
        "adacomm-fixed": [FedAvg, Ssp, AdaComm, Fixed],
        "adsp": [AdspSum, Adsp, Fixed],
        "bsp": [FedAvg, Ssp, Fixed],
        "fedasync": [FedAsync, Fixed],
        "fedavg": [FedAvg, Cohort, Fixed],
        "fedbuff": [FedBuff, Fixed],
        "fedbuff-guarded": [FedBuff, Fixed, Rate, LabelFlip, Outlier],
        "fedbuff-heterofl": [FedBuff, HeteroFL],
        "fedprox": [FedAvg, Cohort, Fixed],
        "fedrolex": [FedAvg, Cohort, FedRolex],
        "heterofl": [FedAvg, Cohort, HeteroFL],
        "heterofl-dynamic": [FedAvg, Cohort, HeteroFLDynamic],
        "ssp": [AdspSum, Ssp, Fixed],
        "whale-asmu-adsp": [FedASMU, WhaleFL, Adsp],
        "whale-fl": [FedBuff, WhaleFL],
    }
    assert parsed["fedprox"].plan.proximal > 0


def test_the_least_there_is_to_say():
    recipe = parse(BUFFER)
    assert recipe == Recipe(name="custom", plan=BasePlan(), aggregator=FedBuff())
    assert recipe.plan.plan() == Plan(width=1.0, batch=32, steps=20, learning_rate=0.05, coding="float32")


def test_a_whole_number_is_fine_where_any_number_is():
    recipe = parse('[plan]\nlearning_rate = 1\nlease = 60\n[aggregator]\nkind = "fedasmu"\nmu = 2\nlambda = 3\n')
    assert recipe.aggregator == FedASMU(mu=2.0, lambda_=3.0)
    assert type(recipe.aggregator.mu) is float
    assert type(recipe.plan.lease) is float


def test_members_keep_their_order():
    text = BUFFER + '[[transform]]\nkind = "clip"\nnorm = 1\n[[transform]]\nkind = "clip"\nnorm = 2\n'
    assert parse(text).transforms == (Clip(1.0), Clip(2.0))


@pytest.mark.parametrize(
    ("aggregator", "policy"),
    [(FedAvg(goal=6), Cohort(goal=4, over_selection=0.5)), (FedAvg(), Ssp(bound=0)), (FedAsync(), Ssp(bound=1))],
)
def test_barriers_that_fit_are_recipes(aggregator, policy):
    recipe = Recipe(name="x", plan=BasePlan(), aggregator=aggregator, policies=(policy, Fixed(0.5)))
    assert parse(recipe.to_toml()) == recipe


names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=80)
recipes = st.builds(
    Recipe,
    name=names,
    plan=st.builds(
        BasePlan,
        batch=st.sampled_from([1, 16, 1024]),
        steps=st.integers(1, 1_000_000),
        learning_rate=st.floats(0, 1000),
        coding=st.sampled_from(["float32", "int8", "topk-0.05"]),
        lease=st.floats(1, 86400),
    ),
    aggregator=st.builds(FedBuff, st.integers(1, 100), st.floats(0, 100), st.floats(0, 10), st.integers(0, 1000))
    | st.builds(FedASMU, mu=st.floats(0, 100), lambda_=st.floats(0, 100)),
    policies=st.sampled_from([(), (Fixed(0.3),), (WhaleFL(widths=WIDTHS[:2]),)])
    | st.builds(lambda widths: (HeteroFL(widths),), st.dictionaries(names, st.floats(0.001, 1), max_size=3)),
    transforms=st.lists(st.builds(Clip, st.floats(0, 1e12)), max_size=2).map(tuple),
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(recipes)
def test_every_recipe_comes_back_from_its_toml(recipe):
    assert parse(recipe.to_toml()) == recipe


@pytest.mark.parametrize("name", ["pi 🐟", "tab\tquote\"back\\slash", "del\x7f", "§ é 中"])
def test_names_of_every_script_survive(name):
    recipe = evolve(parse(BUFFER), name=name)
    assert parse(recipe.to_toml()).name == name


WRONG = {
    "no TOML": (
        "kind = ",
        f"The recipe is neither one of {', '.join(presets())} nor TOML: ",
    ),
    "nesting without end": ("x = " + "[" * 5000, "The recipe is neither one of "),
    "a key twice": (BUFFER + 'kind = "fedasmu"\n', "The recipe is neither one of "),
    "nothing": ("", "[aggregator]: kind is None, expected one of fedavg, fedasync, fedbuff, fedasmu"),
    "no aggregator": ('[[policy]]\nkind = "fixed"\n', "[aggregator]: kind is None, expected one of fedavg, fedasync, "),
    "an aggregator as policy": (
        BUFFER + '[[policy]]\nkind = "fedbuff"\n',
        f"[[policy]]: kind is 'fedbuff', expected one of {', '.join(POLICIES)}",
    ),
    "an unknown transform": (
        BUFFER + '[[transform]]\nkind = "adam"\n', "[[transform]]: kind is 'adam', expected one of clip",
    ),
    "a kind that is no text": ("[aggregator]\nkind = 3\n", "[aggregator]: kind is 3, expected one of"),
    "an unknown table": (
        BUFFER + "[policies]\n",
        "the recipe: unknown key 'policies', expected admission, aggregator, name, plan, policy, stop, transform",
    ),
    "an unknown key of the plan": (
        "[plan]\nstep = 3\n" + BUFFER,
        "[plan]: unknown key 'step', expected batch, clip, coding, commits, dampening, evaluate, ",
    ),
    "an unknown key of a member": (
        BUFFER + "gaol = 3\n",
        "[aggregator] fedbuff: unknown key 'gaol', expected exponent, goal, max_staleness, server_rate",
    ),
    "text for a number": (BUFFER + 'goal = "4"\n', "[aggregator] fedbuff: goal is '4', expected int"),
    "true for a number": (BUFFER + "goal = true\n", "[aggregator] fedbuff: goal is True, expected int"),
    "true for a float": (BUFFER + "server_rate = true\n", "[aggregator] fedbuff: server_rate is True, expected float"),
    "a fraction for a count": (BUFFER + "goal = 4.0\n", "[aggregator] fedbuff: goal is 4.0, expected int"),
    "text for a plan's number": ('[plan]\nsteps = "4"\n' + BUFFER, "[plan]: steps is '4', expected int"),
    "a number for text": ("[plan]\ncoding = 8\n" + BUFFER, "[plan]: coding is 8, expected str"),
    "a member out of range": (
        BUFFER + "goal = 0\n", "[aggregator] fedbuff: goal is 0, expected a number from 1 to 100000"
    ),
    "not a number": (
        BUFFER + "server_rate = nan\n", "[aggregator] fedbuff: server_rate is nan, expected a number from 0 to 100"
    ),
    "a batch that is no power of two": (
        "[plan]\nbatch = 20\n" + BUFFER, "[plan]: batch is 20, expected a power of two up to 1024"
    ),
    "an unknown coding": ('[plan]\ncoding = "top-k"\n' + BUFFER, "[plan]: coding is 'top-k', expected one of"),
    "a learning rate without end": (
        "[plan]\nlearning_rate = inf\n" + BUFFER, "[plan]: learning_rate is inf, expected a number from 0 to 1000"
    ),
    "no time at all": ("[plan]\nlease = 0\n" + BUFFER, "[plan]: lease is 0.0, expected 1 second to 30 days"),
    "a lease for ever": ("[plan]\nlease = inf\n" + BUFFER, "[plan]: lease is inf, expected 1 second to 30 days"),
    "a lease that is no number": ("[plan]\nlease = nan\n" + BUFFER, "[plan]: lease is nan, expected 1 second to 30"),
    "two width policies": (
        BUFFER + '[[policy]]\nkind = "fixed"\n[[policy]]\nkind = "whale_fl"\n',
        "Two policies set width: Fixed and WhaleFL; keep one of them",
    ),
    "rounds that nobody holds": (
        '[aggregator]\nkind = "fedavg"\n[[policy]]\nkind = "fixed"\n',
        "fedavg closes rounds: it needs a policy that holds them, cohort or ssp with bound = 0",
    ),
    "rounds that a bound does not hold": (
        '[aggregator]\nkind = "fedavg"\n[[policy]]\nkind = "ssp"\nbound = 1\n',
        "fedavg closes rounds: it needs a policy that holds them, ",
    ),
    "rounds that nobody closes": (
        BUFFER + '[[policy]]\nkind = "cohort"\n',
        "cohort lets devices wait for a round to end, but fedbuff closes none: use fedavg, "
        "or a robust rule with max_staleness = 0",
    ),
    "lockstep of an asynchronous aggregator": (
        '[aggregator]\nkind = "fedasync"\n[[policy]]\nkind = "ssp"\nbound = 0\n',
        "ssp lets devices wait for a round to end, but fedasync closes none: use fedavg, "
        "or a robust rule with max_staleness = 0",
    ),
    "a round that is never full": (
        '[aggregator]\nkind = "fedavg"\ngoal = 6\n[[policy]]\nkind = "cohort"\ngoal = 4\nover_selection = 0.25\n',
        "cohort lets 5 devices into a round, fedavg waits for 6",
    ),
    "a barrier behind another policy": (
        '[aggregator]\nkind = "fedavg"\n[[policy]]\nkind = "whale_fl"\n[[policy]]\nkind = "cohort"\n',
        "cohort makes devices wait: it must be the first policy, and the only one that does",
    ),
    "two barriers": (
        '[aggregator]\nkind = "fedavg"\n[[policy]]\nkind = "cohort"\n[[policy]]\nkind = "ssp"\n',
        "ssp makes devices wait: it must be the first policy, and the only one that does",
    ),
    "commits in a lockstep": (
        '[plan]\ncommits = 2\n[aggregator]\nkind = "fedavg"\n[[policy]]\nkind = "ssp"\nbound = 0\n',
        "commits = 2 lets devices train on without waiting, but ssp lets them wait: keep one of them",
    ),
    "one that never waits behind one that does": (
        '[aggregator]\nkind = "adsp_sum"\n[[policy]]\nkind = "ssp"\n[[policy]]\nkind = "adsp"\n',
        "adsp lets devices train on without waiting, but ssp lets them wait: keep one of them",
    ),
    "a first rate above the top": (
        '[aggregator]\nkind = "adsp_sum"\n[[policy]]\nkind = "adsp"\nrate = 3\ntop = 2\n',
        "[[policy]] adsp: rate is 3, more than top, 2",
    ),
    "a width in text": (        BUFFER + '[[policy]]\nkind = "heterofl"\nwidths = { pi3 = "0.5" }\n',
        "[[policy]] heterofl: widths is '0.5', expected float",
    ),
    "a width out of range": (
        BUFFER + '[[policy]]\nkind = "heterofl"\nwidths = { pi3 = 2 }\n',
        "[[policy]] heterofl: widths is 2.0, expected a number from",
    ),
    "a list for a table of widths": (
        BUFFER + '[[policy]]\nkind = "heterofl"\nwidths = [1.0]\n',
        "[[policy]] heterofl: widths is [1.0], expected dict",
    ),
    "a number for a list of widths": (
        BUFFER + '[[policy]]\nkind = "whale_fl"\nwidths = 1.0\n', "[[policy]] whale_fl: widths is 1.0, expected tuple"
    ),
    "widths that are no levels": (
        BUFFER + '[[policy]]\nkind = "whale_fl"\nwidths = [0.3]\n', "[[policy]] whale_fl: widths are (0.3,), expected"
    ),
    "a name that is no text": ("name = 3\n" + BUFFER, "name is 3, expected 1 to 80 characters"),
    "a name of nothing": ('name = ""\n' + BUFFER, "name is '', expected 1 to 80 characters"),
    "a plan that is no table": ("plan = 3\n" + BUFFER, "plan is 3, expected a table [plan]"),
    "a policy that is no list": (BUFFER + "[policy]\nkind = 'fixed'\n", "policy is {'kind': 'fixed'}, expected tables"),
    "policies that are no tables": ("policy = [3]\n" + BUFFER, "policy is [3], expected tables [[policy]]"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_mistake_is_named(wrong):
    text, sentence = WRONG[wrong]
    with pytest.raises(ShoalError) as refused:
        parse(text)
    assert refused.value.code == "bad-recipe"
    assert refused.value.detail.startswith(sentence)


@pytest.mark.parametrize("text", ["fedsgd", ""])
def test_a_preset_that_does_not_exist(text):
    with pytest.raises(ShoalError, match=f"There is no recipe '{text}', only {', '.join(presets())}, ") as refused:
        load(text)
    assert refused.value.code == "bad-recipe"
