"""``shoal-agent``: enrol this device, run its agent, ask how it is, look after it."""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from attrs import asdict

from . import __version__, identity, settings
from .data.source import Source
from .errors import AgentError, UsageError

EXIT_CODES = """exit codes:
  0  fine
  1  something unexpected
  2  wrong usage or setting
  3  this device is not enrolled
  4  refused by the coordinator
  5  bad training data
  6  the coordinator cannot be reached
  7  the home cannot be written, or another agent uses it
  8  no model is deployed, or it cannot be used
"""
SETTINGS = """settings: agent.toml in the home, or environment variables SHOAL_AGENT_<NAME>:
  url          coordinator's address, if it is another than at enrolment
  data         the training data: an .npz file with x [n, ...] and y [n]; other kinds as a table [data]
  heartbeat    seconds between two signs of life (default: what the coordinator says)
  threads      threads of the training runtime (default 1)
  backend      litert, tflite or numpy (default: the one that measured fastest at enrolment)
  cache_bytes  size of the cache for models (default 268435456)
  checkpoint_seconds
               between two checkpoints of training (default 60)
  spool_bytes  size of the spool: unacknowledged updates, residuals, checkpoints (default 67108864)
  pace         at least 1: every training step takes this multiple of its own time, the rest is slept; makes a
               fast machine stand in for a slow board (default 1)
  log_level    debug, info, warning or error (default info)
  log_format   text or json (default text)
  log_file     a file instead of stderr, rotated at 1 MiB
  [data] [privacy] [conditions] [serve]  tables, described in docs/agent.md
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    # Before numpy is imported: its threads would cost memory and gain nothing here.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    arguments = _parser().parse_args(argv)
    try:
        command: Callable[[argparse.Namespace], int | None] = arguments.command
        return command(arguments) or 0
    except AgentError as error:
        _complain(error, getattr(arguments, "json", False))
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever reads has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="shoal-agent",
        description="Trains a share of a model on this device and reports updates to its coordinator.",
        epilog="example:\n  shoal-agent enrol --url https://coordinator:8750 --token-file token --data train.npz\n"
        f"  shoal-agent run\n\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"shoal-agent {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _enrol_command(commands)
    example = "run --home /var/lib/shoal-agent"
    _command(commands, "run", _run, "be the agent, until SIGTERM or Ctrl-C", example, SETTINGS)
    for name, command, text, example in (
        ("status", _status, "how this device is; works while the agent runs", "status --json"),
        ("pause", _pause, "let the device rest: no new work, training stands still, until it is resumed", "pause"),
        ("resume", _resume, "end a pause", "resume"),
        ("doctor", _doctor, "try everything the agent needs, and say what to do", "doctor --home /var/lib/shoal-agent"),
        ("bench", _bench, "measure how fast each runtime trains here; the agent uses the fastest", "bench --json"),
    ):
        _command(commands, name, command, text, example).add_argument(
            "--json", action="store_true", help="answer in JSON"
        )
    text = "ask the deployed model about the samples of a file; works while the agent runs"
    infer = _command(commands, "infer", _infer, text, "infer sample.wav --json")
    infer.add_argument("file", metavar="FILE", type=Path, help=".npz, .npy, .csv, .tsv, .wav, or an image")
    infer.add_argument("--json", action="store_true", help="answer in JSON")
    logs = _command(commands, "logs", _logs, "what the agent logged", "logs --lines 20 --follow")
    logs.add_argument("--lines", type=int, default=50, metavar="N", help="how many (default 50)")
    logs.add_argument("--follow", action="store_true", help="and what comes, until Ctrl-C")
    text = "print the systemd unit of this agent, or install it"
    unit = _command(commands, "systemd", _systemd, text, "systemd --install")
    unit.add_argument(
        "--install", nargs="?", const=Path("/etc/systemd/system"), type=Path, metavar="FOLDER",
        help="write it into FOLDER (default /etc/systemd/system)",
    )  # fmt: skip
    return parser


def _enrol_command(commands: Any) -> None:
    text = "join a fleet with a claim token; asking again is harmless"
    example = "enrol --url https://coordinator:8750 --token-file /boot/token --data train.npz"
    enrol = _command(commands, "enrol", _enrol, text, example)
    enrol.add_argument("--url", required=True, help="the coordinator, e.g. https://coordinator:8750")
    enrol.add_argument("--token-file", metavar="FILE", help="holds the claim token; - reads it from stdin")
    enrol.add_argument(
        "--token", help="the claim token, shoal1....; others see it in the list of processes: better --token-file, "
        f"or the environment variable {settings.TOKEN}",
    )  # fmt: skip
    enrol.add_argument(
        "--data", type=Path, metavar="PATH", help="the training data, unless agent.toml has a table [data]"
    )
    enrol.add_argument("--name", help="what people call this device (default: its host name)")
    enrol.add_argument("--json", action="store_true", help="answer in JSON")


def _command(
    commands: Any,
    name: str,
    command: Callable[[argparse.Namespace], int | None],
    text: str,
    example: str,
    more: str = "",
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=text,
        description=text[0].upper() + text[1:] + ".",
        epilog=f"example:\n  shoal-agent {example}\n\n{more}\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--home", type=Path, help=f"where the agent keeps its things (default: {settings.default_home()})"
    )
    parser.set_defaults(command=command)
    return parser


def _enrol(arguments: argparse.Namespace) -> None:
    from . import speed, telemetry
    from .data.loading import load

    chosen = settings.load(arguments.home)
    home, token = chosen.home, identity.parse_token(_token(arguments))
    source = chosen.data
    if arguments.data is not None:
        if settings.has_table(home, "data"):
            raise UsageError(f"{home / 'agent.toml'} has a table [data]: leave --data out")
        source = Source(path=arguments.data.resolve())
    if source is None:
        raise UsageError("no training data is named: give --data, or write a table [data] into agent.toml")
    # Before the token is spent: data that cannot be trained on would make a useless device.
    data = load(source).training
    name = arguments.name or _host_name()
    speeds = speed.measure_all(chosen.threads)
    ranked = speed.ranked(list(speeds), speeds)
    capability = telemetry.capability(ranked, speeds[ranked[0]] if ranked else None)
    known = identity.enrol(home, arguments.url, token, name, capability)
    speed.remember(home, speeds)
    if arguments.data is not None:
        settings.remember(home, {"data": str(source.path)})
    answer = {"device": known.device, "url": known.url, "home": str(home), "samples": len(data)}
    if arguments.json:
        print(json.dumps(answer))
    else:
        start = "shoal-agent run" + (f" --home {shlex.quote(str(arguments.home))}" if arguments.home else "")
        print(f"enrolled as {known.device} at {known.url}; {len(data)} samples; start it with: {start}")


def _token(arguments: argparse.Namespace) -> str:
    """The claim token, from wherever it was put."""
    if arguments.token and arguments.token_file:
        raise UsageError("give --token or --token-file, not both")
    if arguments.token:
        return str(arguments.token)
    if arguments.token_file is None:
        token = os.environ.get(settings.TOKEN, "")
        if not token:
            raise UsageError(f"no claim token: give --token-file, or set {settings.TOKEN}")
        return token
    try:
        if arguments.token_file == "-":  # noqa: S105  # a file's name
            return sys.stdin.read(4096)
        return Path(arguments.token_file).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the token file {arguments.token_file} cannot be read: {error}") from error


def _run(arguments: argparse.Namespace) -> None:
    from . import logs, overlay, process

    overlay.started(settings.place(arguments.home))
    chosen = settings.load(arguments.home)
    known = identity.load(chosen.home)

    logs.set_up(chosen)
    process.run(chosen, known)


def _status(arguments: argparse.Namespace) -> None:
    home = settings.load(arguments.home).home
    known = identity.load(home)
    from . import status

    answer = status.collect(home, known.device, known.url)
    print(json.dumps(answer) if arguments.json else "\n".join(status.sentences(answer)))


def _pause(arguments: argparse.Namespace) -> None:
    _rest(arguments, True)


def _resume(arguments: argparse.Namespace) -> None:
    _rest(arguments, False)


def _rest(arguments: argparse.Namespace, wanted: bool) -> None:
    from . import home

    place = settings.load(arguments.home).home
    known = identity.load(place)
    (home.pause if wanted else home.resume)(place)
    if arguments.json:
        print(json.dumps({"device": known.device, "paused": wanted}))
    else:
        print(f"{known.device} {'rests until it is resumed' if wanted else 'takes work again'}")


def _logs(arguments: argparse.Namespace) -> None:
    from . import logs

    for line in logs.show(settings.load(arguments.home), arguments.lines, arguments.follow):
        print(line, end="", flush=True)


def _doctor(arguments: argparse.Namespace) -> int:
    from . import doctor

    home = arguments.home or Path(os.environ.get(settings.PREFIX + "HOME") or settings.default_home())
    found = []
    for finding in doctor.examine(home):
        found.append(finding)
        if not arguments.json:
            print(f"{finding.state:8}{finding.check:11} {finding.text}", flush=True)
            if finding.advice:
                print(f"{'':19} → {finding.advice}", flush=True)
    code = doctor.exit_code(found)
    if arguments.json:
        print(json.dumps({"findings": [asdict(finding) for finding in found], "code": code}))
    return code


def _bench(arguments: argparse.Namespace) -> None:
    from . import speed

    chosen = settings.load(arguments.home)
    speeds = speed.measure_all(chosen.threads)
    if (chosen.home / "identity.json").exists():
        speed.remember(chosen.home, speeds)
    if arguments.json:
        print(json.dumps(speeds))
        return
    print("milliseconds of a step of the reference model, by width")
    print(f"{'':8}" + "".join(f"{width:>8}" for width in speed.WIDTHS))
    for backend in speed.ranked(list(speeds), speeds):
        print(f"{backend:8}" + "".join(f"{speeds[backend][width]:8.2f}" for width in speed.WIDTHS))


def _infer(arguments: argparse.Namespace) -> None:
    from . import infer

    answer = infer.ask(settings.load(arguments.home), arguments.file)
    print(json.dumps(answer) if arguments.json else "\n".join(infer.sentences(answer)))


def _systemd(arguments: argparse.Namespace) -> None:
    from . import service

    chosen = settings.load(arguments.home)
    if arguments.install is None:
        print(service.unit(chosen), end="")
        return
    path = service.install(chosen, arguments.install)
    print(f"{path} is written; start it with: systemctl daemon-reload && systemctl enable --now {path.name}")


def _host_name() -> str:
    return re.sub(r"[^A-Za-z0-9._:-]", "-", socket.gethostname()).lstrip("._:-")[:80] or "device"


def _complain(error: AgentError, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"error": str(error), "code": error.exit_code}))
    print(f"shoal-agent: {error}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
