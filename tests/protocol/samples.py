"""Values the protocol's tests share: one message of every class, strategies over their real ranges, layouts."""

from __future__ import annotations

from typing import Any

from attrs import NOTHING, evolve, fields_dict
from hypothesis import settings
from hypothesis import strategies as st

from protocol.commands import RESULTS, Accepted, Command, CommandResult, NextSecret
from protocol.deployments import (
    ENDED,
    KINDS,
    REPORTED,
    Deploy,
    Deployed,
    Deployment,
    Manifest,
    Recall,
    ReleaseFile,
)
from protocol.messages import (
    STATES,
    Amend,
    Ask,
    Assignment,
    Blob,
    Capability,
    CheckIn,
    Chunk,
    DeviceEvent,
    EnrolmentReply,
    EnrolmentRequest,
    Fresh,
    Holdout,
    Lineage,
    Merge,
    Message,
    Plan,
    Progress,
    Receipt,
    Retry,
    Status,
    Telemetry,
    Timings,
    Update,
)
from protocol.model_card import ModelCard, ModelSize
from protocol.subnetwork import CLASSES, Axis, Layout

SHA = "0123456789abcdef" * 4
CODINGS = ("float32", "int8", "topk-0.05", "topk-0.5")
QUICK = settings(max_examples=60, deadline=None, derandomize=True)

_BLOB = Blob(sha256=SHA, size=4096)
_CAPABILITY = Capability(
    machine="aarch64", system="Linux 6.6", python="3.11.9", runtimes=("numpy", "litert"), memory=1 << 30, cores=4,
    speed={"1": 8.5, "0.5": 3.25},
)

_HOLDOUT = Holdout(samples=100, loss=1.5, accuracy=0.5)
_MERGE = Merge(step=50, version=9, merge=0.25, keep=1.0, loss_before=1.5, loss_after=1.25)

EXAMPLES: dict[type[Message], Message] = {
    type(message): message
    for message in (
        _BLOB,
        Plan(
            width=0.25, batch=32, steps=100, learning_rate=0.05, coding="int8", seconds=2.5, commits=4, refresh=50,
            momentum=0.9, dampening=0.1, weight_decay=0.0005, clip=1.0, proximal=0.01, roll=3, evaluate=True,
        ),
        CheckIn(
            id="c-1", protocol=1, agent="0.1.0", runtime="tflite-2.14", features=("train", "int8"), samples=900,
            input=(28, 28, 1), classes=10, held=None, unsent=("a-3", "a-4"),
            labels=None,
        ),
        Assignment(
            id="a-1", kind="train", run="r-1", check_in="c-1", version=7, lease=3600.0, artifact=_BLOB, weights=_BLOB,
            plan=Plan(width=0.5, batch=16, steps=10, learning_rate=0.1, coding="float32"),
        ),
        Retry(check_in="c-1", seconds=30.0, reason="every cohort is full"),
        Amend(
            assignment="a-1", number=2, reason="",
            plan=Plan(width=0.5, batch=16, steps=10, learning_rate=0.1, coding="float32"),
        ),
        Ask(assignment="a-1", commit=1, step=50, version=7),
        Fresh(assignment="a-1", version=9, weights=_BLOB, merge=0.25, keep=1.0),
        Progress(assignment="a-1", step=12, loss=1.25),
        _MERGE,
        _HOLDOUT,
        Lineage(version=7, shape_epoch=0, merges=(_MERGE,)),
        Timings(download=1.5, train=60.0, upload=None),
        Update(
            assignment="a-1", commit=1, run="r-1", lineage=Lineage(version=7, shape_epoch=0), samples=320, steps=10,
            loss=0.75, accuracy=0.5, squared_gradient={"w": 0.25, "b": 0.0}, squared_gradient_peak={"w": 1.5},
            timings=Timings(download=1.5, train=60.0, upload=2.0), bytes_down=90_000, coding="int8", size=20_000,
            sha256=SHA, chunk=4096, last=False, holdout=_HOLDOUT,
        ),
        Chunk(assignment="a-1", commit=1, index=3),
        Receipt(assignment="a-1", commit=1, state="missing", sha256=SHA, missing=((0, 2), (5, 5)), reason=""),
        Telemetry(
            boot="b-1", uptime=12.5, state="training", assignment="a-1", step=3, load=0.5, temperature=48.0,
            memory=1 << 30, memory_free=1 << 28, disk_free=None, spool=0, training=9.5, since=1.0,
            cpu=0.25, throttled=("under-voltage",), battery=80.0, mains=True, metered=False, goodput=125_000.0,
            phases={"train": 60.0}, waiting=None,
        ),
        DeviceEvent(kind="dropped", text="the artifact's hash was another"),
        Command(id="c-1", kind="identify", seconds=60.0),
        CommandResult(id="c-1", state="refused", text="this board has no LED"),
        ReleaseFile(name="aarch64-cp313", sha256=SHA, size=20_000_000),
        Manifest(
            kind="agent", version="1.2.0", number=7, created_at=1.7e9, expires_at=1.8e9, floor=3,
            files=(ReleaseFile(name="aarch64-cp313", sha256=SHA, size=20_000_000),), settings="pace = 1.0",
            facts={"accuracy": 0.9},
        ),
        Deploy(id="e-1", manifest="{}", signature="0f" * 64, seconds=1800.0, lock=600.0, trial=180.0, back=True),
        Recall(id="e-1"),
        Deployment(
            id="e-1", number=4, state="failed", text="no room", facts={"free_bytes": 1e6}, retry=True
        ),
        Deployed(kind="model", version="har-3.41", manifest=SHA),
        ModelSize(width=0.5, flops=1200, bytes=4000, memory=12_000, accuracy=0.75),
        ModelCard(
            model="har", input=(128, 9), classes=6, run="har-3", version=41, sha256=SHA,
            sizes=(ModelSize(width=0.5, flops=1200, bytes=4000, memory=12_000),),
        ),
        NextSecret(secret="s" * 43),
        Accepted(device="pi-3"),
        Status(state="online"),
        _CAPABILITY,
        EnrolmentRequest(token="t" * 20, secret="s" * 43, name="pi-3", capability=_CAPABILITY),
        EnrolmentReply(
            device="pi-3", broker_host="coordinator.lan", broker_port=8883, broker_tls=True, heartbeat=10.0
        ),
    )
}  # fmt: skip

naturals = st.integers(0, 1 << 53)
counts = st.integers(0, (1 << 31) - 1)
seconds = st.floats(0, 1e9)
sha256s = st.text("0123456789abcdef", min_size=64, max_size=64)
names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,79}", fullmatch=True)
characters = st.characters(exclude_characters="\0", exclude_categories=["Cs"])
texts = st.text(characters, max_size=60)
short_texts = st.lists(texts, max_size=4).map(tuple)
commits = st.integers(1, 1_000_000)
losses = st.floats(-1e30, 1e30)
shares = st.floats(0, 1)
codings = st.sampled_from(CODINGS)
sizes = st.lists(st.integers(1, (1 << 31) - 1), min_size=1, max_size=8).map(tuple)
secrets = st.from_regex(r"[!-~]{32,128}", fullmatch=True)
norms = st.dictionaries(texts, st.floats(0, allow_infinity=False), max_size=5)


def _maybe(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | values


def _pairs(ends: set[int]) -> tuple[tuple[int, int], ...]:
    ordered = sorted(ends)
    return tuple(zip(ordered[::2], ordered[1::2], strict=False))


moments = st.floats(0, 1e11)
versions = st.from_regex(r"[0-9A-Za-z][0-9A-Za-z.+_-]{0,39}", fullmatch=True)
_FILE = st.builds(ReleaseFile, name=names, sha256=sha256s, size=naturals)
ranges = st.sets(naturals, max_size=20).map(_pairs)

_FIELDS: dict[type[Message], dict[str, st.SearchStrategy[Any]]] = {
    Blob: {"sha256": sha256s, "size": naturals},
    Plan: {
        "width": st.floats(1 / 1024, 1), "batch": st.sampled_from([1 << n for n in range(11)]),
        "steps": st.integers(1, 1_000_000), "learning_rate": st.floats(0, 1000), "coding": codings,
        "seconds": _maybe(st.floats(0.001, 1e6)), "commits": commits, "refresh": _maybe(st.integers(1, 1_000_000)),
        "momentum": shares, "dampening": shares, "weight_decay": st.floats(0, 100), "clip": st.floats(0, 1e9),
        "proximal": st.floats(0, 1e6), "roll": counts,
        "evaluate": st.booleans(),
    },
    Ask: {"assignment": names, "commit": commits, "step": counts, "version": counts},
    Merge: {
        "step": counts, "version": counts, "merge": shares, "keep": shares, "loss_before": _maybe(losses),
        "loss_after": _maybe(losses),
    },
    CheckIn: {
        "id": names, "protocol": counts, "agent": names, "runtime": names, "features": short_texts,
        "samples": counts, "input": sizes, "classes": st.integers(1, 8) | st.integers(1, 1_000_000),
        "held": _maybe(names), "unsent": st.lists(names, max_size=4).map(tuple),
    },
    Retry: {"check_in": names, "seconds": seconds, "reason": texts},
    Progress: {"assignment": names, "step": counts, "loss": _maybe(losses)},
    Holdout: {"samples": st.integers(1, (1 << 31) - 1), "loss": losses, "accuracy": shares},
    Timings: {"download": seconds, "train": seconds, "upload": _maybe(seconds)},
    Chunk: {"assignment": names, "commit": commits, "index": counts},
    Receipt: {
        "assignment": names, "commit": commits, "state": st.sampled_from(STATES), "sha256": sha256s,
        "missing": ranges, "reason": texts,
    },
    Telemetry: {
        "boot": names, "uptime": seconds, "state": names, "assignment": _maybe(names), "step": _maybe(counts),
        "load": _maybe(st.floats(0, 1e6)), "temperature": _maybe(st.floats(-100, 300)), "memory": naturals,
        "memory_free": _maybe(naturals), "disk_free": _maybe(naturals), "spool": naturals, "training": seconds,
        "since": seconds, "cpu": _maybe(st.floats(0, 1)), "throttled": _maybe(short_texts),
        "battery": _maybe(st.floats(0, 100)), "mains": _maybe(st.booleans()), "metered": _maybe(st.booleans()),
        "goodput": _maybe(st.floats(0, 1e12)), "phases": _maybe(norms), "waiting": _maybe(texts),
    },
    DeviceEvent: {"kind": names, "text": texts},
    Command: {"id": names, "kind": names, "seconds": seconds},
    CommandResult: {"id": names, "state": st.sampled_from(RESULTS), "text": texts},
    ReleaseFile: {"name": names, "sha256": sha256s, "size": naturals},
    Manifest: {
        "kind": st.sampled_from(KINDS), "version": versions, "number": naturals, "created_at": moments,
        "expires_at": moments, "floor": naturals, "files": _FILE.map(lambda file: (file,)), "settings": texts,
        "facts": norms,
    },
    Deploy: {
        "id": names, "manifest": texts, "signature": sha256s.map(lambda sha: sha + sha), "seconds": seconds,
        "lock": seconds, "trial": st.floats(1, 86_400), "back": st.booleans(),
    },
    Recall: {"id": names},
    Deployment: {
        "id": names, "number": counts, "state": st.sampled_from(REPORTED + ENDED), "text": texts,
        "facts": norms, "retry": st.booleans(),
    },
    Deployed: {"kind": st.sampled_from(KINDS), "version": versions, "manifest": _maybe(sha256s)},
    ModelSize: {
        "width": st.floats(1 / 1024, 1), "flops": naturals, "bytes": naturals, "memory": naturals,
        "accuracy": _maybe(shares),
    },
    NextSecret: {"secret": secrets},
    Accepted: {"device": names},
    Status: {"state": st.sampled_from(["online", "offline"])},
    Capability: {
        "machine": texts, "system": texts, "python": texts, "runtimes": short_texts, "memory": naturals,
        "cores": naturals, "speed": _maybe(norms),
    },
    EnrolmentReply: {
        "device": names, "broker_host": texts, "broker_port": st.integers(1, 65535), "broker_tls": st.booleans(),
        "release_key": _maybe(sha256s),
        "heartbeat": st.floats(0.1, 86400),
    },
}  # fmt: skip

MESSAGES: dict[type[Message], st.SearchStrategy[Message]] = {
    kind: st.builds(kind, **named) for kind, named in _FIELDS.items()
}


def _counted(check_in: CheckIn) -> st.SearchStrategy[CheckIn]:
    """With a label histogram, where there are few classes."""
    if check_in.classes > 8:
        return st.just(check_in)
    histogram = st.lists(counts, min_size=check_in.classes, max_size=check_in.classes).map(tuple)
    return histogram.map(lambda labels: evolve(check_in, labels=labels))


MESSAGES[CheckIn] = MESSAGES[CheckIn].flatmap(_counted)
MESSAGES[Assignment] = st.builds(
    Assignment, id=names, kind=st.just("train"), run=names, check_in=names, version=counts, lease=seconds,
    plan=MESSAGES[Plan], artifact=MESSAGES[Blob], weights=MESSAGES[Blob],
)  # fmt: skip
MESSAGES[Amend] = st.builds(Amend, assignment=names, number=counts, plan=_maybe(MESSAGES[Plan]), reason=texts)
MESSAGES[Fresh] = st.builds(
    Fresh, assignment=names, version=counts, weights=MESSAGES[Blob], merge=shares, keep=shares
)  # fmt: skip
MESSAGES[Lineage] = st.builds(
    Lineage, version=counts, shape_epoch=counts, merges=st.lists(MESSAGES[Merge], max_size=3).map(tuple)
)  # fmt: skip
MESSAGES[ModelCard] = st.builds(
    ModelCard, model=texts, input=sizes, classes=st.integers(1, 1_000_000), run=names,
    version=counts, sha256=sha256s, sizes=MESSAGES[ModelSize].map(lambda size: (size,)),
)  # fmt: skip
MESSAGES[Update] = st.builds(
    Update, assignment=names, commit=commits, run=names, lineage=MESSAGES[Lineage], samples=counts, steps=counts,
    loss=losses, accuracy=st.floats(0, 1), squared_gradient=norms, squared_gradient_peak=norms,
    timings=MESSAGES[Timings], bytes_down=naturals, coding=codings, size=st.integers(1, 1 << 32), sha256=sha256s,
    chunk=st.integers(0, 1 << 20), last=st.booleans(),
    holdout=_maybe(MESSAGES[Holdout]),
)  # fmt: skip
MESSAGES[EnrolmentRequest] = st.builds(
    EnrolmentRequest, token=texts, secret=secrets, name=names,
    capability=MESSAGES[Capability],
)  # fmt: skip


def example_fields() -> list[tuple[type[Message], str]]:
    """Every field of every message class that may not be left out."""
    return [(kind, name) for kind in EXAMPLES for name, a in fields_dict(kind).items() if a.default is NOTHING]


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    """Layouts of up to five tensors over three hidden groups and the classes; axes may have positions and parts."""
    channels = {group: draw(st.integers(1, 9)) for group in ("g0", "g1", "g2", CLASSES)}

    def axis(group: str | None) -> Axis:
        if group is None:
            return Axis(draw(st.integers(1, 4)))
        repeat = draw(st.integers(1, 3))
        if group != "joined":
            return Axis(channels[group] * repeat, group, repeat)
        parts = [axis(part) for part in draw(st.lists(st.sampled_from([None, "g0", "g1"]), min_size=1, max_size=3))]
        return Axis(repeat * sum(part.size for part in parts), None, repeat, tuple(parts))

    kinds = st.sampled_from([None, "joined", *channels])
    return {
        f"t{index}": tuple(axis(group) for group in draw(st.lists(kinds, max_size=4)))
        for index in range(draw(st.integers(1, 5)))
    }
