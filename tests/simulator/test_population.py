"""Populations: read strictly, dealt out by shares."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from coordinator.errors import ShoalError
from coordinator.simulator import population
from coordinator.simulator.experiment import bent
from coordinator.simulator.population import builtin, load, parse

ONE = '[[group]]\nname = "a"\n'


def read(text):
    return parse(text, Path())


def test_what_comes_with_shoal():
    assert list(builtin()) == ["adsp-paper", "cellular", "phones-flash", "pi-mixed", "whale-paper"]


@pytest.mark.parametrize("name", list(builtin()))
def test_every_population_says_where_its_figures_are_from(name):
    found = load(name)
    assert found.name == name
    assert len(found.about) > 80
    assert len(found.members(found.devices)) == found.devices


def test_the_published_devices_of_whale_fl():
    found = load("whale-paper")
    times = {group.name: group.compute.ms_per_sample for group in found.groups}
    assert times["pi"][1.0] / times["pi"][0.0625] == pytest.approx(20.17, abs=0.01)
    assert Counter(group.name for group in found.members(20)) == dict.fromkeys(times, 4)
    assert [link.up_kbps for link in found.groups[0].links] == [80000, 40000, 20000, 15000]


def test_the_workers_of_adsp_have_their_degree_of_heterogeneity():
    def degree(found):
        speeds = [1 / group.compute.ms_per_sample[1.0] for group in found.members(18)]
        return sum(speeds) / len(speeds) / min(speeds)

    assert degree(load("adsp-paper")) == pytest.approx(1.45, abs=0.01)
    assert degree(bent(load("adsp-paper"), 3.2)) == pytest.approx(3.2, abs=0.01)


def test_heterogeneity_needs_groups_that_differ():
    with pytest.raises(ShoalError, match="groups that differ"):
        bent(read(ONE), 2.0)


def test_shares_are_kept_by_largest_remainder_and_every_prefix_is_mixed():
    found = read('[[group]]\nname = "a"\nshare = 3\n[[group]]\nname = "b"\nshare = 1\n')
    names = [group.name for group in found.members(10)]
    assert Counter(names) == {"a": 8, "b": 2}  # 7.5 and 2.5: the first of equals gets the rest
    assert Counter(names[:5])["b"] == 1


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("speed = 1\n" + ONE, "unknown key 'speed', expected about, devices, group, name"),
        (ONE + "[group.compute]\nmflop = 3\n", "group 'a': compute: unknown key 'mflop'"),
        (ONE + "compute = { mflops = -1 }\n", "compute: mflops is -1, expected a number from"),
        (ONE + "compute = { jitter = 0.1 }\n", "compute needs either ms_per_sample or mflops"),
        (ONE + "compute = { ms_per_sample = { '2' = 1 } }\n", "ms_per_sample has '2' = 1, expected a width up to 1"),
        (ONE + "link = { up_kbps = 3 }\n", "down_kbps and up_kbps are given both or not at all"),
        (ONE + "link = { trace = 'nowhere.csv' }\n", "there is no trace nowhere.csv"),
        (ONE + "availability = { on = 5 }\n", "availability: on is 5, expected a span of time"),
        (ONE + "availability = { windows = ['9-17'] }\n", "windows holds '9-17', expected spans of the day"),
        ("name = 'x'", "no groups"),
        ("name = ", "not TOML"),
        (ONE + ONE, "same name"),
        ("devices = 0\n" + ONE, "devices is 0, expected a whole number from 1"),
    ],
)
def test_what_is_wrong_is_named(text, sentence):
    with pytest.raises(ShoalError) as told:
        read(text)
    assert sentence in told.value.detail


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(ShoalError, match=r"no population 'moon': expected one of adsp-paper, cellular"):
        load("moon")


def test_spans_of_time():
    assert [population.seconds(text) for text in ("250ms", "90s", "15m", "1.5h", "2d")] == [0.25, 90, 900, 5400, 172800]
