"""``shoal replay-trace``: what a live run met with, to be tried again."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click

from coordinator.cli.client import home_option
from coordinator.cli.db import located, opened
from coordinator.errors import ShoalError


@click.command("replay-trace", epilog="Example:  shoal replay-trace digits-1 -o last-week.toml")
@click.argument("run", metavar="RUN")
@click.option("-o", "--out", type=click.Path(path_type=Path), help="File of the population (default: print it).")
@click.option("--verify", is_flag=True, help="Replay the run's journal as well, and compare every version's hash.")
@home_option
def replay_trace(home: Path | None, run: str, out: Path | None, verify: bool) -> None:
    """Make a population of the conditions RUN met with: training times and links of every device, and its absences.

    With --verify the run's own inputs are fed to a new engine at their own times: every version must come out as the
    ledger has it, bit for bit on the same kind of machine.
    """
    from coordinator.simulator import replay
    from coordinator.store import segments
    from coordinator.store.blobs import Blobs

    with opened(home) as database, database.read() as session:
        text = replay.to_toml(run, replay.conditions(session, run))
        if verify:
            folder = located(home).home
            read = partial(segments.read, folder / "segments")
            compared = list(replay.versions(session, Blobs(folder / "blobs"), read, run))
            differing = [version for version, mine, theirs in compared if mine != theirs]
            if differing:
                sentence = f"Version {differing[0]} of {run} comes out otherwise than the ledger has it"
                raise ShoalError("database-unusable", sentence)
            click.echo(f"All {len(compared)} versions of {run} come out as the ledger has them.", err=True)
    if out is None:
        click.echo(text, nl=False)
        return
    try:
        out.write_text(text)
    except OSError as error:
        raise ShoalError("home-unusable", f"{out} cannot be written: {error.strerror}") from error
