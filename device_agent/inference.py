"""A released model that answers: its files checked, compiled for a batch of one, its numbers read as what they are."""

from __future__ import annotations

import hashlib
import threading
import time
from pathlib import Path

import numpy as np
from attrs import field, frozen

from protocol import model_card, tensors
from protocol.deployments import Manifest
from protocol.errors import ProtocolError
from protocol.model_card import ModelCard
from protocol.weights import Array
from protocol.wire import decode

from .errors import ModelError
from .runtime import ArtifactError, Inference, RuntimeUnavailable

MANIFEST = "manifest.json"


@frozen
class Prediction:
    """The answer to one sample: the number of the likeliest class, and the probability of each."""

    label: int
    probabilities: tuple[float, ...] = field(repr=False)
    milliseconds: float


class Predictor:
    """A model in ``folder``, where its files have the names of its release, at one of its widths; any thread may ask.

    ModelError says what is damaged or does not go together. Files are compared with their sha256 first: a runtime may
    crash on damaged ones.
    """

    def __init__(self, folder: Path, width: float, backend: str, threads: int = 1) -> None:
        self.width = width
        self.backend = backend
        self._lock = threading.Lock()
        try:
            self.manifest = decode(Manifest, _content(folder / MANIFEST))
            self.card = decode(ModelCard, self._file(folder, model_card.CARD))
            if self.card.size(width) is None:
                raise ModelError(f"{self.manifest.version} has no width {width:g}")
            self._inference = Inference(self._file(folder, model_card.artifact(width, backend)), backend, threads)
            self._load(self._file(folder, model_card.weights(width)))
        except (ProtocolError, ArtifactError, ValueError) as error:
            raise ModelError(f"the model in {folder} cannot be used: {error}") from error
        except RuntimeUnavailable as error:
            raise ModelError(str(error)) from error

    def _file(self, folder: Path, name: str) -> bytes:
        known = self.manifest.file(name)
        if known is None:
            raise ModelError(f"{self.manifest.version} has no file {name}")
        content = _content(folder / name)
        if len(content) != known.size or hashlib.sha256(content).hexdigest() != known.sha256:
            raise ModelError(f"{folder / name} is damaged: deploy {self.manifest.version} again")
        return content

    def _load(self, content: bytes) -> None:
        given, _ = tensors.decode(content)
        statistics = {name: given.pop(name) for name in self._inference.statistics if name in given}
        self._inference.load(given, statistics)
        shape = self._inference.input_shape
        if self._inference.batch != 1 or shape != self.card.input:
            raise ValueError(f"it takes samples of shape {shape}, its card says {self.card.input}")
        count = self._inference(np.zeros((1, *shape), np.float32))[0].shape[1]
        if count != self.card.classes:
            raise ValueError(f"it knows {count} classes, its card says {self.card.classes}")

    def __call__(self, x: Array) -> Prediction:
        """The answer to a finite sample ``x`` [*card.input]; ModelError if it is not a finite one."""
        started = time.perf_counter()
        with self._lock:
            logits = self._inference(x[None])[0][0].astype(np.float64)
        if not np.isfinite(logits).all():
            raise ModelError(f"{self.manifest.version} answers with numbers that are not finite")
        powers = np.exp(logits - logits.max())
        probabilities: list[float] = (powers / powers.sum()).tolist()
        return Prediction(int(logits.argmax()), tuple(probabilities), 1000 * (time.perf_counter() - started))


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error
