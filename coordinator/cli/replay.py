"""``shoal run replay``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import Progress
from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from coordinator import settings
from coordinator.cli.client import home_option
from coordinator.cli.db import opened
from coordinator.cli.output import facts, json_option, print_json
from coordinator.errors import ShoalError
from coordinator.store import models, segments
from coordinator.store.blobs import Blobs
from coordinator.training.evaluation import Evaluation, read_dataset
from coordinator.training.replay import Replay, replay
from protocol.weights import add, norm


@click.command("replay")
@click.argument("name", metavar="RUN")
@click.option("--without", multiple=True, metavar="DEVICE", help="Count its updates as zero; may be repeated.")
@home_option
@json_option
def replay_run(name: str, without: tuple[str, ...], home: Path | None, as_json: bool) -> None:
    """Compute a run's model once more from the ledger, and compare every version.

    Works on the database itself, beside a coordinator that may go on. --without DEVICE sums the ledger once more with
    that device's updates at zero: a re-sum, not what would have happened without it, for the others would have trained
    on other models then.

    Exit codes: 0 every version is the same, 1 one differs or the run cannot be replayed, 2 usage.

    \b
    Example:
      shoal run replay digits-1
      shoal run replay digits-1 --without pi-kitchen
    """
    folder = settings.load({"home": home}).home

    def read(segment: int, offset: int, size: int) -> bytes:
        return segments.read(folder / "segments", segment, offset, size)

    blobs = Blobs(folder / "blobs")
    with opened(home) as database, database.read() as session:
        row = session.get(models.Run, name)
        devices = frozenset(_device(session, name, device) for device in without)
        found = _shown(lambda progress: replay(session, blobs, read, name, progress=progress), name)
        report = _report(name, found)
        if without:
            other = _shown(lambda progress: replay(session, blobs, read, name, devices, progress), name)
            report |= _without(found, other, without, row.dataset if row is not None else "")
    print_json(report) if as_json else facts(report.items())
    if found.differs is not None:
        raise SystemExit(1)


def _device(session: Session, run: str, name: str) -> str:
    """The id of a device that took part, by its id or name."""
    took_part = models.Device.id.in_(select(models.Assignment.device_id).where(models.Assignment.run_id == run))
    mine = or_(models.Device.id == name, models.Device.name == name)
    found = session.scalar(select(models.Device.id).where(took_part, mine))
    if found is None:
        raise ShoalError("not-found", f"No device {name[:80]!r} has worked for run {run[:80]}")
    return found


def _shown(work: Any, name: str) -> Replay:
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(f"replaying {name}", total=None)
        result: Replay = work(lambda done, total: bar.update(task, completed=done, total=total))
    return result


def _report(name: str, found: Replay) -> dict[str, Any]:
    same = f"{found.compared} of {found.compared}" if found.differs is None else f"until version {found.differs - 1}"
    return {
        "run": name,
        "inputs": found.inputs,
        "version": found.version,
        "sha256": found.sha256,
        "versions the same": same,
        "first that differs": found.differs,
    }


def _without(found: Replay, other: Replay, devices: tuple[str, ...], dataset: str) -> dict[str, Any]:
    report = {
        "re-sum without": ", ".join(devices),
        "re-sum sha256": other.sha256,
        "distance": norm(add(other.weights, found.weights, -1.0)),
    }
    if dataset and Path(dataset).is_file():
        evaluation = Evaluation(found.spec, read_dataset(Path(dataset), found.spec))
        report["accuracy"] = evaluation.measure(found.weights)[0]
        report["re-sum accuracy"] = evaluation.measure(other.weights)[0]
    return report
