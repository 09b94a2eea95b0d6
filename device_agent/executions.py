"""What this device was told to deploy, on disk: the one in hand, those that have ended, and what they forbid since."""

from __future__ import annotations

import json
import logging
import threading
from pathlib import Path
from typing import Any

from attrs import asdict, define, field, fields

from protocol.deployments import ENDED, Deployment

from .errors import HomeError
from .identity import write_durably

NAME = "deployments.json"
REMEMBERED = 32  # that have ended
STARTS = 3
"""How often the agent may be started with a release on trial before it goes back."""

log = logging.getLogger(__name__)


@define(kw_only=True)
class Execution:
    """One deployment. ``deadline`` in seconds since 1970. ``starts`` of the agent since the switch. ``failing``: why
    the device is on its way back, once it is. ``told``: the report was sent; ``delivered``: the broker has it."""

    id: str
    manifest: str
    signature: str
    lock: float
    trial: float
    back: bool
    deadline: float
    state: str = "accepted"
    number: int = 1
    text: str = ""
    facts: dict[str, float] = field(factory=dict)
    retry: bool = False
    starts: int = 0
    failing: str | None = None
    told: bool = False
    delivered: bool = False

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    @property
    def on_trial(self) -> bool:
        return self.state in ("switching", "probation")

    def report(self) -> Deployment:
        return Deployment(
            id=self.id, number=self.number, state=self.state, text=self.text, facts=self.facts, retry=self.retry
        )

    def say(self, state: str, text: str = "") -> None:
        self.state, self.text, self.told, self.delivered = state, text[:2000], False, False
        self.number += 1


class Executions:
    """The file, and what it says; ``lock`` is for whoever changes it.

    Damaged, it is as good as none: what is on trial then goes back, and the coordinator tells again.
    """

    def __init__(self, home: Path) -> None:
        self._path = home / NAME
        self.lock = threading.RLock()
        self.current: Execution | None = None
        self.past: list[Execution] = []  # oldest first
        self.floors: dict[str, int] = {}  # by kind: the least number that is taken
        self._load()

    def find(self, id: str) -> Execution | None:
        known = [*self.past, self.current] if self.current else self.past
        return next((one for one in known if one.id == id), None)

    def reports(self) -> list[Execution]:
        """Those that the broker may not have heard of as they are."""
        return [one for one in (*self.past, *([self.current] if self.current else [])) if not one.delivered]

    def end(self) -> None:
        """The one in hand has ended."""
        assert self.current is not None
        self.past = [*self.past, self.current][-REMEMBERED:]
        self.current = None

    def hold(self, kind: str, floor: int) -> None:
        """A release with this floor was deployed here: it binds all that come after it."""
        self.floors[kind] = max(floor, self.floors.get(kind, 0))

    def save(self) -> None:
        """It is on disk when this returns; HomeError if it cannot be."""
        saved = {
            "current": asdict(self.current) if self.current else None,
            "past": [asdict(one) for one in self.past],
            "floors": self.floors,
        }
        write_durably(self._path, json.dumps(saved).encode())

    def save_if_possible(self) -> None:
        try:
            self.save()
        except HomeError as error:
            log.warning("deployments-not-kept cause=%s", error)

    def _load(self) -> None:
        try:
            saved: dict[str, Any] = json.loads(self._path.read_text())
            current = _read(saved["current"]) if saved["current"] else None
            past = [_read(one) for one in saved["past"]]
            floors = {str(kind): int(floor) for kind, floor in saved["floors"].items()}
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("deployments-forgotten cause=%s", error)
            return
        self.current, self.past, self.floors = current, past, floors
        for one in (*past, *([current] if current else [])):
            one.told = False


def _read(saved: dict[str, Any]) -> Execution:
    """One that may be another agent's, which knew less or more of it."""
    known = {attribute.name for attribute in fields(Execution)}
    return Execution(**{name: value for name, value in saved.items() if name in known})


def count_start(home: Path) -> bool:
    """The agent was started: counted, if a release is on trial, before anything of it is used.

    Whether it may be tried once more; what cannot be counted must not.
    """
    executions = Executions(home)
    current = executions.current
    if current is None or not current.on_trial:
        return True
    current.starts += 1
    try:
        executions.save()
    except HomeError as error:
        log.warning("start-not-counted cause=%s", error)
        return False
    return current.starts <= STARTS
