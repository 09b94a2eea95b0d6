"""Keeping glibc from holding on to memory that a small board needs elsewhere. Elsewhere these do nothing."""

from __future__ import annotations

import ctypes
import gc
import linecache

_ARENA_MAX = -8  # M_ARENA_MAX of <malloc.h>


def be_frugal() -> None:
    """One malloc arena for all threads instead of one each. Call before the threads are started."""
    _call("mallopt", _ARENA_MAX, 1)
    linecache.clearcache()  # attrs puts the source of every method it makes there
    gc.collect()
    give_back()


def give_back() -> None:
    """Return to the system what is free between two phases of work.

    Lower malloc thresholds would do so all the time, but halve the speed of training.
    """
    _call("malloc_trim", 0)


def _call(name: str, *arguments: int) -> None:
    try:
        function = getattr(ctypes.CDLL(None), name)
    except (OSError, AttributeError):
        return
    function(*arguments)
