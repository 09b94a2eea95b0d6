"""Local training with a model small enough to compute by hand: one weight, loss ½(w·x − y)² per sample."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from attrs import evolve, frozen
from hypothesis import given
from hypothesis import strategies as st

from device_agent.batches import Batches, seeded
from device_agent.checkpoint import Checkpoint, File
from device_agent.dataset import Dataset, checked
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
        self._w -= learning_rate * gradient
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
