"""The model by which every board measures its speed: compiled here, carried by the agent.

``python -m coordinator.compiler.reference device_agent/reference`` writes it anew; a test holds the two together.
"""

from __future__ import annotations

import sys
from pathlib import Path

from protocol.subnetwork import nested

from .compile import compile_model
from .shapes import layout
from .spec import Conv2D, Dense, Flatten, MaxPool, ModelSpec, Relu

REFERENCE = ModelSpec(
    "reference",
    (28, 28, 1),
    10,
    (Conv2D(16, (3, 3)), Relu(), MaxPool((4, 4)), Flatten(), Dense(64), Relu(), Dense(10)),
)
BATCH = 16
WIDTHS = ("1", "0.5", "0.25", "0.125")


def files() -> dict[str, bytes]:
    """File name to content: a model file and a program for every width."""
    found: dict[str, bytes] = {}
    for width in WIDTHS:
        artifact = compile_model(REFERENCE, nested(layout(REFERENCE), float(width)), BATCH)
        found |= {f"{width}.tflite": artifact.content, f"{width}.json": artifact.program}
    return found


def main(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for name, content in files().items():
        (folder / name).write_bytes(content)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
