"""ADSP's parameter server: W ← W + U / M, with M the devices at work that cover a coordinate."""

from __future__ import annotations

import math

import pytest
from attrs import evolve

from coordinator.strategies import AdspSum
from coordinator.strategies.adsp_sum import WHOLE, Census
from coordinator.strategies.base import Left
from coordinator.training.state import freeze, thaw
from protocol.subnetwork import FULL, Region, Subnetwork

from .scene import LAYOUT, context, contribution, device, model

MODEL = model(0, 0, 0, 0)


class Server:
    def __init__(self, **options) -> None:
        self.rule = AdspSum(**options)
        self.state = self.rule.init(MODEL)

    def takes(self, name, now=0.0, width=1.0, steps=10, value=12.0):
        """The step that an update of so many twelves makes, as a list, and its contributor's weight."""
        size = round(4 * width)
        given = evolve(contribution(*[value] * size, width=width, view=device(name)), steps=steps)
        self.state, step = self.rule.absorb(self.state, MODEL, given, context(now=now))
        return step.difference["w"].tolist(), step.contributors[0].weight


def test_an_update_is_divided_by_the_devices_at_work():
    server = Server()
    assert server.takes("a") == ([12] * 4, 1)
    assert server.takes("b") == ([6] * 4, 1 / 2)
    assert server.takes("c") == ([4] * 4, 1 / 3)
    assert server.takes("a", now=1) == ([4] * 4, 1 / 3)


def test_every_coordinate_has_its_own_number_of_devices():
    server = Server()
    server.takes("whole")
    server.takes("half", width=0.5)
    server.takes("quarter", width=0.25)
    assert server.takes("whole") == ([4, 6, 12, 12], 1 / 3)
    assert server.takes("half", width=0.5) == ([4, 6, 0, 0], 1 / 3)
    assert server.takes("quarter", width=0.25) == ([4, 0, 0, 0], 1 / 3)


def test_a_device_that_changes_its_width_is_counted_once():
    server = Server()
    server.takes("a")
    server.takes("b", width=0.5)
    assert server.takes("b") == ([6] * 4, 1 / 2)
    assert list(server.state.bands) == ['{"hidden": 4}']


def test_who_falls_silent_is_missed_little_by_little():
    """M sinks from 2 to 1 as an exponential, so that the step of the other does not double at once."""
    server = Server(patience=100)
    server.takes("silent")
    server.takes("busy", now=60)
    assert server.takes("busy", now=100)[0][0] == pytest.approx(6)
    assert server.takes("busy", now=150)[0][0] == pytest.approx(12 / (1 + math.exp(-0.5)))  # it is gone since 100
    assert server.takes("busy", now=2000)[0][0] == pytest.approx(12)
    assert list(server.state.members) == ["busy"]


def test_who_comes_back_counts_at_once():
    server = Server(patience=100)
    server.takes("a")
    server.takes("b", now=2000)
    assert server.takes("a", now=5000)[1] == pytest.approx(1)
    assert server.takes("b", now=5000) == ([6] * 4, 1 / 2)


def test_a_device_that_left_is_not_waited_for():
    server = Server(patience=100)
    server.takes("a")
    server.takes("b")
    server.state, effects = server.rule.on(server.state, Left("a"), context(now=1))
    assert (effects, list(server.state.members)) == ([], ["b"])
    assert server.takes("b", now=1000)[1] == pytest.approx(1, abs=1e-3)


def test_an_update_counts_in_full_however_stale():
    given = contribution(12, 12, 12, 12, staleness=500)
    _, step = AdspSum().absorb(Census(), MODEL, given, context())
    assert step.difference["w"].tolist() == [12] * 4


def test_updates_may_be_normalised_to_the_average_number_of_steps():
    server = Server(normalise=True)
    assert server.takes("a", steps=10)[0] == [12] * 4
    # The average is 0.9·10 + 0.1·30 = 12: the update of 30 steps counts as if it were one of 12, for two devices.
    assert server.takes("b", steps=30)[0] == pytest.approx([12 * 12 / 30 / 2] * 4)
    assert Server().takes("a", steps=30) == ([12] * 4, 1)


def test_after_the_model_was_cut_down_all_devices_count_as_covering_it():
    server = Server()
    server.takes("a")
    server.takes("b", width=0.5)
    server.state = server.rule.reshape(server.state, Region(LAYOUT, Subnetwork({"hidden": (0, 2)})))
    assert set(server.state.bands) == {WHOLE}
    (band,) = server.state.bands.values()
    assert (band.live, band.mean) == (2, 2)
    assert server.takes("a") == ([6] * 4, 1 / 2)


def test_rolled_windows_are_counted_where_they_lie():
    rule, state = AdspSum(), Census()
    for name, channels in (("a", (0, 3)), ("b", (3,)), ("c", FULL)):
        part = channels if channels is FULL else Subnetwork({"hidden": channels})
        given = contribution(*[12.0] * (4 if part is FULL else len(channels)), view=device(name))
        state = thaw(Census, freeze(state))
        state, step = rule.absorb(state, MODEL, evolve(given, region=Region(LAYOUT, part)), context())
    assert step.difference["w"].tolist() == [6, 12, 12, 4]


def test_a_device_costs_little_memory():
    server = Server()
    for number in range(1000):
        server.takes(f"pi-{number}", width=(0.25, 0.5, 1.0)[number % 3])
    assert len(freeze(server.state)) < 200 * 1000
