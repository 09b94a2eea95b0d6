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


# Milliseconds of a step of 32, x86-64 with AVX-512, one thread. dscnn as operator or as taps: litert 22.6 27.5, tflite
# 51.5 26.5, numpy 37.8 39.8. resnet8 for products of 8, 16 or 32 columns: litert 67.9 66.5 58.7, tflite 54.4 55.8 54.4,
# numpy 72.9 77.2 84.7.
TARGETS: dict[str, Target] = {
    "litert": Target(),
    "tflite": Target(depthwise="taps", patch_bytes=4 << 20),
    "numpy": Target(columns=8, patch_bytes=2 << 20),
}


def target_of(runtime: str) -> str:
    """The target for a device that names its runtime, such as ``tflite`` or ``tflite-2.14``; litert for others."""
    name = runtime.partition("-")[0]
    return name if name in TARGETS else "litert"


def reads(target: str, content: bytes) -> bool:
    """Whether a runtime reads an artifact of this form: ``numpy`` programs, all others model files."""
    return (content[:1] == b"{") == (target == "numpy")
