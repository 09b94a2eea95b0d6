"""Blobs over HTTP: resumed where they broke off, kept by hash in a cache of bounded size."""

from __future__ import annotations

import base64
import hashlib
import http.client
import os
import time
from collections.abc import Callable, Collection
from pathlib import Path
from random import Random
from typing import BinaryIO

from attrs import frozen

from protocol.messages import Blob

from .address import Address

PIECE = 64 * 1024
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0  # seconds between attempts
CORRUPT = 3  # times that a blob may come with other bytes than those of its hash


class DownloadFailed(Exception):
    """The blob cannot be had. The text says why."""


class _Again(Exception):
    """This attempt failed; another may not. ``wait``: seconds the coordinator asked for."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


class _Corrupt(_Again):
    """All of it came, but it is not what it should be."""


@frozen
class Fetching:
    """How long and how patiently: give up after ``patience`` seconds or when ``cancelled()``.

    ``sleep(seconds)`` may return early.
    """

    patience: float
    cancelled: Callable[[], bool]
    sleep: Callable[[float], object]
    rng: Random
    clock: Callable[[], float] = time.monotonic


class Blobs:
    """The cache in ``directory``: at most ``limit`` bytes, what was used longest ago goes first.

    ``trouble``: why the last attempt to fetch a blob failed, None once one has come.
    ``shelf``: where the coordinator has them, as the last part but one of their path.
    """

    def __init__(
        self, directory: Path, limit: int, address: Address, device: str, secret: str, shelf: str = "blobs"
    ) -> None:
        self._directory = directory
        self.limit = limit
        self._address = address
        self._shelf = shelf
        self._device = device
        self.trouble: str | None = None
        self.reauthenticate(secret)

    def reauthenticate(self, secret: str) -> None:
        """From the next request on, the device's secret is this one."""
        login = base64.b64encode(f"{self._device}:{secret}".encode()).decode()
        self._headers = {"Authorization": f"Basic {login}", "Accept-Encoding": "identity"}

    def cached(self, blob: Blob) -> bytes | None:
        """The blob's bytes if they are here and unharmed."""
        path = self._directory / blob.sha256
        try:
            data = path.read_bytes()
        except OSError:
            return None
        if hashlib.sha256(data).hexdigest() != blob.sha256:
            path.unlink(missing_ok=True)
            return None
        os.utime(path)
        return data

    def _here(self, blob: Blob) -> bool:
        """The same, without having its bytes in memory at once."""
        path = self._directory / blob.sha256
        try:
            if _digest(path) == blob.sha256:
                os.utime(path)
                return True
            path.unlink(missing_ok=True)
        except OSError:
            pass
        return False

    def fetch(self, blob: Blob, keep: Collection[Blob], fetching: Fetching) -> int:
        """Have the blob in the cache; the bytes that came over the wire for it. Those of ``keep`` stay."""
        if self._here(blob):
            self.trouble = None
            return 0
        try:
            self._make_room(blob, {other.sha256 for other in keep})
            return self._persist(blob, fetching)
        except OSError as error:
            raise DownloadFailed(f"blob {blob.sha256[:12]} cannot be written: {error.strerror}") from error

    def _persist(self, blob: Blob, fetching: Fetching) -> int:
        """Attempt until the blob is whole, with exponential waits and full jitter."""
        part = self._directory / f"{blob.sha256}.part"
        deadline = fetching.clock() + fetching.patience
        wait, total, corrupt, reason = FIRST_WAIT, 0, 0, "there was no time"
        while not fetching.cancelled() and fetching.clock() < deadline:
            before = part.stat().st_size if part.exists() else 0
            try:
                self._attempt(blob, part, fetching.cancelled)
                self.trouble = None
                return total + blob.size - before
            except _Again as again:
                after = part.stat().st_size if part.exists() else 0
                total += max(0, after - before)
                wait = FIRST_WAIT if after > before else wait
                self.trouble = reason = str(again)
                corrupt += isinstance(again, _Corrupt)
                if corrupt == CORRUPT:
                    break
                pause = again.wait if again.wait is not None else wait * fetching.rng.uniform(0, 1)
            fetching.sleep(min(pause, max(0.0, deadline - fetching.clock())))
            wait = min(2 * wait, LONGEST_WAIT)
        raise DownloadFailed(f"blob {blob.sha256[:12]} could not be fetched: {reason}")

    def _attempt(self, blob: Blob, part: Path, cancelled: Callable[[], bool]) -> None:
        start = part.stat().st_size if part.exists() else 0
        if start > blob.size:
            part.unlink()
            start = 0
        if start < blob.size:
            connection = self._address.connect()
            try:
                self._receive(connection, blob, part, start, cancelled)
            except (OSError, http.client.HTTPException) as error:
                if isinstance(error, OSError) and error.filename is not None:
                    raise  # the disk, not the network
                raise _Again(f"{self._address.url}: {str(error) or type(error).__name__}") from error
            finally:
                connection.close()
        if part.stat().st_size < blob.size:
            raise _Again("the connection broke off")
        if _digest(part) != blob.sha256:
            part.unlink()
            raise _Corrupt("its bytes are not those of its hash")
        part.replace(self._directory / blob.sha256)

    def _receive(
        self,
        connection: http.client.HTTPConnection,
        blob: Blob,
        part: Path,
        start: int,
        cancelled: Callable[[], bool],
    ) -> None:
        headers = self._headers | ({"Range": f"bytes={start}-"} if start else {})
        connection.request(
            "GET", f"{self._address.prefix}/api/v1/device/{self._shelf}/{blob.sha256}", headers=headers
        )
        reply = connection.getresponse()
        _judge(reply, blob, part)
        if reply.status == 200 or not (reply.getheader("Content-Range") or "").startswith(f"bytes {start}-"):
            if reply.status == 206:
                raise _Again("the coordinator sent another range than was asked for")
            start = 0
        announced = int(reply.getheader("Content-Length") or blob.size - start)
        if start + announced > blob.size:
            part.unlink(missing_ok=True)
            raise DownloadFailed(f"blob {blob.sha256[:12]} has more than the announced {blob.size} bytes")
        with part.open("ab" if start else "wb") as file:
            left = blob.size - start
            while left and not cancelled() and (piece := reply.read(min(PIECE, left))):
                left -= len(piece)
                _write(file, piece)

    def _make_room(self, blob: Blob, keep: Collection[str]) -> None:
        self._directory.mkdir(mode=0o700, exist_ok=True)
        if blob.size > self.limit:
            raise DownloadFailed(
                f"blob {blob.sha256[:12]} has {blob.size} bytes, the cache holds {self.limit}"
            )
        files = sorted((p.stat().st_mtime_ns, p.stat().st_size, p) for p in self._directory.iterdir())
        used = sum(size for _, size, _ in files)
        for _, size, path in files:
            if used + blob.size <= self.limit:
                return
            if path.name.partition(".")[0] not in {*keep, blob.sha256}:
                path.unlink(missing_ok=True)
                used -= size


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write(file: BinaryIO, piece: bytes) -> None:
    try:
        file.write(piece)
        file.flush()
    except OSError as error:
        error.filename = file.name  # so that nobody takes it for the network's
        raise


def _judge(reply: http.client.HTTPResponse, blob: Blob, part: Path) -> None:
    """Raise unless the reply carries bytes."""
    name = f"blob {blob.sha256[:12]}"
    if reply.status in (200, 206):
        return
    if reply.status in (404, 410):
        raise DownloadFailed(f"{name} is gone from the coordinator")
    if reply.status in (401, 403):
        raise DownloadFailed(f"the coordinator does not allow this device {name} (status {reply.status})")
    if reply.status == 416:
        part.unlink(missing_ok=True)
        raise _Again("the coordinator cannot resume it")
    raise _Again(f"the coordinator answered with status {reply.status}", _retry_after(reply))


def _retry_after(reply: http.client.HTTPResponse) -> float | None:
    text = reply.getheader("Retry-After") or ""
    return min(float(text), 600.0) if text.isdecimal() else None
