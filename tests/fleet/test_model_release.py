"""A version of a run becomes files that a device can answer questions with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from attrs import evolve

from coordinator.compiler.spec import ModelSpec
from coordinator.errors import ShoalError
from coordinator.fleet import model_release
from coordinator.fleet.model_release import Limits, Promotion
from coordinator.store.models import Metric
from coordinator.training.evaluation import Evaluation, read_dataset
from coordinator.training.live import weights_of
from device_agent.runtime import Inference
from protocol import model_card, tensors
from protocol.model_card import ModelCard
from protocol.subnetwork import Region, nested
from protocol.wire import parse_json, structure
from tests.training.house import HALF, LAYOUT, RECIPE, TOY, House

NORMED = TOY.replace('"relu"', '"batch_norm", "relu"')


@pytest.fixture
def house(tmp_path: Path, migrated: Path):
    shutil.copy(migrated, tmp_path / "shoal.db")
    house = House(tmp_path).open()
    yield house
    house.close()


def with_test_set(house: House, samples: int = 40) -> str:
    rng = np.random.default_rng(0)
    place = house.home / "test.npz"
    np.savez(place, x=rng.normal(size=(samples, 4)).astype(np.float32), y=rng.integers(0, 3, samples))
    return str(place)


def promoted(house: House, run: str, version: int | None = None, **given) -> Promotion:
    with house.database.read() as session:
        return model_release.files(session, house.home, run, version, **given)


def classes(made: Promotion, width: float, x: np.ndarray, backend: str = "litert") -> np.ndarray:
    """What the files of one width answer."""
    inference = Inference(made.files[model_card.artifact(width, backend)], "numpy" if backend == "numpy" else None)
    weights, _ = tensors.decode(made.files[model_card.weights(width)])
    statistics = {name: weights.pop(name) for name in inference.statistics}
    inference.load(weights, statistics)
    return np.array([int(inference(row[None])[0].argmax()) for row in x])


def test_every_width_is_compiled_and_measured_where_there_is_a_test_set(house):
    run = house.start_run(dataset=with_test_set(house))
    made = promoted(house, run)
    card = structure(ModelCard, parse_json(made.files["model.json"]))
    assert card == made.card
    assert (card.model, card.input, card.classes, card.run, card.version) == (
        "toy", (4,), 3, run, 0,
    )  # fmt: skip
    # 8 hidden channels: an eighth and a sixteenth keep the same one.
    assert [size.width for size in card.sizes] == [1, 0.5, 0.25, 0.125]
    assert [size.bytes for size in card.sizes] == [4 * (4 * n + n + 3 * n + 3) for n in (8, 4, 2, 1)]
    assert [size.flops for size in card.sizes] == [2 * (4 * n + 3 * n) for n in (8, 4, 2, 1)]
    assert model_card.widths(made.facts) == [1, 0.5, 0.25, 0.125]
    for size in card.sizes:
        assert model_card.fact(made.facts, "accuracy", size.width) == size.accuracy
        assert model_card.fact(made.facts, "memory", size.width) == size.memory > 2 * size.bytes
    assert len(made.files) == 1 + 3 * 4


@pytest.mark.parametrize("backend", ["litert", "numpy"])
@pytest.mark.parametrize("model", [TOY, NORMED], ids=["plain", "batch norm"])
def test_the_files_are_as_accurate_as_the_run_says(house, backend, model):
    place = with_test_set(house, 300)
    run = house.start_run(model=model, dataset=place)
    made = promoted(house, run)
    spec = ModelSpec.from_json(model)
    data = read_dataset(Path(place), spec)
    with house.database.read() as session:
        whole = weights_of(session, house.blobs, lambda *_: b"", run)[1]
    expected = Evaluation(spec, data).measure(whole)[0]
    assert made.facts["accuracy-1"] == expected
    for size in made.card.sizes:
        # Sums are rounded in another way in batches of one, which may turn a draw.
        right = np.mean(classes(made, size.width, data.x, backend) == data.y)
        assert right == pytest.approx(size.accuracy, abs=1 / 300)


def test_without_a_test_set_only_widths_that_were_trained_are_released(house):
    run = house.start_run(HALF)
    assert [size.width for size in promoted(house, run).card.sizes] == [1]
    for device in house.enrol("a", "b"):
        device.work()
    made = promoted(house, run)
    assert [(size.width, size.accuracy) for size in made.card.sizes] == [(1, None), (0.5, None)]
    assert made.card.version == 1
    weights, _ = tensors.decode(made.files["weights-0.5"])
    assert {name: array.shape for name, array in weights.items()} == Region(LAYOUT, nested(LAYOUT, 0.5)).shapes


def test_widths_may_be_named(house):
    run = house.start_run()
    made = promoted(house, run, widths=[0.25, 0.75])
    assert [size.width for size in made.card.sizes] == [0.75, 0.25]
    with pytest.raises(ShoalError, match="width is 2"):
        promoted(house, run, widths=[2])


def test_the_same_version_gives_the_same_files(house):
    run = house.start_run(dataset=with_test_set(house))
    assert promoted(house, run) == promoted(house, run)


def test_what_a_device_may_accept_stands_in_the_facts(house):
    made = promoted(house, house.start_run(), limits=Limits(accuracy_drop=0.02, milliseconds=5, memory=1 << 20))
    bounds = {name: value for name, value in made.facts.items() if name.startswith("max-")}
    assert bounds == {"max-accuracy-drop": 0.02, "max-milliseconds": 5.0, "max-memory": float(1 << 20)}


@pytest.mark.parametrize("bad", [Limits(accuracy_drop=1.5), Limits(milliseconds=0), Limits(memory=-1)])
def test_a_limit_that_bounds_nothing_is_refused(house, bad):
    with pytest.raises(ShoalError, match="may") as caught:
        promoted(house, house.start_run(), limits=bad)
    assert caught.value.code == "bad-request"


def test_a_batch_norm_without_a_test_set_has_no_statistics_to_release(house):
    run = house.start_run(model=NORMED)
    with pytest.raises(ShoalError, match="no test set") as caught:
        promoted(house, run)
    assert caught.value.code == "bad-model"


def test_a_version_that_is_not_kept_is_not_found(house):
    run = house.start_run()
    for name, version in (("nonsense", None), (run, 7)):
        with pytest.raises(ShoalError) as caught:
            promoted(house, name, version)
        assert caught.value.code == "not-found"


def test_the_best_version_is_the_most_accurate_whose_weights_are_kept(house):
    run = house.start_run(RECIPE)

    def measured(session) -> None:
        for version, accuracy in ((0, 0.5), (3, 0.9)):  # 3 is not kept
            session.add(Metric(run_id=run, version=version, name="accuracy", value=accuracy, at=1.0))

    with house.database.read() as session, pytest.raises(ShoalError, match="was measured"):
        model_release.chosen(session, run, "best")
    house.steward.write(measured)
    with house.database.read() as session:
        assert model_release.chosen(session, run, "best") == 0
        assert model_release.chosen(session, run, "newest") == 0
        assert model_release.chosen(session, run, "12") == 12
        with pytest.raises(ShoalError, match="newest or best"):
            model_release.chosen(session, run, "latest")


def test_a_card_that_says_nonsense_is_refused(house):
    card = json.loads(promoted(house, house.start_run()).files["model.json"])
    for name, value in (("sizes", []), ("input", [0]), ("classes", True)):
        with pytest.raises(ValueError, match=name):
            structure(ModelCard, {**card, name: value})


def test_two_sizes_of_one_width_are_refused(house):
    card = promoted(house, house.start_run()).card
    with pytest.raises(ValueError, match="different widths"):
        evolve(card, sizes=(*card.sizes, *card.sizes))
