"""Bytes by their sha256, as files: artifacts, cut weights, snapshots."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from coordinator.errors import ShoalError

_NAME = re.compile(r"[0-9a-f]{64}")


class Blobs:
    """Content-addressed files below one folder. Any thread may use it; writing the same bytes twice is harmless."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, sha256: str) -> Path:
        if not _NAME.fullmatch(sha256):
            raise ShoalError("not-found", f"{sha256[:80]!r} is not the sha256 of a blob")
        return self.folder / sha256[:2] / sha256

    def put(self, content: bytes, *, durable: bool = False) -> str:
        """Store bytes and return their sha256; ``durable`` waits until they survive a power cut."""
        sha256 = hashlib.sha256(content).hexdigest()
        path = self.path(sha256)
        if path.exists() and path.stat().st_size == len(content):  # a power cut may have left less
            return sha256
        path.parent.mkdir(parents=True, exist_ok=True)
        # The name of a blob must never point at half of it: write aside, then rename.
        aside = path.with_name(f".{sha256}.{os.getpid()}.{os.urandom(4).hex()}")
        try:
            with open(aside, "wb") as file:
                file.write(content)
                if durable:
                    file.flush()
                    os.fsync(file.fileno())
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)
        if durable:
            _sync_folder(path.parent)
        return sha256

    def has(self, sha256: str, size: int | None = None) -> bool:
        """Whether the file is there, and of that size if one is given; its bytes are not looked at."""
        try:
            return size in (None, self.path(sha256).stat().st_size)
        except OSError:
            return False

    def get(self, sha256: str) -> bytes:
        """The bytes; ShoalError not-found if they are gone or damaged."""
        try:
            content = self.path(sha256).read_bytes()
        except OSError as error:
            raise ShoalError("not-found", f"There is no blob {sha256}") from error
        if hashlib.sha256(content).hexdigest() != sha256:
            raise ShoalError("not-found", f"Blob {sha256} is damaged on disk")
        return content

    def size(self, sha256: str) -> int:
        """Bytes of a blob; ShoalError not-found."""
        try:
            return self.path(sha256).stat().st_size
        except OSError as error:
            raise ShoalError("not-found", f"There is no blob {sha256}") from error

    def remove(self, sha256: str) -> None:
        self.path(sha256).unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
