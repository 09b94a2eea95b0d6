"""The models of this device on its disk, which of them is in use, and that one loaded for whoever asks."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import threading
from collections import deque
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from attrs import field, frozen

from protocol import fields, model_card
from protocol.deployments import Manifest
from protocol.deployments import version as version_text
from protocol.errors import ProtocolError
from protocol.fields import between
from protocol.messages import Message
from protocol.weights import Array
from protocol.wire import decode, encode

from .errors import HomeError, ModelError, NoModel
from .identity import write_durably
from .inference import MANIFEST, Prediction, Predictor
from .releases import Release

FOLDER = "models"
CURRENT = "current"

log = logging.getLogger(__name__)


@frozen(kw_only=True)
class Placed(Message):
    """A model on the shelf: the release's ``version``, the sha256 of its ``manifest``, the ``width`` that is used and
    what was measured before it was."""

    version: str = field(validator=version_text)
    manifest: str = field(validator=fields.sha256)
    width: float = field(validator=between(1 / 1024, 1))
    facts: dict[str, float] = field(factory=dict, validator=fields.values)


@frozen(kw_only=True)
class Pointer(Message):
    """What is in use ``now``; while that is on ``trial``, also what was ``before``."""

    now: Placed | None = None
    before: Placed | None = None
    trial: bool = False


class Shelf:
    """The folder ``models`` of a home: one folder for each model, and the file ``current``, which is replaced as a
    whole: whoever reads it sees the model before or the one after."""

    def __init__(self, home: Path) -> None:
        self._folder = home / FOLDER
        self._current = self._folder / CURRENT

    @property
    def pointer(self) -> Pointer:
        """Damaged it is as good as none."""
        try:
            return decode(Pointer, self._current.read_bytes())
        except FileNotFoundError:
            return Pointer()
        except (OSError, ProtocolError) as error:
            log.warning("model-forgotten cause=%r", str(error))
            return Pointer()

    @property
    def mark(self) -> tuple[int, int] | None:
        """Another value whenever another model is in use."""
        try:
            found = self._current.stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns

    def point(self, pointer: Pointer) -> None:
        """It is on disk when this returns."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        write_durably(self._current, encode(pointer))

    def tidy(self) -> None:
        """Remove the models that nothing points at."""
        pointer = self.pointer
        kept = {one.manifest for one in (pointer.now, pointer.before) if one is not None}
        for path in self._folder.iterdir() if self._folder.is_dir() else ():
            if path.is_dir() and path.name not in kept:
                shutil.rmtree(path, ignore_errors=True)

    def folder(self, manifest: str) -> Path:
        return self._folder / manifest

    def place(self, release: Release, names: Iterable[str]) -> Path:
        """The files of a release under their own names, on disk when this returns; HomeError if they cannot be."""
        folder = self.folder(release.sha256)
        aside = folder.with_suffix(".part")
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            for old in (aside, folder):
                shutil.rmtree(old, ignore_errors=True)
            aside.mkdir(mode=0o700)
            for name in names:
                shutil.copyfile(release.path(name), aside / name)
            (aside / MANIFEST).write_bytes(encode(release.manifest))
            for path in (*aside.iterdir(), aside):
                _sync(path)
            aside.rename(folder)
            _sync(self._folder)
        except OSError as error:
            raise HomeError(f"{folder} cannot be written: {error.strerror}") from error
        return folder

    def intact(self, placed: Placed) -> bool:
        """Whether its files are what its release says."""
        folder = self.folder(placed.manifest)
        try:
            manifest = decode(Manifest, (folder / MANIFEST).read_bytes())
            found = {path.name: path.read_bytes() for path in folder.iterdir() if manifest.file(path.name)}
        except (OSError, ProtocolError):
            return False
        needed = {model_card.CARD, model_card.weights(placed.width)}
        known = {file.name: file.sha256 for file in manifest.files}
        return needed <= found.keys() and all(
            hashlib.sha256(content).hexdigest() == known[name] for name, content in found.items()
        )

    def load(self, placed: Placed, backend: str, threads: int = 1) -> Predictor:
        return Predictor(self.folder(placed.manifest), placed.width, backend, threads)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class Tally:
    """How a model has done since it was loaded; of its times the newest count."""

    def __init__(self) -> None:
        self.answered = self.failed = 0
        self._times: deque[float] = deque(maxlen=500)

    def add(self, milliseconds: float) -> None:
        self.answered += 1
        self._times.append(milliseconds)

    @property
    def milliseconds(self) -> float | None:
        """The median."""
        times = list(self._times)
        return float(np.median(times)) if times else None


@frozen
class Answering:
    """A loaded model, and how it does."""

    predictor: Predictor
    tally: Tally = field(factory=Tally)

    def __call__(self, x: Array) -> Prediction:
        """The answer to a sample of the model's shape; ModelError if it cannot give one."""
        try:
            found = self.predictor(x)
        except ModelError:
            self.tally.failed += 1
            raise
        self.tally.add(found.milliseconds)
        return found


class InUse:
    """The model in use, for any thread. When another one is, it is loaded with the next question; who is being
    answered by the one before is answered."""

    def __init__(self, shelf: Shelf, backend: str, threads: int = 1) -> None:
        self.shelf = shelf
        self.backend = backend
        self.threads = threads
        self._lock = threading.Lock()
        self._mark: tuple[int, int] | None = None
        self._placed: Placed | None = None
        self._loaded: Answering | None = None
        self._trouble: ModelError | None = None

    @property
    def model(self) -> Answering:
        """The one in use now; NoModel, or ModelError if it cannot be loaded."""
        with self._lock:
            while (mark := self.shelf.mark) != self._mark:  # it may have changed while it was loaded
                self._mark = mark
                self._follow(self.shelf.pointer.now)
            if self._trouble is not None:
                raise ModelError(str(self._trouble))
            if self._loaded is None:
                raise NoModel("no model is deployed on this device")
            return self._loaded

    def _follow(self, now: Placed | None) -> None:
        if now == self._placed and self._loaded is not None:
            return  # it was on trial, and is no more
        self._placed, self._loaded, self._trouble = now, None, None
        if now is None:
            return
        try:
            self._loaded = Answering(self.shelf.load(now, self.backend, self.threads))
        except ModelError as error:
            log.warning("model-unusable version=%s cause=%r", now.version, str(error))
            self._trouble = error
