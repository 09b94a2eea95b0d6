"""Settings of the training data, and what every kind of source hands over."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import field, frozen

from device_agent.errors import DataError
from device_agent.setting import setting

if TYPE_CHECKING:  # settings are read before anything as large as NumPy is loaded
    from numpy.typing import NDArray

KINDS = ("npz", "csv", "images", "sqlite", "wav", "python")
_SUFFIXES = {".npz": "npz", ".npy": "npz", ".csv": "csv", ".tsv": "csv", ".wav": "wav"}


@frozen(kw_only=True)
class Source:
    """Settings ``[data]``.

    ``classes`` names the labels in the order of the model's class numbers; without it labels are class numbers, of
    which there are ``class_count``. ``shape`` is that of one sample. ``holdout`` is the share of samples kept out of
    training, drawn by ``seed``. A file that was written less than ``settle`` seconds ago is left alone; the source is
    looked at ``every`` so many seconds. ``memory_bytes``: what the samples may take in memory.
    """

    source: str | None = setting(None, one_of=KINDS)
    path: Path | None = field(default=None)
    classes: tuple[str, ...] | None = setting()
    class_count: int | None = setting(None, 1, 1_000_000)
    shape: tuple[int, ...] | None = setting(None, 1, 1 << 24)
    label: str = setting("label")
    query: str | None = setting()
    function: str | None = setting()
    color: str = setting("grey", one_of=("grey", "rgb"))
    rate: int = setting(16000, 1000, 192_000)
    seconds: float = setting(1.0, 0.01, 600)
    window: float = setting(0.025, 0.001, 1)
    hop: float = setting(0.010, 0.001, 1)
    mels: int = setting(40, 1, 512)
    holdout: float = setting(0.0, 0, 0.9)
    seed: int = setting(0, 0, (1 << 63) - 1)
    settle: float = setting(2.0, 0, 3600)
    every: float = setting(30.0, 0.1, 86400)
    memory_bytes: int | None = setting(None, 1 << 10, 1 << 50)

    @property
    def kind(self) -> str:
        """One of KINDS; DataError if it is neither said nor seen from the path."""
        if self.source is not None:
            return self.source
        if self.function is not None:
            return "python"
        if self.path is not None and self.path.suffix.lower() in _SUFFIXES:
            return _SUFFIXES[self.path.suffix.lower()]
        raise DataError(
            f"what {self.path or 'the data'} holds cannot be seen from its name: set source to one of "
            f"{', '.join(KINDS)} in [data]"
        )

    @property
    def name(self) -> str:
        """What sentences call it."""
        return self.function or str(self.path) if self.kind == "python" else str(self.path)

    def where(self) -> Path:
        """The path; DataError if there is none or nothing is there."""
        if self.path is None:
            raise DataError(f"the source {self.kind} needs a path in [data]")
        if not self.path.exists():
            raise DataError(f"the data {'file ' if self.path.suffix else ''}{self.path} does not exist")
        return self.path


@frozen(eq=False)
class Samples:
    """``x`` [n, ...] float or uint8; ``labels`` [n]: class numbers, or words for the class map.

    ``classes``: how many the source says there are, if it does. ``skipped``: files that could not be read, and why.
    """

    x: NDArray[Any]
    labels: NDArray[Any]
    classes: NDArray[Any] | None = None
    skipped: tuple[str, ...] = field(default=())


class Unreadable(Exception):
    """One file of many is no file of its kind, or not yet: the others are read without it."""
