"""Blobs of a simulation: what devices would fetch stays in memory, snapshots go to disk."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

from coordinator.store.blobs import Blobs


class Attic(Blobs):
    """``content`` holds what was put without wishing it durable."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.content: dict[str, bytes] = {}
        self._lent: Counter[str] = Counter()
        self._unwanted: set[str] = set()

    def put(self, content: bytes, *, durable: bool = False) -> str:
        if durable:
            return super().put(content, durable=True)
        sha256 = hashlib.sha256(content).hexdigest()
        self._unwanted.discard(sha256)
        self.content[sha256] = content
        return sha256

    def has(self, sha256: str, size: int | None = None) -> bool:
        known = self.content.get(sha256)
        return super().has(sha256, size) if known is None else size in (None, len(known))

    def get(self, sha256: str) -> bytes:
        known = self.content.get(sha256)
        return super().get(sha256) if known is None else known

    def size(self, sha256: str) -> int:
        known = self.content.get(sha256)
        return super().size(sha256) if known is None else len(known)

    def lend(self, sha256: str) -> None:
        """Somebody uses it: until it is handed back it stays, whoever removes it."""
        self._lent[sha256] += 1

    def handed_back(self, sha256: str) -> None:
        self._lent[sha256] -= 1
        if self._lent[sha256] <= 0:
            del self._lent[sha256]
            if sha256 in self._unwanted:
                self.remove(sha256)

    def remove(self, sha256: str) -> None:
        if sha256 in self._lent:
            self._unwanted.add(sha256)
            return
        self._unwanted.discard(sha256)
        if self.content.pop(sha256, None) is None:
            super().remove(sha256)
