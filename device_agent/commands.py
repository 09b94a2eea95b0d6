"""What the coordinator tells this device to do once: which commands were carried out, and what came of them.

An id is carried out once, also across restarts; what came of it is told until the broker has it.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attrs import asdict, define, frozen

from protocol.commands import Command, CommandResult
from protocol.errors import ProtocolError
from protocol.wire import encode

from .address import Address
from .errors import AgentError, HomeError, Refused, Unreachable
from .home import pause, resume
from .identity import Identity, write_durably
from .rotation import rotate

NAME = "commands.json"
REMEMBERED = 64  # commands
LINES = 400  # of the log that are kept for collect-logs
BLINKING = 10.0  # seconds
LEDS = Path("/sys/class/leds")
PATIENCE = 5.0, 60.0  # seconds between two attempts to rotate: the first, the longest

log = logging.getLogger(__name__)


@frozen
class Told:
    """Tag of a published result."""

    id: str


@frozen
class Ended:
    """A command that took its time has come to an end; ``identity`` is the device's from now on."""

    id: str
    state: str
    text: str
    identity: Identity | None = None


@define
class _Result:
    id: str
    kind: str
    state: str  # "" while it is being carried out
    text: str = ""
    told: bool = False


class Recent(logging.Handler):
    """The last lines of the log."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        self._lines: deque[str] = deque(maxlen=LINES)

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append(self.format(record))

    def text(self) -> str:
        """As much of it as fits into a message."""
        said = "\n".join(self._lines).replace("\0", "").encode("utf-8", "replace").decode()[-20_000:]
        while len(json.dumps(said)) > 60_000:
            said = said[len(said) // 4 :]
        return said


class Orders:
    """Commands of one agent. ``report`` takes :class:`Ended` from other threads; all else is the main loop's.

    ``restart`` and ``forgotten`` are what the agent has to do once it has stopped.
    """

    def __init__(self, home: Path, address: Address, recent: Recent, report: Callable[[object], None]) -> None:
        self._home = home
        self._address = address
        self._recent = recent
        self._report = report
        self._results: dict[str, _Result] = {}
        self.restart = False
        self.forgotten = False
        self._load()

    @property
    def stopping(self) -> bool:
        return self.restart or self.forgotten

    def take(self, command: Command, identity: Identity) -> None:
        """Carry a command out, or begin to; one that was is only told of again."""
        known = self._results.get(command.id)
        if known is not None:
            known.told = False
            return
        if command.seconds <= 0:
            return
        log.info("command id=%s kind=%s", command.id, command.kind)
        result = self._results[command.id] = _Result(command.id, command.kind, "")
        while len(self._results) > REMEMBERED:
            del self._results[next(iter(self._results))]
        begin = _KINDS.get(command.kind)
        if begin is None:
            result.state, result.text = "refused", f"this agent does not know the command {command.kind}"
        else:
            begin(self, result, identity)
        self._save()

    def ended(self, event: Ended) -> None:
        result = self._results.get(event.id)
        if result is not None:
            result.state, result.text = event.state, event.text
            self._save()

    def untold(self) -> list[tuple[Told, bytes]]:
        """Results to be published now."""
        messages = []
        for result in self._results.values():
            if result.state and not result.told:
                try:
                    said = CommandResult(id=result.id, state=result.state, text=result.text)
                    messages.append((Told(result.id), encode(said)))
                except ProtocolError as error:
                    log.warning("result-lost id=%s cause=%s", result.id, error)
                result.told = True
        return messages

    def connected(self) -> None:
        """A new connection: what was on its way in the old one may be lost."""
        for result in self._results.values():
            result.told = False

    def delivered(self, tag: Told) -> None:
        """The broker has the result."""
        result = self._results.get(tag.id)
        if result is not None and result.kind == "decommission" and result.state == "done":
            self.forgotten = True

    # -- the commands --------------------------------------------------------------------------------------------

    def _pause(self, result: _Result, _: Identity) -> None:
        self._rest(result, pause)

    def _resume(self, result: _Result, _: Identity) -> None:
        self._rest(result, resume)

    def _rest(self, result: _Result, wanted: Callable[[Path], None]) -> None:
        """As ``shoal-agent pause`` and ``resume`` do."""
        try:
            wanted(self._home)
            result.state = "done"
        except HomeError as error:
            result.state, result.text = "failed", str(error)[:2000]

    def _restart(self, result: _Result, _: Identity) -> None:
        # Told by the process that comes after: that it is told is the proof.
        result.state, result.text, result.told = "done", "the agent was started anew", True
        self.restart = True

    def _collect_logs(self, result: _Result, _: Identity) -> None:
        result.state, result.text = "done", self._recent.text()

    def _decommission(self, result: _Result, _: Identity) -> None:
        result.state, result.text = "done", "the device forgets who it is"

    def _identify(self, result: _Result, _: Identity) -> None:
        self._aside(result, self._blink)

    def _rotate(self, result: _Result, identity: Identity) -> None:
        self._aside(result, lambda id: self._new_secret(id, identity))

    def _aside(self, result: _Result, work: Callable[[str], Ended]) -> None:
        def run() -> None:
            try:
                ended = work(result.id)
            except (AgentError, OSError) as error:
                ended = Ended(result.id, "refused" if isinstance(error, Refused) else "failed", str(error)[:2000])
            self._report(ended)

        threading.Thread(target=run, name=f"command-{result.kind}", daemon=True).start()

    def _blink(self, id: str) -> Ended:
        led = next((LEDS / name for name in ("ACT", "led0", "PWR") if (LEDS / name / "trigger").exists()), None)
        if led is None:
            raise Refused("this board has no LED that an agent could blink")
        trigger = led / "trigger"
        before = trigger.read_text().partition("[")[2].partition("]")[0] or "none"
        trigger.write_text("timer")
        try:
            time.sleep(BLINKING)
        finally:
            trigger.write_text(before)
        return Ended(id, "done", f"the LED {led.name} blinked for {BLINKING:g} seconds")

    def _new_secret(self, id: str, identity: Identity) -> Ended:
        wait = PATIENCE[0]
        while True:
            try:
                return Ended(id, "done", "", rotate(self._home, identity, self._address))
            except Unreachable as error:  # begun is half done: it must be ended
                log.warning("rotation-waits seconds=%g cause=%s", wait, error)
                time.sleep(wait)
                wait = min(2 * wait, PATIENCE[1])

    # -- what lasts ----------------------------------------------------------------------------------------------

    def _load(self) -> None:
        try:
            saved: dict[str, Any] = json.loads((self._home / NAME).read_text())
            results = [_Result(**one) for one in saved["results"]]
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("commands-forgotten cause=%s", error)
            return
        for result in results:
            if not result.state:
                result.state, result.text = "failed", "the agent ended before it was done"
            result.told = False
            self._results[result.id] = result

    def _save(self) -> None:
        saved = {"results": [asdict(result) for result in self._results.values()]}
        try:
            write_durably(self._home / NAME, json.dumps(saved).encode())
        except HomeError as error:
            log.warning("commands-not-kept cause=%s", error)


_KINDS: dict[str, Callable[[Orders, _Result, Identity], None]] = {
    "rotate": Orders._rotate,
    "pause": Orders._pause,
    "resume": Orders._resume,
    "restart": Orders._restart,
    "identify": Orders._identify,
    "collect-logs": Orders._collect_logs,
    "decommission": Orders._decommission,
}
