"""Releases of models: loaded beside the one in use, judged by this device's own samples, and switched by a pointer.

Nothing restarts. Of the widths that the board's memory carries, the one that gets most of the coordinator's test set
right is used, the widest where none was measured; too slow a one gives way to the next.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from protocol import model_card
from protocol.deployments import Deployed, Manifest
from protocol.errors import ProtocolError
from protocol.model_card import ModelCard
from protocol.weights import Array
from protocol.wire import decode, encode

from .data.loading import Loaded
from .dataset import Dataset
from .errors import HomeError, ModelError
from .identity import write_durably
from .inference import Predictor
from .releases import Release, Setback, Trial, Unfit, Verdict
from .shelf import InUse, Placed, Pointer
from .telemetry import memory_available

SHARE = 0.5
"""Of the memory that is free, for a model that is loaded beside another one."""
PATIENCE = 60.0
SAMPLES = 256  # of the hold-out that are looked at
_WARM, _TIMED = 2, 15
_STAGED = "staged.json"


@frozen
class _Trying:
    """A model that was loaded and measured."""

    predictor: Predictor
    milliseconds: float
    accuracy: float | None


class Model:
    """The kind ``model``. ``data`` gives this device's samples once they are read, for which it waits ``patience``
    seconds; ``memory`` the bytes that are free, None where nobody knows."""

    name = "model"
    restarts = False

    def __init__(
        self,
        in_use: InUse,
        data: Callable[[], Loaded | None],
        memory: Callable[[], int | None] = memory_available,
        patience: float = PATIENCE,
    ) -> None:
        self._in_use = in_use
        self._shelf = in_use.shelf
        self._data = data
        self._memory = memory
        self._patience = patience
        self._times: list[float] = []  # of one sample each second of a trial

    # -- before the switch ----------------------------------------------------------------------------------------

    def fit(self, manifest: Manifest) -> str | None:
        offered = self._runnable(manifest)
        if manifest.file(model_card.CARD) is None or not offered:
            return f"the release holds no model that the runtime {self._in_use.backend} can run"
        if not self._carried(manifest):
            least = min(_memory(manifest, width) for width in offered)
            return f"the model needs {least:.0f} bytes of memory or more, it may take {self._room(manifest):.0f} here"
        return None

    def files(self, manifest: Manifest) -> tuple[str, ...]:
        """Those of the width to use, and of the narrower ones, which are small, should it be too slow."""
        widths = _from_best_on(self._carried(manifest))
        return model_card.CARD, *(name for width in widths for name in self._names(width))

    def stage(self, release: Release) -> None:
        self._await_data()
        try:
            self._stage(release)
        except Exception as error:
            self._shelf.tidy()
            if isinstance(error, HomeError | ModelError):
                raise Setback(str(error), retry=isinstance(error, HomeError)) from error
            raise

    def _stage(self, release: Release) -> None:
        widths = _from_best_on([w for w in self._carried(release.manifest) if self._fetched(release, w)])
        if not widths:
            raise Setback("there is less memory free than when it was fetched", retry=True)
        card = self._card(release)
        names = [name for width in widths for name in self._names(width)]
        folder = self._shelf.place(release, [model_card.CARD, *names])
        new = self._fast_enough(release, card, widths)
        before = self._measured_before(card)
        _check_accuracy(new.accuracy, before, release.manifest)
        placed = Placed(
            version=release.manifest.version,
            manifest=release.sha256,
            width=new.predictor.width,
            facts=_facts(new, before),
        )
        write_durably(folder / _STAGED, encode(placed))

    def _await_data(self) -> None:
        """After a start the samples may still be on their way; a device without any goes on without."""
        until = time.monotonic() + self._patience
        while self._data() is None and time.monotonic() < until:
            time.sleep(min(0.2, self._patience))

    def _card(self, release: Release) -> ModelCard:
        try:
            card = decode(ModelCard, release.path(model_card.CARD).read_bytes())
        except ProtocolError as error:
            raise Unfit(f"its {model_card.CARD} is not one: {error}") from error
        data = self._data()
        if data is not None and data.training.input != card.input:
            here, there = list(data.training.input), list(card.input)
            raise Unfit(f"the model takes samples of shape {there}, this device has samples of shape {here}")
        return card

    def _fast_enough(self, release: Release, card: ModelCard, widths: list[float]) -> _Trying:
        """The first of ``widths`` that answers in the time that is allowed; Setback if none does."""
        most = release.manifest.facts.get(model_card.MAX_MILLISECONDS, float("inf"))
        fastest = float("inf")
        samples = _samples(self._held_out(card), card)
        for width in widths:
            folder = self._shelf.folder(release.sha256)
            predictor = Predictor(folder, width, self._in_use.backend, self._in_use.threads)
            taken = [predictor(samples[n % len(samples)]).milliseconds for n in range(_WARM + _TIMED)]
            milliseconds = float(np.median(taken[_WARM:]))
            if milliseconds <= most:
                return _Trying(predictor, milliseconds, accuracy(predictor, self._held_out(card)))
            fastest = min(fastest, milliseconds)
        raise Setback(f"it takes {fastest:.3g} ms to answer at best, it may take {most:g}")

    def _measured_before(self, card: ModelCard) -> float | None:
        """Accuracy of the model in use on this device's hold-out, where the two can be compared."""
        try:
            old = self._in_use.model.predictor
            same = (old.card.input, old.card.classes) == (card.input, card.classes)
            return accuracy(old, self._held_out(card)) if same else None
        except ModelError:
            return None  # there is none, or it is broken and no measure for another

    def _held_out(self, card: ModelCard) -> Dataset | None:
        data = self._data()
        if data is None or not len(data.held_out):
            return None
        return data.held_out if data.held_out.input == card.input else None

    # -- the switch and the trial ---------------------------------------------------------------------------------

    def switch(self, release: Release) -> None:
        pointer = self._shelf.pointer
        self._times = []
        if pointer.trial and pointer.now is not None and pointer.now.manifest == release.sha256:
            return
        staged = decode(Placed, (self._shelf.folder(release.sha256) / _STAGED).read_bytes())
        before = pointer.before if pointer.trial else pointer.now
        self._shelf.point(Pointer(now=staged, before=before, trial=True))

    def judge(self, release: Release, trial: Trial) -> Verdict | None:
        placed = self._shelf.pointer.now
        if placed is None or placed.manifest != release.sha256:
            return Verdict(False, "the model in use is not that of the release")
        try:
            model = self._in_use.model
            predictor, tally = model.predictor, model.tally
            held_out = self._held_out(predictor.card)
            samples = _samples(held_out, predictor.card)
            self._times.append(predictor(samples[len(self._times) % len(samples)]).milliseconds)
        except ModelError as error:
            return Verdict(False, str(error))
        if tally.failed:
            return Verdict(False, f"{tally.failed} of {tally.failed + tally.answered} questions had no answer")
        if trial.left > 0:
            return None
        facts = {**placed.facts, "answered": float(tally.answered)}
        return self._proved(facts, release.manifest, accuracy(predictor, held_out))

    def _proved(self, facts: dict[str, float], manifest: Manifest, now: float | None) -> Verdict:
        """The trial is over: as fast as it has to be, also beside training, and still as good?"""
        milliseconds = float(np.median(self._times))
        most = manifest.facts.get(model_card.MAX_MILLISECONDS)
        facts["milliseconds"] = milliseconds
        if most is not None and milliseconds > most:
            return Verdict(False, f"it took {milliseconds:.3g} ms to answer, it may take {most:g}", facts)
        if now is not None:
            facts["accuracy"] = now
        try:
            _check_accuracy(now, facts.get("accuracy-before"), manifest)
        except Setback as error:
            return Verdict(False, str(error), facts)
        return Verdict(True, facts=facts)

    def back(self) -> None:
        pointer = self._shelf.pointer
        if pointer.trial:
            self._shelf.point(Pointer(now=pointer.before))
        self._shelf.tidy()

    def commit(self) -> None:
        pointer = self._shelf.pointer
        if pointer.trial:
            self._shelf.point(Pointer(now=pointer.now))
        self._shelf.tidy()

    def current(self) -> Deployed | None:
        now = self._shelf.pointer.now
        if now is None or not self._shelf.intact(now):
            return None
        return Deployed(kind=self.name, version=now.version, manifest=now.manifest)

    # -- widths ---------------------------------------------------------------------------------------------------

    def _names(self, width: float) -> tuple[str, str]:
        return model_card.artifact(width, self._in_use.backend), model_card.weights(width)

    def _fetched(self, release: Release, width: float) -> bool:
        return all(release.path(name).exists() for name in self._names(width))

    def _runnable(self, manifest: Manifest) -> list[float]:
        widths = model_card.widths(manifest.facts)
        return [width for width in widths if all(manifest.file(name) for name in self._names(width))]

    def _carried(self, manifest: Manifest) -> list[float]:
        """Widths that this board can carry, the best one first."""
        room = self._room(manifest)
        fitting = [width for width in self._runnable(manifest) if _memory(manifest, width) <= room]
        known = {width: model_card.fact(manifest.facts, model_card.ACCURACY, width) for width in fitting}
        if None in known.values():
            return fitting
        return sorted(fitting, key=lambda width: (-(known[width] or 0.0), width))

    def _room(self, manifest: Manifest) -> float:
        free = self._memory()
        most = manifest.facts.get(model_card.MAX_MEMORY, float("inf"))
        return most if free is None else min(most, SHARE * free)


def _memory(manifest: Manifest, width: float) -> float:
    return model_card.fact(manifest.facts, model_card.MEMORY, width) or 0.0


def _from_best_on(carried: list[float]) -> list[float]:
    """The best width, then the narrower ones."""
    return [width for width in carried if width <= carried[0]]


def _samples(held_out: Dataset | None, card: ModelCard) -> Array:
    """Some of this device's own samples, or random ones."""
    if held_out is not None:
        return held_out.batch(np.arange(min(len(held_out), _TIMED)))[0]
    return np.random.default_rng(0).random((_TIMED, *card.input), np.float32)


def accuracy(predictor: Predictor, held_out: Dataset | None) -> float | None:
    """The share of the first samples that it gets right; None where there are none."""
    if held_out is None or not len(held_out):
        return None
    x, y = held_out.batch(np.arange(min(len(held_out), SAMPLES)))
    found: NDArray[np.bool_] = np.array([predictor(one).label for one in x]) == y
    return float(found.mean())


def _facts(new: _Trying, before: float | None) -> dict[str, float]:
    size = new.predictor.card.size(new.predictor.width)
    found = {
        "width": new.predictor.width,
        "milliseconds": new.milliseconds,
        "bytes": None if size is None else float(size.bytes),
        "accuracy": new.accuracy,
        "accuracy-before": before,
    }
    return {name: value for name, value in found.items() if value is not None}


def _check_accuracy(now: float | None, before: float | None, manifest: Manifest) -> None:
    """Setback if the hold-out speaks against it."""
    allowed = manifest.facts.get(model_card.MAX_ACCURACY_DROP)
    if allowed is None or now is None or before is None or now >= before - allowed:
        return
    right = f"it gets {now:.1%} of this device's hold-out right, the model before {before:.1%}"
    raise Setback(f"{right}: that is more than {allowed:.1%} less")
