"""Local training with a model small enough to compute by hand: one weight, loss ½(w·x − y)² per sample."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from attrs import evolve, frozen
from hypothesis import given
from hypothesis import strategies as st

from device_agent.batches import Batches, seeded
from device_agent.dataset import Dataset, checked
from device_agent.position import Checkpoint, File
from device_agent.tally import Diverged
from device_agent.trainer import Cancelled, LocalResult, Start, Training, Unfit, values
from protocol.messages import Blob, Fresh, Merge, Plan
from protocol.weights import Array, Weights

PLAN = Plan(width=1.0, batch=2, steps=1, learning_rate=0.5, coding="float32")


@frozen
class Sums:
    loss_sum: float
    correct: float
    squared_gradient: np.ndarray


class Slope:
    """One step of gradient descent on the mean of ½(w·x − y)²; "correct" when within one half."""

    shapes = {"w": (1,)}
    options: dict[str, tuple[int, ...]] = {}

    def __init__(self, batch: int = 2) -> None:
        self.batch = batch
        self.seen: list[tuple[list[float], list[float]]] = []

    def load(self, weights: Weights) -> None:
        self._w = float(weights["w"][0])

    def weights(self) -> Weights:
        return {"w": np.array([self._w], np.float32)}

    def states(self) -> Iterator[Array]:
        yield self.weights()["w"]

    def change(self, new: Callable[[str, Array], Array]) -> None:
        self._w = float(new("w", self.weights()["w"])[0])

    def loss(self, x, y, sample_weight, options) -> float:
        return float((sample_weight * (self._w * x[:, 0] - y) ** 2 / 2).sum())

    def step(self, x, y, sample_weight, learning_rate, options) -> Sums:
        self.seen.append((x[:, 0].tolist(), sample_weight.tolist()))
        error = self._w * x[:, 0] - y
        gradient = float((sample_weight * error * x[:, 0]).sum() / sample_weight.sum())
        loss = float((sample_weight * error**2 / 2).sum())
        correct = float((sample_weight * (abs(error) < 0.5)).sum())
        self._w = float(np.float32(self._w - learning_rate * gradient))
        return Sums(loss, correct, np.array([gradient**2]))


class Clock:
    """Every step of training takes ``step`` seconds; sleeping takes what it is told."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def data(*pairs: tuple[float, int]) -> Dataset:
    x = np.array([[value] for value, _ in pairs], np.float32)
    return checked(x, np.array([label for _, label in pairs]))


class Desk:
    """Allows every commit; what is to happen after so many steps stands in ``then``."""

    def __init__(self, plan: Plan, cancelled: Callable[[], bool] = lambda: False) -> None:
        self.plan = plan
        self.allowed = 1_000_000
        self.fresh: Fresh | None = None
        self.room = True
        self.models: dict[int, float] = {}
        self.then: dict[int, Callable[[], object]] = {}
        self.commits: list[tuple[LocalResult, Checkpoint | None]] = []
        self.checkpoints: list[Checkpoint] = []
        self.files: dict[int, list[float]] = {}
        self.heard: list[tuple[int, float | None]] = []
        self.questions: list[tuple[int, int, int]] = []
        self.merges: list[Merge] = []
        self.refusals: list[str] = []
        self._cancelled = cancelled

    @property
    def stopped(self) -> bool:
        return self._cancelled()

    def read(self, fresh: Fresh) -> Weights | None:
        value = self.models.get(fresh.version)
        return None if value is None else {"w": np.array([value], np.float32)}

    def write(self, tensors) -> File | None:
        if not self.room:
            return None
        number = len(self.files) + 1
        self.files[number] = [float(value) for tensor in tensors for value in tensor]
        return File(number=number, size=4, sha256="0" * 64)

    def progressed(self, step: int, loss: float | None) -> None:
        self.heard.append((step, loss))
        if step in self.then:
            self.then.pop(step)()

    def asked(self, *question: int) -> None:
        self.questions.append(question)

    def merged(self, merge: Merge) -> None:
        self.merges.append(merge)

    def refused(self, plan: Plan, kept: Plan, reason: str) -> None:
        self.refusals.append(reason)

    def checkpointed(self, checkpoint: Checkpoint) -> None:
        self.checkpoints.append(checkpoint)

    def committed(self, result: LocalResult, checkpoint: Checkpoint | None) -> None:
        self.commits.append((result, checkpoint))


def carry_out(
    desk: Desk,
    dataset: Dataset,
    step: Slope | None = None,
    start: float = 0.0,
    resume: Checkpoint | None = None,
    clock: Clock | None = None,
    **options: object,
) -> list[LocalResult]:
    """Train for ``desk``; its commits."""
    clock, step = clock or Clock(), step or Slope()
    base = {"w": np.array([start], np.float32)}
    base["w"].flags.writeable = False
    step.load(base)
    owned = False
    if resume is not None:
        step.load({"w": np.array(desk.files[resume.weights.number], np.float32)})
        if resume.base is not None:
            base, owned = {"w": np.array(desk.files[resume.base.number], np.float32)}, True
    defaults = {"checkpoint_every": 1e9, "pace": 1.0, "clock": lambda: clock.now, "sleep": clock.sleep}
    place = Start(assignment="a", version=7, base=base, owned=owned, checkpoint=resume)
    Training(step, place, dataset, desk, **(defaults | options)).run()
    return [result for result, _ in desk.commits]


def run(
    dataset: Dataset,
    plan: Plan = PLAN,
    step: Slope | None = None,
    start: float = 0.0,
    cancelled: Callable[[], bool] = lambda: False,
    **options: object,
) -> LocalResult:
    (result,) = carry_out(Desk(plan, cancelled), dataset, step, start, **options)
    return result


def test_one_step_by_hand() -> None:
    # Samples (1, 1) and (3, 2) at w = 0: errors −1 and −2, gradient (−1 − 6)/2 = −3.5, w becomes 1.75.
    result = run(data((1, 1), (3, 2)))
    assert result.difference["w"].tolist() == [1.75]
    assert result.loss == (0.5 + 2.0) / 2
    assert result.accuracy == 0
    assert result.squared_gradient == {"w": 12.25}
    assert (result.samples, result.steps) == (2, 1)


def test_the_difference_is_against_the_weights_at_the_start() -> None:
    # At w = 1: errors 0 and 1, gradient 3/2, w becomes 0.25.
    result = run(data((1, 1), (3, 2)), start=1.0)
    assert result.difference["w"].tolist() == [-0.75]
    assert result.accuracy == 0.5


def test_squared_gradients_are_mean_and_peak_over_the_steps() -> None:
    # One sample (1, 1), batch 1, rate ½: gradients −1, −½, −¼.
    result = run(data((1, 1)), evolve(PLAN, batch=1, steps=3), Slope(1))
    assert result.squared_gradient == {"w": pytest.approx((1 + 1 / 4 + 1 / 16) / 3)}
    assert result.squared_gradient_peak == {"w": 1.0}
    assert result.difference["w"].tolist() == [0.875]
    assert result.loss == pytest.approx((1 / 2 + 1 / 8 + 1 / 32) / 3)


def test_the_end_of_an_epoch_is_padded_with_weight_zero() -> None:
    step = Slope(2)
    result = run(data((1, 0), (2, 0), (3, 0)), evolve(PLAN, steps=4), step)
    assert [weights for _, weights in step.seen] == [[1, 1], [1, 0], [1, 1], [1, 0]]
    for first, second in (step.seen[:2], step.seen[2:]):
        assert sorted(first[0] + second[0][:1]) == [1, 2, 3], "an epoch has every sample once"
    assert result.samples == 6


def test_padding_changes_nothing() -> None:
    alone = run(data((3, 2)), evolve(PLAN, batch=1), Slope(1))
    padded = run(data((3, 2)), evolve(PLAN, batch=8), Slope(8))
    assert padded.difference == alone.difference
    assert (padded.loss, padded.samples, padded.squared_gradient) == (alone.loss, 1, alone.squared_gradient)


@given(st.integers(1, 50), st.integers(0, 6), st.integers(0, 2**32))
def test_every_epoch_is_a_permutation(samples: int, power: int, seed: int) -> None:
    batch = 2**power
    source = Batches(samples, batch, np.random.default_rng(seed))
    for _ in range(2):
        seen: list[int] = []
        while len(seen) < samples:
            indices, weights = next(source)
            assert len(indices) == len(weights) == batch
            seen += indices[weights > 0].tolist()
        assert sorted(seen) == list(range(samples))


def test_the_same_assignment_draws_the_same_batches() -> None:
    def order(name: str) -> list[list[int]]:
        source = Batches(100, 8, seeded(name))
        return [next(source)[0].tolist() for _ in range(20)]

    assert order("a1") == order("a1")
    assert order("a1") != order("a2")


def test_progress_is_heard_before_the_first_and_after_every_step() -> None:
    desk = Desk(evolve(PLAN, steps=2))
    carry_out(desk, data((1, 1)))
    assert desk.heard[0] == (0, None)
    assert desk.heard[1:] == [(1, 0.5), (2, pytest.approx(0.125))]


def test_cancelling_stops_between_two_steps() -> None:
    step = Slope()
    with pytest.raises(Cancelled):
        run(data((1, 1)), evolve(PLAN, steps=100), step, cancelled=lambda: len(step.seen) == 3)
    assert len(step.seen) == 3


@pytest.mark.parametrize(
    "broken", [Sums(np.nan, 0, np.ones(1)), Sums(1, 0, np.array([np.inf]))], ids=["loss", "gradient"]
)
def test_numbers_that_are_none_end_training_at_once(broken: Sums) -> None:
    class Breaking(Slope):
        def step(self, *arguments) -> Sums:
            good = super().step(*arguments)
            return broken if len(self.seen) == 3 else good

    step = Breaking()
    with pytest.raises(Diverged, match=r"not finite at step 3$"):
        run(data((1, 1)), evolve(PLAN, steps=1000), step)
    assert len(step.seen) == 3


def test_weights_that_are_no_numbers_are_not_reported() -> None:
    class Exploded(Slope):
        def weights(self) -> Weights:
            return {"w": np.array([np.inf], np.float32)}

    with pytest.raises(Diverged, match="a weight is not finite after 1 steps"):
        run(data((1, 1)), step=Exploded())


def test_pacing_stretches_every_step_and_counts_as_training() -> None:
    clock = Clock()
    durations = iter([1.0, 1.0, 4.0, 1.0, 1.0])

    class Timed(Slope):
        def step(self, *arguments) -> Sums:
            clock.now += next(durations)
            return super().step(*arguments)

    result = run(data((1, 1)), evolve(PLAN, steps=5), Timed(), pace=3.0, clock=clock)
    # The step that took 4 s is already longer than three times the usual second.
    assert clock.slept == [2, 2, 2, 2]
    assert result.seconds == 16


def test_without_pace_nothing_is_slept() -> None:
    clock = Clock()
    run(data((1, 1)), evolve(PLAN, steps=5), clock=clock)
    assert clock.slept == []


def test_dropout_is_drawn_anew_for_every_step_and_again_the_same_for_the_same_assignment() -> None:
    class Dropping(Slope):
        options = {"dropout/a": (2, 3)}

        def step(self, x, y, sample_weight, learning_rate, options) -> Sums:
            self.drawn = [*getattr(self, "drawn", []), options["dropout/a"]]
            return super().step(x, y, sample_weight, learning_rate, options)

    first, second = Dropping(), Dropping()
    for step in (first, second):
        run(data((1, 1), (2, 1)), evolve(PLAN, steps=3), step)
    assert [chance.shape for chance in first.drawn] == [(2, 3)] * 3
    assert all(((chance >= 0) & (chance < 1)).all() for chance in first.drawn)
    assert not np.array_equal(first.drawn[0], first.drawn[1])
    np.testing.assert_array_equal(first.drawn, second.drawn)


# Several commits.


def test_each_commit_tells_what_was_learnt_since_the_one_before() -> None:
    # One sample (1, 1), rate ½: the error halves with every step, so w is ½, ¾, ⅞, 15/16.
    commits = carry_out(Desk(evolve(PLAN, batch=1, steps=2, commits=2)), data((1, 1)), Slope(1))
    assert [result.difference["w"].tolist() for result in commits] == [[3 / 4], [3 / 16]]
    assert [result.loss for result in commits] == [(1 / 2 + 1 / 8) / 2, (1 / 32 + 1 / 128) / 2]
    assert [(result.commit, result.last, result.steps, result.samples) for result in commits] == [
        (1, False, 2, 2),
        (2, True, 2, 2),
    ]
    assert commits[0].squared_gradient_peak == {"w": 1.0}
    assert commits[1].squared_gradient_peak == {"w": 1 / 16}


class Timed(Slope):
    """Every step takes a second of ``clock``."""

    def __init__(self, batch: int, clock: Clock) -> None:
        super().__init__(batch)
        self._clock = clock

    def step(self, *arguments) -> Sums:
        self._clock.now += 1
        return super().step(*arguments)


def test_a_commit_is_due_after_so_many_seconds_at_the_end_of_a_batch_and_after_steps_at_the_latest() -> None:
    for seconds, steps, expected in ((2.5, 100, 3), (2.5, 2, 2), (3, 100, 3), (0.001, 100, 1)):
        clock = Clock()
        plan = evolve(PLAN, batch=1, seconds=seconds, steps=steps, commits=3)
        commits = carry_out(Desk(plan), data((1, 1)), Timed(1, clock), clock=clock)
        assert [result.steps for result in commits] == [expected] * 3
        assert [result.seconds for result in commits] == [expected] * 3


def test_while_no_commit_is_allowed_training_goes_on_and_the_next_one_tells_it_all() -> None:
    desk = Desk(evolve(PLAN, batch=1, steps=2, commits=4))
    desk.allowed = 0
    desk.then = {5: lambda: setattr(desk, "allowed", 2)}
    commits = carry_out(desk, data((1, 1)), Slope(1))
    assert [result.steps for result in commits] == [5, 2, 4]
    assert sum(float(result.difference["w"][0]) for result in commits) == 1 - 2**-11


def test_what_no_commit_was_allowed_for_is_told_at_the_latest_when_nothing_is_left_to_train() -> None:
    desk = Desk(evolve(PLAN, batch=1, steps=2, commits=4))
    desk.allowed = 1
    commits = carry_out(desk, data((1, 1)), Slope(1))
    assert [(result.commit, result.steps, result.last) for result in commits] == [(1, 2, False), (2, 6, True)]
    clock = Clock()
    desk = Desk(evolve(PLAN, batch=1, steps=100, seconds=2.0, commits=4))
    desk.allowed = 1
    commits = carry_out(desk, data((1, 1)), Timed(1, clock), clock=clock)
    assert [(result.commit, result.steps, result.last) for result in commits] == [(1, 2, False), (2, 6, True)]


def test_a_disk_without_room_for_the_checkpoint_delays_a_commit_but_never_the_last() -> None:
    clock = Clock()
    desk = Desk(evolve(PLAN, batch=1, steps=2, commits=9))
    desk.room = False
    desk.then = {9: lambda: setattr(desk, "room", True)}
    commits = carry_out(desk, data((1, 1)), Timed(1, clock), clock=clock)
    # Refused after 2 s, it is tried again 10 s later.
    assert [result.steps for result in commits] == [12, *[2] * 8]
    desk = Desk(evolve(PLAN, batch=1, steps=2))
    desk.room = False
    assert len(carry_out(desk, data((1, 1)), Slope(1))) == 1


# Fresh models.


def fresh(version: int, merge: float, keep: float = 0.0) -> Fresh:
    blob = Blob(sha256="0" * 64, size=1)
    return Fresh(assignment="a", version=version, weights=blob, merge=merge, keep=keep)


def merging(plan: Plan, *models: tuple[int, Fresh, float], start: float = 0.0) -> Desk:
    """Train on one sample (1, 1) at rate ½ with models (after step, fresh, weight) that come in between."""
    desk = Desk(plan)
    for after, model, weight in models:
        desk.models[model.version] = weight
        desk.then[after] = lambda model=model: setattr(desk, "fresh", model)
    carry_out(desk, data((1, 1)), Slope(plan.batch), start)
    return desk


def test_a_merge_by_hand() -> None:
    # After 2 steps w = ¾, b = 0; f = 2, merge ½, keep ¼: w = ⅜ + 1 + ¼·¾ = 25/16, b = 1.
    # The next step goes half the way to 1: w = 41/32, the difference is 9/32.
    desk = merging(evolve(PLAN, batch=1, steps=3), (2, fresh(9, 0.5, 0.25), 2.0))
    ((result, _),) = desk.commits
    assert result.difference["w"].tolist() == [9 / 32]
    before, after = (3 / 4 - 1) ** 2 / 2, (25 / 16 - 1) ** 2 / 2
    told = Merge(step=2, version=9, merge=0.5, keep=0.25, loss_before=before, loss_after=after)
    assert result.merges == (told,)
    assert result.version == 7
    assert desk.merges == [told]
    assert result.steps == 3


def test_whole_replacement_that_keeps_what_was_learnt() -> None:
    # ADSP: merge 1, keep 1. After 1 step w = ½; w = f + ½ = 2½, b = 2; the next step makes w = 1¾.
    desk = merging(evolve(PLAN, batch=1, steps=2), (1, fresh(8, 1, 1), 2.0))
    assert desk.commits[0][0].difference["w"].tolist() == [-0.25]


def test_a_merge_of_the_effective_base_into_itself_changes_nothing() -> None:
    plain = merging(evolve(PLAN, batch=1, steps=3))
    merged = merging(evolve(PLAN, batch=1, steps=3), (1, fresh(8, 0.5, 0.5), 0.0))
    # w = ½·½ + ½·0 + ½·½ = ½ and b = 0, as before.
    assert merged.commits[0][0].difference == plain.commits[0][0].difference


def test_the_next_commit_builds_on_what_was_merged_before() -> None:
    desk = merging(evolve(PLAN, batch=1, steps=2, commits=2), (1, fresh(8, 0.5), 2.0))
    first, second = (result for result, _ in desk.commits)
    assert (first.version, [merge.version for merge in first.merges]) == (7, [8])
    assert (second.version, second.merges) == (8, ())


@pytest.mark.parametrize("version", [6, 7])
def test_a_model_that_is_not_newer_is_left_alone(version: int) -> None:
    desk = merging(evolve(PLAN, batch=1, steps=2), (1, fresh(version, 0.5), 2.0))
    assert desk.commits[0][0].merges == ()
    assert desk.commits[0][0].difference["w"].tolist() == [3 / 4]


def test_of_one_model_that_comes_twice_only_the_first_counts() -> None:
    once = merging(evolve(PLAN, batch=1, steps=4), (1, fresh(8, 0.5), 2.0))
    twice = merging(evolve(PLAN, batch=1, steps=4), (1, fresh(8, 0.5), 2.0), (2, fresh(8, 0.5), 2.0))
    assert twice.commits == once.commits


def test_a_model_of_no_use_is_tried_once() -> None:
    desk = Desk(evolve(PLAN, batch=1, steps=3))
    tries: list[Fresh] = []
    desk.fresh = fresh(9, 0.5)
    desk.read = tries.append  # type: ignore[method-assign]
    carry_out(desk, data((1, 1)), Slope(1))
    assert len(tries) == 1
    assert desk.commits[0][0].merges == ()


def test_no_commit_tells_of_more_merges_than_a_message_carries() -> None:
    desk = Desk(evolve(PLAN, batch=1, steps=70, commits=2))
    desk.models = dict.fromkeys(range(8, 200), 1.0)
    desk.then = {n: lambda n=n: setattr(desk, "fresh", fresh(8 + n, 0.5)) for n in range(80)}
    first, second = carry_out(desk, data((1, 1)), Slope(1))
    assert len(first.merges) == 64
    assert second.merges[0].step == 70, "the newest one left over is merged right after the commit"


def test_the_fresh_model_is_asked_for_once_at_the_refresh_point() -> None:
    desk = Desk(evolve(PLAN, batch=1, steps=2, commits=3, refresh=3))
    carry_out(desk, data((1, 1)), Slope(1))
    assert desk.questions == [(2, 3, 7)], "within the second commit, at step 3, building on version 7"


# Amended plans.


def test_an_amended_plan_counts_from_the_next_batch_on() -> None:
    plan = evolve(PLAN, batch=1, steps=10, commits=9)
    desk = Desk(plan)
    desk.then = {3: lambda: setattr(desk, "plan", evolve(plan, learning_rate=0.25, steps=4, commits=1))}
    (result,) = carry_out(desk, data((1, 1)), Slope(1))
    assert result.difference["w"].tolist() == [7 / 8 + 1 / 32]
    assert result.last


def test_an_amended_refresh_point_is_one_more_question() -> None:
    plan = evolve(PLAN, batch=1, steps=9, refresh=2)
    desk = Desk(plan)
    desk.then = {4: lambda: setattr(desk, "plan", evolve(plan, refresh=3))}
    carry_out(desk, data((1, 1)), Slope(1))
    assert [step for _, step, _ in desk.questions] == [2, 5]


def test_an_amendment_that_the_artifact_cannot_follow_is_refused() -> None:
    plan = evolve(PLAN, batch=1, steps=3)
    desk = Desk(plan)
    desk.then = {1: lambda: setattr(desk, "plan", evolve(plan, momentum=0.9))}
    (result,) = carry_out(desk, data((1, 1)), Slope(1))
    assert desk.refusals == ["the plan asks for momentum 0.9, the artifact was made without it"]
    assert result.difference["w"].tolist() == [7 / 8]


# What the plan says about the artifact's inputs.


def test_the_plans_values_go_to_the_artifacts_inputs() -> None:
    shapes = dict.fromkeys(("momentum", "dampening", "clip", "weight_decay", "proximal"), (1,))
    plan = evolve(PLAN, momentum=0.9, dampening=0.1, clip=5.0, weight_decay=1e-4, proximal=0.01)
    expected = {"momentum": 0.9, "dampening": 0.1, "clip": 5.0, "weight_decay": 1e-4, "proximal": 0.01}
    assert values(plan, {**shapes, "dropout/a": (2, 3)}) == expected


def test_no_clipping_is_clipping_at_a_norm_nobody_has() -> None:
    assert values(PLAN, {"clip": (1,), "momentum": (1,), "dampening": (1,)})["clip"] == 1e30


@pytest.mark.parametrize("name", ["momentum", "dampening", "weight_decay", "clip", "proximal"])
def test_a_plan_that_wants_more_than_its_artifact_is_unfit(name: str) -> None:
    with pytest.raises(Unfit, match=f"asks for {name} 0.5"):
        values(evolve(PLAN, **{name: 0.5}), {})


def test_an_artifact_that_wants_more_than_plans_say_is_unfit() -> None:
    with pytest.raises(Unfit, match="'class_mask', which no plan"):
        values(PLAN, {"class_mask": (3,)})


# Checkpoints.

SAMPLES = data(*((x / 7, x % 2) for x in range(1, 12)))
STEADY = evolve(PLAN, batch=4, steps=5, commits=3, learning_rate=0.3)


class Dropping(Slope):
    """Chance decides how large its steps are."""

    options = {"dropout/a": (2,)}

    def step(self, x, y, sample_weight, learning_rate, options) -> Sums:
        return super().step(x, y, sample_weight, learning_rate * float(options["dropout/a"][0]), options)


class TimedDropping(Timed, Dropping):
    pass


class PowerCut(Exception):
    pass


def cut() -> None:
    raise PowerCut


@pytest.mark.parametrize("moment", range(1, 15))
def test_from_a_checkpoint_on_the_same_commits_are_made(moment: int) -> None:
    whole = Desk(STEADY)
    carry_out(whole, SAMPLES, Dropping(4))
    clock, desk = Clock(), Desk(STEADY)
    desk.then = {moment: cut}
    with pytest.raises(PowerCut):
        carry_out(desk, SAMPLES, TimedDropping(4, clock), clock=clock, checkpoint_every=3)
    places = [place for _, place in desk.commits if place] + desk.checkpoints
    last = max(places, key=lambda place: place.position.step, default=None)
    carry_out(desk, SAMPLES, Dropping(4), resume=last)
    told = {result.commit: result for result, _ in desk.commits}
    assert [evolve(told[n], seconds=0) for n in (1, 2, 3)] == [evolve(r, seconds=0) for r, _ in whole.commits]
    repeated = [evolve(result, seconds=0) for result, _ in desk.commits]
    assert all(result == evolve(told[result.commit], seconds=0) for result in repeated)


def test_after_a_merge_the_checkpoint_has_the_effective_base_too() -> None:
    clock = Clock()
    plan = evolve(PLAN, batch=1, steps=6)
    desk = Desk(plan)
    desk.models[9] = 2.0
    desk.then = {2: lambda: setattr(desk, "fresh", fresh(9, 0.5, 0.25)), 5: cut}
    with pytest.raises(PowerCut):
        carry_out(desk, data((1, 1)), Timed(1, clock), clock=clock, checkpoint_every=4)
    (place,) = desk.checkpoints
    assert place.base is not None
    assert desk.files[place.base.number] == [1.0]
    desk.fresh = None
    (result,) = carry_out(desk, data((1, 1)), Slope(1), resume=place)
    uncut = merging(plan, (2, fresh(9, 0.5, 0.25), 2.0))
    assert evolve(result, seconds=0) == evolve(uncut.commits[0][0], seconds=0)


def test_seconds_before_the_power_cut_count() -> None:
    clock = Clock()
    plan = evolve(PLAN, batch=1, steps=100, seconds=6)
    desk = Desk(plan)
    desk.then = {5: cut}
    with pytest.raises(PowerCut):
        carry_out(desk, data((1, 1)), Timed(1, clock), clock=clock, checkpoint_every=4)
    later = Clock()
    (result,) = carry_out(desk, data((1, 1)), Timed(1, later), clock=later, resume=desk.checkpoints[0])
    assert (result.steps, result.seconds) == (6, 6)


def test_with_other_data_a_new_epoch_begins() -> None:
    rng = np.random.default_rng(0)
    order = Batches(10, 4, rng).order()
    source = Batches(3, 4, np.random.default_rng(0), order)
    assert sorted(next(source)[0].tolist()) == [0, 0, 1, 2]
