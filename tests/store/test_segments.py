"""Segments: bodies appended one behind the other, durable together."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.errors import ShoalError
from coordinator.store.segments import Segments

ROOT = Path(__file__).parents[2]


@pytest.fixture
def segments(tmp_path):
    segments = Segments(tmp_path / "segments", limit=100)
    yield segments
    segments.close()


def names(segments):
    return sorted(path.name for path in segments.folder.iterdir())


def test_bodies_lie_behind_each_other(segments):
    assert [segments.append(body) for body in (b"one", b"", b"three")] == [(1, 0), (1, 3), (1, 3)]
    assert segments.read(1, 0, 3) == b"one"
    assert segments.read(1, 3, 0) == b""
    assert segments.read(1, 3, 5) == b"three"


def test_a_body_is_there_before_and_after_sync(segments):
    place = segments.append(b"body")
    assert segments.read(*place, 4) == b"body"
    segments.sync()
    segments.sync()
    assert segments.folder.joinpath("00000001.segment").read_bytes() == b"body"


def test_a_full_segment_is_followed_by_the_next(segments):
    places = [segments.append(bytes([n]) * 40) for n in range(4)]
    assert places == [(1, 0), (1, 40), (2, 0), (2, 40)]
    assert [segments.read(*place, 40) for place in places] == [bytes([n]) * 40 for n in range(4)]
    assert names(segments) == ["00000001.segment", "00000002.segment"]


def test_a_body_larger_than_a_segment_gets_one_of_its_own(segments):
    assert segments.append(b"x" * 300) == (1, 0)
    assert segments.append(b"y") == (2, 0)
    assert segments.read(1, 0, 300) == b"x" * 300


def test_a_start_never_appends_behind_what_a_crash_may_have_left(tmp_path):
    folder = tmp_path / "segments"
    first = Segments(folder)
    first.append(b"torn")
    first.sync()
    second = Segments(folder)  # the first was never closed
    assert second.append(b"whole") == (2, 0)
    assert second.read(1, 0, 4) == b"torn"
    second.close()
    first.close()


def test_what_is_not_there_is_an_error(segments):
    segments.append(b"body")
    with pytest.raises(ShoalError, match="Segment 1 ends before byte 5") as missing:
        segments.read(1, 0, 5)
    assert missing.value.code == "not-found"
    with pytest.raises(ShoalError, match="Segment 7 of update bodies is gone"):
        segments.read(7, 0, 1)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(bodies=st.lists(st.binary(max_size=60), max_size=12), syncs=st.sets(st.integers(0, 11)))
def test_whatever_is_appended_comes_back(tmp_path_factory, bodies, syncs):
    folder = tmp_path_factory.mktemp("segments")
    segments = Segments(folder, limit=50)
    places = []
    for number, body in enumerate(bodies):
        places.append(segments.append(body))
        if number in syncs:
            segments.sync()
    segments.close()
    later = Segments(folder)
    assert [later.read(*place, len(body)) for place, body in zip(places, bodies, strict=True)] == bodies
    later.close()


def test_where_no_new_file_can_be_opened_the_next_append_tries_again(segments):
    segments.append(b"a" * 80)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = max(int(name) for name in os.listdir("/proc/self/fd"))
    fillers = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 1, hard))
    try:
        while True:
            fillers.append(os.dup(0))
    except OSError:
        with pytest.raises(OSError, match="Too many open files"):
            segments.append(b"b" * 80)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for handle in fillers:
            os.close(handle)
    assert segments.append(b"c" * 10) == (1, 80)
    assert segments.append(b"d" * 80) == (2, 0)
    assert segments.read(1, 80, 10) + segments.read(2, 0, 80) == b"c" * 10 + b"d" * 80


FULL_DISK = """
import resource, sys
from pathlib import Path
sys.path.insert(0, {root!r})
from coordinator.store.segments import Segments

segments = Segments(Path({folder!r}))
segments.append(b"a" * 1000)
segments.sync()
limits = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (1500, limits[1]))
place = segments.append(b"b" * 1000)
for _ in range(2):
    try:
        segments.sync()
        raise SystemExit("the disk was not full")
    except OSError:
        pass
resource.setrlimit(resource.RLIMIT_FSIZE, limits)
again = segments.append(b"c" * 1000)
segments.sync()
assert segments.read(*place, 1000) == b"b" * 1000
assert segments.read(*again, 1000) == b"c" * 1000
assert segments.read(1, 0, 1000) == b"a" * 1000
segments.close()
print("all is well")
"""


def test_a_full_disk_tears_nothing_apart(tmp_path):
    script = FULL_DISK.format(root=str(ROOT), folder=str(tmp_path / "segments"))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout == "all is well\n", done.stderr
