"""What a released model is, for the device that is to use it: the file ``model.json`` of a release of the kind model.

Beside it lie, for each width w, the compiled signature ``infer`` with batch 1 as ``infer-w.tflite`` and, for NumPy,
``infer-w.json``, and as ``weights-w`` (:mod:`protocol.tensors`) the weights cut to w with statistics of batch norms. A
release's facts say before anything is fetched what each width needs and reaches, and what a device may accept.
"""

from __future__ import annotations

from collections.abc import Mapping

from attrs import field, frozen, validators

from . import fields
from .fields import between, check
from .messages import Message

CARD = "model.json"

ACCURACY, MEMORY = "accuracy", "memory"
"""Facts of each width: share of the test set that it gets right; bytes, as :attr:`ModelSize.memory`."""
MAX_ACCURACY_DROP, MAX_MILLISECONDS, MAX_MEMORY = "max-accuracy-drop", "max-milliseconds", "max-memory"
"""Facts that bound what a device accepts: how much less than the model before may be right on its own hold-out
(0 to 1), what one sample may take, bytes a model may need. One that is not there binds nobody."""


def artifact(width: float, backend: str) -> str:
    """Name of the compiled file that ``backend`` reads."""
    return f"infer-{width:g}.{'json' if backend == 'numpy' else 'tflite'}"


def weights(width: float) -> str:
    """Name of the file of weights."""
    return f"weights-{width:g}"


def widths(facts: Mapping[str, float]) -> list[float]:
    """The widths a release's facts tell of, the widest first."""
    found = []
    for name in facts:
        kind, dash, width = name.partition("-")
        if dash and kind == MEMORY:
            try:
                found.append(float(width))
            except ValueError:
                continue
    return sorted((width for width in found if 0 < width <= 1), reverse=True)


def fact(facts: Mapping[str, float], kind: str, width: float) -> float | None:
    """The fact of a width, e.g. ``accuracy-0.5``."""
    return facts.get(f"{kind}-{width:g}")


@frozen(kw_only=True)
class ModelSize(Message):
    """The part that ``width`` keeps: ``flops`` of one sample, ``bytes`` of its weights, and ``memory``, the bytes that
    loading and running it takes: weights twice, program, what lies between the layers. ``accuracy`` on the
    coordinator's test set, where there is one."""

    width: float = field(validator=between(1 / 1024, 1))
    flops: int = field(validator=fields.natural)
    bytes: int = field(validator=fields.natural)
    memory: int = field(validator=fields.natural)
    accuracy: float | None = field(default=None, validator=validators.optional(between(0, 1)))


def _sized(sizes: tuple[ModelSize, ...]) -> bool:
    return 0 < len(sizes) <= 16 and len({size.width for size in sizes}) == len(sizes)


@frozen(kw_only=True)
class ModelCard(Message):
    """``input``: shape of a sample, of one of so many ``classes``. It is version ``version`` of the run ``run``, whose
    weights have the hash ``sha256``.
    """

    model: str = field(validator=check(lambda value: fields.storable(value, 80), "at most 80 characters"))
    input: tuple[int, ...] = field(validator=fields.sizes)
    classes: int = field(validator=between(1, 1_000_000))
    run: str = field(validator=fields.name)
    version: int = field(validator=fields.count)
    sha256: str = field(validator=fields.sha256)
    sizes: tuple[ModelSize, ...] = field(validator=check(_sized, "1 to 16 sizes of different widths"))

    def size(self, width: float) -> ModelSize | None:
        return next((size for size in self.sizes if size.width == width), None)
