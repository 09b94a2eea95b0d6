"""``shoal-agent``: enrol this device, run its agent, ask how it is."""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import shlex
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from . import __version__, identity, settings
from .errors import AgentError

EXIT_CODES = """exit codes:
  0  fine
  1  something unexpected
  2  wrong usage or setting
  3  this device is not enrolled
  4  refused by the coordinator
  5  bad training data
  6  the coordinator cannot be reached
  7  the home cannot be written, or another agent uses it
"""
SETTINGS = """settings: agent.toml in the home, or environment variables SHOAL_AGENT_<NAME>:
  url          coordinator's address, if it is another than at enrolment
  data         the training data, an .npz file with x [n, ...] and y [n]
  heartbeat    seconds between two signs of life (default: what the coordinator says)
  threads      threads of the training runtime (default 1)
  backend      litert or tflite (default: the faster one installed)
  cache_bytes  size of the cache for models (default 268435456)
  pace         at least 1: every training step takes this multiple of its own time, the rest is slept; makes a
               fast machine stand in for a slow board (default 1)
  log_level    debug, info, warning or error (default info)
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    # Before numpy is imported: its threads would cost memory and gain nothing here.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    arguments = _parser().parse_args(argv)
    try:
        command: Callable[[argparse.Namespace], None] = arguments.command
        command(arguments)
    except AgentError as error:
        _complain(error, getattr(arguments, "json", False))
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="shoal-agent",
        description="Trains a share of a model on this device and reports updates to its coordinator.",
        epilog="example:\n  shoal-agent enrol --url https://coordinator:8750 --token TOKEN --data train.npz\n"
        f"  shoal-agent run\n\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"shoal-agent {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    enrol = _command(commands, "enrol", _enrol, "join a fleet with a claim token; asking again is harmless")
    enrol.add_argument("--url", required=True, help="the coordinator, e.g. https://coordinator:8750")
    enrol.add_argument("--token", required=True, help="the claim token, shoal1....")
    enrol.add_argument("--data", required=True, type=Path, metavar="FILE", help="the training data (.npz)")
    enrol.add_argument("--name", help="what people call this device (default: its host name)")
    enrol.epilog = (
        "example:\n"
        "  shoal-agent enrol --url https://coordinator:8750 --token shoal1.ab.cd.ef --data train.npz"
        f"\n\n{EXIT_CODES}"
    )
    enrol.add_argument("--json", action="store_true", help="answer in JSON")
    run = _command(commands, "run", _run, "be the agent, until SIGTERM or Ctrl-C")
    run.epilog = f"example:\n  shoal-agent run --home /var/lib/shoal-agent\n\n{SETTINGS}\n{EXIT_CODES}"
    status = _command(commands, "status", _status, "how this device is; works while the agent runs")
    status.add_argument("--json", action="store_true", help="answer in JSON")
    status.epilog = f"example:\n  shoal-agent status --json\n\n{EXIT_CODES}"
    return parser


def _command(
    commands: Any, name: str, command: Callable[[argparse.Namespace], None], text: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=text,
        description=text[0].upper() + text[1:] + ".",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--home", type=Path, help=f"where the agent keeps its things (default: {settings.default_home()})"
    )
    parser.set_defaults(command=command)
    return parser


def _enrol(arguments: argparse.Namespace) -> None:
    from . import dataset, runtime, telemetry

    home = settings.load(arguments.home).home
    token = identity.parse_token(arguments.token)
    # Before the token is spent: data that cannot be trained on would make a useless device.
    data = dataset.load(arguments.data)
    name = arguments.name or _host_name()
    known = identity.enrol(home, arguments.url, token, name, telemetry.capability(runtime.backends()))
    settings.remember(home, {"data": str(arguments.data.resolve())})
    answer = {"device": known.device, "url": known.url, "home": str(home), "samples": len(data)}
    if arguments.json:
        print(json.dumps(answer))
    else:
        start = "shoal-agent run" + (f" --home {shlex.quote(str(arguments.home))}" if arguments.home else "")
        print(f"enrolled as {known.device} at {known.url}; {len(data)} samples; start it with: {start}")


def _run(arguments: argparse.Namespace) -> None:
    chosen = settings.load(arguments.home)
    known = identity.load(chosen.home)
    logging.basicConfig(
        stream=sys.stderr, level=chosen.log_level.upper(), format="%(asctime)s %(levelname)s %(message)s"
    )
    from . import agent

    agent.run(chosen, known)


def _status(arguments: argparse.Namespace) -> None:
    home = settings.load(arguments.home).home
    known = identity.load(home)
    from . import agent, spool
    from . import home as homes

    held, updates = spool.peek(home)
    alive = homes.running(home)
    try:
        written = json.loads((home / agent.STATUS).read_text()) if alive else {}
    except (OSError, ValueError):
        written = {}
    answer = {
        "device": known.device,
        "url": known.url,
        "running": alive,
        "connected": bool(written.get("connected")),
        "state": written.get("state", "stopped"),
        "assignment": held.id if held else None,
        "step": written.get("step"),
        "updates": [{"assignment": u.assignment, "bytes": u.size} for u in updates],
    }
    if arguments.json:
        print(json.dumps(answer))
        return
    how = (
        "is not running" if not alive else "runs, connected" if answer["connected"] else "runs, not connected"
    )
    print(f"{known.device} at {known.url}: the agent {how}")
    if held:
        print(f"  works on {held.id} (run {held.run}, width {held.plan.width:g})")
    if updates:
        print(f"  {len(updates)} updates of {sum(u.size for u in updates)} bytes wait for a receipt")


def _host_name() -> str:
    return re.sub(r"[^A-Za-z0-9._:-]", "-", socket.gethostname()).lstrip("._:-")[:80] or "device"


def _complain(error: AgentError, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"error": str(error), "code": error.exit_code}))
    print(f"shoal-agent: {error}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
