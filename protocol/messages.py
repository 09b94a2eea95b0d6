"""The messages: attrs classes that check their values. :mod:`protocol.wire` turns them into bytes."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

from attrs import Attribute, field, frozen, validators

from .coding import CODINGS
from .errors import ProtocolError, shown

PROTOCOL = 1
FEATURES = ("train", "int8")

_SHA256 = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,79}")
_SECRET = re.compile(r"[!-~]{32,128}")
_UNSTORABLE = re.compile(r"[\x00\ud800-\udfff]")  # no database takes NUL and half surrogates


def _check(test: Callable[[Any], bool], expected: str) -> Callable[[Any, Attribute[Any], Any], None]:
    def validate(_: Any, attribute: Attribute[Any], value: Any) -> None:
        if not test(value):
            found = shown(value) if attribute.repr else "something else"  # secrets stay out of sentences
            raise ProtocolError(f"{attribute.name} is {found}, expected {expected}")

    return validate


def _storable(text: str, length: int) -> bool:
    return len(text) <= length and not _UNSTORABLE.search(text)


def _ascending(ranges: tuple[tuple[int, int], ...]) -> bool:
    ends = [-1, *(end for pair in ranges for end in pair)]
    apart = all(last < first for last, first in zip(ends[::2], ends[1::2], strict=False))
    return apart and all(first <= last for first, last in ranges) and ends[-1] <= 1 << 53


def _between(low: float, high: float) -> Callable[[Any, Attribute[Any], Any], None]:
    return _check(lambda value: low <= value <= high, f"a number from {low} to {high}")


_natural = _between(0, 1 << 53)
_count = _between(0, (1 << 31) - 1)
_seconds = _between(0, 1e9)
_sha256 = _check(lambda value: bool(_SHA256.fullmatch(value)), "64 hexadecimal digits")
_name = _check(lambda value: bool(_NAME.fullmatch(value)), "1 to 80 letters, digits, . _ : -")
_secret = _check(lambda value: bool(_SECRET.fullmatch(value)), "32 to 128 visible ASCII characters")
_text = _check(lambda value: _storable(value, 2000), "at most 2000 characters, no NUL, no half surrogate")
_texts = _check(lambda value: len(value) <= 64 and all(_storable(v, 200) for v in value), "at most 64 short texts")
_sizes = _check(lambda value: 0 < len(value) <= 8 and all(0 < n < 1 << 31 for n in value), "1 to 8 positive sizes")
_values = _check(
    lambda value: len(value) <= 4096 and all(_storable(k, 200) and 0 <= v < math.inf for k, v in value.items()),
    "at most 4096 numbers ≥ 0 with short names",
)


@frozen(kw_only=True)
class Message:
    """Anything that travels as JSON."""


@frozen(kw_only=True)
class Blob(Message):
    """Bytes to be fetched over HTTP, named by their sha256."""

    sha256: str = field(validator=_sha256)
    size: int = field(validator=_natural)


@frozen(kw_only=True)
class Plan(Message):
    """Everything a device needs to know about one piece of training.

    ``steps`` local SGD steps on batches of ``batch`` samples at ``learning_rate``; the update travels in
    ``coding``.
    """

    width: float = field(validator=_between(1 / 1024, 1))
    batch: int = field(validator=_check(lambda n: 1 <= n <= 1024 and n & (n - 1) == 0, "a power of two up to 1024"))
    steps: int = field(validator=_between(1, 1_000_000))
    learning_rate: float = field(validator=_between(0, 1000))
    coding: str = field(validator=_check(lambda value: value in CODINGS, f"one of {', '.join(CODINGS)}"))


@frozen(kw_only=True)
class CheckIn(Message):
    """A device offers itself for work. ``id`` names this check-in and comes back in the answer.

    ``samples`` training samples of shape ``input`` with labels below ``classes``; ``held`` is the assignment
    the device still has in its spool, None if it is free; ``unsent`` are those whose updates wait for a final
    receipt.
    """

    id: str = field(validator=_name)
    protocol: int = field(validator=_count)
    agent: str = field(validator=_name)
    runtime: str = field(validator=_name)
    features: tuple[str, ...] = field(validator=_texts)
    samples: int = field(validator=_count)
    input: tuple[int, ...] = field(validator=_sizes)
    classes: int = field(validator=_between(1, 1_000_000))
    held: str | None = field(validator=validators.optional(_name))
    unsent: tuple[str, ...] = field(
        validator=_check(lambda v: len(v) <= 256 and all(map(_NAME.fullmatch, v)), "at most 256 assignments")
    )


@frozen(kw_only=True)
class Assignment(Message):
    """Work for one device: train ``plan`` from model ``version``; expires ``lease`` seconds after receipt."""

    id: str = field(validator=_name)
    kind: str = field(validator=_check(lambda value: value == "train", "train"))
    run: str = field(validator=_name)
    check_in: str = field(validator=_name)
    version: int = field(validator=_count)
    plan: Plan
    lease: float = field(validator=_seconds)
    artifact: Blob
    weights: Blob


@frozen(kw_only=True)
class Retry(Message):
    """No work now: come back in ``seconds``."""

    check_in: str = field(validator=_name)
    seconds: float = field(validator=_seconds)
    reason: str = field(validator=_text)


@frozen(kw_only=True)
class Progress(Message):
    """Sent when training starts (step 0) and now and then after."""

    assignment: str = field(validator=_name)
    step: int = field(validator=_count)
    loss: float | None = field(validator=validators.optional(_between(-1e30, 1e30)))


@frozen(kw_only=True)
class Lineage(Message):
    """What a difference is relative to: the weights of ``version`` in channel layout ``shape_epoch``."""

    version: int = field(validator=_count)
    shape_epoch: int = field(validator=_count)


@frozen(kw_only=True)
class Timings(Message):
    """Seconds the device spent on each phase of one assignment; ``upload`` is that of its previous update."""

    download: float = field(validator=_seconds)
    train: float = field(validator=_seconds)
    upload: float | None = field(validator=validators.optional(_seconds))


@frozen(kw_only=True)
class Update(Message):
    """One commit. The body behind it (or its chunks) holds the difference in the tensors format.

    ``loss`` and ``accuracy`` are means over the trained samples. ``squared_gradient`` and
    ``squared_gradient_peak`` hold per tensor the mean and the largest squared gradient norm of a step (of the
    mean-loss gradient, before any clipping).
    """

    assignment: str = field(validator=_name)
    commit: int = field(validator=_between(1, 1_000_000))
    run: str = field(validator=_name)
    lineage: Lineage
    samples: int = field(validator=_count)
    steps: int = field(validator=_count)
    loss: float = field(validator=_between(-1e30, 1e30))
    accuracy: float = field(validator=_between(0, 1))
    squared_gradient: dict[str, float] = field(validator=_values)
    squared_gradient_peak: dict[str, float] = field(validator=_values)
    timings: Timings
    bytes_down: int = field(validator=_natural)
    coding: str = field(validator=_check(lambda value: value in CODINGS, f"one of {', '.join(CODINGS)}"))
    size: int = field(validator=_between(1, 1 << 32))
    sha256: str = field(validator=_sha256)
    chunk: int = field(validator=_between(0, 1 << 20))

    @property
    def key(self) -> tuple[str, int]:
        return self.assignment, self.commit


@frozen(kw_only=True)
class Chunk(Message):
    """Piece ``index`` of an update's body; the bytes stand behind it."""

    assignment: str = field(validator=_name)
    commit: int = field(validator=_between(1, 1_000_000))
    index: int = field(validator=_count)


STATES = ("missing", "stored", "stale", "refused", "expired", "unknown")


@frozen(kw_only=True)
class Receipt(Message):
    """The coordinator's word on an update.

    ``missing`` lists ranges [first, last] of chunks to send. All other states are final and durable:
    ``stored`` (in the ledger, or already there), ``stale``, ``refused`` and ``expired`` (in the ledger with
    ``reason``, but not used), ``unknown`` (no such assignment). ``sha256`` is the hash of what is stored.
    """

    assignment: str = field(validator=_name)
    commit: int = field(validator=_between(1, 1_000_000))
    state: str = field(validator=_check(lambda value: value in STATES, f"one of {', '.join(STATES)}"))
    sha256: str = field(validator=_sha256)
    missing: tuple[tuple[int, int], ...] = field(
        validator=_check(lambda v: len(v) <= 1000 and _ascending(v), "at most 1000 ranges that ascend")
    )
    reason: str = field(validator=_text)


@frozen(kw_only=True)
class Telemetry(Message):
    """Heartbeat; None is what a board cannot measure. Sizes in bytes, temperature in °C, load in cores."""

    boot: str = field(validator=_name)
    uptime: float = field(validator=_seconds)
    state: str = field(validator=_name)
    assignment: str | None = field(validator=validators.optional(_name))
    step: int | None = field(validator=validators.optional(_count))
    load: float | None = field(validator=validators.optional(_between(0, 1e6)))
    temperature: float | None = field(validator=validators.optional(_between(-100, 300)))
    memory: int = field(validator=_natural)
    memory_free: int | None = field(validator=validators.optional(_natural))
    disk_free: int | None = field(validator=validators.optional(_natural))
    spool: int = field(validator=_natural)
    training: float = field(validator=_seconds)
    since: float = field(validator=_seconds)


@frozen(kw_only=True)
class DeviceEvent(Message):
    """Something a person should be able to read later, e.g. an assignment that was dropped, and why."""

    kind: str = field(validator=_name)
    text: str = field(validator=_text)


COMMANDS = ("rotate", "pause", "resume", "restart", "identify", "collect-logs", "decommission")


@frozen(kw_only=True)
class Command(Message):
    """Do ``kind`` once, within ``seconds`` after receipt. The same id may come again until it is answered."""

    id: str = field(validator=_name)
    kind: str = field(validator=_name)
    seconds: float = field(validator=_seconds)


RESULTS = ("done", "refused", "failed")


@frozen(kw_only=True)
class CommandResult(Message):
    """What came of the command ``id``; ``text`` is what it was to bring, or why it came to nothing."""

    id: str = field(validator=_name)
    state: str = field(validator=_check(lambda value: value in RESULTS, f"one of {', '.join(RESULTS)}"))
    text: str = field(validator=_check(lambda value: _storable(value, 20_000), "at most 20000 characters, no NUL"))


@frozen(kw_only=True)
class NextSecret(Message):
    """The secret that a device has made to follow its present one."""

    secret: str = field(validator=_secret, repr=False)


@frozen(kw_only=True)
class Accepted(Message):
    """The coordinator has stored it."""

    device: str = field(validator=_name)


@frozen(kw_only=True)
class Status(Message):
    """The coordinator's retained status."""

    state: str = field(validator=_check(lambda value: value in ("online", "offline"), "online or offline"))


@frozen(kw_only=True)
class Capability(Message):
    """What a device is: told at enrolment."""

    machine: str = field(validator=_text)
    system: str = field(validator=_text)
    python: str = field(validator=_text)
    runtimes: tuple[str, ...] = field(validator=_texts)
    memory: int = field(validator=_natural)
    cores: int = field(validator=_natural)


@frozen(kw_only=True)
class EnrolmentRequest(Message):
    """Claim ``token`` and register the ``secret`` the device made for itself. The same pair may ask again."""

    token: str = field(validator=_text, repr=False)
    secret: str = field(validator=_secret, repr=False)
    name: str = field(validator=_name)
    capability: Capability


@frozen(kw_only=True)
class EnrolmentReply(Message):
    """Who the device is from now on, and where the broker is."""

    device: str = field(validator=_name)
    broker_host: str = field(validator=_text)
    broker_port: int = field(validator=_between(1, 65535))
    broker_tls: bool
    heartbeat: float = field(validator=_between(0.1, 86400))
