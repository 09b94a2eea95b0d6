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


def plain(**options):
    """As published: proxies as they are, and a scale that stays."""
    return WhaleFL(**{"per_width": False, "scale_mode": "once"} | options)


def after(whale, *events):
    state = whale.init(MODEL)
    for event in events:
        state, _ = whale.on(state, event, context())
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
    # .2 then .25 s per sample: .7 · .2 + .3 · .25 = .215, times 40 samples
    assert explained(WhaleFL(), report(seconds=8.0), report(seconds=10.0))["seconds"] == pytest.approx(8.6)


def test_goodput_is_smoothed_too():
    # 1000 then 1200 bytes/s: 1060 bytes/s for 8000 bytes, besides 8 s of training
    events = (report(link=1.0, sent=1000), report(link=1.0, sent=1200), report(link=None, sent=500))
    assert explained(WhaleFL(), *events)["seconds"] == pytest.approx(8 + 8000 / 1060)


@pytest.mark.parametrize(("seconds", "link"), [(12.1, 1.0), (5.3, 1.0), (8.0, 0.6), (8.0, 1.6)])
def test_a_change_by_more_than_half_is_believed_at_once(seconds, link):
    events = (report(link=1.0, sent=1000), report(seconds=seconds, link=link, sent=1000))
    assert explained(WhaleFL(), *events)["seconds"] == pytest.approx(seconds + 8 * link)


def test_a_change_at_one_width_is_a_change_of_the_device():
    # The whole takes 8 s. At ½ it takes 4 s, then 12: three times as long, so the whole takes 24, and back again.
    slower = (report(seconds=8.0), report(width=0.5, seconds=4.0), report(width=0.5, seconds=12.0))
    assert explained(WhaleFL(), *slower)["seconds"] == pytest.approx(24)
    assert explained(WhaleFL(), *slower, report(width=0.5, seconds=4.0))["seconds"] == pytest.approx(8)


def test_on_the_last_widths_basis_the_time_is_that_of_the_last_width():
    # at ⅛ 2 s, and 1000·⅛ = 125 parameters of 8 bytes at 1000 bytes/s: 1 s
    event = report(width=0.125, seconds=2.0, link=0.5, sent=500)
    assert explained(WhaleFL(t_basis="last_width", widths=FOUR), event)["seconds"] == pytest.approx(3)


def test_a_device_nobody_has_measured_has_no_time():
    assert explained(WhaleFL())["seconds"] is None


# -- the Fisher proxy and its window -----------------------------------------------------------------------------


def test_the_proxy_is_the_largest_mean_square_of_a_tensor_divided_by_the_batch():
    # a: 8/4 = 2, b: 3/1 = 3; 3 over a batch of 4 is .75
    event = evolve(report(), squared_gradient_peak={"a": 8.0, "b": 3.0}, sizes={"a": 4, "b": 1})
    assert explained(plain(delay=0, half_window=0), event)["fisher"] == pytest.approx(0.75)


def test_the_window_is_uniform_and_ends_a_delay_before_the_newest_report():
    # δ = 1, h = 1: of the newest four reports the first three. Proxies 1, 4, 7, 100 (peaks are four times that).
    whale = plain(delay=1, half_window=1)
    events = [report(peak=4 * proxy) for proxy in (1, 4, 7, 100)]
    assert explained(whale, *events[:3])["fisher"] is None
    assert explained(whale, *events)["fisher"] == pytest.approx(4)
    assert explained(whale, *events, report(peak=4 * 13))["fisher"] == pytest.approx(37)


def test_the_windows_of_the_authors_code_see_the_newest_report_only():
    # h = 1: 9·(⅓ + 1/9 + 1/27) = 13/3
    whale = plain(delay=1, half_window=1, window_mode="authors")
    events = [report(peak=4 * proxy) for proxy in (1, 4, 7, 9)]
    assert explained(whale, *events)["fisher"] == pytest.approx(13 / 3)


def test_the_trace_adds_up_all_tensors_mean_squared_gradients():
    event = evolve(report(), squared_gradient={"a": 8.0, "b": 3.0}, sizes={"a": 4, "b": 1})
    assert explained(plain(delay=0, half_window=0, fisher_stat="trace"), event)["fisher"] == pytest.approx(11 / 4)


def test_a_proxy_is_relative_to_what_is_usual_at_its_width():
    """Widths do not compare with each other, and shrinking gradients are no reason to shrink."""
    whale = WhaleFL(delay=0, half_window=0)
    wide, narrow = report(device("a"), peak=100.0), report(device("b"), width=0.5, peak=1.0)
    state = after(whale, wide, narrow)
    assert [shaped(whale, state, device(name))[2]["fisher"] for name in "ab"] == [1, 1]
    # usual was 25 (100 over a batch of 4); 30 is not far: usual is .7 · 25 + .3 · 30 = 26.5
    state = after(whale, wide, report(device("c"), peak=120.0))
    assert shaped(whale, state, device("c"))[2]["fisher"] == pytest.approx(30 / 26.5)


def test_no_gradients_are_no_information():
    event = evolve(report(), squared_gradient_peak={})
    assert explained(plain(delay=0, half_window=0), event)["fisher"] == 0


# -- utility, calibration, levels --------------------------------------------------------------------------------


@pytest.mark.parametrize(("beta", "utility"), [(0.0, 50), (1.0, 25), (2.0, 12.5)])
def test_utility(beta, utility):
    # D = 100, F̄ = 1/4, T_set/T = 20/40
    whale = plain(delay=0, half_window=0, beta=beta, reference=20, scale=50)
    explanation = explained(whale, report(peak=1.0, seconds=40.0))
    assert explanation["utility"] == pytest.approx(utility)
    assert explanation["share"] == pytest.approx(utility / 50)


def test_reference_and_scale_are_taken_once_when_half_of_the_fleet_is_ready():
    whale = plain(delay=0, half_window=0)
    state, _, first = shaped(whale, whale.init(MODEL), device("a"))
    assert (first["reference"], first["scale"], first["warm_up"]) == (
        None, None, "report 0 of 1, or the fleet is not calibrated yet"
    )
    for name in ("b", "c"):
        state, _, _ = shaped(whale, state, device(name))
    state, _ = whale.on(state, report(device("a"), seconds=40.0), context())
    state, _, early = shaped(whale, state, device("a"))
    assert early["scale"] is None  # one of three
    state, _ = whale.on(state, report(device("b"), seconds=10.0), context())
    state, _, slow = shaped(whale, state, device("a"))
    # T_set = median of 40 and 10; U_a = 100·½·25/40 = 31.25, U_b = 100·½·25/10 = 125; A = 125/.9
    assert slow["reference"] == pytest.approx(25)
    assert slow["scale"] == pytest.approx(125 / 0.9)
    assert slow["share"] == pytest.approx(0.225)
    assert "warm_up" not in slow
    state, _, fast = shaped(whale, state, device("b"))
    assert fast["share"] == pytest.approx(0.9)
    # kept, whatever comes later
    state, _ = whale.on(state, report(device("c"), seconds=0.001, peak=1e6), context())
    _, _, later = shaped(whale, state, device("c"))
    assert (later["reference"], later["scale"]) == (slow["reference"], slow["scale"])


def test_a_fleet_without_gradients_is_not_calibrated():
    whale = plain(delay=0, half_window=0)
    explanation = explained(whale, report(peak=0.0))
    assert explanation["scale"] is None
    assert "warm_up" in explanation


def test_a_fleet_without_times_is_not_calibrated():
    assert explained(plain(delay=0, half_window=0), report(seconds=0.0))["reference"] is None


def test_until_its_window_is_full_a_device_trains_the_smallest_width():
    whale = plain(delay=2, half_window=0, reference=20, scale=1e-6, widths=FOUR)
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
    whale = plain(delay=0, half_window=0, reference=20, scale=25 / share, widths=FOUR)
    state = after(whale, report(peak=1.0, seconds=40.0))
    found = []
    for _ in widths:
        state, width, _ = shaped(whale, state)
        found.append(width)
    assert found == widths


def test_a_width_falls_one_level_per_assignment_and_only_past_a_margin():
    whale = plain(delay=0, half_window=0, reference=20, scale=25, widths=FOUR)
    state = after(whale, report(peak=1.0, seconds=40.0))  # s = 1
    for _ in range(3):
        state, width, _ = shaped(whale, state)
    assert width == 1.0
    # s = √(peak): the newest report is the window. .74 is within the margin of ¾, .72 is below it.
    for share, expected in ((0.74, 1.0), (0.72, 0.5), (0.72, 0.5), (0.0, 0.25), (0.0, 0.125), (0.0, 0.125)):
        state, _ = whale.on(state, report(peak=share**2, seconds=40.0), context())
        state, width, _ = shaped(whale, state)
        assert width == expected


def test_five_levels_by_default():
    whale = plain(delay=0, half_window=0, reference=20, scale=1)
    state, found = after(whale, report(peak=1.0, seconds=40.0)), []
    for _ in range(5):
        state, width, _ = shaped(whale, state)
        found.append(width)
    assert found == [0.125, 0.25, 0.5, 1.0, 1.0]


def test_samples_are_those_of_the_newest_check_in():
    whale = plain(delay=0, half_window=0, reference=20, scale=50)
    explanation = explained(whale, report(peak=1.0, seconds=40.0), view=device(samples=200))
    assert (explanation["samples"], explanation["utility"]) == (200, pytest.approx(50))


# -- the scale that follows, and conditions that change -------------------------------------------------------


def test_the_scale_follows_the_geometric_mean_of_the_utilities():
    # one device: U = 100·√F·1. A = 50/.9; then U = 80: A = 50^.7·80^.3/.9 = 57.57/.9; then 40: 57.57^.7·40^.3/.9
    whale = plain(delay=0, half_window=0, reference=40, scale_mode="running")
    state, found = whale.init(MODEL), []
    for utility in (50, 80, 40):
        state, _ = whale.on(state, report(peak=4 * (utility / 100) ** 2, seconds=40.0), context())
        state, _, explanation = shaped(whale, state)
        found.append((explanation["utility"], explanation["scale"], explanation["share"]))
    assert found[0] == pytest.approx((50, 50 / 0.9, 0.9))
    assert found[1] == pytest.approx((80, 57.57 / 0.9, 72 / 57.57), rel=1e-3)
    assert found[2] == pytest.approx((40, 51.61 / 0.9, 36 / 51.61), rel=1e-3)


def test_one_device_that_is_worth_much_more_does_not_keep_the_others_narrow():
    """Ten devices, one with a hundred times the data."""
    views = [device(str(number), samples=10_000 if number == 0 else 100) for number in range(10)]

    def last(scale_mode):
        whale = WhaleFL(delay=1, half_window=1, widths=FOUR, scale_mode=scale_mode)
        state = whale.init(MODEL)
        for _ in range(40):
            found = []
            for view in views:
                state, widths = play(whale, state, view, 10.0)
                found += widths
        return found

    assert last("once") == [1.0] + [0.125] * 9
    assert last("running") == [1.0] + [0.5] * 9


def play(whale, state, view, seconds, peak=1.0, count=1, link=None, sent=0):
    """The widths of so many assignments of a device whose full width takes so many seconds (by FLOPs at others)."""
    widths = []
    for _ in range(count):
        state, width, _ = shaped(whale, state, view)
        widths.append(width)
        taken = seconds * COSTS[width].flops / COSTS[1.0].flops
        event = report(view, width=width, seconds=taken, peak=peak * width, link=link, sent=sent)
        state, _ = whale.on(state, event, context())
    return state, widths


@pytest.mark.parametrize("changed", [{"seconds": 60.0}, {"seconds": 10.0, "link": 10.0, "sent": 1000}])
def test_a_device_that_slows_or_loses_bandwidth_is_narrowed_within_two_check_ins_and_grows_back(changed):
    """Six times as long, by its processor or by its link."""
    whale, good = WhaleFL(delay=1, half_window=1, widths=FOUR), {"seconds": 10.0, "link": 1.0, "sent": 1_000_000}
    state = whale.init(MODEL)
    for _ in range(12):
        for name in ("fast", "other"):
            state, widths = play(whale, state, device(name), **good)
    assert widths == [1.0]
    state, widths = play(whale, state, device("fast"), **{**good, **changed}, count=3)
    assert widths[0] == 1.0  # nobody knows yet
    assert widths[2] < widths[1] < 1.0
    state, _ = play(whale, state, device("fast"), **{**good, **changed}, count=3)
    state, widths = play(whale, state, device("fast"), **good, count=6)
    assert widths[0] < 0.5
    assert widths[-1] == 1.0


def test_shrinking_gradients_end_narrow_as_published_and_wide_by_default():
    def last(whale):
        state, peak = whale.init(MODEL), 1.0
        for _ in range(60):
            for name in ("a", "b"):
                state, widths = play(whale, state, device(name), 10.0, peak)
            peak *= 0.9
        return widths[0]

    options = {"delay": 1, "half_window": 1, "widths": FOUR}
    assert last(plain(**options)) == 0.125
    assert last(WhaleFL(**options)) == 1.0


def test_no_width_is_chosen_that_is_predicted_to_take_longer_than_allowed():
    # 40 s at the full width, 10 at ½, 2.5 at ¼
    whale = plain(delay=0, half_window=0, reference=20, scale=1, widths=FOUR, longest=9.0)
    state, found = after(whale, report(peak=1.0, seconds=40.0)), []
    for _ in range(3):
        state, width, explanation = shaped(whale, state)
        found.append((width, explanation.get("longest")))
    assert found == [(0.25, None), (0.25, 9.0), (0.25, 9.0)]


@pytest.mark.parametrize("option", ["scale_mode", "window_mode", "fisher_stat", "t_basis"])
def test_a_choice_that_does_not_exist_is_refused(option):
    with pytest.raises(ValueError, match=f"{option} is 'else', expected one of"):
        WhaleFL(**{option: "else"})


# -- devices come and go, and lie --------------------------------------------------------------------------------


def test_a_device_that_left_is_forgotten():
    whale = WhaleFL()
    state = after(whale, report(device("a")), report(device("b")), Left("a"), Left("never seen"))
    assert list(state.records) == ["b"]


def test_an_expired_lease_changes_nothing():
    whale = WhaleFL()
    state = after(whale, report())
    assert whale.on(state, Expired(device(), 0), context()) == (state, [])


@pytest.mark.parametrize("seconds", [1e-300, 1e9])
@pytest.mark.parametrize("peak", [0.0, 1e308])
@pytest.mark.parametrize("sent", [1, 1 << 53])
def test_absurd_reports_leave_the_arithmetic_finite(seconds, peak, sent):
    whale = plain(delay=0, half_window=1, beta=10, reference=20)
    events = [report(peak=peak, seconds=seconds, link=1e-300, sent=sent)] * 3
    explanation = explained(whale, *events, view=device(samples=1 << 53))
    assert json.loads(json.dumps(explanation, allow_nan=False)) == explanation
    assert all(math.isfinite(v) for v in explanation.values() if isinstance(v, float))


@pytest.mark.parametrize("widths", [(), (0.5, 1.0), (1.0, 1.0), (1.0, 0.3)])
def test_widths_are_levels_of_heterofl_largest_first(widths):
    with pytest.raises(ValueError, match="largest first"):
        WhaleFL(widths=widths)
