"""Splits of the data: everything is dealt once, alike with the same seed, and as the split says."""

from __future__ import annotations

import numpy as np
import pytest

from coordinator.compiler.zoo import ZOO
from coordinator.errors import ShoalError
from coordinator.simulator import hands
from coordinator.simulator.hands import Collection


@pytest.fixture
def collection():
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(10), 60).astype(np.int32)
    return Collection("made", rng.random((600, 4), np.float32), y, 10, np.arange(600) % 7)


@pytest.mark.parametrize("split", ["iid", "dirichlet:0.3", "shards:2", "quantity:0.6", "subject"])
def test_everything_is_dealt_once_and_the_same_again(collection, split):
    one, again = (hands.deal(collection, 6, split, "0.25", 3) for _ in range(2))
    dealt = np.concatenate([*one.hands, one.test, one.control])
    if split != "subject":  # six of seven people take part
        assert sorted(dealt) == list(range(600))
    assert len(set(dealt.tolist())) == len(dealt)
    assert all((a == b).all() for a, b in zip(one.hands, again.hands, strict=True))
    assert min(map(len, one.hands)) >= hands.LEAST
    assert one.described["split"] == split
    assert one.described["test_samples"] == 150
    assert one.described["control_samples"] == 45


def test_a_person_each(collection):
    dealt = hands.deal(collection, 5, "subject", "0,1", 0)
    owners = [set(collection.subject[hand].tolist()) for hand in dealt.hands]
    assert [len(one) for one in owners] == [1] * 5
    assert set.union(*owners) == {2, 3, 4, 5, 6}
    assert set(collection.subject[dealt.test].tolist()) == {0, 1}


def test_every_seed_sets_other_people_apart(collection):
    def apart(seed):
        dealt = hands.deal(collection, 4, "subject", "subjects:3", seed)
        return tuple(np.unique(collection.subject[dealt.test]))

    assert apart(1) == apart(1)
    assert {len(apart(seed)) for seed in range(8)} == {3}
    assert len({apart(seed) for seed in range(8)}) > 1


def test_the_file_s_own_sets_are_dealt_to_nobody(tmp_path):
    rng = np.random.default_rng(0)
    sets = {"x_train": "y_train", "x_test": "y_test", "control_x": "control_y"}
    counts = dict(zip(sets, (40, 20, 10), strict=True))
    arrays = {x: rng.random((counts[x], 4), np.float32) for x in sets} | {
        y: np.arange(counts[x]) % 5 for x, y in sets.items()
    }
    np.savez(tmp_path / "three.npz", **arrays)
    read = hands.read(str(tmp_path / "three.npz"))
    dealt = hands.deal(read, 4, "iid", "", 0)
    assert (read.x[dealt.test] == arrays["x_test"]).all()
    assert (read.x[dealt.control] == arrays["control_x"]).all()
    assert sorted(np.concatenate(dealt.hands)) == list(range(40))


def test_more_devices_than_people_share_them(collection):
    dealt = hands.deal(collection, 12, "subject", "0.1", 0)
    assert {len(set(collection.subject[hand].tolist())) for hand in dealt.hands} == {1}


def test_shards_leave_a_device_few_classes(collection):
    dealt = hands.deal(collection, 20, "shards:2", "0.1", 0)
    assert max(len(np.unique(collection.y[hand])) for hand in dealt.hands) <= 4


def test_smaller_alpha_more_skew(collection):
    def classes(alpha):
        return hands.deal(collection, 10, f"dirichlet:{alpha}", "0.1", 0).described["classes_per_device"]

    assert classes(0.1) < classes(1) < classes(100)


@pytest.mark.parametrize(
    ("devices", "split", "held_out", "sentence"),
    [
        (500, "iid", "0.5", "500 devices are more than the 270 samples there are to share"),
        (5, "random", "", "There is no split 'random': subject, iid, dirichlet:A"),
        (5, "dirichlet:0", "", "There is no split 'dirichlet:0'"),
        (5, "iid", "9", "made has no samples of subject 9"),
        (5, "iid", "half", "held out is 'half', expected a share such as 0.2, subjects such as 5,17, or subjects:3"),
        (5, "iid", "subjects:7", "made has 7 subjects: subjects:7 leaves none to set apart or train"),
    ],
)
def test_what_cannot_be_dealt(collection, devices, split, held_out, sentence):
    with pytest.raises(ShoalError) as told:
        hands.deal(collection, devices, split, held_out, 0)
    assert sentence in told.value.detail


def test_files_with_a_test_set_of_their_own(tmp_path):
    path = tmp_path / "images.npz"
    x = np.zeros((8, 28, 28), np.uint8)
    np.savez(path, x_train=x, y_train=np.arange(8), x_test=x[:2] + 255, y_test=np.arange(2))
    found = hands.read(str(path))
    assert hands.deal(found, 2, "iid", "", 0).test.tolist() == [8, 9]
    assert found.x[9, 0, 0] == 1.0
    assert hands.fitted(found, ZOO["cnn"]).shape == (10, 28, 28, 1)


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"x": np.zeros((5, 2), np.float32)}, "has no labels: there is x, expected arrays x and y"),
        ({"y": np.zeros(5, np.int32)}, "has no samples"),
        ({"x": np.zeros((5, 2), np.float32), "y": np.zeros(5)}, "for each sample a whole label from 0"),
        ({"x": np.full((5, 2), np.nan), "y": np.zeros(5, int)}, "expected finite numbers"),
        ({"x": np.zeros((5, 2)), "y": np.full(5, 99)}, "holds the label 99, but only 5 samples"),
    ],
)
def test_files_that_are_not_data(tmp_path, arrays, sentence):
    path = tmp_path / "bad.npz"
    np.savez(path, **arrays)
    with pytest.raises(ShoalError) as told:
        hands.read(str(path))
    assert sentence in told.value.detail


def test_the_model_that_fits(collection):
    assert hands.model_for(Collection("d", np.zeros((5, 64), np.float32), np.zeros(5, np.int32), 10)).name == "digits"
    with pytest.raises(ShoalError, match="No model of the zoo takes samples of shape"):
        hands.model_for(collection)
