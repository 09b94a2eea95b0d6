from __future__ import annotations

import gzip
import hashlib
import lzma
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

from coordinator.fleet.flash.errors import FlashError
from coordinator.fleet.flash.source import announced, sha256_of, unpack

CARD = bytes(5 << 20) + b"begin" + bytes(300_000) + bytes(range(256)) * 100 + bytes(1 << 20)


def silent(what: str, done: int, total: int) -> None:
    assert 0 <= done <= total


def packed(kind: str, folder: Path) -> Path:
    path = folder / f"card.img.{kind}"
    if kind == "xz":
        path.write_bytes(lzma.compress(CARD))
    elif kind == "gz":
        path.write_bytes(gzip.compress(CARD))
    elif kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("readme.txt", "read me")
            archive.writestr("card.img", CARD)
    elif kind == "zst":
        if shutil.which("zstd") is None:
            pytest.skip("the program zstd is not installed")
        path.write_bytes(subprocess.run(["zstd", "-c"], input=CARD, capture_output=True, check=True).stdout)
    else:
        path.write_bytes(CARD)
    return path


@pytest.mark.parametrize("kind", ["img", "xz", "gz", "zst", "zip"])
def test_an_image_is_unpacked_whatever_its_name_says(kind, tmp_path) -> None:
    image = packed(kind, tmp_path).rename(tmp_path / "download")
    assert unpack(image, tmp_path / "out", silent) == len(CARD)
    assert (tmp_path / "out").read_bytes() == CARD


@pytest.mark.parametrize("kind", ["xz", "gz", "zst", "zip"])
def test_a_download_that_broke_off_is_refused(kind, tmp_path) -> None:
    image = packed(kind, tmp_path)
    image.write_bytes(image.read_bytes()[: image.stat().st_size // 2])
    with pytest.raises(FlashError, match="download it again"):
        unpack(image, tmp_path / "out", silent)


def test_an_archive_must_hold_one_image(tmp_path) -> None:
    with zipfile.ZipFile(tmp_path / "two.zip", "w") as archive:
        archive.writestr("a.img", b"")
        archive.writestr("b.img", b"")
    with pytest.raises(FlashError, match="holds 2 images"):
        unpack(tmp_path / "two.zip", tmp_path / "out", silent)


def test_the_announced_sum_is_found_beside_the_image(tmp_path) -> None:
    image = packed("xz", tmp_path)
    own, other = sha256_of(image, silent), "0" * 64
    assert own == hashlib.sha256(image.read_bytes()).hexdigest()
    assert announced(image) is None
    (tmp_path / "SHA256SUMS").write_text(f"{other}  another.img.xz\n{own.upper()} *{image.name}\n")
    assert announced(image) == own
    (tmp_path / "card.img.xz.sha256").write_text(f"{other}\n")
    assert announced(image) == other
