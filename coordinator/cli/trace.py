"""``shoal replay-trace``: what a live run met with, to be tried again."""

from __future__ import annotations

from pathlib import Path

import click

from coordinator.cli.client import home_option
from coordinator.cli.db import opened
from coordinator.errors import ShoalError


@click.command("replay-trace", epilog="Example:  shoal replay-trace digits-1 -o last-week.toml")
@click.argument("run", metavar="RUN")
@click.option("-o", "--out", type=click.Path(path_type=Path), help="File of the population (default: print it).")
@home_option
def replay_trace(home: Path | None, run: str, out: Path | None) -> None:
    """Make a population of the conditions RUN met with: training times and links of every device, and its absences.

    `shoal run replay` feeds the run's own inputs to a new engine instead, and compares every version with the ledger.
    """
    from coordinator.simulator import trace

    with opened(home) as database, database.read() as session:
        text = trace.to_toml(run, trace.conditions(session, run))
    if out is None:
        click.echo(text, nl=False)
        return
    try:
        out.write_text(text)
    except OSError as error:
        raise ShoalError("home-unusable", f"{out} cannot be written: {error.strerror}") from error
