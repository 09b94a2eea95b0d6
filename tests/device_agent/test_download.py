"""Blobs over real HTTP: resumed, checked, bounded, patient where that helps and quick where it does not."""

from __future__ import annotations

import base64
import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random
from typing import Any

import pytest

from device_agent.address import Address
from device_agent.download import Blobs, DownloadFailed, Fetching
from protocol.messages import Blob
from tests.device_agent.full_disk import full_disk

CONTENT = Random(0).randbytes(300_000)


def named(content: bytes) -> Blob:
    return Blob(sha256=hashlib.sha256(content).hexdigest(), size=len(content))


BLOB = named(CONTENT)


class Server:
    """Serves ``blobs`` with Range. ``moods`` are what happens to the next requests, then all goes well."""

    def __init__(self) -> None:
        self.blobs = {BLOB.sha256: CONTENT}
        self.moods: list[Any] = []
        self.asked: list[str | None] = []
        self.login: list[str | None] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                pass

            def do_GET(self) -> None:
                server.answer(self)

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.02,))
        self.thread.start()

    def close(self) -> None:
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()

    def answer(self, to: BaseHTTPRequestHandler) -> None:
        wanted = to.headers["Range"]
        self.asked.append(wanted)
        self.login.append(to.headers["Authorization"])
        mood = self.moods.pop(0) if self.moods else None
        content = self.blobs.get(to.path.rpartition("/")[2])
        if isinstance(mood, int):
            to.send_response(mood)
            to.send_header("Retry-After", "7")
            to.send_header("Content-Length", "0")
            to.end_headers()
            return
        if content is None:
            to.send_error(404)
            return
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and mood != "no-range" else 0
        if mood == "lie":
            content = bytes(len(content))
        if mood == "too-much":
            content += b"more"
        part = content[start:]
        to.send_response(206 if start else 200)
        if start:
            shift = 1 if mood == "shifted" else 0
            to.send_header("Content-Range", f"bytes {start + shift}-{len(content) - 1}/{len(content)}")
        to.send_header("ETag", f'"{BLOB.sha256}"')
        if mood != "unsized":
            to.send_header("Content-Length", str(len(part)))
        to.end_headers()
        to.wfile.write(part[:100_000] if mood == "cut" else part)


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


class Patience:
    """Time that passes only while something sleeps."""

    def __init__(self, seconds: float = 1000) -> None:
        self.now = 0.0
        self.slept: list[float] = []
        self.stop = False
        self.fetching = Fetching(seconds, lambda: self.stop, self.sleep, Random(1), lambda: self.now)

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def blobs(server: Server, home: Path, limit: int = 1 << 20) -> Blobs:
    address = Address("127.0.0.1", server.http.server_port, False)
    return Blobs(home / "blobs", limit, address, "pi-1", "secret")


def test_a_blob_is_fetched_once(server: Server, tmp_path: Path) -> None:
    cache = blobs(server, tmp_path)
    assert cache.fetch(BLOB, (), Patience().fetching) == 300_000
    assert cache.cached(BLOB) == CONTENT
    assert cache.fetch(BLOB, (), Patience().fetching) == 0
    assert server.asked == [None]
    assert server.login == ["Basic " + base64.b64encode(b"pi-1:secret").decode()]


def test_a_cut_connection_is_resumed_where_it_broke(server: Server, tmp_path: Path) -> None:
    server.moods = ["cut", "cut"]
    cache = blobs(server, tmp_path)
    assert cache.fetch(BLOB, (), Patience().fetching) == 300_000
    assert server.asked == [None, "bytes=100000-", "bytes=200000-"]
    assert cache.cached(BLOB) == CONTENT


def test_a_part_of_an_earlier_process_is_resumed(server: Server, tmp_path: Path) -> None:
    cache = blobs(server, tmp_path)
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / f"{BLOB.sha256}.part").write_bytes(CONTENT[:250_000])
    assert cache.fetch(BLOB, (), Patience().fetching) == 50_000
    assert cache.cached(BLOB) == CONTENT


def test_a_server_without_ranges_starts_over(server: Server, tmp_path: Path) -> None:
    server.moods = ["cut", "no-range"]
    cache = blobs(server, tmp_path)
    cache.fetch(BLOB, (), Patience().fetching)
    assert cache.cached(BLOB) == CONTENT


def test_another_range_than_asked_for_is_not_believed(server: Server, tmp_path: Path) -> None:
    server.moods = ["cut", "shifted"]
    cache = blobs(server, tmp_path)
    cache.fetch(BLOB, (), Patience().fetching)
    assert len(server.asked) == 3
    assert cache.cached(BLOB) == CONTENT


def test_a_range_that_cannot_be_served_starts_over(server: Server, tmp_path: Path) -> None:
    server.moods = ["cut", 416]
    cache = blobs(server, tmp_path)
    cache.fetch(BLOB, (), Patience().fetching)
    assert server.asked == [None, "bytes=100000-", None]


def test_wrong_bytes_are_thrown_away_and_asked_for_again(server: Server, tmp_path: Path) -> None:
    server.moods = ["lie"]
    cache = blobs(server, tmp_path)
    cache.fetch(BLOB, (), Patience().fetching)
    assert server.asked == [None, None]
    assert cache.cached(BLOB) == CONTENT


def test_bytes_that_stay_wrong_are_given_up(server: Server, tmp_path: Path) -> None:
    server.moods = ["lie"] * 1000
    patience = Patience(100)
    with pytest.raises(DownloadFailed, match="not those of its hash"):
        blobs(server, tmp_path).fetch(BLOB, (), patience.fetching)
    assert patience.now <= 101


def test_a_full_disk_is_not_taken_for_a_broken_network(server: Server, tmp_path: Path) -> None:
    cache = blobs(server, tmp_path)
    with full_disk(10_000), pytest.raises(DownloadFailed, match="cannot be written: File too large"):
        cache.fetch(BLOB, (), Patience().fetching)
    assert server.asked == [None]
    cache.fetch(BLOB, (), Patience().fetching)
    assert cache.cached(BLOB) == CONTENT


@pytest.mark.parametrize("mood", ["too-much", "unsized"])
def test_never_more_than_was_announced(server: Server, tmp_path: Path, mood: str) -> None:
    short = Blob(sha256=BLOB.sha256, size=200_000)
    server.moods = [mood] * 1000
    with pytest.raises(DownloadFailed):
        blobs(server, tmp_path).fetch(short, (), Patience(20).fetching)
    assert sum(path.stat().st_size for path in (tmp_path / "blobs").iterdir()) <= 200_000


@pytest.mark.parametrize(
    ("status", "sentence"), [(404, "is gone"), (401, "does not allow"), (403, "does not allow")]
)
def test_a_clear_no_is_not_asked_again(server: Server, tmp_path: Path, status: int, sentence: str) -> None:
    server.moods = [status]
    with pytest.raises(DownloadFailed, match=sentence):
        blobs(server, tmp_path).fetch(BLOB, (), Patience().fetching)
    assert len(server.asked) == 1


def test_a_busy_coordinator_says_how_long_to_wait(server: Server, tmp_path: Path) -> None:
    server.moods = [503, 503]
    patience = Patience()
    blobs(server, tmp_path).fetch(BLOB, (), patience.fetching)
    assert patience.slept == [7, 7]


def test_an_unreachable_coordinator_is_asked_ever_more_rarely(server: Server, tmp_path: Path) -> None:
    cache = blobs(server, tmp_path)
    server.close()
    server.http.server_close()
    patience = Patience(300)
    with pytest.raises(DownloadFailed, match="could not be fetched"):
        cache.fetch(BLOB, (), patience.fetching)
    assert patience.now >= 299
    assert all(wait <= 30 for wait in patience.slept)
    assert len(patience.slept) < 60
    server.close = lambda: None  # type: ignore[method-assign]


def test_stopping_ends_the_download(server: Server, tmp_path: Path) -> None:
    patience = Patience()
    patience.stop = True
    with pytest.raises(DownloadFailed):
        blobs(server, tmp_path).fetch(BLOB, (), patience.fetching)
    assert server.asked == []


def test_a_harmed_file_in_the_cache_is_fetched_again(server: Server, tmp_path: Path) -> None:
    cache = blobs(server, tmp_path)
    cache.fetch(BLOB, (), Patience().fetching)
    (tmp_path / "blobs" / BLOB.sha256).write_bytes(CONTENT[:-1] + b"x")
    assert cache.cached(BLOB) is None
    cache.fetch(BLOB, (), Patience().fetching)
    assert cache.cached(BLOB) == CONTENT


def test_the_cache_forgets_what_was_used_longest_ago(server: Server, tmp_path: Path) -> None:
    contents = [bytes([number]) * 300_000 for number in range(4)]
    for content in contents:
        server.blobs[named(content).sha256] = content
    cache = blobs(server, tmp_path, limit=1_000_000)
    first, second, third, fourth = map(named, contents)
    for blob in (first, second, third):
        cache.fetch(blob, (), Patience().fetching)
    assert cache.cached(first)
    cache.fetch(fourth, (), Patience().fetching)
    assert cache.cached(second) is None
    assert cache.cached(first)
    assert cache.cached(third)


def test_what_is_needed_together_is_not_evicted(server: Server, tmp_path: Path) -> None:
    other = bytes(300_000)
    server.blobs[named(other).sha256] = other
    cache = blobs(server, tmp_path, limit=500_000)
    pair = (named(other), BLOB)
    for blob in pair:
        cache.fetch(blob, pair, Patience().fetching)
    assert cache.cached(named(other)) == other


def test_a_blob_larger_than_the_cache_is_refused_before_a_byte_comes(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DownloadFailed, match="the cache holds 1000"):
        blobs(server, tmp_path, limit=1000).fetch(BLOB, (), Patience().fetching)
    assert server.asked == []
