"""Work in a process of its own that is killed at some moment, as a power cut would."""

from __future__ import annotations

import multiprocessing
import random
import time
from collections.abc import Callable

FORK = multiprocessing.get_context("fork")


def seconds(work: Callable[[], object]) -> float:
    """How long the work takes when nobody disturbs it."""
    process = FORK.Process(target=work)
    began = time.monotonic()
    process.start()
    process.join()
    assert process.exitcode == 0
    return time.monotonic() - began


def killed(work: Callable[[], object], within: float, seed: int) -> None:
    """Kill it at a moment that the seed chooses; it may have ended before."""
    process = FORK.Process(target=work)
    process.start()
    time.sleep(random.Random(seed).uniform(0.05, 1.0) * within)
    process.kill()
    process.join()
