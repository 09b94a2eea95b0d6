"""A fleet of any size with a training behind it, written in one go: the same seed gives the same fleet."""

from __future__ import annotations

import random

from sqlalchemy.orm import Session

from coordinator.compiler.zoo import ZOO
from coordinator.store.models import (
    Assignment,
    Device,
    Event,
    Input,
    Metric,
    Model,
    ModelVersion,
    Run,
    StatusChange,
    Telemetry,
    Update,
)
from coordinator.training import recipe as recipes

NOW = 1_763_643_600.0
TIERS = {"pi5": (1.0, 2.1), "pi4": (1.0, 4.4), "pi3": (0.5, 7.0), "zero2": (0.25, 11.0)}
WHALE = ("whale_fl", {"samples": 412, "fisher": 0.0132, "reference": 9.5, "scale": 2.1})


def write_fleet(session: Session, devices: int = 40, minutes: float = 14, seed: int = 3) -> None:
    """A run that is going on, one that reached its target and one that is paused, on ``devices`` boards."""
    rng = random.Random(seed)
    spec = ZOO["cnn1d"]
    session.add(Model(id=1, name="har-cnn", spec_sha256=spec.sha256, spec=spec.to_json(), created_at=NOW - 1e5))
    session.flush()
    _run(session, "har-night", "whale-fl", NOW - 60 * minutes, "running", target=0.93)
    _run(session, "har-pilot", "fedbuff-heterofl", NOW - 9000, "finished", target=0.9, ended=NOW - 6000)
    _run(session, "har-wide", "fedbuff", NOW - 4000, "paused", target=None)
    boards = [_board(session, index, rng) for index in range(devices)]
    session.flush()
    updates = _train(session, "har-night", boards, NOW - 60 * minutes, NOW, rng)
    _train(session, "har-pilot", boards[::4], NOW - 9000, NOW - 6000, rng, open_at_end=False, pause=40)
    _evaluate(session, "har-night", updates, rng)
    _evaluate(session, "har-pilot", 90, rng, began=NOW - 9000, lasted=3000)
    _happen(session, boards)


def _run(session, id, recipe, began, state, target, ended=None):
    session.add(
        Run(
            id=id, model_id=1, recipe=recipes.load(recipe).to_toml(), recipe_name=recipe, seed=7,
            target=target, dataset="/srv/shoal/har-test.npz", state=state,
            reason="target reached" if state == "finished" else "", created_by="ada", created_at=began, ended_at=ended,
        )
    )  # fmt: skip
    session.flush()


def _board(session: Session, index: int, rng: random.Random) -> Device:
    tier = list(TIERS)[index % 4]
    place = ("barn", "dock", "gate", "hall", "mill")[index % 5]
    status = {5: "offline", 11: "late", 17: "paused", 23: "revoked", 29: "offline", 38: "new"}.get(index, "idle")
    since = NOW - rng.uniform(20, 4000) if status != "idle" else NOW - rng.uniform(1, 40)
    temperature = round(rng.uniform(81, 84) if index in (7, 20) else rng.uniform(44, 71), 1)
    memory = (8 << 30, 4 << 30, 1 << 30, 512 << 20)[index % 4]
    beat = {
        "boot": "b1", "uptime": 90000.0, "state": "idle", "assignment": None, "step": None, "load": 0.9,
        "temperature": temperature, "memory": memory, "memory_free": int(memory * rng.uniform(0.3, 0.8)),
        "disk_free": (120 << 20) if index == 13 else int(rng.uniform(2e9, 2e10)), "spool": 0,
        "training": rng.uniform(300, 700), "since": 840.0, "goodput": 40_000.0 * (1 + index % 5), "metered": index == 3,
    }  # fmt: skip
    board = Device(
        id=f"d{index:04d}", name=f"{tier}-{place}-{index:02d}", group=tier, enrolled_at=NOW - 5e5 - index,
        capability={
            "machine": "aarch64", "system": "Linux 6.6", "python": "3.11.2", "runtimes": ["tflite"],
            "memory": memory, "cores": 4, "speed": {"1": 8.0 * (1 + index % 4), "0.25": 2.0},
        },
        last_seen_at=None if status == "new" else NOW - rng.uniform(0, 9) if status != "offline" else since - 120,
        status=status, status_at=since, paused_at=since if status == "paused" else None,
        revoked_at=since if status == "revoked" else None, agent="0.1.0", runtime="tflite 2.14",
        samples=None if status == "new" else rng.randint(120, 900), telemetry=None if status == "new" else beat,
    )  # fmt: skip
    session.add(board)
    session.flush()
    reasons = {"offline": "no sign for 121 s", "late": "no sign for 31 s", "paused": "paused by ada"}
    if status != "new":
        session.add(
            StatusChange(device_id=board.id, old="new", new="idle", reason="heard for the first time", at=NOW - 5e5)
        )
        session.add(
            StatusChange(
                device_id=board.id,
                old="idle",
                new=status,
                reason=reasons.get(status, "has no open assignment"),
                at=since,
            )
        )
        for beat_at in range(60):
            warm = temperature + 2 * rng.random() - (6 if beat_at < 20 else 0)
            session.add(
                Telemetry(
                    device_id=board.id, at=NOW - 60 * (60 - beat_at), uptime=9e4, load=0.4 + rng.random() / 2,
                    temperature=warm, memory=memory, memory_free=int(memory * (0.5 + rng.random() / 10)),
                    disk_free=beat["disk_free"], spool=90_000 * (rng.random() < 0.2),
                )
            )  # fmt: skip
    return board


def _train(session, run, boards, began, until, rng, open_at_end=True, pause=2.5):
    """Every board trains again and again in its own tempo; returns the number of versions."""
    starts = [(began + rng.uniform(0, 8), number) for number, board in enumerate(boards) if board.status != "new"]
    done = []
    for first, number in starts:
        board, moment = boards[number], first
        end = until if board.status in ("idle",) else min(until, board.status_at - 120)
        while moment < end:
            width, seconds = TIERS[board.group]
            width = rng.choice([width, width, width, width / 2])
            lasted = seconds * (0.35 + 0.65 * width) * rng.uniform(0.8, 1.6) * 4
            done.append((moment, moment + lasted, board, width))
            moment += lasted + rng.uniform(0.6, pause)
    version, finished = 0, sorted(done, key=lambda one: one[1])
    count = 0
    ends = [one[1] for one in finished]
    for begin, end, board, width in finished:
        base = _before(ends, begin) // 4
        assignment = f"{run}-{board.id}-{int(begin * 10)}"
        is_open = end > until
        session.add(_assignment(assignment, run, board, base, width, begin, end, is_open and open_at_end, rng))
        if is_open:
            if open_at_end:
                board.assignment_id, board.status, board.status_at = assignment, "training", begin
                board.telemetry = {**board.telemetry, "assignment": assignment, "step": rng.randint(1, 19)}
            continue
        session.flush()
        count += 1
        version = count // 4
        luck = rng.random()
        outcome = "refused" if luck < 0.006 else "stale" if luck < 0.03 else "applied"
        session.add(_update(assignment, run, board, base, version, width, begin, end, outcome, rng))
        if count % 4 == 0:
            session.add(
                ModelVersion(run_id=run, version=version, sha256=f"{version:064x}", step_norm=0.4, updates=4, at=end)
            )
    session.get(Run, run).version = version
    session.flush()
    return version


def _before(ends, moment):
    low, high = 0, len(ends)
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if ends[middle] <= moment else (low, middle)
    return low


def _assignment(id, run, board, base, width, begin, end, is_open, rng):
    utility = round(rng.uniform(0.3, 2.4), 3)
    if run == "har-night":
        policy, inputs = WHALE
        seen = {**inputs, "seconds": round(end - begin, 2), "utility": utility, "share": round(utility / 2.1, 3)}
        explanation = {policy: {"width": width, **seen}}
    else:
        explanation = {"heterofl": {"group": board.group, "width": width}}
    return Assignment(
        id=id, run_id=run, device_id=board.id, kind="train", version=base, width=width,
        plan={"width": width, "batch": 16, "steps": 20, "learning_rate": 0.1, "coding": "int8"},
        explanation=explanation, state="taken" if is_open else "closed", artifact_sha256="c" * 64,
        weights_sha256="d" * 64, bytes_down=int(180_000 * width), offered_at=begin - 0.3, taken_at=begin,
        expires_at=begin + 120, closed_at=None if is_open else end,
    )  # fmt: skip


def _update(assignment, run, board, base, version, width, begin, end, outcome, rng):
    applied = outcome == "applied"
    reasons = {"refused": "not finite in tensor dense/kernel", "stale": "61 versions old, at most 60 are used"}
    return Update(
        assignment_id=assignment, commit=1, run_id=run, device_id=board.id, base_version=base,
        applied_version=version + 1 if applied else None, staleness=None if outcome == "refused" else version - base,
        width=width, weight=round(rng.uniform(0.3, 1), 3) if applied else None, samples=320, steps=20,
        loss=round(2.2 / (1 + version / 40) + rng.uniform(0, 0.1), 4), accuracy=min(0.99, 0.3 + version / 500),
        norm=round(rng.uniform(0.2, 1.4), 3), bytes_up=int(48_000 * width), bytes_down=int(180_000 * width),
        seconds_download=0.3, seconds_train=round(end - begin - 0.8, 2), seconds_upload=0.5, outcome=outcome,
        holdout_samples=40, holdout_loss=0.6, holdout_accuracy=min(0.95, 0.25 + version / 450),
        reason=reasons.get(outcome, ""), sha256="e" * 64, segment=1, offset=0, at=end,
    )  # fmt: skip


def _evaluate(session, run, versions, rng, began=None, lasted=0.0):
    step = max(1, versions // 80)
    for version in range(0, versions + 1, step):
        row = session.get(ModelVersion, (run, version))
        at = row.at if row else (began if began is not None else NOW - 840) + lasted * version / max(1, versions)
        reached = 0.13 + 0.79 * (1 - 2.718 ** (-3.5 * version / max(1, versions)))
        accuracy = min(0.97, reached + rng.uniform(-0.012, 0.012))
        session.add(Metric(run_id=run, version=version, name="accuracy", value=accuracy, at=at))
        session.add(Metric(run_id=run, version=version, name="loss", value=2.3 * (1 - accuracy), at=at))


def _happen(session, boards):
    told = [
        (NOW - 4000, "run-started", None, "har-wide", "ada started run har-wide"),
        (NOW - 3100, "run-paused", None, "har-wide", "paused by ada"),
        (NOW - 900, "device-joined", boards[-2].id, None, f"{boards[-2].name} joined with token 7f3a"),
        (NOW - 840, "run-started", None, "har-night", "ada started run har-night with whale-fl on har-cnn"),
        (
            NOW - 300,
            "update-refused",
            boards[3].id,
            "har-night",
            "an update was refused: not finite in tensor dense/kernel",
        ),
        (NOW - 120, "device-note", boards[6].id, None, "download resumed at 84 % after a lost link"),
        (
            NOW - 31,
            "device-late",
            boards[11 % len(boards)].id,
            None,
            f"{boards[11 % len(boards)].name} is late: no sign for 31 s",
        ),
        (NOW - 12, "evaluated", None, "har-night", "version evaluated at 92.1 %"),
    ]
    for at, kind, device, run, text in told:
        session.add(Event(at=at, kind=kind, device_id=device, run_id=run, text=text))
    session.add(Input(run_id="har-night", kind="tick", body={}, at=NOW))
