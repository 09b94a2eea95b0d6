"""The messages: attrs classes that check their values. :mod:`protocol.wire` turns them into bytes."""

from __future__ import annotations

from typing import Any

from attrs import Attribute, evolve, field, frozen, validators

from . import coding as codings
from . import fields
from .errors import ProtocolError, shown
from .fields import between, check

PROTOCOL = 1
FEATURES = ("train", "int8", "topk", "commits", "refresh", "optimiser", "evaluate", "labels")
MAX_LABELS = 4096
"""Classes of the largest label histogram a device may tell."""


def _one_per_class(check_in: CheckIn, attribute: Attribute[Any], value: tuple[int, ...]) -> None:
    if len(value) not in (0, check_in.classes) or len(value) > MAX_LABELS or not all(0 <= n < 1 << 31 for n in value):
        expected = f"a count for each of the {check_in.classes} classes, which are at most {MAX_LABELS}"
        raise ProtocolError(f"{attribute.name} is {shown(value)}, expected {expected}")


@frozen(kw_only=True)
class Message:
    """Anything that travels as JSON."""


@frozen(kw_only=True)
class Blob(Message):
    """Bytes to be fetched over HTTP, named by their sha256."""

    sha256: str = field(validator=fields.sha256)
    size: int = field(validator=fields.natural)


@frozen(kw_only=True)
class Plan(Message):
    """Everything a device needs to know about one piece of training.

    SGD on batches of ``batch`` samples at ``learning_rate``. A commit is due after ``steps`` steps, or, where
    ``seconds`` is set, at the end of the first batch after so many seconds of training since the last commit and
    after ``steps`` steps at the latest. Training goes on for ``commits`` commits without waiting for anybody. After
    ``refresh`` steps of the assignment the device asks for the fresh model. ``momentum`` with ``dampening`` (its
    velocity begins at zero with every assignment), ``weight_decay``, ``clip`` (largest norm of a gradient, 0: any)
    and ``proximal`` (weight of the pull towards the weights that training began with) act as
    :class:`coordinator.compiler.optimiser.Training` says. ``roll`` shifts the subnetwork's channels. With
    ``evaluate`` the device measures the weights it begins with on its hold-out; with ``labels`` its next check-in tells
    how many samples of each class it has, if its owner allows that. The update travels in ``coding``.
    """

    width: float = field(validator=between(1 / 1024, 1))
    batch: int = field(validator=check(lambda n: 1 <= n <= 1024 and n & (n - 1) == 0, "a power of two up to 1024"))
    steps: int = field(validator=between(1, 1_000_000))
    learning_rate: float = field(validator=between(0, 1000))
    coding: str = field(validator=check(codings.known, f"one of {codings.EXPECTED}"))
    seconds: float | None = field(default=None, validator=validators.optional(between(0.001, 1e6)))
    commits: int = field(default=1, validator=between(1, 1_000_000))
    refresh: int | None = field(default=None, validator=validators.optional(between(1, 1_000_000)))
    momentum: float = field(default=0.0, validator=between(0, 1))
    dampening: float = field(default=0.0, validator=between(0, 1))
    weight_decay: float = field(default=0.0, validator=between(0, 100))
    clip: float = field(default=0.0, validator=between(0, 1e9))
    proximal: float = field(default=0.0, validator=between(0, 1e6))
    roll: int = field(default=0, validator=fields.count)
    evaluate: bool = False
    labels: bool = False

    def within(self, features: tuple[str, ...]) -> Plan:
        """This plan, less what an agent with ``features`` cannot do."""
        plan = self
        if self.coding != "float32" and codings.feature(self.coding) not in features:
            plan = evolve(plan, coding="int8" if "int8" in features else "float32")
        if "commits" not in features:
            plan = evolve(plan, seconds=None, commits=1)
        if "refresh" not in features:
            plan = evolve(plan, refresh=None)
        if "optimiser" not in features:
            plan = evolve(plan, momentum=0.0, dampening=0.0, weight_decay=0.0, clip=0.0, proximal=0.0)
        if "evaluate" not in features:
            plan = evolve(plan, evaluate=False)
        if "labels" not in features:
            plan = evolve(plan, labels=False)
        return plan


@frozen(kw_only=True)
class CheckIn(Message):
    """A device offers itself for work. ``id`` names this check-in and comes back in the answer.

    ``samples`` training samples of shape ``input`` with labels below ``classes``; ``held`` is the assignment
    the device still has in its spool, None if it is free; ``unsent`` are those whose updates wait for a final
    receipt. ``labels`` counts the samples of each class; None: the last plan did not ask; empty: the device's owner
    does not allow it to be told.
    """

    id: str = field(validator=fields.name)
    protocol: int = field(validator=fields.count)
    agent: str = field(validator=fields.name)
    runtime: str = field(validator=fields.name)
    features: tuple[str, ...] = field(validator=fields.texts)
    samples: int = field(validator=fields.count)
    input: tuple[int, ...] = field(validator=fields.sizes)
    classes: int = field(validator=between(1, 1_000_000))
    held: str | None = field(validator=validators.optional(fields.name))
    unsent: tuple[str, ...] = field(
        validator=check(lambda v: len(v) <= 256 and all(map(fields.NAME.fullmatch, v)), "at most 256 assignments")
    )
    labels: tuple[int, ...] | None = field(default=None, validator=validators.optional(_one_per_class))


@frozen(kw_only=True)
class Assignment(Message):
    """Work for one device: train ``plan`` from model ``version``; expires ``lease`` seconds after receipt."""

    id: str = field(validator=fields.name)
    kind: str = field(validator=check(lambda value: value == "train", "train"))
    run: str = field(validator=fields.name)
    check_in: str = field(validator=fields.name)
    version: int = field(validator=fields.count)
    plan: Plan
    lease: float = field(validator=fields.seconds)
    artifact: Blob
    weights: Blob


@frozen(kw_only=True)
class Retry(Message):
    """No work now: come back in ``seconds``."""

    check_in: str = field(validator=fields.name)
    seconds: float = field(validator=fields.seconds)
    reason: str = field(validator=fields.text)


@frozen(kw_only=True)
class Amend(Message):
    """A change of an assignment in hand, from the next batch on. The one with the highest ``number`` counts.

    ``plan`` None: nothing more is wanted of it, for ``reason``; the device drops it and what it has not committed.
    """

    assignment: str = field(validator=fields.name)
    number: int = field(validator=fields.count)
    plan: Plan | None
    reason: str = field(validator=fields.text)


@frozen(kw_only=True)
class Ask(Message):
    """A device asks for the fresh model at ``step`` of its assignment; its training builds on ``version``."""

    assignment: str = field(validator=fields.name)
    commit: int = field(validator=between(1, 1_000_000))
    step: int = field(validator=fields.count)
    version: int = field(validator=fields.count)


@frozen(kw_only=True)
class Fresh(Message):
    """The global model at ``version``, to be merged into training at the next batch.

    With w the device's weights and b its effective base: w ← (1 - merge)·w + merge·fresh + keep·(w - b) and
    b ← (1 - merge)·b + merge·fresh. It only counts for who builds on an older version.
    """

    assignment: str = field(validator=fields.name)
    version: int = field(validator=fields.count)
    weights: Blob
    merge: float = field(validator=between(0, 1))
    keep: float = field(validator=between(0, 1))


@frozen(kw_only=True)
class Progress(Message):
    """Sent when training starts (step 0) and now and then after; ``step`` counts over the whole assignment."""

    assignment: str = field(validator=fields.name)
    step: int = field(validator=fields.count)
    loss: float | None = field(validator=validators.optional(between(-1e30, 1e30)))


@frozen(kw_only=True)
class Merge(Message):
    """A fresh model was merged after ``step`` steps of the assignment, as :class:`Fresh` told.

    ``loss_before`` and ``loss_after`` are mean losses of the same batch, None where none was left to measure them on.
    """

    step: int = field(validator=fields.count)
    version: int = field(validator=fields.count)
    merge: float = field(validator=between(0, 1))
    keep: float = field(validator=between(0, 1))
    loss_before: float | None = field(default=None, validator=validators.optional(between(-1e30, 1e30)))
    loss_after: float | None = field(default=None, validator=validators.optional(between(-1e30, 1e30)))


_merges = check(lambda value: len(value) <= 64, "at most 64 merges")


@frozen(kw_only=True)
class Lineage(Message):
    """What a difference is relative to.

    The first commit starts from the weights of ``version``, every other one from where the commit before it ended;
    ``version`` is then the newest that had been merged. ``merges`` are those since, oldest first.
    """

    version: int = field(validator=fields.count)
    shape_epoch: int = field(validator=fields.count)
    merges: tuple[Merge, ...] = field(default=(), validator=_merges)

    @property
    def newest(self) -> int:
        """The newest version that the difference builds on."""
        return self.merges[-1].version if self.merges else self.version


@frozen(kw_only=True)
class Timings(Message):
    """Seconds the device spent on each phase of one assignment; ``upload`` is that of its previous update."""

    download: float = field(validator=fields.seconds)
    train: float = field(validator=fields.seconds)
    upload: float | None = field(validator=validators.optional(fields.seconds))


@frozen(kw_only=True)
class Holdout(Message):
    """What the weights that an assignment began with reach on the device's own hold-out, at the plan's width.

    Means over ``samples`` of it.
    """

    samples: int = field(validator=between(1, (1 << 31) - 1))
    loss: float = field(validator=between(-1e30, 1e30))
    accuracy: float = field(validator=between(0, 1))


@frozen(kw_only=True)
class Update(Message):
    """One commit. The body behind it (or its chunks) holds the difference in the tensors format.

    ``loss`` and ``accuracy`` are means over the trained samples. ``squared_gradient`` and
    ``squared_gradient_peak`` hold per tensor the mean and the largest squared gradient norm of a step (of the
    mean-loss gradient, before any clipping).
    """

    assignment: str = field(validator=fields.name)
    commit: int = field(validator=between(1, 1_000_000))
    run: str = field(validator=fields.name)
    lineage: Lineage
    samples: int = field(validator=fields.count)
    steps: int = field(validator=fields.count)
    loss: float = field(validator=between(-1e30, 1e30))
    accuracy: float = field(validator=between(0, 1))
    squared_gradient: dict[str, float] = field(validator=fields.values)
    squared_gradient_peak: dict[str, float] = field(validator=fields.values)
    timings: Timings
    bytes_down: int = field(validator=fields.natural)
    coding: str = field(validator=check(codings.known, f"one of {codings.EXPECTED}"))
    size: int = field(validator=between(1, 1 << 32))
    sha256: str = field(validator=fields.sha256)
    chunk: int = field(validator=between(0, 1 << 20))
    last: bool = True
    """No further commit of this assignment will come."""
    holdout: Holdout | None = None
    """With the first commit, where the plan asks for it and there is a hold-out."""

    @property
    def key(self) -> tuple[str, int]:
        return self.assignment, self.commit


@frozen(kw_only=True)
class Chunk(Message):
    """Piece ``index`` of an update's body; the bytes stand behind it."""

    assignment: str = field(validator=fields.name)
    commit: int = field(validator=between(1, 1_000_000))
    index: int = field(validator=fields.count)


STATES = ("missing", "stored", "stale", "refused", "expired", "unknown")


@frozen(kw_only=True)
class Receipt(Message):
    """The coordinator's word on an update.

    ``missing`` lists ranges [first, last] of chunks to send. All other states are final and durable:
    ``stored`` (in the ledger, or already there), ``stale``, ``refused`` and ``expired`` (in the ledger with
    ``reason``, but not used), ``unknown`` (no such assignment). ``sha256`` is the hash of what is stored.
    """

    assignment: str = field(validator=fields.name)
    commit: int = field(validator=between(1, 1_000_000))
    state: str = field(validator=check(lambda value: value in STATES, f"one of {', '.join(STATES)}"))
    sha256: str = field(validator=fields.sha256)
    missing: tuple[tuple[int, int], ...] = field(
        validator=check(lambda v: len(v) <= 1000 and fields.ascending(v), "at most 1000 ranges that ascend")
    )
    reason: str = field(validator=fields.text)


@frozen(kw_only=True)
class Telemetry(Message):
    """Heartbeat; None is what a board cannot measure. Sizes in bytes, temperature in °C, load in cores.

    ``cpu`` is the busy share of all cores since the last heartbeat, ``battery`` in percent, ``goodput`` of uploads in
    bytes/s, ``throttled`` the reasons for which the board slows itself down now. ``phases`` holds the seconds that
    the last download, training, encoding and upload took. ``waiting`` says why the device takes no work.
    """

    boot: str = field(validator=fields.name)
    uptime: float = field(validator=fields.seconds)
    state: str = field(validator=fields.name)
    assignment: str | None = field(validator=validators.optional(fields.name))
    step: int | None = field(validator=validators.optional(fields.count))
    load: float | None = field(validator=validators.optional(between(0, 1e6)))
    temperature: float | None = field(validator=validators.optional(between(-100, 300)))
    memory: int = field(validator=fields.natural)
    memory_free: int | None = field(validator=validators.optional(fields.natural))
    disk_free: int | None = field(validator=validators.optional(fields.natural))
    spool: int = field(validator=fields.natural)
    training: float = field(validator=fields.seconds)
    since: float = field(validator=fields.seconds)
    cpu: float | None = field(default=None, validator=validators.optional(between(0, 1)))
    throttled: tuple[str, ...] | None = field(default=None, validator=validators.optional(fields.texts))
    battery: float | None = field(default=None, validator=validators.optional(between(0, 100)))
    mains: bool | None = None
    metered: bool | None = None
    goodput: float | None = field(default=None, validator=validators.optional(between(0, 1e12)))
    phases: dict[str, float] | None = field(default=None, validator=validators.optional(fields.values))
    waiting: str | None = field(default=None, validator=validators.optional(fields.text))


@frozen(kw_only=True)
class DeviceEvent(Message):
    """Something a person should be able to read later, e.g. an assignment that was dropped, and why."""

    kind: str = field(validator=fields.name)
    text: str = field(validator=fields.text)


@frozen(kw_only=True)
class Status(Message):
    """The coordinator's retained status."""

    state: str = field(validator=check(lambda value: value in ("online", "offline"), "online or offline"))


@frozen(kw_only=True)
class Capability(Message):
    """What a device is: told at enrolment.

    ``speed``: milliseconds of a step of the reference model, by width, as in "0.25".
    """

    machine: str = field(validator=fields.text)
    system: str = field(validator=fields.text)
    python: str = field(validator=fields.text)
    runtimes: tuple[str, ...] = field(validator=fields.texts)
    memory: int = field(validator=fields.natural)
    cores: int = field(validator=fields.natural)
    speed: dict[str, float] | None = field(default=None, validator=validators.optional(fields.values))


@frozen(kw_only=True)
class EnrolmentRequest(Message):
    """Claim ``token`` and register the ``secret`` the device made for itself. The same pair may ask again."""

    token: str = field(validator=fields.text, repr=False)
    secret: str = field(validator=fields.secret, repr=False)
    name: str = field(validator=fields.name)
    capability: Capability


@frozen(kw_only=True)
class EnrolmentReply(Message):
    """Who the device is from now on, where the broker is, and the key that releases are signed with: the 32 bytes of an
    Ed25519 public key, as hexadecimal digits; without one the device takes no release."""

    device: str = field(validator=fields.name)
    broker_host: str = field(validator=fields.text)
    broker_port: int = field(validator=between(1, 65535))
    broker_tls: bool
    heartbeat: float = field(validator=between(0.1, 86400))
    release_key: str | None = field(default=None, validator=validators.optional(fields.sha256))
