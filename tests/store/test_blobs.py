"""Blobs: bytes under their own hash, whole or not at all."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor

import pytest

from coordinator.errors import ShoalError
from coordinator.store.blobs import Blobs


@pytest.fixture
def blobs(tmp_path):
    return Blobs(tmp_path / "blobs")


def files(blobs):
    return sorted(path.name for path in blobs.folder.glob("**/*") if path.is_file())


@pytest.mark.parametrize("durable", [False, True])
@pytest.mark.parametrize("content", [b"", b"weights", bytes(100_000)])
def test_what_is_put_comes_back_under_its_hash(blobs, content, durable):
    sha256 = blobs.put(content, durable=durable)
    assert sha256 == hashlib.sha256(content).hexdigest()
    assert blobs.get(sha256) == content
    assert blobs.path(sha256) == blobs.folder / sha256[:2] / sha256
    assert files(blobs) == [sha256]


def test_the_same_bytes_are_one_file(blobs):
    assert blobs.put(b"x") == blobs.put(b"x")
    assert len(files(blobs)) == 1


def test_many_threads_may_put_the_same_bytes(blobs):
    content = bytes(range(256)) * 400
    with ThreadPoolExecutor(8) as pool:
        (sha256,) = set(pool.map(lambda _: blobs.put(content), range(64)))
    assert files(blobs) == [sha256]
    assert blobs.get(sha256) == content


def test_a_blob_that_is_gone(blobs):
    sha256 = blobs.put(b"x")
    blobs.remove(sha256)
    blobs.remove(sha256)
    with pytest.raises(ShoalError, match=f"There is no blob {sha256}") as missing:
        blobs.get(sha256)
    assert missing.value.code == "not-found"


@pytest.mark.parametrize("left", [b"", b"half of the wei", b"half of the weighTs"])
def test_damage_is_never_handed_out(blobs, left):
    sha256 = blobs.put(b"half of the weights")
    blobs.path(sha256).write_bytes(left)
    with pytest.raises(ShoalError, match="is damaged on disk"):
        blobs.get(sha256)


@pytest.mark.parametrize("left", [b"", b"half of the wei"])
def test_what_a_power_cut_has_torn_is_written_anew(blobs, left):
    sha256 = blobs.put(b"half of the weights")
    blobs.path(sha256).write_bytes(left)
    assert blobs.put(b"half of the weights") == sha256
    assert blobs.get(sha256) == b"half of the weights"


def test_a_write_that_fails_leaves_nothing(blobs):
    sha256 = hashlib.sha256(b"x").hexdigest()
    blobs.path(sha256).mkdir(parents=True)  # in the way of the rename
    with pytest.raises(OSError, match="directory"):
        blobs.put(b"x")
    assert files(blobs) == []


@pytest.mark.parametrize("name", ["", "abc", "../../etc/passwd", "A" * 64, "g" * 64, "0" * 65, "0" * 63 + "/"])
def test_only_hashes_are_names(blobs, name):
    for use in (blobs.path, blobs.get, blobs.remove):
        with pytest.raises(ShoalError, match="is not the sha256 of a blob"):
            use(name)
