"""``shoal serve``: the coordinator until Ctrl-C or SIGTERM."""

from __future__ import annotations

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


class _WrongSetting(click.ClickException):
    """Ends like a wrong option does."""

    exit_code = 2


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

    Settings come from options, then SHOAL_* in the environment, then shoal.toml in the home folder.
    """
    try:
        settings = load(options)
        logs.configure(settings.log, settings.log_level)
        coordinator = Coordinator(settings)
        done = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda _number, _frame: _end(done, _frame))
        with coordinator:
            click.echo(f"Shoal is at {coordinator.url}")
            click.echo(f"Log in once within 15 minutes: {coordinator.login_url()}")
            sys.stdout.flush()
            while not done.wait(2):
                if not coordinator.healthy:
                    raise ShoalError("internal", "The thread that writes has ended: see the log, and start it again")
            click.echo("Stopping …", err=True)
    except ShoalError as error:
        kind = _WrongSetting if error.code == "bad-request" else click.ClickException
        raise kind(f"{error.entry.title}. {error.detail}") from error


def _end(done: threading.Event, _: FrameType | None) -> None:
    done.set()
