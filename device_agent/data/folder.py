"""Files that come and go: which ones are there, which are finished, and whether anything changed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from attrs import frozen

from device_agent.errors import DataError

MAX_FILES = 1_000_000
_TEMPORARY = (".tmp", ".part", ".partial", ".swp", "~")


@frozen
class Listing:
    """``files`` in the order of their names; ``unsettled``: how many are left out because they are being written."""

    files: tuple[Path, ...]
    unsettled: int = 0


def listing(path: Path, suffixes: tuple[str, ...], settled_before: float) -> Listing:
    """The files with one of ``suffixes`` below ``path``, or ``path`` itself.

    Left out are hidden files, those with a temporary name, and those modified after ``settled_before`` (seconds
    since 1970): somebody may still be writing them.
    """
    if not path.is_dir():
        return Listing((path,))
    files, unsettled = [], 0
    for entry in _walk(path):
        if Path(entry.name).suffix.lower() not in suffixes or entry.name.startswith("."):
            continue
        if entry.stat().st_mtime > settled_before:
            unsettled += 1
            continue
        files.append(Path(entry.path))
        if len(files) > MAX_FILES:
            raise DataError(f"{path} holds more than {MAX_FILES} files, expected at most that many")
    return Listing(tuple(sorted(files)), unsettled)


def fingerprint(path: Path, settled_before: float) -> str:
    """Another text whenever a finished file was added, changed or taken away."""
    known = hashlib.sha256()
    if path.is_dir():
        entries = sorted((e.path, e.stat()) for e in _walk(path))
        found = [(name, stat) for name, stat in entries if stat.st_mtime <= settled_before]
    else:
        # A database's newest rows are in the log beside it.
        beside = [path, path.with_name(path.name + "-wal")]
        found = [(str(one), one.stat()) for one in beside if one.exists()]
    for name, stat in found:
        known.update(f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\0{stat.st_ino}\n".encode(errors="surrogateescape"))
    return known.hexdigest()


def label(file: Path, root: Path) -> str:
    """The class a file belongs to: the first folder below ``root``."""
    parts = file.relative_to(root).parts
    if len(parts) < 2:
        raise DataError(f"{file} lies in no folder named after its class, expected {root}/CLASS/{file.name}")
    return parts[0]


def _walk(path: Path) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    if not entry.name.startswith("."):
                        yield from _walk(Path(entry.path))
                elif not entry.name.endswith(_TEMPORARY) and entry.is_file():
                    yield entry
    except FileNotFoundError:  # gone while we looked
        return
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
