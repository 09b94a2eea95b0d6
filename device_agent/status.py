"""How the agent is, for ``shoal-agent status``: a file in its home, written when something changed."""

from __future__ import annotations

import json
import logging
import os
import time
from pathlib import Path
from typing import Any

from .errors import HomeError

FILE = "status.json"
NO_SPOOL = "no-spool"
"""State of an agent that cannot use its spool."""
OFTEN = 60.0  # seconds between two writings of what changes all the time: a card wears out

log = logging.getLogger(__name__)


class StatusFile:
    """``write`` takes what is worth telling at once, and what changes all the time."""

    def __init__(self, home: Path) -> None:
        self._path = home / FILE
        self._written: dict[str, Any] | None = None
        self._at = float("-inf")

    def write(self, facts: dict[str, Any], passing: dict[str, Any]) -> None:
        now = time.monotonic()
        if facts == self._written and now - self._at < OFTEN:
            return
        self._written, self._at = facts, now
        status = {"pid": os.getpid(), "written": time.time(), **facts, **passing}
        temporary = self._path.with_suffix(".tmp")
        try:
            temporary.write_text(json.dumps(status))
            temporary.replace(self._path)
        except OSError as error:
            log.warning("status-not-written cause=%r", error.strerror)


def read(home: Path) -> dict[str, Any]:
    """What a running agent wrote last; nothing if that cannot be read."""
    try:
        found = json.loads((home / FILE).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def collect(home: Path, device: str, url: str) -> dict[str, Any]:
    """The answer of ``shoal-agent status``; HomeError if the spool cannot be read."""
    from . import spool
    from .home import paused, running
    from .shelf import Shelf

    alive = running(home)
    written = read(home) if alive else {}
    obstacle = spool.obstacle(home)
    reason = obstacle or written.get("reason")
    connected: bool | None = bool(written.get("connected"))
    if obstacle is not None and alive:
        # What it wrote last is from before: where the spool cannot be written, neither can its status.
        connected, written = None, {"state": NO_SPOOL}
    try:
        held, updates = spool.peek(home)
    except OSError as error:
        raise HomeError(f"the spool in {home} cannot be read: {error}") from error
    except HomeError:
        if reason is None:
            raise
        held, updates = None, []  # SQLite needs a little room even to read
    pointer = Shelf(home).pointer
    model = pointer.now
    resting = "paused" if paused(home) else "stopped"
    return {
        "device": device,
        "url": url,
        "running": alive,
        "connected": connected,
        "cause": written.get("cause"),
        "state": written.get("state", "starting" if alive else resting),
        "reason": reason,
        "assignment": held.id if held else None,
        "run": held.run if held else None,
        "width": held.plan.width if held else None,
        "step": written.get("step"),
        "runtime": written.get("runtime"),
        "data": written.get("data"),
        "clock": written.get("clock"),
        "board": written.get("board"),
        "model": None if model is None else {"version": model.version, "width": model.width, "trial": pointer.trial},
        "updates": [{"assignment": u.assignment, "bytes": u.size} for u in updates],
    }


def sentences(status: dict[str, Any]) -> list[str]:
    """The answer for a person, line by line."""
    because = f" ({status['cause']})" if status["cause"] else ""
    how = "runs, connected" if status["connected"] else f"runs, not connected{because}"
    if status["connected"] is None:
        how = "runs; whether it is connected it cannot write down"
    lines = [f"{status['device']} at {status['url']}: the agent {how if status['running'] else 'is not running'}"]
    if status["running"] or status["state"] == "paused" or status["reason"]:
        lines.append(f"  state: {status['state']}" + (f": {status['reason']}" if status["reason"] else ""))
    if status["assignment"]:
        step = f", step {status['step']}" if status["step"] is not None else ""
        lines.append(f"  works on {status['assignment']} (run {status['run']}, width {status['width']:g}{step})")
    if data := status["data"]:
        lines.append(f"  data: {_data(data)}")
    if status["runtime"]:
        lines.append(f"  runtime: {status['runtime']}")
    if model := status["model"]:
        trial = ", on trial" if model["trial"] else ""
        lines.append(f"  model: {model['version']} at width {model['width']:g}{trial}")
    if status["clock"]:
        lines.append(f"  clock: {status['clock']}")
    if board := _board(status["board"] or {}):
        lines.append(f"  board: {board}")
    if updates := status["updates"]:
        lines.append(f"  {len(updates)} updates of {sum(u['bytes'] for u in updates)} bytes wait for a receipt")
    return lines


def _data(data: dict[str, Any]) -> str:
    shape = "×".join(map(str, data["input"]))
    text = f"{data['samples']} samples of shape {shape}, {data['classes']} classes, {data['held_out']} held out"
    if data["skipped"]:
        text += f"; {len(data['skipped'])} files skipped, e.g. {data['skipped'][0]}"
    return text


def _board(board: dict[str, Any]) -> str:
    found = []
    if board.get("temperature") is not None:
        found.append(f"{board['temperature']:.1f} °C")
    if board.get("memory_free") is not None:
        found.append(f"{board['memory_free'] / 1e6:.0f} MB of memory free")
    if board.get("disk_free") is not None:
        found.append(f"{board['disk_free'] / 1e6:.0f} MB of disk free")
    if board.get("battery") is not None:
        found.append(f"battery {board['battery']:g} %")
    if board.get("throttled"):
        found.append(f"slowed down by {', '.join(board['throttled'])}")
    return ", ".join(found)
