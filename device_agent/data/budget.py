"""How much memory samples may take, asked before any is taken."""

from __future__ import annotations

import math
from pathlib import Path

from attrs import frozen

from device_agent.errors import DataError
from device_agent.telemetry import memory_available

SHARE = 0.6  # of the memory that is free: the model and the system need the rest


@frozen
class Budget:
    """``limit`` in bytes, infinite where neither a setting nor the system says."""

    name: str
    limit: float

    def ask(self, size: int) -> None:
        """DataError if ``size`` bytes are too many."""
        if size > self.limit:
            raise DataError(
                f"{self.name} takes {size / 1e6:.1f} MB in memory or more, {self.limit / 1e6:.1f} MB may be used: take "
                "fewer samples, keep them as x.npy and y.npy, which need not fit, or set memory_bytes in [data]"
            )


def budget(name: str, memory_bytes: int | None, root: Path = Path("/")) -> Budget:
    """The setting, otherwise a share of what is free now."""
    free = memory_available(root)
    known = math.inf if free is None else SHARE * free
    return Budget(name, known if memory_bytes is None else memory_bytes)
