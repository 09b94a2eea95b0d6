"""The image of an operating system as it is downloaded: packed or not, checked against its sha256."""

from __future__ import annotations

import gzip
import hashlib
import lzma
import os
import re
import shutil
import subprocess
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Final, cast

from coordinator.fleet.flash.errors import FlashError

CHUNK: Final = 4 << 20
Progress = Callable[[str, int, int], None]
"""What is being done, bytes done, bytes in all."""

_SUM = re.compile(r"([0-9a-fA-F]{64})(?:\s+[ *]?(.+))?")


def sha256_of(path: Path, progress: Progress) -> str:
    """Hex digits of the file as it lies there, packed."""
    total, done, digest = path.stat().st_size, 0, hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            done += len(chunk)
            progress("checking", done, total)
    return digest.hexdigest()


def announced(image: Path) -> str | None:
    """The sha256 that a file beside the image says it has: ``IMAGE.sha256``, or a line of ``SHA256SUMS``."""
    for beside in (image.with_name(image.name + ".sha256"), image.with_name("SHA256SUMS")):
        if not beside.is_file():
            continue
        for line in beside.read_text(errors="replace").splitlines():
            parts = _SUM.fullmatch(line.strip())
            if parts and (Path(parts[2] or "").name == image.name or (not parts[2] and beside.suffix == ".sha256")):
                return parts[1].lower()
    return None


def unpack(image: Path, output: Path, progress: Progress) -> int:
    """Write the whole card's bytes into ``output``, with holes where they are zero; how many they are."""
    packed, size = image.stat().st_size, 0
    try:
        with ExitStack() as closing:
            raw = closing.enter_context(open(image, "rb"))
            content = _opened(image, raw, closing)
            target = closing.enter_context(open(output, "wb"))
            for chunk in _chunks(content):
                if chunk.count(0) == len(chunk):
                    target.seek(len(chunk), 1)
                else:
                    target.write(chunk)
                size += len(chunk)
                progress("unpacking", min(os.lseek(raw.fileno(), 0, os.SEEK_CUR), packed), packed)
            target.truncate(size)
    except (lzma.LZMAError, gzip.BadGzipFile, zipfile.BadZipFile, EOFError) as error:
        raise FlashError(f"{image} cannot be unpacked, download it again: {error}") from error
    if size < 512:
        raise FlashError(f"{image} holds {size} bytes: expected the image of a card")
    return size


def _chunks(content: IO[bytes]) -> Iterator[bytes]:
    while chunk := content.read(CHUNK):
        yield chunk


def _opened(image: Path, raw: IO[bytes], closing: ExitStack) -> IO[bytes]:
    """By the first bytes: names lie more often than they do."""
    magic = raw.read(6)
    raw.seek(0)
    if magic == b"\xfd7zXZ\0":
        return closing.enter_context(lzma.open(raw))
    if magic[:2] == b"\x1f\x8b":
        return cast(IO[bytes], closing.enter_context(gzip.open(raw)))
    if magic[:4] == b"\x28\xb5\x2f\xfd":
        return _by_zstd(image, raw, closing)
    if magic[:4] == b"PK\x03\x04":
        archive = closing.enter_context(zipfile.ZipFile(raw))
        inside = [info for info in archive.infolist() if info.filename.endswith((".img", ".raw", ".wic"))]
        if len(inside) != 1:
            raise FlashError(f"{image} holds {len(inside)} images (.img, .raw, .wic), expected one")
        return closing.enter_context(archive.open(inside[0]))
    return raw


def _by_zstd(image: Path, raw: IO[bytes], closing: ExitStack) -> IO[bytes]:
    """Python below 3.14 has no Zstandard of its own."""
    program = shutil.which("zstd")
    if program is None:
        raise FlashError(f"{image} is packed with Zstandard: install the program zstd (apt-get install zstd)")
    os.lseek(raw.fileno(), 0, os.SEEK_SET)  # the program shares the file's place, and knows nothing of our buffer
    process = subprocess.Popen([program, "-dcq"], stdin=raw, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None

    def ended(kind: type[BaseException] | None, *_: object) -> None:
        if process.wait() and kind is None:
            raise FlashError(f"{image} cannot be unpacked, download it again: zstd gives up")

    closing.push(ended)
    return closing.enter_context(process.stdout)
