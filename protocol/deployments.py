"""What is released to devices, and what they tell of putting it to use.

A release is a manifest: JSON text that is signed as it stands, byte for byte, with Ed25519. It names files by sha256
and never changes. A device that is told to deploy it checks the signature with the key it got when it joined, fetches
what it needs, puts it on trial and keeps it, or goes back to what it had before, by itself.
"""

from __future__ import annotations

import re

from attrs import field, frozen, validators

from . import fields
from .fields import check
from .messages import Message

KINDS = ("agent", "model", "config")
MAX_MANIFEST = 24 * 1024
"""Characters; a message that carries one stays within its limit."""

REPORTED = ("accepted", "downloading", "verifying", "staged", "waiting", "switching", "probation")
"""What a device may tell of a deployment that goes on, in the order in which it goes on. ``waiting``: all is ready, and
training holds the lock."""
ENDED = ("succeeded", "failed", "rejected", "rolled-back")
"""What it may tell of one that has ended. ``rejected``: it will never fit this device (another platform, a wrong
signature, older than what the release demands), another try is no use. ``failed``: before anything was switched.
``rolled-back``: it was on trial, and the device is back on what it had before."""

_VERSION = re.compile(r"[0-9A-Za-z][0-9A-Za-z.+_-]{0,39}")
_SIGNATURE = re.compile(r"[0-9a-f]{128}")
version = check(lambda value: bool(_VERSION.fullmatch(value)), "1 to 40 letters, digits, . + _ -")


@frozen(kw_only=True)
class ReleaseFile(Message):
    """A file of a release: ``name`` says what for, ``sha256`` what it is; ``size`` in bytes."""

    name: str = field(validator=fields.name)
    sha256: str = field(validator=fields.sha256)
    size: int = field(validator=fields.natural)


def _named_once(files: tuple[ReleaseFile, ...]) -> bool:
    return len(files) <= 64 and len({file.name for file in files}) == len(files)


@frozen(kw_only=True)
class Manifest(Message):
    """What a release is. ``number`` grows with every release of its kind: no device takes one below the ``floor`` of
    a release it has had, not even to go back: the order to go back is not signed.

    | kind   | ``files``                                                       | ``facts``                            |
    |--------|-----------------------------------------------------------------|--------------------------------------|
    | agent  | a bundle for each target, e.g. ``aarch64-cp313``                | none                                 |
    | model  | ``model.json``; for each width w ``infer-w.tflite``,            | ``accuracy-w``, ``memory-w``, and    |
    |        | ``infer-w.json`` (the program for NumPy) and ``weights-w``      | bounds: :mod:`protocol.model_card`   |
    | config | none; ``settings`` holds the text, as ``agent.toml`` would      | none                                 |

    Times are seconds since 1970; after ``expires_at`` no device begins with it.
    """

    kind: str = field(validator=check(lambda value: value in KINDS, f"one of {', '.join(KINDS)}"))
    version: str = field(validator=version)
    number: int = field(validator=fields.natural)
    created_at: float = field(validator=fields.between(0, 1e11))
    expires_at: float = field(validator=fields.between(0, 1e11))
    floor: int = field(default=0, validator=fields.natural)
    files: tuple[ReleaseFile, ...] = field(
        default=(), validator=check(_named_once, "at most 64 files of different names")
    )
    settings: str = field(
        default="", validator=check(lambda value: fields.storable(value, 8000), "at most 8000 characters")
    )
    facts: dict[str, float] = field(factory=dict, validator=fields.values)

    def file(self, name: str) -> ReleaseFile | None:
        return next((file for file in self.files if file.name == name), None)


@frozen(kw_only=True)
class Deploy(Message):
    """Put a release to use. ``id`` is that of an attempt; the same may come again until its end has been told.

    ``seconds`` it may take in all from now, of which the switch may wait ``lock`` for training to end by itself and the
    trial takes ``trial`` at most. ``back``: the device may hold something newer, and is to go back.
    """

    id: str = field(validator=fields.name)
    manifest: str = field(
        validator=check(lambda value: fields.storable(value, MAX_MANIFEST), f"at most {MAX_MANIFEST} characters")
    )
    signature: str = field(validator=check(lambda value: bool(_SIGNATURE.fullmatch(value)), "128 hexadecimal digits"))
    seconds: float = field(validator=fields.seconds)
    lock: float = field(validator=fields.seconds)
    trial: float = field(validator=fields.between(1, 86_400))
    back: bool = False


@frozen(kw_only=True)
class Recall(Message):
    """Do not begin with this execution, or stop it while nothing was switched."""

    id: str = field(validator=fields.name)


@frozen(kw_only=True)
class Deployment(Message):
    """How far the execution ``id`` is. ``number`` grows with every report of it: an older one says nothing.

    ``facts``: what was measured, e.g. seconds, accuracy, milliseconds, bytes. ``retry``: a failure that another attempt
    may mend (no network, no room) and that does not speak against the release; that one has another id.
    """

    id: str = field(validator=fields.name)
    number: int = field(validator=fields.count)
    state: str = field(
        validator=check(lambda value: value in REPORTED + ENDED, f"one of {', '.join(REPORTED + ENDED)}")
    )
    text: str = field(default="", validator=fields.text)
    facts: dict[str, float] = field(factory=dict, validator=fields.values)
    retry: bool = False


@frozen(kw_only=True)
class Deployed(Message):
    """What a device runs now, of each kind: the release's version, and ``manifest``, its sha256. Said after a start and
    after every change, so that nobody has to guess."""

    kind: str = field(validator=check(lambda value: value in KINDS, f"one of {', '.join(KINDS)}"))
    version: str = field(validator=version)
    manifest: str | None = field(default=None, validator=validators.optional(fields.sha256))
