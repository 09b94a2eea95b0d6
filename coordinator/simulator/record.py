"""What a fleet was told and what it trained, entry by entry, so that an interrupted simulation can go on.

The fleet's own side (sessions, links, chance) is cheap and deterministic: on resuming it lives through its past once
more, and the answers and the figures of trainings come from this record instead of an engine and a trainer. At the last
checkpoint the engine's snapshot, the models in use and the bodies under way take over.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from attrs import asdict, frozen
from numpy.typing import NDArray

from coordinator.errors import ShoalError
from coordinator.simulator.bench import Begun, Trained
from coordinator.simulator.course import Stand
from coordinator.simulator.desk import Answer, Point
from coordinator.training.state import freeze, thaw
from device_agent.position import Position
from device_agent.trainer import LocalResult
from protocol import messages
from protocol.wire import structure, unstructure

Bytes = NDArray[np.uint8]

_FATE = '{"act":'
_MESSAGES = {kind.__name__: kind for kind in messages.Message.__subclasses__()}
_FIGURES = (
    *("commit", "last", "version", "samples", "steps", "loss", "accuracy"),
    *("squared_gradient", "squared_gradient_peak", "seconds"),
)


@frozen
class Checkpoint:
    """The state after ``steps`` steps of the world and ``entries`` of the record, but for the engine's snapshot.

    ``residuals`` by device; ``bodies`` and ``regions`` by commit, of updates without a receipt; ``positions``,
    ``states`` and ``bases`` of training going on, by device, and behind a device's name and ``spool`` of where it would
    go on after a crash; ``blobs`` by name; ``idle`` and ``measured`` as the desk knows them.
    """

    entries: int
    steps: int
    residuals: dict[str, np.ndarray[Any, Any]]
    bodies: dict[str, np.ndarray[Any, Any]]
    regions: dict[str, str]
    positions: dict[str, str]
    states: dict[str, np.ndarray[Any, Any]]
    bases: dict[str, np.ndarray[Any, Any]]
    blobs: dict[str, np.ndarray[Any, Any]]
    idle: dict[str, float]
    measured: float

    def stand(self, name: str) -> Stand | None:
        """Where training stood."""
        if name not in self.positions:
            return None
        position = structure(Position, json.loads(self.positions[name]))
        return Stand(position, self.states[name], self.bases.get(name))


def standing(stands: Mapping[str, Stand]) -> dict[str, dict[str, Any]]:
    """Positions, states and bases of a checkpoint."""
    return {
        "positions": {name: json.dumps(unstructure(stand.position)) for name, stand in stands.items()},
        "states": {name: stand.states for name, stand in stands.items()},
        "bases": {name: stand.base for name, stand in stands.items() if stand.base is not None},
    }


def as_array(data: bytes) -> Bytes:
    return np.frombuffer(data, np.uint8)


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Whole or not at all."""
    aside = path.with_suffix(".part")
    aside.write_bytes(freeze(checkpoint))
    aside.replace(path)


def load(path: Path) -> Checkpoint:
    """ShoalError not-found if it is gone or damaged."""
    try:
        return thaw(Checkpoint, path.read_bytes())
    except (OSError, ValueError) as error:
        raise ShoalError("not-found", f"The checkpoint {path} cannot be read: {error}") from error


class Record:
    """Gives out the entries before a checkpoint until it is told to :meth:`go_on`, then writes behind them. Without a
    path nothing is kept."""

    def __init__(self, path: Path | None, past: Checkpoint | None) -> None:
        self.entries = 0
        self._past = past
        self._file: IO[str] | None = None
        self._lines: list[str] = []
        if path is not None:
            if past is not None:
                self._lines = _first(path, past.entries)
            self._file = open(path, "w")  # noqa: SIM115 - lives as long as the object
            self._file.writelines(self._lines)
        elif past is not None:
            raise ValueError("a record without a path has no past")

    @property
    def remembering(self) -> bool:
        return self._past is not None

    def go_on(self) -> None:
        """The checkpoint is reached."""
        assert self._past is None or self.entries == self._past.entries
        self._past = None

    def answer(self, make: Callable[[], Answer]) -> Answer:
        """What the coordinator said then, or says now."""
        if self._past is not None:
            return _answer(json.loads(self._next()))
        answer = make()
        if self._file is not None:
            self._write(_plain_answer(answer))
        self.entries += 1
        return answer

    def begun(self, make: Callable[[], Begun]) -> Begun:
        """Whether training could begin then, or can now."""
        if self._past is not None:
            plain = json.loads(self._next())
            return Begun(tuple(plain["options"]), plain["reason"])
        begun = make()
        if self._file is not None:
            self._write({"options": begun.options, "reason": begun.reason})
        self.entries += 1
        return begun

    def trained(self, key: str, make: Callable[[], Trained]) -> Trained:
        """What the commit came to then, or comes to now."""
        if self._past is not None:
            return _trained(json.loads(self._next()), key, self._past)
        trained = make()
        if self._file is not None:
            self._write(_plain_trained(trained))
        self.entries += 1
        return trained

    def fate(self, act: str, make: Callable[[], str]) -> str:
        """Why ``act`` failed then, or fails now; empty, and no entry, if it does not."""
        reason = make()
        if self._past is not None:
            at = self.entries
            if at == self._past.entries or not self._lines[at].startswith(_FATE + json.dumps(act)):
                return ""
            return str(json.loads(self._next())["reason"])
        if reason:
            if self._file is not None:
                self._write({"act": act, "reason": reason})
            self.entries += 1
        return reason

    def flush(self) -> None:
        if self._file is not None:
            self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _next(self) -> str:
        line = self._lines[self.entries]
        self._lines[self.entries] = ""
        self.entries += 1
        return line

    def _write(self, entry: dict[str, Any]) -> None:
        assert self._file is not None
        self._file.write(json.dumps(entry, separators=(",", ":")) + "\n")


def _first(path: Path, entries: int) -> list[str]:
    try:
        with open(path) as file:
            lines = [line for _, line in zip(range(entries), file, strict=False)]
    except OSError as error:
        raise ShoalError("not-found", f"The record {path} cannot be read: {error}") from error
    if len(lines) < entries:
        raise ShoalError("not-found", f"The record {path} has {len(lines)} entries, its checkpoint stands at {entries}")
    return lines


def _plain_answer(answer: Answer) -> dict[str, Any]:
    return {
        "sends": [[device, type(message).__name__, unstructure(message)] for device, message in answer.sends],
        "deadline": answer.deadline,
        "ended": answer.ended,
        "points": [asdict(point) for point in answer.points],
        "version": answer.version,
        "settled": answer.settled,
    }


def _answer(plain: dict[str, Any]) -> Answer:
    sends = [(device, structure(_MESSAGES[kind], message)) for device, kind, message in plain.pop("sends")]
    points = [Point(**point) for point in plain.pop("points")]
    return Answer(sends=sends, points=points, **plain)


def _plain_trained(trained: Trained) -> dict[str, Any]:
    result = trained.result
    return {
        **{name: getattr(result, name) for name in _FIGURES},
        "merges": [unstructure(merge) for merge in result.merges],
        "size": len(trained.body),
        "shape_epoch": trained.shape_epoch,
    }


def _trained(plain: dict[str, Any], key: str, past: Checkpoint) -> Trained:
    """As it was; the bytes only of what is still without a receipt at the checkpoint."""
    figures = {name: plain[name] for name in _FIGURES}
    merges = tuple(structure(messages.Merge, merge) for merge in plain["merges"])
    body = past.bodies[key].tobytes() if key in past.bodies else bytes(plain["size"])
    result = LocalResult(difference={}, merges=merges, **figures)
    return Trained(result, body, past.regions.get(key, ""), None, plain["shape_epoch"])
