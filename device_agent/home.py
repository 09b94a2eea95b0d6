"""The agent's home: one agent at a time, and what its owner and its other commands leave in it."""

from __future__ import annotations

import errno
import fcntl
import os
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO

from .errors import HomeError

LOCK = "agent.lock"
PAUSED = "paused"
"""Exists while the device is to rest: its owner said so here, or a command from the coordinator."""


class Home:
    """The lock on an agent's home: two agents must not share a spool."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[str] | None = None

    def __enter__(self) -> Home:
        try:
            self._file = _opened(self._path / LOCK)
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with suppress(OSError):  # on a full disk the lock counts all the same
                self._file.truncate(0)
                self._file.write(str(os.getpid()))
                self._file.flush()
        except BlockingIOError as error:
            raise HomeError(
                f"another agent runs in {self._path}; stop it first, or give this one --home"
            ) from error
        except OSError as error:
            raise HomeError(f"{self._path} cannot be written: {error.strerror}") from error
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self._file is not None:
            self._file.close()


def _opened(path: Path) -> IO[str]:
    try:
        return open(path, "a+")
    except OSError as error:
        if error.errno != errno.EROFS or not path.exists():
            raise
        return open(path)  # a lock needs no more


def running(home: Path) -> bool:
    """Whether an agent runs in ``home``."""
    try:
        with open(home / LOCK) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False


def paused(home: Path) -> bool:
    """Whether the device is to rest; so it stays over restarts."""
    return (home / PAUSED).exists()


def pause(home: Path) -> None:
    """Let the device rest until :func:`resume`: no check-in, and training stands still from the next batch on."""
    try:
        (home / PAUSED).touch()
    except OSError as error:
        raise HomeError(f"{home / PAUSED} cannot be written: {error.strerror}") from error


def resume(home: Path) -> None:
    try:
        (home / PAUSED).unlink(missing_ok=True)
    except OSError as error:
        raise HomeError(f"{home / PAUSED} cannot be removed: {error.strerror}") from error
