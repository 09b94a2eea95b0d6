"""``shoal serve``: the coordinator until Ctrl-C or SIGTERM."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType

import click

from coordinator import logs
from coordinator.app import Coordinator
from coordinator.broker.driver import BROKERS
from coordinator.errors import ShoalError
from coordinator.settings import LOG_FORMS, LOG_LEVELS, load
from coordinator.store.hold import HoldLost
from device_agent.service import Notifier


class _WrongSetting(click.ClickException):
    """Ends like a wrong option does."""

    exit_code = 2


HOLD_LOST = 4
"""Exit code: somebody else may be at work already."""
LOOK = 2.0
"""Seconds between two looks at how the coordinator is."""
FAREWELL = 10.0
"""Seconds to end in when the database is lost: who waits for it would wait for ever."""


@click.command(epilog="Example:  shoal serve --host 0.0.0.0 --name shoal.local")
@click.option("--home", type=click.Path(path_type=Path), help="Folder of the database, keys and blobs.")
@click.option("--host", help="Address to listen on (127.0.0.1). Any other than loopback turns TLS on.")
@click.option("--port", type=int, help="Port of the pages and the API (8750; 0: any free one).")
@click.option("--mqtt-port", type=int, help="Port of the MQTT broker (8883; 0: any free one).")
@click.option("--name", help="Host name or address by which devices reach this machine.")
@click.option("--database", help="Database URL (default: SQLite in the home folder).")
@click.option("--heartbeat", type=float, help="Seconds between two heartbeats of a device (10).")
@click.option("--tls", type=click.Choice(["auto", "on", "off"]), help="Encryption (auto: on unless loopback).")
@click.option(
    "--broker", type=click.Choice(BROKERS), help="The MQTT broker (auto: mosquitto where installed, else embedded)."
)
@click.option("--log", type=click.Choice(LOG_FORMS), help="Form of the log: text, or one JSON object per line.")
@click.option("--log-level", type=click.Choice(LOG_LEVELS))
def serve(**options: object) -> None:
    """Run the coordinator: pages, API, broker and training, in one process.

    Settings come from options, then SHOAL_* in the environment, then shoal.toml in the home folder. Ends with 2 for
    wrong settings, and with 4 once the lock on the database is lost.
    """
    notifier = Notifier()
    last = threading.Timer(FAREWELL, _leave)
    last.daemon = True
    try:
        settings = load(options)
        logs.configure(settings.log, settings.log_level)
        sys.unraisablehook = logs.unraisable
        coordinator = Coordinator(settings)
        done = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda _number, _frame: _end(done, _frame))
        with coordinator:
            click.echo(f"Shoal is at {coordinator.pages}")
            click.echo(f"Log in once within 15 minutes: {coordinator.login_url()}")
            sys.stdout.flush()
            notifier.ready()
            _stay(coordinator, notifier, done, last)
            notifier.stopping()
            click.echo("Stopping …", err=True)
    except HoldLost as error:
        raise click.exceptions.Exit(HOLD_LOST) from error
    except ShoalError as error:
        kind = _WrongSetting if error.code == "bad-request" else click.ClickException
        raise kind(f"{error.entry.title}. {error.detail}") from error
    finally:
        last.cancel()


def _stay(coordinator: Coordinator, notifier: Notifier, done: threading.Event, last: threading.Timer) -> None:
    """Until somebody ends it; ShoalError if it can do no good any more. ``last`` is started once its end may take too
    long."""
    while not done.wait(LOOK):
        try:
            coordinator.check()
        except HoldLost as error:
            click.echo(f"Error: {error.detail}", err=True)
            last.start()
            raise
        if coordinator.lively:
            notifier.alive(f"serving at {coordinator.pages}")


def _leave() -> None:
    os._exit(HOLD_LOST)


def _end(done: threading.Event, _: FrameType | None) -> None:
    done.set()
