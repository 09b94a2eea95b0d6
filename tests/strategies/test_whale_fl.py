"""WHALE-FL by hand: U = D·√F̄·(T_set/T)^β, s = U/A, one level per assignment; times are those of the full width."""

from __future__ import annotations

import json
import math

import pytest
from attrs import evolve

from coordinator.strategies import WhaleFL
from coordinator.strategies.base import Expired, Left

from .scene import COSTS, PLAN, context, device, model, report

MODEL = model(0, 0, 0, 0)
FOUR = (1.0, 0.5, 0.25, 0.125)


def after(whale, *events):
    state = whale.init(MODEL)
    for event in events:
        state = whale.on(state, event, context())
    return state


def shaped(whale, state, view=None):
    """The next state, the width and the explanation for a device that checks in."""
    state, plan, explanation = whale.shape(state, PLAN, view or device(), MODEL, context())
    assert plan.width == explanation["width"]
    return state, plan.width, explanation


def explained(whale, *events, view=None):
    return shaped(whale, after(whale, *events), view)[2]


# -- what a device takes for the full width ----------------------------------------------------------------------


def test_training_time_is_scaled_by_flops_and_the_link_by_parameters():
    # At width ½: 8 s for 40 samples, .2 s each; the whole costs 4096/1024 = 4 times as much: .8 s · 40 = 32 s.
    # 500 bytes in half a second: 1000 bytes/s; 1000 parameters of 4 bytes down and up: 8 s.
    assert (COSTS[1.0].flops, COSTS[0.5].flops, COSTS[1.0].parameters) == (4096, 1024, 1000)
    assert explained(WhaleFL(), report(width=0.5, seconds=8.0, link=0.5, sent=500))["seconds"] == pytest.approx(40)


def test_the_widest_width_measured_is_what_is_scaled():
    # ¼ would say .1 · 16 · 40 = 64 s; ½ is nearer to the whole: .2 · 4 · 40 = 32 s
    events = (report(width=0.5, seconds=8.0), report(width=0.25, seconds=4.0))
    assert explained(WhaleFL(), *events)["seconds"] == pytest.approx(32)


def test_measurements_are_smoothed():
    # .2 then .4 s per sample: .7 · .2 + .3 · .4 = .26, times 40 samples
    assert explained(WhaleFL(), report(seconds=8.0), report(seconds=16.0))["seconds"] == pytest.approx(10.4)


def test_goodput_is_smoothed_too():
    # 1000 then 2000 bytes/s: 1300 bytes/s for 8000 bytes, besides 8 s of training
    events = (report(link=1.0, sent=1000), report(link=1.0, sent=2000), report(link=None, sent=500))
    assert explained(WhaleFL(), *events)["seconds"] == pytest.approx(8 + 8000 / 1300)


def test_a_device_nobody_has_measured_has_no_time():
    assert explained(WhaleFL())["seconds"] is None


# -- the Fisher proxy and its window -----------------------------------------------------------------------------


def test_the_proxy_is_the_largest_mean_square_of_a_tensor_divided_by_the_batch():
    # a: 8/4 = 2, b: 3/1 = 3; 3 over a batch of 4 is .75
    event = evolve(report(), squared_gradient_peak={"a": 8.0, "b": 3.0}, sizes={"a": 4, "b": 1})
    assert explained(WhaleFL(delay=0, half_window=0), event)["fisher"] == pytest.approx(0.75)


def test_the_window_is_uniform_and_ends_a_delay_before_the_newest_report():
    # δ = 1, h = 1: of the newest four reports the first three. Proxies 1, 4, 7, 100 (peaks are four times that).
    whale = WhaleFL(delay=1, half_window=1)
    events = [report(peak=4 * proxy) for proxy in (1, 4, 7, 100)]
    assert explained(whale, *events[:3])["fisher"] is None
    assert explained(whale, *events)["fisher"] == pytest.approx(4)
    assert explained(whale, *events, report(peak=4 * 13))["fisher"] == pytest.approx(37)


def test_no_gradients_are_no_information():
    event = evolve(report(), squared_gradient_peak={})
    assert explained(WhaleFL(delay=0, half_window=0), event)["fisher"] == 0


# -- utility, calibration, levels --------------------------------------------------------------------------------


@pytest.mark.parametrize(("beta", "utility"), [(0.0, 50), (1.0, 25), (2.0, 12.5)])
def test_utility(beta, utility):
    # D = 100, F̄ = 1/4, T_set/T = 20/40
    whale = WhaleFL(delay=0, half_window=0, beta=beta, reference=20, scale=50)
    explanation = explained(whale, report(peak=1.0, seconds=40.0))
    assert explanation["utility"] == pytest.approx(utility)
    assert explanation["share"] == pytest.approx(utility / 50)


def test_reference_and_scale_are_taken_once_when_half_of_the_fleet_is_ready():
    whale = WhaleFL(delay=0, half_window=0)
    state, _, first = shaped(whale, whale.init(MODEL), device("a"))
    assert (first["reference"], first["scale"], first["warm_up"]) == (
        None, None, "report 0 of 1, or the fleet is not calibrated yet"
    )
    for name in ("b", "c"):
        state, _, _ = shaped(whale, state, device(name))
    state = whale.on(state, report(device("a"), seconds=40.0), context())
    state, _, early = shaped(whale, state, device("a"))
    assert early["scale"] is None  # one of three
    state = whale.on(state, report(device("b"), seconds=10.0), context())
    state, _, slow = shaped(whale, state, device("a"))
    # T_set = median of 40 and 10; U_a = 100·½·25/40 = 31.25, U_b = 100·½·25/10 = 125; A = 125/.9
    assert slow["reference"] == pytest.approx(25)
    assert slow["scale"] == pytest.approx(125 / 0.9)
    assert slow["share"] == pytest.approx(0.225)
    assert "warm_up" not in slow
    state, _, fast = shaped(whale, state, device("b"))
    assert fast["share"] == pytest.approx(0.9)
    # kept, whatever comes later
    state = whale.on(state, report(device("c"), seconds=0.001, peak=1e6), context())
    _, _, later = shaped(whale, state, device("c"))
    assert (later["reference"], later["scale"]) == (slow["reference"], slow["scale"])


def test_a_fleet_without_gradients_is_not_calibrated():
    whale = WhaleFL(delay=0, half_window=0)
    explanation = explained(whale, report(peak=0.0))
    assert explanation["scale"] is None
    assert "warm_up" in explanation


def test_a_fleet_without_times_is_not_calibrated():
    assert explained(WhaleFL(delay=0, half_window=0), report(seconds=0.0))["reference"] is None


def test_until_its_window_is_full_a_device_trains_the_smallest_width():
    whale = WhaleFL(delay=2, half_window=0, reference=20, scale=1e-6, widths=FOUR)
    state = after(whale, report(), report())
    for _ in range(3):
        state, width, explanation = shaped(whale, state)
        assert width == 0.125
        assert explanation["warm_up"] == "report 2 of 3, or the fleet is not calibrated yet"


@pytest.mark.parametrize(
    ("share", "widths"),
    [
        (0.10, [0.125, 0.125]),
        (0.26, [0.125, 0.125]),  # past the threshold of ¼, but not by .02
        (0.28, [0.25, 0.25]),
        (0.51, [0.25, 0.25, 0.25]),
        (0.53, [0.25, 0.5, 0.5]),
        (5.00, [0.25, 0.5, 1.0, 1.0]),
    ],
)
def test_a_width_rises_one_level_per_assignment(share, widths):
    # U = 100·½·20/40 = 25
    whale = WhaleFL(delay=0, half_window=0, reference=20, scale=25 / share, widths=FOUR)
    state = after(whale, report(peak=1.0, seconds=40.0))
    found = []
    for _ in widths:
        state, width, _ = shaped(whale, state)
        found.append(width)
    assert found == widths


def test_a_width_falls_one_level_per_assignment_and_only_past_a_margin():
    whale = WhaleFL(delay=0, half_window=0, reference=20, scale=25, widths=FOUR)
    state = after(whale, report(peak=1.0, seconds=40.0))  # s = 1
    for _ in range(3):
        state, width, _ = shaped(whale, state)
    assert width == 1.0
    # s = √(peak): the newest report is the window. .74 is within the margin of ¾, .72 is below it.
    for share, expected in ((0.74, 1.0), (0.72, 0.5), (0.72, 0.5), (0.0, 0.25), (0.0, 0.125), (0.0, 0.125)):
        state = whale.on(state, report(peak=share**2, seconds=40.0), context())
        state, width, _ = shaped(whale, state)
        assert width == expected


def test_five_levels_by_default():
    whale = WhaleFL(delay=0, half_window=0, reference=20, scale=1)
    state, found = after(whale, report(peak=1.0, seconds=40.0)), []
    for _ in range(5):
        state, width, _ = shaped(whale, state)
        found.append(width)
    assert found == [0.125, 0.25, 0.5, 1.0, 1.0]


def test_samples_are_those_of_the_newest_check_in():
    whale = WhaleFL(delay=0, half_window=0, reference=20, scale=50)
    explanation = explained(whale, report(peak=1.0, seconds=40.0), view=device(samples=200))
    assert (explanation["samples"], explanation["utility"]) == (200, pytest.approx(50))


# -- devices come and go, and lie --------------------------------------------------------------------------------


def test_a_device_that_left_is_forgotten():
    whale = WhaleFL()
    state = after(whale, report(device("a")), report(device("b")), Left("a"), Left("never seen"))
    assert list(state.records) == ["b"]


def test_an_expired_lease_changes_nothing():
    whale = WhaleFL()
    state = after(whale, report())
    assert whale.on(state, Expired(device()), context()) is state


@pytest.mark.parametrize("seconds", [1e-300, 1e9])
@pytest.mark.parametrize("peak", [0.0, 1e308])
@pytest.mark.parametrize("sent", [1, 1 << 53])
def test_absurd_reports_leave_the_arithmetic_finite(seconds, peak, sent):
    whale = WhaleFL(delay=0, half_window=1, beta=10, reference=20)
    events = [report(peak=peak, seconds=seconds, link=1e-300, sent=sent)] * 3
    explanation = explained(whale, *events, view=device(samples=1 << 53))
    assert json.loads(json.dumps(explanation, allow_nan=False)) == explanation
    assert all(math.isfinite(v) for v in explanation.values() if isinstance(v, float))


@pytest.mark.parametrize("widths", [(), (0.5, 1.0), (1.0, 1.0), (1.0, 0.3)])
def test_widths_are_levels_of_heterofl_largest_first(widths):
    with pytest.raises(ValueError, match="largest first"):
        WhaleFL(widths=widths)
