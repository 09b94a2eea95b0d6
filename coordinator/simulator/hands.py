"""The data of a simulation: what is held out to measure on, and how the rest is dealt to the devices. Seeded."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from coordinator.compiler.spec import ModelSpec
from coordinator.compiler.zoo import ZOO
from coordinator.demo import data as demo
from coordinator.errors import ShoalError
from coordinator.simulator.conditions import generator
from protocol.weights import Array

Rows = NDArray[np.intp]

SPLITS: Final = {
    "subject": "every device has one person's samples (array `subject` of the file)",
    "iid": "dealt out evenly, at random",
    "dirichlet:A": "every class is shared out by Dirichlet(A) (Hsu, Qi, Brown, 2019)",
    "shards:N": "N shards of samples sorted by label (McMahan et al., 2017)",
    "quantity:S": "classes alike, sizes log-normal with deviation S (Speech Commands' speakers: 0.59)",
}
LEAST: Final = 2
"""Samples that everybody gets, taken from who has most."""


@frozen(eq=False)
class Collection:
    """All samples ``x`` [n, *shape] and labels ``y`` [n]; ``subject`` [n] says whose they are, if known. ``test`` marks
    those that the file itself sets apart to measure on, ``control`` those it sets apart to decide by."""

    name: str
    x: Array
    y: NDArray[np.int32]
    classes: int
    subject: NDArray[np.int64] | None = None
    test: NDArray[np.bool_] | None = None
    control: NDArray[np.bool_] | None = None


@frozen(eq=False)
class Dealt:
    """What a simulation trains on, measures on and decides by: rows of the collection, none in two of them; and a
    sentence for the result."""

    hands: tuple[Rows, ...]
    test: Rows
    control: Rows
    described: dict[str, Any]


def read(source: str) -> Collection:
    """``digits``, or an npz file with x and y, perhaps subject, perhaps x_train, y_train, x_test and y_test instead;
    ShoalError bad-dataset."""
    if source == "digits":
        digits = demo.handwritten_digits()
        return Collection("digits", digits.x, digits.y, digits.classes)
    path = Path(source)
    try:
        if not path.is_file():
            raise FileNotFoundError("there is no such file")
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: np.asarray(file[name]) for name in file.files}
    except Exception as error:  # a damaged archive ends in a dozen kinds of them
        raise ShoalError("bad-dataset", f"{path} cannot be read as an npz file: {error}") from error
    if {"x_train", "y_train"} <= arrays.keys():
        arrays |= {"x": arrays["x_train"], "y": arrays["y_train"]}
    for name, meaning in (("x", "samples"), ("y", "labels")):
        if name not in arrays:
            there = ", ".join(arrays) or "nothing"
            raise ShoalError("bad-dataset", f"{path} has no {meaning}: there is {there}, expected arrays x and y")
    test = _joined(path, arrays, "x_test", "y_test")
    control = _joined(path, arrays, "control_x", "control_y")
    if test is not None and control is not None:
        test = np.concatenate([test, np.zeros(len(control) - len(test), np.bool_)])
    return _checked(path, arrays, test, control)


def _joined(path: Path, arrays: dict[str, NDArray[Any]], x: str, y: str) -> NDArray[np.bool_] | None:
    """Put a set that the file keeps apart behind the other samples, and mark it; None if there is none."""
    if not {x, y} <= arrays.keys():
        return None
    if arrays[x].shape[1:] != arrays["x"].shape[1:] or arrays[y].shape != arrays[x].shape[:1]:
        found = f"{x} {arrays[x].shape} and {y} {arrays[y].shape}"
        raise ShoalError("bad-dataset", f"{path} holds {found}, but samples of shape {arrays['x'].shape[1:]}")
    before = len(arrays["y"])
    for one, name in (("x", x), ("y", y)):
        arrays[one] = np.concatenate([arrays[one], arrays[name]])
    if "subject" in arrays:  # nobody's
        arrays["subject"] = np.concatenate([arrays["subject"], np.full(len(arrays[y]), -1)])
    return np.arange(len(arrays["y"])) >= before


def _checked(
    path: Path, arrays: dict[str, NDArray[Any]], test: NDArray[np.bool_] | None, control: NDArray[np.bool_] | None
) -> Collection:
    x, y, subject = arrays["x"], arrays["y"], arrays.get("subject")
    if x.dtype == np.uint8:
        x = x.astype(np.float32) / 255
    whole = y.dtype.kind in "iu" and y.ndim == 1 and len(y) == len(x) > 0 and y.min() >= 0
    if not whole or x.dtype.kind != "f" or x.ndim < 2 or not np.isfinite(x).all():
        raise ShoalError(
            "bad-dataset",
            f"{path} holds x {x.dtype} {x.shape} and y {y.dtype} {y.shape}: expected finite numbers, and for each "
            "sample a whole label from 0",
        )
    if subject is not None and subject.shape != y.shape:
        raise ShoalError("bad-dataset", f"{path}: subject has shape {subject.shape}, expected {y.shape}")
    classes = int(y.max()) + 1
    if classes > len(y):
        raise ShoalError("bad-dataset", f"{path} holds the label {classes - 1}, but only {len(y)} samples")
    owner = None if subject is None else subject.astype(np.int64)
    return Collection(path.stem, x.astype(np.float32), y.astype(np.int32), classes, owner, test, control)


def model_for(collection: Collection) -> ModelSpec:
    """The first model of the zoo that takes such samples; ShoalError bad-model if there is none."""
    shape = collection.x.shape[1:]
    for spec in ZOO.values():
        if spec.labelled and spec.input == shape and spec.classes >= collection.classes:
            return spec
    raise ShoalError("bad-model", f"No model of the zoo takes samples of shape {shape}: name one with --model")


def fitted(collection: Collection, spec: ModelSpec) -> Array:
    """The samples in the model's shape: a channel axis is added where only it is missing."""
    if collection.classes > spec.classes:
        detail = f"Model {spec.name} knows {spec.classes} classes, {collection.name} has {collection.classes}"
        raise ShoalError("bad-dataset", detail)
    if collection.x.shape[1:] == spec.input:
        return collection.x
    if (*collection.x.shape[1:], 1) == spec.input:
        return collection.x[..., None]
    detail = f"{collection.name} holds samples of shape {collection.x.shape[1:]}, model {spec.name} takes {spec.input}"
    raise ShoalError("bad-dataset", detail)


def deal(collection: Collection, devices: int, split: str, held_out: str, seed: int, control: str = "") -> Dealt:
    """Who gets what. ``held_out`` and ``control`` are a share (``0.2``), people (``5,17,25``), so many people that the
    seed draws (``subjects:3``), or empty for what the file sets apart; without that, 0.2 of all and 0.1 of what is left
    then."""
    everything = np.arange(len(collection.y))
    own = np.flatnonzero(collection.control) if collection.control is not None else everything[:0]
    test = _apart(collection, np.setdiff1d(everything, own), held_out, collection.test, "0.2", seed, "held out")
    rest = np.setdiff1d(everything, test)
    decided = _apart(collection, rest, control, collection.control, "0.1", seed, "control")
    train = np.setdiff1d(rest, np.concatenate([decided, own]))
    if collection.test is not None:
        train = np.setdiff1d(train, np.flatnonzero(collection.test))
    if devices > len(train):
        raise ShoalError("bad-dataset", f"{devices} devices are more than the {len(train)} samples there are to share")
    kind, _, value = split.partition(":")
    hands = _splitter(kind, value)(collection, train, devices, generator(seed, "hands"))
    hands = _everybody(hands, len(train))
    sizes = sorted(len(hand) for hand in hands)
    seen = [len(np.unique(collection.y[hand])) for hand in hands]
    described = {
        "data": collection.name,
        "split": split,
        "held_out": held_out or ("0.2" if collection.test is None else "the file's test set"),
        "seed": seed,
        "devices": devices,
        "samples": int(sum(sizes)),
        "test_samples": len(test),
        "control": control or ("0.1" if collection.control is None else "the file's control set"),
        "control_samples": len(decided),
        "smallest": sizes[0],
        "median": sizes[len(sizes) // 2],
        "largest": sizes[-1],
        "classes_per_device": round(float(np.mean(seen)), 2),
    }
    return Dealt(tuple(hands), test, decided, described)


def _apart(
    collection: Collection, rows: Rows, wanted: str, own: NDArray[np.bool_] | None, usual: str, seed: int, purpose: str
) -> Rows:
    """Of ``rows`` those that ``wanted`` names, the file's ``own``, or the ``usual`` share."""
    if not wanted:
        if own is not None:
            return np.flatnonzero(own)
        wanted = usual
    if re.fullmatch(r"0?\.\d+", wanted) and float(wanted) > 0:
        order = generator(seed, purpose).permutation(len(rows))
        return np.sort(rows[order[: max(1, int(len(rows) * float(wanted)))]])
    if re.fullmatch(r"\d+(,\d+)*|subjects:\d+", wanted):
        if collection.subject is None:
            raise ShoalError("bad-dataset", f"{collection.name} says nobody's samples apart: it has no array subject")
        owners = collection.subject[rows]
        return rows[np.isin(owners, _people(collection.name, np.unique(owners), wanted, seed, purpose))]
    sentence = f"{purpose} is {wanted!r}, expected a share such as 0.2, subjects such as 5,17, or subjects:3"
    raise ShoalError("bad-request", sentence)


def _people(name: str, there: NDArray[np.int64], wanted: str, seed: int, purpose: str) -> NDArray[np.int64]:
    """Those that ``wanted`` names, or as many of all as it says, drawn by the seed."""
    if wanted.startswith("subjects:"):
        number = int(wanted.partition(":")[2])
        if not 0 < number < len(there):
            sentence = f"{name} has {len(there)} subjects: {wanted} leaves none to set apart or train"
            raise ShoalError("bad-dataset", sentence)
        return generator(seed, purpose).permutation(there)[:number]
    people = np.array([int(one) for one in wanted.split(",")])
    if missing := set(people.tolist()) - set(there.tolist()):
        raise ShoalError("bad-dataset", f"{name} has no samples of subject {min(missing)} to set apart")
    return people


Splitter = Callable[[Collection, Rows, int, np.random.Generator], list[Rows]]


def _splitter(kind: str, value: str) -> Splitter:
    known: dict[str, tuple[Callable[[float], Splitter], float, float]] = {
        "subject": (lambda _: _by_subject, 0, 0),
        "iid": (lambda _: _iid, 0, 0),
        "dirichlet": (_dirichlet, 1e-3, 1e6),
        "shards": (_shards, 1, 1000),
        "quantity": (_quantity, 0, 5),
    }
    if kind in known:
        make, low, high = known[kind]
        if not value and high == 0:
            return make(0)
        if re.fullmatch(r"\d+(\.\d+)?", value) and low <= float(value) <= high:
            return make(float(value))
    raise ShoalError("bad-request", f"There is no split {kind + (':' + value if value else '')!r}: {', '.join(SPLITS)}")


def _by_subject(collection: Collection, rows: Rows, devices: int, rng: np.random.Generator) -> list[Rows]:
    """One person per device; with more devices than people, several share a person's samples."""
    if collection.subject is None:
        raise ShoalError("bad-dataset", f"{collection.name} has no array subject: choose another split")
    owners = [rows[collection.subject[rows] == one] for one in np.unique(collection.subject[rows])]
    owners = [owners[place] for place in rng.permutation(len(owners))]
    if devices <= len(owners):
        return owners[:devices]
    times = -(-devices // len(owners))
    parts = [np.array_split(rng.permutation(owner), times) for owner in owners]
    return [part[turn] for turn in range(times) for part in parts][:devices]


def _iid(_: Collection, rows: Rows, devices: int, rng: np.random.Generator) -> list[Rows]:
    return list(np.array_split(rng.permutation(rows), devices))


def _dirichlet(alpha: float) -> Splitter:
    def split(collection: Collection, rows: Rows, devices: int, rng: np.random.Generator) -> list[Rows]:
        hands: list[list[Rows]] = [[] for _ in range(devices)]
        for label in np.unique(collection.y[rows]):
            mine = rng.permutation(rows[collection.y[rows] == label])
            cuts = (np.cumsum(rng.dirichlet([alpha] * devices))[:-1] * len(mine)).astype(int)
            for hand, part in zip(hands, np.split(mine, cuts), strict=True):
                hand.append(part)
        return [np.concatenate(hand) for hand in hands]

    return split


def _shards(number: float) -> Splitter:
    def split(collection: Collection, rows: Rows, devices: int, rng: np.random.Generator) -> list[Rows]:
        shuffled = rng.permutation(rows)
        ordered = shuffled[np.argsort(collection.y[shuffled], kind="stable")]
        shards = np.array_split(ordered, devices * int(number))
        order = rng.permutation(len(shards)).reshape(devices, int(number))
        return [np.concatenate([shards[place] for place in mine]) for mine in order]

    return split


def _quantity(deviation: float) -> Splitter:
    def split(_: Collection, rows: Rows, devices: int, rng: np.random.Generator) -> list[Rows]:
        sizes = np.exp(rng.normal(0, deviation, devices))
        cuts = (np.cumsum(sizes / sizes.sum())[:-1] * len(rows)).astype(int)
        return list(np.split(rng.permutation(rows), cuts))

    return split


def _everybody(hands: Sequence[Rows], samples: int) -> list[Rows]:
    """Who would have next to nothing gets some of who has most."""
    least = min(LEAST, samples // len(hands))
    dealt = [hand.tolist() for hand in hands]
    poor = [hand for hand in dealt if len(hand) < least]
    for hand in poor:
        while len(hand) < least:
            hand.append(max(dealt, key=len).pop())
    return [np.array(hand, np.intp) for hand in dealt]
