"""Releases as the device sees them, and the seam behind which each kind of them is put to use."""

from __future__ import annotations

import hashlib
import subprocess
import tempfile
from pathlib import Path
from typing import Protocol

from attrs import field, frozen

from protocol.deployments import Deployed, Manifest

KEY = bytes.fromhex("302a300506032b6570032100")
"""What stands before the 32 bytes of an Ed25519 public key in its DER form (RFC 8410)."""
PATIENCE = 60  # seconds that openssl may take


class Unfit(Exception):
    """This release will never do on this device. The text says why."""


class Setback(Exception):
    """It did not work, and nothing was switched. ``retry``: another attempt may do better, the release is not to
    blame."""

    def __init__(self, text: str, retry: bool = False) -> None:
        super().__init__(text)
        self.retry = retry


@frozen
class Release:
    """A release that this device was told to put to use; its files are in ``folder`` once they were fetched.

    ``text`` (the manifest) and ``signature`` (hexadecimal digits) are as they came; ``id`` is the execution's. Its
    trial takes ``seconds``.
    """

    id: str
    text: str = field(repr=False)
    signature: str = field(repr=False)
    manifest: Manifest
    folder: Path
    seconds: float = 180.0

    @property
    def sha256(self) -> str:
        """Of the manifest."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def deployed(self) -> Deployed:
        """What the device says once it runs this."""
        return Deployed(kind=self.manifest.kind, version=self.manifest.version, manifest=self.sha256)

    def path(self, name: str) -> Path:
        """Where the file is that the manifest calls ``name``; KeyError if it names none so."""
        file = self.manifest.file(name)
        if file is None:
            raise KeyError(name)
        return self.folder / file.sha256


@frozen
class Trial:
    """How a release on trial is doing: ``seconds`` since this process has it on trial, ``left`` of them until it has to
    be proved, ``starts`` of the agent since the switch. ``connected``: the broker has let this process in;
    ``answered``: the coordinator has answered one of its check-ins."""

    seconds: float
    left: float
    starts: int
    connected: bool
    answered: bool


@frozen
class Verdict:
    """``facts``: what was measured. ``switched``: whether the device ever ran it; if not, it has failed rather than
    been rolled back, and with ``retry`` another attempt may do better."""

    good: bool
    text: str = ""
    facts: dict[str, float] = field(factory=dict)
    switched: bool = True
    retry: bool = False


class Kind(Protocol):
    """How releases of one kind are put to use. Every method runs in the one thread of the deployments, where it may
    block; power may fail during and between any two of them.

    ``fit``, ``stage``, ``switch``, ``judge``, then ``commit`` or ``back``, in this order, each in the process in which
    the one before was, or in a later one. All but ``fit`` come again if it is not known whether they were done: the
    second time, they must see it. What a process has to know of an earlier one is on disk, as the kind's own.

    They may raise Unfit and Setback, by ``switch`` too if nothing was switched; whatever else is raised is taken for a
    Setback. What is raised by ``switch`` and ``judge`` leads to ``back``, and ``back`` is tried until it works.
    """

    name: str
    """One of protocol.deployments.KINDS."""
    restarts: bool
    """The agent is started anew after ``switch`` and after ``back``, to run with what is there then."""

    def fit(self, manifest: Manifest) -> str | None:
        """Why this device cannot take such a release, in a sentence; None if it can. The signature is good."""

    def files(self, manifest: Manifest) -> tuple[str, ...]:
        """The names of the files it needs of it."""

    def stage(self, release: Release) -> None:
        """All is fetched, and each file is what its sha256 says. Make ready what can be made ready beside the present
        release, without touching it. ``release.folder`` is emptied when the deployment has ended: copy or link."""

    def switch(self, release: Release) -> None:
        """From now on the device runs this one, on trial; what it ran before is kept."""

    def judge(self, release: Release, trial: Trial) -> Verdict | None:
        """Whether the release is proved, asked every second; None while it is not known. No verdict when no time is
        ``left`` is a bad one: who waits for errors finds it good then."""

    def back(self) -> None:
        """What was there before the switch is there again; nothing happens if nothing is on trial."""

    def commit(self) -> None:
        """The trial is over, and what was there before is not needed any more."""

    def current(self) -> Deployed | None:
        """What the device runs now, None if no release of this kind."""


def verify(key: str, text: str, signature: str) -> None:
    """Unfit unless ``signature`` is that of ``key`` under the manifest's bytes (Ed25519; hexadecimal digits both).

    The system's openssl looks at it: no library of ours does, and what cannot be checked is not taken.
    """
    with tempfile.TemporaryDirectory(prefix="shoal-") as folder:
        place = Path(folder)
        (place / "key").write_bytes(KEY + bytes.fromhex(key))
        (place / "text").write_bytes(text.encode())
        (place / "signature").write_bytes(bytes.fromhex(signature))
        command = ["openssl", "pkeyutl", "-verify", "-pubin", "-keyform", "DER", "-inkey", str(place / "key"), "-rawin"]
        command += ["-in", str(place / "text"), "-sigfile", str(place / "signature")]
        try:
            done = subprocess.run(command, check=False, capture_output=True, timeout=PATIENCE)
        except OSError as error:
            raise Unfit(f"its signature cannot be checked: openssl cannot be run: {error.strerror}") from error
        except subprocess.TimeoutExpired as error:
            raise Setback("its signature could not be checked in time", retry=True) from error
    if done.returncode:
        raise Unfit("its signature is not that of the key this device was given when it joined")
