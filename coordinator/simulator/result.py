"""What a simulated seed came to, as JSON: curves, work, widths, staleness, what every device did and got."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any, Final

from attrs import asdict, fields
from sqlalchemy import select
from sqlalchemy.orm import Session

from coordinator.errors import ShoalError
from coordinator.simulator.experiment import Prepared
from coordinator.simulator.until import smoothed
from coordinator.simulator.world import BEGIN, Mark, World
from coordinator.store.models import Assignment, Update
from coordinator.training.evaluation import Dataset
from coordinator.training.live import LiveRun
from protocol.weights import digest

FORM: Final = 1
LANES: Final = 24
"""Devices in the timeline, picked evenly."""
BARS: Final = 1500
"""Assignments in the timeline."""
SPANS: Final = 40
"""Columns of the history of widths."""
JUDGED: Final = 200
"""Devices whose own accuracy is measured."""


def summary(
    session: Session, live: LiveRun, prepared: Prepared, seed: int, world: World, took: float
) -> dict[str, Any]:
    """Everything about a seed that has ended."""
    accuracies = [mark.accuracy for mark in world.curve]
    work = session.execute(
        select(
            Update.device_id, Update.at, Update.width, Update.staleness, Update.outcome, Update.weight,
            Assignment.offered_at,
        )
        .join(Assignment, Assignment.id == Update.assignment_id)
        .where(Update.run_id == live.id)
        .order_by(Update.at, Update.id)
    ).all()  # fmt: skip
    return {
        "form": FORM,
        "run": live.id,
        "recipe": prepared.recipe.name,
        "seed": seed,
        "model": prepared.spec.name,
        "parameters": sum(value.size for value in live.engine.core.weights.values()),
        "population": prepared.population.name,
        "until": prepared.experiment.until,
        "dealt": prepared.dealt(seed).described,
        "ended": world.ended,
        "seconds": world.gone,
        "versions": world.version,
        "accuracy": smoothed(accuracies),
        "sha256": digest(live.engine.core.weights),
        "updates": dict(Counter(row.outcome for row in work)),
        "curve": _columns(world.curve),
        "widths": _widths(work, world.gone),
        "staleness": _staleness(work),
        "devices": _devices(work, world, _own_accuracies(live, world)),
        "timeline": _timeline(work, world),
        "real_seconds": round(took, 3),
        "updates_per_second": round(world.bench.updates / took, 2) if took else None,
    }


def write(path: Path, result: dict[str, Any]) -> None:
    """Whole or not at all."""
    aside = path.with_suffix(".part")
    aside.write_text(json.dumps(result, separators=(",", ":")) + "\n")
    aside.replace(path)


def read(path: Path) -> dict[str, Any]:
    """ShoalError bad-request for what is none of our results."""
    try:
        found: dict[str, Any] = json.loads(path.read_text())
        if found["form"] != FORM:
            raise ValueError(f"it has form {found['form']}, expected {FORM}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ShoalError("bad-request", f"{path} is not the result of a simulation: {error}") from error
    return found


def _columns(curve: list[Mark]) -> dict[str, list[Any]]:
    return {one.name: [getattr(mark, one.name) for mark in curve] for one in fields(Mark)}


def _widths(work: Any, gone: float) -> dict[str, Any]:
    """Updates of each width that came in each of SPANS equal spans of time."""
    length = max(gone / SPANS, 1e-9)
    counts: dict[str, list[int]] = {}
    for row in work:
        column = counts.setdefault(f"{row.width:g}", [0] * SPANS)
        column[min(SPANS - 1, int((row.at - BEGIN) / length))] += 1
    return {"seconds": length, "counts": dict(sorted(counts.items(), key=lambda item: float(item[0])))}


def _staleness(work: Any) -> dict[str, int]:
    counts = Counter(row.staleness for row in work if row.staleness is not None)
    return {str(value): counts[value] for value in sorted(counts)}


def _own_accuracies(live: LiveRun, world: World) -> dict[str, float]:
    """The final model on the samples of each device (up to JUDGED of them, picked evenly)."""
    ids = list(world.boards)
    picked = ids[:: max(1, -(-len(ids) // JUDGED))]
    weights, evaluation = live.engine.core.weights, world.desk.evaluation
    own = {id: world.boards[id].dataset for id in picked}
    return {id: evaluation.measured(weights, Dataset(one.x, one.y))[0] for id, one in own.items()}


def _devices(work: Any, world: World, own: dict[str, float]) -> list[dict[str, Any]]:
    mine: dict[str, list[Any]] = {}
    for row in work:
        mine.setdefault(row.device_id, []).append(row)
    total = sum(row.weight or 0.0 for row in work) or 1.0
    found = []
    for id, board in world.boards.items():
        rows = mine.get(id, [])
        found.append(
            {
                "id": id,
                "group": board.group.name,
                "samples": len(board.dataset),
                "updates": len(rows),
                "applied": sum(row.outcome == "applied" for row in rows),
                "share": round(sum(row.weight or 0.0 for row in rows) / total, 6),
                "mean_width": round(sum(row.width for row in rows) / len(rows), 4) if rows else None,
                "accuracy": own.get(id),
                **{name: round(value, 3) for name, value in asdict(board.account.own).items()},
            }
        )
    return found


def _timeline(work: Any, world: World) -> list[list[Any]]:
    """[device, begin, end, width, outcome] of some devices' assignments, as many from the beginning as there is room
    for."""
    ids = list(world.boards)
    shown = set(ids[:: max(1, -(-len(ids) // LANES))])
    rows = [row for row in work if row.device_id in shown][:BARS]
    return [
        [row.device_id, round(row.offered_at - BEGIN, 3), round(row.at - BEGIN, 3), row.width, row.outcome]
        for row in rows
    ]
