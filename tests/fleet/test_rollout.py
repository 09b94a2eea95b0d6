"""Rollouts: what follows from what is known, hand-computed; and what holds whatever devices do."""

from __future__ import annotations

import random

import pytest
from attrs import define, evolve, field
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.errors import ShoalError
from coordinator.fleet import rollout as rollouts
from coordinator.fleet.rollout import ACTIVE, ENDED, Execution, Rollout, Standing, cohorts, tick
from coordinator.fleet.rules import Rules
from protocol.deployments import Deployment

QUICK = Rules(soak=0.0)
HERE, AWAY = Standing(live=True), Standing()


def rollout(rules=QUICK, **given) -> Rollout:
    return Rollout(**{"id": 1, "rules": rules, "wave_at": 0.0, "created_at": 0.0, "state_at": 0.0, **given})


def executions(*waves: int) -> list[Execution]:
    """As many devices in every wave; they are called a, b, c, ..."""
    names = iter("abcdefghijklmnopqrstuvwxyz")
    return [
        Execution(id=name, device=name, wave=wave, place=place, state_at=0.0)
        for wave, count in enumerate(waves)
        for place, name in zip(range(count), names, strict=False)
    ]


def told(one: Execution, state: str, **given) -> Deployment:
    return Deployment(**{"id": one.order, "number": one.report + 1, "state": state, **given})


@define
class Scene:
    """A rollout with all its executions, at the time ``now``; everybody is there unless ``standing`` says otherwise."""

    rollout: Rollout
    all: dict[str, Execution]
    now: float = 1000.0
    standing: dict[str, Standing] = field(factory=dict)

    @classmethod
    def of(cls, *waves: int, rules=QUICK) -> Scene:
        return cls(rollout(rules), {one.id: one for one in executions(*waves)})

    def tick(self, seconds: float = 0.0, since: float = 0.0) -> dict[str, str]:
        """The states of those that have changed."""
        self.now += seconds
        standing = {one.device: HERE for one in self.all.values()} | self.standing
        self.rollout, changed = tick(self.rollout, self.all.values(), standing, self.now, since)
        self.all |= {one.id: one for one in changed}
        return {one.id: one.state for one in changed}

    def tell(self, name: str, state: str, **given) -> None:
        one = self.all[name]
        self.all[name] = rollouts.report(one, self.rollout.rules, told(one, state, **given), self.now) or one

    def end(self, *names: str, state: str = "succeeded") -> None:
        for name in names:
            self.tell(name, state)

    @property
    def states(self) -> str:
        return " ".join(f"{one.id}:{one.state}" for one in self.all.values())


class TestCohorts:
    def test_waves_are_cumulative_shares_and_the_first_has_at_least_one(self):
        found = cohorts(dict.fromkeys(map(str, range(200)), True), 1, Rules())
        sizes = [sum(wave == w for _, wave, _ in found) for w in range(4)]
        assert sizes == [2, 18, 80, 100]
        assert [place for _, wave, place in found if wave == 1] == list(range(18))
        assert [wave for _, wave, _ in cohorts({"a": True, "b": True}, 1, Rules())] == [0, 1]
        assert cohorts({"a": False}, 1, Rules()) == [("a", 0, 0)]

    def test_the_order_is_another_one_for_every_rollout_and_the_same_whenever_it_is_asked_for(self):
        devices = dict.fromkeys("abcdefghijkl", True)
        assert cohorts(devices, 1, Rules()) == cohorts(dict(reversed(devices.items())), 1, Rules())
        assert cohorts(devices, 1, Rules()) != cohorts(devices, 2, Rules())

    def test_those_who_are_there_go_first(self):
        devices = {name: name in "kl" for name in "abcdefghijkl"}
        found = cohorts(devices, 1, Rules(waves=(0.25, 1)))
        assert {"k", "l"} < {device for device, wave, _ in found if wave == 0}

    @given(st.integers(0, 300), st.integers(1, 9), st.lists(st.floats(0.001, 0.999), unique=True, max_size=5))
    def test_everybody_is_in_one_wave(self, count, number, shares):
        devices = {f"device-{n}": n % 3 == 0 for n in range(count)}
        found = cohorts(devices, number, Rules(waves=(*sorted(shares), 1)))
        assert sorted(device for device, _, _ in found) == sorted(devices)
        waves = [wave for _, wave, _ in found]
        assert waves == sorted(waves)
        assert set(waves) == set(range(len(set(waves))))


class TestRules:
    def test_they_survive_json(self):
        rules = Rules(waves=(0.5, 1), parallel=3, force=True)
        assert Rules.of(rules.plain()) == rules
        assert Rules.of({}) == Rules()

    @pytest.mark.parametrize(
        ("given", "sentence"),
        [
            ({"waves": ()}, "waves is"),
            ({"waves": (0.5, 0.4, 1)}, "rising shares"),
            ({"waves": (0.5,)}, "the last of them 1"),
            ({"parallel": 0}, "parallel is 0, expected 1 to 10000"),
            ({"success": float("nan")}, "success is nan"),
            ({"back_off": (0,)}, "back_off is"),
        ],
    )
    def test_what_makes_no_sense(self, given, sentence):
        with pytest.raises(ShoalError, match=sentence):
            Rules(**given)

    def test_a_rule_there_is_not(self):
        with pytest.raises(ShoalError, match="rule is 'speed', expected one of abort_after"):
            Rules.of({"speed": 1})


class TestWaves:
    def test_one_wave_after_the_other(self):
        scene = Scene.of(1, 2)
        assert scene.tick() == {"a": "notified"}
        assert scene.tick() == {}
        scene.end("a")
        assert scene.tick() == {"b": "notified", "c": "notified"}
        assert (scene.rollout.wave, scene.rollout.wave_at) == (1, 1000.0)
        scene.end("b", "c")
        scene.tick()
        assert (scene.rollout.state, scene.rollout.reason) == ("completed", "3 of 3 devices succeeded")
        assert scene.rollout.ended_at == 1000.0

    def test_no_more_are_under_way_than_the_rules_say(self):
        scene = Scene.of(5, rules=Rules(parallel=2))
        assert scene.tick() == {"a": "notified", "b": "notified"}
        scene.tell("a", "accepted")
        assert scene.tick() == {}
        scene.end("a", "b")
        assert scene.tick() == {"c": "notified", "d": "notified"}

    def test_the_next_wave_waits_for_the_soak(self):
        scene = Scene.of(1, 1, rules=Rules(soak=600))
        scene.tick()
        scene.end("a")
        assert scene.tick() == {}
        assert scene.rollout.passed_at == 1000.0
        assert scene.tick(599) == {}
        assert scene.tick(1) == {"b": "notified"}
        assert scene.rollout.passed_at is None

    def test_a_gate_that_does_not_hold_pauses(self):
        scene = Scene.of(1, 1)
        scene.tick()
        scene.end("a", state="failed")
        assert scene.tick() == {}
        found = scene.rollout
        assert (found.state, found.pause) == ("paused", "gate")
        assert found.reason == "0 of 1 devices succeeded, expected 95%"
        scene.rollout = rollouts.resume(found, scene.now, "ada")
        assert scene.tick() == {"b": "notified"}

    def test_devices_that_succeeded_and_fell_silent_pause_it(self):
        scene = Scene.of(2, 1, rules=Rules(soak=600))
        scene.tick()
        scene.end("a", "b")
        scene.tick()
        scene.standing["b"] = AWAY
        scene.tick(600)
        assert (scene.rollout.pause, scene.rollout.reason) == (
            "gate",
            "1 of 2 devices that succeeded have fallen silent since",
        )

    def test_an_operator_lets_the_next_wave_begin(self):
        scene = Scene.of(1, 1, rules=Rules(soak=0, approval=True))
        scene.tick()
        scene.end("a")
        assert scene.tick() == {}
        assert (scene.rollout.state, scene.rollout.pause) == ("paused", "approval")
        with pytest.raises(ShoalError, match="approve or abort"):
            rollouts.resume(scene.rollout, scene.now, "ada")
        scene.rollout = rollouts.approve(scene.rollout, scene.now, "ada")
        assert scene.tick() == {"b": "notified"}
        with pytest.raises(ShoalError, match="does not wait for approval"):
            rollouts.approve(scene.rollout, scene.now, "ada")

    def test_who_is_away_holds_nobody_up_and_gets_its_turn_later(self):
        scene = Scene.of(2, 1)
        scene.standing["b"] = AWAY
        scene.tick()
        scene.end("a")
        assert scene.tick() == {"c": "notified"}
        scene.standing["b"] = HERE
        assert scene.tick() == {"b": "notified"}

    def test_where_nobody_of_a_wave_is_there_somebody_goes_in_their_place(self):
        scene = Scene.of(1, 3)
        scene.standing |= {"a": AWAY, "b": AWAY}
        assert scene.tick() == {"c": "notified"}
        assert scene.all["c"].wave == 0
        scene.end("c")
        assert scene.tick() == {"d": "notified"}

    def test_who_can_never_take_it_is_rejected_when_it_is_its_turn(self):
        scene = Scene.of(1, 1)
        scene.standing = {name: Standing(live=True, barred="its agent takes no releases") for name in "ab"}
        assert scene.tick() == {"a": "rejected"}
        scene.tick()
        scene.tick()
        assert scene.states == "a:rejected b:rejected"
        assert (scene.rollout.state, scene.rollout.reason) == ("completed", "0 of 2 devices succeeded, 2 rejected")

    def test_who_is_busy_with_another_release_waits(self):
        scene = Scene.of(2)
        scene.standing["a"] = Standing(live=True, busy=True)
        assert scene.tick() == {"b": "notified"}
        del scene.standing["a"]
        assert scene.tick() == {"a": "notified"}

    def test_a_paused_one_tells_nobody_new_and_lets_the_others_go_on(self):
        scene = Scene.of(2, rules=Rules(parallel=1))
        scene.tick()
        scene.rollout = rollouts.pause(scene.rollout, scene.now, "ada")
        scene.end("a")
        assert scene.tick() == {}
        scene.rollout = rollouts.resume(scene.rollout, scene.now, "ada")
        assert scene.tick() == {"b": "notified"}
        with pytest.raises(ShoalError, match="is running, not paused"):
            rollouts.resume(scene.rollout, scene.now, "ada")


class TestAbort:
    def test_two_that_fail_of_three_are_too_many(self):
        scene = Scene.of(6, rules=Rules(parallel=4))
        scene.tick()
        scene.tell("d", "downloading")
        scene.end("a")
        scene.end("b", state="rolled-back")
        scene.tick()
        assert scene.rollout.state == "running"
        scene.end("c", state="failed")
        assert scene.tick() == {"e": "cancelled", "f": "cancelled"}
        assert scene.states == "a:succeeded b:rolled-back c:failed d:downloading e:cancelled f:cancelled"
        assert scene.rollout.state == "aborted"
        assert scene.rollout.reason == "2 of 3 devices that came to an end failed, timed out or went back"
        assert scene.rollout.ended_at is None
        scene.end("d")
        scene.tick()
        assert (scene.rollout.state, scene.rollout.ended_at) == ("aborted", 1000.0)

    def test_two_at_once_are_not_enough_to_judge_by(self):
        scene = Scene.of(4)
        scene.tick()
        scene.end("a", "b", state="failed")
        scene.tick()
        assert scene.rollout.state == "running"

    def test_of_many_a_tenth_is_too_many(self):
        scene = Scene.of(26, rules=Rules(parallel=26))
        scene.tick()
        scene.end(*"abcdefghijklmnopqrstuv")
        scene.end("w", "x", state="failed")
        scene.tick()
        assert scene.rollout.state == "running"  # 2 of 24
        scene.end("y", state="failed")
        scene.tick()
        assert scene.rollout.state == "aborted"  # 3 of 25

    def test_rejected_ones_say_nothing_of_the_release(self):
        scene = Scene.of(6)
        scene.tick()
        scene.end("a", "b", "c", "d", state="rejected")
        scene.tick()
        assert scene.rollout.state == "running"

    def test_who_fails_afterwards_is_not_tried_again(self):
        scene = Scene.of(2)
        scene.tick()
        scene.tell("a", "downloading")
        scene.rollout = rollouts.abort(scene.rollout, scene.now, "aborted by ada")
        assert scene.tick() == {"b": "cancelled"}
        scene.tell("a", "failed", retry=True)
        assert scene.tick() == {"a": "cancelled"}
        assert scene.rollout.ended_at == scene.now

    def test_what_is_over_cannot_be_aborted(self):
        with pytest.raises(ShoalError, match="is completed, not running or paused"):
            rollouts.abort(rollout(state="completed"), 0.0, "aborted by ada")


class TestTime:
    def test_who_is_told_and_does_not_answer(self):
        scene = Scene.of(1)
        scene.tick()
        assert scene.tick(299) == {}
        assert scene.tick(1) == {"a": "timed-out"}
        assert scene.all["a"].text == "nothing was heard of it for 5 minutes: notified"

    def test_who_falls_silent_before_it_took_the_release_is_told_again_later(self):
        scene = Scene.of(1)
        scene.tick()
        scene.standing["a"] = AWAY
        assert scene.tick(60) == {"a": "queued"}
        del scene.standing["a"]
        assert scene.tick(9000) == {"a": "notified"}
        assert scene.all["a"].order == "a"

    def test_every_report_renews_the_step_but_never_past_the_end(self):
        scene = Scene.of(1)
        scene.tick()
        scene.tell("a", "accepted")
        for _ in range(6):
            assert scene.tick(290) == {}
            scene.tell("a", "downloading")
        assert scene.all["a"].step_until == scene.all["a"].until == 2800.0
        assert scene.tick(60) == {"a": "timed-out"}
        assert scene.all["a"].text == "it did not come to an end in time: downloading"

    def test_the_step_timer_stops_while_training_holds_the_lock(self):
        scene = Scene.of(1)
        scene.tick()
        scene.tell("a", "accepted")
        scene.tell("a", "waiting")
        assert scene.tick(6 * 3600) == {}
        scene.tell("a", "switching")
        assert scene.tick(299) == {}
        assert scene.tick(1) == {"a": "timed-out"}

    def test_the_lock_does_not_hold_for_ever(self):
        scene = Scene.of(1)
        scene.tick()
        scene.tell("a", "accepted")
        scene.tell("a", "waiting")
        assert scene.tick(6 * 3600 + 1800) == {"a": "timed-out"}

    def test_what_was_not_begun_is_given_up(self):
        scene = Scene.of(2)
        scene.standing["b"] = AWAY
        scene.tick()
        scene.end("a")
        assert scene.tick(14 * 86_400 - 1001) == {}
        assert scene.tick(1) == {"b": "expired"}
        assert scene.rollout.reason == "1 of 2 devices succeeded, 1 expired"

    def test_a_revoked_device_is_left_out(self):
        scene = Scene.of(2)
        scene.standing["b"] = Standing(gone=True)
        assert scene.tick() == {"a": "notified", "b": "cancelled"}

    def test_right_after_a_start_nobody_is_judged_by_silence(self):
        scene = Scene.of(1, 2)
        scene.tick()
        scene.tell("a", "accepted")
        scene.standing = dict.fromkeys("abc", AWAY)
        begun = scene.now + 3000
        assert scene.tick(3000, since=begun) == {}
        assert scene.tick(149, since=begun) == {}
        assert scene.tick(1, since=begun) == {"a": "timed-out"}

    def test_right_after_a_start_a_wave_of_which_somebody_is_silent_waits(self):
        scene = Scene.of(2, 1)
        scene.tick()
        scene.end("a")
        scene.standing["b"] = AWAY
        scene.rollout = evolve(scene.rollout, created_at=scene.now)
        begun = scene.now
        assert scene.tick(149, since=begun) == {}
        assert scene.tick(1, since=begun) == {"b": "queued", "c": "notified"}

    def test_right_after_a_start_a_wave_that_was_heard_does_not_wait(self):
        scene = Scene.of(1, 1)
        scene.tick()
        scene.end("a")
        assert scene.tick(since=scene.now) == {"b": "notified"}

    def test_late_truth_corrects(self):
        scene = Scene.of(1)
        scene.tick()
        scene.tell("a", "switching")
        scene.tick(1800)
        assert scene.states == "a:timed-out"
        scene.tell("a", "probation")
        assert scene.states == "a:timed-out"
        scene.tell("a", "rolled-back")
        assert scene.states == "a:rolled-back"
        scene.tell("a", "succeeded")
        assert scene.states == "a:rolled-back"


class TestRetries:
    def test_a_failure_that_may_be_mended_is_tried_again_later_and_longer(self):
        scene = Scene.of(1)
        waits = []
        for _ in range(5):
            scene.tick()
            assert scene.states == "a:notified"
            scene.tell("a", "failed", retry=True, text="no network")
            one = scene.all["a"]
            assert (one.state, one.text, one.report) == ("queued", "no network", 0)
            waits.append(one.retry_at - scene.now)
            assert scene.tick(waits[-1] - 1) == {}
            scene.now += 1
        for wait, plain in zip(waits, (60, 300, 1500, 1500, 1500), strict=True):
            assert 0.8 * plain <= wait <= 1.2 * plain
        assert len(set(waits)) == 5
        assert scene.rollout.state == "running"

    def test_every_attempt_has_an_id_of_its_own(self):
        scene = Scene.of(1)
        scene.tick()
        first = told(scene.all["a"], "failed", retry=True)
        scene.tell("a", "failed", retry=True)
        assert (first.id, scene.all["a"].order) == ("a", "a.1")

    def test_a_wave_waits_for_three_attempts_of_a_device_and_then_no_more(self):
        scene = Scene.of(2, 1)
        scene.tick()
        scene.end("a")
        scene.tell("b", "failed", retry=True)
        for _ in range(2):
            assert scene.tick(2000) == {"b": "notified"}
            scene.tell("b", "failed", retry=True)
        assert scene.tick() == {"c": "notified"}
        assert scene.tick(2000)["b"] == "notified"

    def test_it_does_not_speak_against_the_release(self):
        scene = Scene.of(6, rules=Rules(parallel=6))
        scene.tick()
        for name in "abc":
            scene.tell(name, "failed", retry=True)
        scene.end("d", "e", "f")
        scene.tick()
        assert scene.rollout.state == "running"


class TestReports:
    def test_an_older_one_says_nothing(self):
        one = evolve(executions(1)[0], state="switching", report=5)
        assert rollouts.report(one, QUICK, Deployment(id="a", number=5, state="failed"), 0.0) is None

    def test_what_has_ended_for_the_device_does_not_change_again(self):
        one = evolve(executions(1)[0], state="succeeded", report=1)
        assert rollouts.report(one, QUICK, Deployment(id="a", number=2, state="failed"), 0.0) is None

    def test_it_may_come_though_the_device_was_thought_to_be_away(self):
        scene = Scene.of(1)
        scene.tick()
        scene.standing["a"] = AWAY
        scene.tick(60)
        scene.tell("a", "accepted")
        assert scene.states == "a:accepted"

    def test_the_moment_of_a_state_is_when_it_began(self):
        scene = Scene.of(1)
        scene.tick()
        scene.tell("a", "downloading", text="10 %")
        scene.now += 5
        scene.tell("a", "downloading", text="20 %")
        assert (scene.all["a"].state_at, scene.all["a"].text) == (1000.0, "20 %")


# -- whatever devices do ---------------------------------------------------------------------------------------------

COURSE = ("accepted", "downloading", "verifying", "staged", "waiting", "switching", "probation")


@define
class Fleet:
    """Devices that answer, fail, vanish and come back as a seed decides; only ``rows`` are remembered between steps."""

    rules: Rules
    seed: int
    count: int
    failing: float
    rows: list[Execution] = field(init=False)
    rollout: Rollout = field(init=False)
    now: float = 1000.0
    history: list = field(init=False, factory=list)

    def __attrs_post_init__(self) -> None:
        devices = {f"device-{n}": self._there(f"device-{n}", 0) for n in range(self.count)}
        self.rollout = rollout(self.rules)
        self.rows = [
            Execution(id=f"x{device}", device=device, wave=wave, place=place, state_at=0.0)
            for device, wave, place in cohorts(devices, 1, self.rules)
        ]

    def _draw(self, *what) -> float:
        return random.Random(f"{self.seed}/{what}").random()

    def _there(self, device: str, step: int) -> bool:
        return self._draw("there", device, step // 8) < 0.8

    def step(self, number: int) -> list[Execution]:
        self.now += 60.0
        standing = {one.device: Standing(live=self._there(one.device, number)) for one in self.rows}
        self.rollout, changed = tick(self.rollout, self.rows, standing, self.now)
        fresh = {one.id: one for one in changed}
        self.rows = [fresh.get(one.id, one) for one in self.rows]
        self.rows = [self._act(one, number) for one in self.rows]
        self.history.append((self.rollout, tuple(self.rows)))
        return changed

    def _act(self, one: Execution, number: int) -> Execution:
        if one.state not in ACTIVE or not self._there(one.device, number):
            return one
        drawn = self._draw("act", one.id, number)
        if one.state == "probation":
            bad = self._draw("bad", one.id) < self.failing
            said = told(one, "rolled-back" if bad else "succeeded")
        elif drawn < 0.05:
            said = told(one, "failed", retry=True)
        else:
            said = told(one, ("accepted", *COURSE)[[*rollouts.ACTIVE].index(one.state)])
            said = evolve(said, state=COURSE[[*rollouts.ACTIVE].index(one.state)])
        return rollouts.report(one, self.rules, said, self.now) or one

    def run(self, steps: int = 1200) -> Fleet:
        for number in range(steps):
            self.step(number)
            if self.rollout.ended_at is not None:
                break
        return self


fleets = st.builds(
    Fleet,
    rules=st.builds(
        Rules,
        soak=st.sampled_from([0.0, 600.0]),
        parallel=st.integers(1, 12),
        expiry=st.just(40_000.0),
        success=st.sampled_from([0.0, 0.9]),
    ),
    seed=st.integers(0, 1 << 30),
    count=st.integers(1, 30),
    failing=st.sampled_from([0.0, 0.1, 0.5]),
)


def carried_on(fleet: Fleet) -> Fleet:
    """The fleet run to its end; where a gate pauses, an operator resumes."""
    for number in range(1200):
        fleet.step(number)
        if fleet.rollout.state == "paused":
            fleet.rollout = rollouts.resume(fleet.rollout, fleet.now, "ada")
        if fleet.rollout.ended_at is not None:
            break
    return fleet


class TestAlways:
    @settings(max_examples=15, deadline=None)
    @given(fleets)
    def test_it_comes_to_an_end_and_everybody_with_it(self, fleet):
        carried_on(fleet)
        assert fleet.rollout.ended_at is not None
        assert all(one.state in ENDED for one in fleet.rows)
        assert fleet.rollout.state in ("completed", "aborted", "cancelled")

    @settings(max_examples=10, deadline=None)
    @given(fleets, st.data())
    def test_a_restart_at_any_moment_changes_nothing(self, fleet, data):
        """All that is known are the rows: in any order, and read anew, they lead to the same decisions."""
        other = evolve(fleet)
        other.rows, other.rollout, other.history = list(fleet.rows), fleet.rollout, []
        for number in range(150):
            data.draw(st.randoms(use_true_random=False)).shuffle(other.rows) if number % 10 == 0 else None
            other.rollout = evolve(other.rollout, rules=Rules.of(other.rollout.rules.plain()))
            assert fleet.step(number) == other.step(number)
            assert fleet.rollout == other.rollout

    @settings(max_examples=10, deadline=None)
    @given(fleets)
    def test_nobody_is_told_out_of_turn_and_never_too_many_at_once(self, fleet):
        for number in range(300):
            before = {one.id: one.state for one in fleet.rows}
            for one in fleet.step(number):
                if one.state == "notified":
                    assert before[one.id] == "queued"
                    assert one.wave <= fleet.rollout.wave
                    assert fleet.rollout.state == "running"
            assert sum(one.state in ACTIVE for one in fleet.rows) <= fleet.rules.parallel

    @settings(max_examples=10, deadline=None)
    @given(fleets)
    def test_an_abort_ends_those_only_who_had_not_begun(self, fleet):
        fleet = evolve(fleet, failing=1.0)
        for number in range(300):
            before = {one.id: one.state for one in fleet.rows}
            changed = fleet.step(number)
            if fleet.rollout.state == "paused":
                fleet.rollout = rollouts.resume(fleet.rollout, fleet.now, "ada")
            cancelled = [one for one in changed if one.state == "cancelled"]
            assert {before[one.id] for one in cancelled} <= {"queued", "notified"}
            if fleet.rollout.state == "aborted":
                assert not any(one.state == "notified" for one in fleet.rows)
        assert all(one.ended for one in fleet.rows) or fleet.rollout.state != "aborted"
