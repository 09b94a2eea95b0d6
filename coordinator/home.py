"""The home folder belongs to one process at a time."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import IO

from coordinator.errors import ShoalError


def claim(home: Path) -> IO[str]:
    """Make the folder if need be, and hold it until the file is closed or the process ends; ShoalError home-unusable
    while another coordinator or command holds it."""
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)  # keys, secrets and everybody's history
        file = open(home / "lock", "a")  # noqa: SIM115 - held until the end
    except OSError as error:
        raise ShoalError("home-unusable", f"The home folder {home} cannot be written: {error.strerror}") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise ShoalError("home-unusable", f"Another coordinator is running in {home}") from error
    return file
