"""Bundles: everything an agent imports, ready to unpack, for one architecture and one Python.

A board's first boot installs no package and asks no index: it unpacks the tar of its own architecture and Python. It
is made on any machine from wheels for the target, and is the same, byte for byte, for the same wheels and sources.
"""

from __future__ import annotations

import hashlib
import io
import json
import lzma
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Final

from attrs import field, frozen

from coordinator import __version__
from coordinator.errors import ShoalError

FOLDER: Final = "bundles"
"""Below the coordinator's home."""
_PACKAGES: Final = ("protocol", "device_agent")
_FILE = re.compile(r"shoal-agent-([0-9][0-9A-Za-z.+]*)-([a-z0-9_]+)-cp(\d)(\d+)-([0-9a-f]{64})\.tar\.xz")
_EPOCH: Final = 1_577_836_800
"""2020-01-01, the time of every file inside."""
_LEFT_OUT: Final = (".pyi", ".pyc", ".a", ".h", ".lib")
_SPREAD = re.compile(r"[^/]+\.data/(purelib|platlib)/(.+)")

_EVERYWHERE: Final = ("attrs==26.1.0", "cattrs==26.2.1", "paho-mqtt==2.2.0", "typing-extensions==4.16.0")
_LITERT: Final = (
    "ai-edge-litert==2.3.0", "backports.strenum==1.2.8", "flatbuffers==25.12.19", "ml-dtypes==0.5.4",
    "protobuf==7.36.2", "tqdm==4.70.1",
)  # fmt: skip
_TFLITE: Final = ("tflite-runtime==2.14.0",)
_GLIBC: Final = (36, 35, 34, 31, 28, 27, 17)
"""Debian 12 has 2.36; older wheels run too."""


@frozen
class Target:
    """``arch`` as wheels call it. ``python`` e.g. 3.13. ``board``: modules that have no wheel and come from the board's
    own packages."""

    arch: str
    python: str
    wheels: tuple[str, ...] = field(repr=False)
    board: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.arch}-cp{self.python.replace('.', '')}"


TARGETS: Final = (
    Target("aarch64", "3.11", (*_EVERYWHERE, "numpy==1.26.4", *_TFLITE)),
    Target("aarch64", "3.12", (*_EVERYWHERE, "numpy==2.4.6", *_LITERT)),
    Target("aarch64", "3.13", (*_EVERYWHERE, "numpy==2.4.6", *_LITERT)),
    Target("armv7l", "3.11", (*_EVERYWHERE, *_TFLITE), board=("numpy",)),
    Target("armv7l", "3.13", _EVERYWHERE, board=("numpy",)),
    Target("x86_64", "3.11", (*_EVERYWHERE, "numpy==1.26.4", *_TFLITE)),
    Target("x86_64", "3.12", (*_EVERYWHERE, "numpy==2.4.6", *_LITERT)),
    Target("x86_64", "3.13", (*_EVERYWHERE, "numpy==2.4.6", *_LITERT)),
)
"""Debian 12 and 13 with Raspberry Pi OS of the same age, Ubuntu 24.04; 64 bits on ARM and x86, 32 bits on ARM."""


@frozen
class Bundle:
    """A file of the folder of bundles; ``target`` as in :attr:`Target.name`, ``python`` e.g. 3.13."""

    path: Path
    version: str
    target: str
    sha256: str
    size: int
    made_at: float

    @classmethod
    def of(cls, path: Path) -> Bundle | None:
        """None if the file's name is not that of a bundle."""
        parts = _FILE.fullmatch(path.name)
        if parts is None:
            return None
        version, arch, major, minor, sha256 = parts.groups()
        found = path.stat()
        return cls(path, version, f"{arch}-cp{major}{minor}", sha256, found.st_size, found.st_mtime)

    def read(self) -> bytes:
        """The bytes; ShoalError if they are not what the name says."""
        content = self.path.read_bytes()
        if hashlib.sha256(content).hexdigest() != self.sha256:
            raise ShoalError("not-found", f"{self.path} is damaged: remove it and run shoal bundle build again")
        return content


def target(name: str) -> Target:
    """The target called e.g. aarch64-cp313."""
    for one in TARGETS:
        if one.name == name:
            return one
    known = ", ".join(one.name for one in TARGETS)
    raise ShoalError("bad-request", f"There is no target {name[:80]!r}, only {known}")


def listed(folder: Path) -> list[Bundle]:
    """All bundles of a folder, by target, the newest of each first."""
    found = [bundle for path in folder.glob("*.tar.xz") if (bundle := Bundle.of(path)) is not None]
    return sorted(found, key=lambda one: (one.target, -one.made_at, one.sha256))


def newest(folder: Path) -> dict[str, Bundle]:
    """The newest bundle of every target there is."""
    return {bundle.target: bundle for bundle in reversed(listed(folder))}


def build(wanted: Target, folder: Path, wheels: Path | None = None) -> Bundle:
    """Make a bundle of this version's agent in ``folder``.

    The wheels come through pip, from where pip is set up to take them, or from the folder ``wheels`` alone. ShoalError
    if one cannot be had.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="shoal-wheels-") as temporary:
        _download(wanted, Path(temporary), wheels)
        files = dict(_own_files())
        for wheel in sorted(Path(temporary).glob("*.whl")):
            files.update(_wheel_files(wheel))
    about = {"version": __version__, "arch": wanted.arch, "python": wanted.python, "wheels": sorted(wanted.wheels),
             "board": list(wanted.board)}  # fmt: skip
    files["bundle.json"] = json.dumps(about, indent=1).encode()
    content = _packed(files)
    sha256 = hashlib.sha256(content).hexdigest()
    path = folder / f"shoal-agent-{__version__}-{wanted.name}-{sha256}.tar.xz"
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_bytes(content)
    aside.replace(path)
    made = Bundle.of(path)
    assert made is not None
    return made


def _download(wanted: Target, into: Path, wheels: Path | None) -> None:
    if not wanted.wheels:
        return
    tags = [f"manylinux_2_{minor}_{wanted.arch}" for minor in _GLIBC] + [f"manylinux2014_{wanted.arch}"]
    command = [
        # Their markers would be read for this machine's Python: what is needed stands in the table, with versions.
        sys.executable, "-m", "pip", "download", "-qq", "--disable-pip-version-check", "--no-input", "--no-deps",
        "--ignore-requires-python", "--only-binary=:all:", "--implementation", "cp", "--python-version", wanted.python,
        *(word for tag in tags for word in ("--platform", tag)), "--dest", str(into),
        *(("--no-index", "--find-links", str(wheels)) if wheels else ()), *wanted.wheels,
    ]  # fmt: skip
    done = subprocess.run(command, check=False, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        said = [line for line in done.stdout.splitlines() if line.startswith("ERROR")] or done.stdout.splitlines()[-1:]
        raise ShoalError("not-found", f"The wheels for {wanted.name} cannot be had: {' '.join(said)[:600]}")


def _own_files() -> Iterator[tuple[str, bytes]]:
    """The agent's packages, as they run here."""
    for package in _PACKAGES:
        found = find_spec(package)
        if found is None or found.origin is None:
            raise ShoalError("not-found", f"The package {package} is not installed beside the coordinator")
        top = Path(found.origin).parent
        for path in sorted(top.rglob("*")):
            if path.is_file() and path.suffix != ".pyc":
                yield f"{package}/{path.relative_to(top).as_posix()}", path.read_bytes()


def _wheel_files(wheel: Path) -> Iterator[tuple[str, bytes]]:
    """What a wheel puts on the import path (PEP 427), without tests and what only compilers and editors read."""
    with zipfile.ZipFile(wheel) as archive:
        for info in archive.infolist():
            spread = _SPREAD.fullmatch(info.filename)
            name = spread[2] if spread else info.filename
            path = PurePosixPath(name)
            foreign = path.is_absolute() or ".." in path.parts
            if foreign:
                raise ShoalError("bad-request", f"{wheel.name} would write outside its folder: {name[:80]!r}")
            if info.is_dir() or path.parts[0].endswith(".data") or "tests" in path.parts[:-1]:
                continue
            if path.suffix not in _LEFT_OUT:
                yield name, archive.read(info)


def _packed(files: dict[str, bytes]) -> bytes:
    """A tar.xz that depends on the files and on nothing else."""
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name in sorted(files):
            info = tarfile.TarInfo(name)
            info.size, info.mtime, info.mode = len(files[name]), _EPOCH, 0o644
            archive.addfile(info, io.BytesIO(files[name]))
    return lzma.compress(plain.getvalue(), preset=6)
