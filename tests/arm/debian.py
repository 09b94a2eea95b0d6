"""Debian of another architecture in a folder, with the agent's wheels; made once and kept."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from attrs import frozen

_COMMON = ("attrs", "cattrs", "typing-extensions")


class NotPossible(RuntimeError):
    """This machine lacks something. The text says what to install."""


@frozen
class Debian:
    """``wheels`` are installed for ``tags`` and ``python``; ``packages`` are Debian's own."""

    suite: str
    arch: str
    machine: str
    python: str
    tags: tuple[str, ...]
    wheels: tuple[str, ...]
    runtimes: tuple[str, ...]
    packages: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.suite}-{self.arch}"

    def make(self, cache: Path) -> Path:
        """The folder; takes minutes the first time."""
        folder = cache / self.name
        if not folder.exists():
            new = cache / f"{self.name}.new"
            shutil.rmtree(new, ignore_errors=True)
            include = ",".join(("python3", *self.packages))
            mirror = [url for url in (os.environ.get("SHOAL_ARM_MIRROR"),) if url]
            _run("mmdebstrap", "--variant=minbase", f"--arch={self.arch}", f"--include={include}",
                 self.suite, str(new), *mirror)  # fmt: skip
            new.rename(folder)
        wheels = folder / "opt" / "wheels"
        if not wheels.exists():
            self._install(wheels)
        return folder

    def _install(self, wheels: Path) -> None:
        """By this machine's pip: the one inside would take minutes, emulated."""
        new = wheels.with_suffix(".new")
        shutil.rmtree(new, ignore_errors=True)
        platforms = [word for tag in self.tags for word in ("--platform", tag)]
        _run(sys.executable, "-m", "pip", "install", "-qq", "--disable-pip-version-check", "--no-compile",
             "--only-binary=:all:", "--no-deps", "--ignore-requires-python", "--python-version", self.python,
             *platforms, "--target", str(new), *_COMMON, *self.wheels)  # fmt: skip
        new.rename(wheels)

    def run(self, folder: Path, sources: Path, work: Path, *arguments: str) -> subprocess.Popen[str]:
        """Python inside, with ``sources`` (packages) and ``work`` copied to it."""
        inside = folder / "opt" / "shoal"
        shutil.rmtree(inside, ignore_errors=True)
        for package in ("protocol", "device_agent"):
            shutil.copytree(sources / package, inside / package, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(work, inside / "work")
        environment = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "PYTHONPATH": "/opt/shoal:/opt/wheels",
            "PYTHONDONTWRITEBYTECODE": "1",
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "LANG": "C.UTF-8",
        }
        command = ["chroot", str(folder), "/usr/bin/python3", *arguments]
        return subprocess.Popen(
            command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )


MACHINES = (
    Debian(
        "bookworm", "arm64", "qemu-aarch64", "311", ("manylinux_2_34_aarch64", "manylinux_2_27_aarch64",
        "manylinux_2_17_aarch64", "manylinux2014_aarch64"),
        ("numpy==1.26.4", "tflite-runtime==2.14.0", "ai-edge-litert==2.3.0", "flatbuffers", "protobuf", "tqdm",
         "backports.strenum", "ml_dtypes"),
        ("litert", "tflite", "numpy"),
    ),
    Debian(
        "bookworm", "armhf", "qemu-arm", "311", ("manylinux_2_34_armv7l", "manylinux2014_armv7l"),
        ("tflite-runtime==2.14.0",), ("tflite", "numpy"), ("python3-numpy",),
    ),
    Debian(
        "trixie", "arm64", "qemu-aarch64", "313", ("manylinux_2_34_aarch64", "manylinux_2_28_aarch64",
        "manylinux_2_27_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64"),
        ("numpy==2.4.6", "ai-edge-litert==2.3.0", "flatbuffers", "protobuf", "tqdm", "backports.strenum", "ml_dtypes"),
        ("litert", "numpy"),
    ),
)  # fmt: skip


def check_host() -> None:
    """NotPossible unless chroots of other architectures can be made and run."""
    if os.geteuid() != 0:
        raise NotPossible("only root may enter another system's folder: sudo make test-arm")
    if shutil.which("mmdebstrap") is None:
        raise NotPossible("mmdebstrap is missing: apt-get install mmdebstrap qemu-user-static binfmt-support")
    for machine in {debian.machine for debian in MACHINES}:
        if not Path("/proc/sys/fs/binfmt_misc", machine).exists():
            raise NotPossible(
                f"the kernel does not hand ARM programs to {machine}: apt-get install qemu-user-static binfmt-support, "
                f"mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc, update-binfmts --enable {machine}"
            )


def _run(*command: str) -> None:
    try:
        done = subprocess.run(command, check=False, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    except OSError as error:
        raise NotPossible(f"{command[0]} failed: {error}") from error
    if done.returncode:
        last = "\n".join(done.stdout.splitlines()[-12:])
        raise NotPossible(f"{command[0]} failed with code {done.returncode}:\n{last}")
