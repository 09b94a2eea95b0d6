"""Which form of an operation each runtime is fastest at, as measured.

Artifacts run on every runtime whatever they were compiled for.
"""

from __future__ import annotations

from attrs import frozen

from .depthwise import Lowering


@frozen
class Target:
    """``depthwise``: how depthwise convolutions run; ``columns`` a matrix product needs to be at full speed;
    ``patch_bytes`` of one slice of gathered patches.
    """

    depthwise: Lowering = "operator"
    columns: int = 32
    patch_bytes: int = 6 << 20


TARGETS: dict[str, Target] = {
    "litert": Target(),
    "tflite": Target(depthwise="taps", columns=16, patch_bytes=2 << 20),
    "numpy": Target(depthwise="taps", columns=16, patch_bytes=2 << 20),
}
