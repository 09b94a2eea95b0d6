"""``shoal model promote``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from coordinator.cli.client import Client, operates
from coordinator.cli.exchange import write
from coordinator.cli.output import facts, json_option, print_json, table
from coordinator.fleet.model_release import NEWEST

_SECONDS = 900.0
"""A large model is compiled and measured five times."""


@click.command("promote")
@click.argument("run")
@click.option(
    "--version", default=NEWEST, show_default=True, help="A number, newest, or best (of those whose weights are kept)."
)
@click.option("--name", default="", help="What the release is called (default: RUN-vVERSION).")
@click.option("--notes", default="", help="What is new.")
@click.option("--width", "widths", type=float, multiple=True, help="Only these (default: every one that is any good).")
@click.option("--accuracy-drop", type=float, help="How much less of its hold-out a device may get right, e.g. 0.02.")
@click.option("--milliseconds", type=float, help="What one sample may take on a device.")
@click.option("--memory", type=int, help="Bytes the model may need on a device.")
@click.option("--unsigned", type=click.Path(path_type=Path), help="Write the manifest here, to be signed elsewhere.")
@json_option
@operates
def promote_model(
    client: Client, as_json: bool, run: str, widths: tuple[float, ...], unsigned: Path | None, **options: Any
) -> None:
    """Release a version of a run, for devices to use.

    Every width is compiled for inference and, where the run has a test set, measured on it; each device takes the one
    that it can carry. Start a rollout to bring it to devices.

    \b
    Example:
      shoal model promote digits-1 --version best --accuracy-drop 0.02
    """
    body = {name: value for name, value in options.items() if value not in (None, "")}
    body |= {"widths": widths, "unsigned": unsigned is not None}
    found = client.post("runs", run, "promote", body=body, seconds=_SECONDS)
    if unsigned is not None:
        write(unsigned, found["unsigned"].encode())
    if as_json:
        print_json(found)
        return
    facts((name, found[name]) for name in ("release", "version", "run", "model_version"))
    heads = ("width", "accuracy", "bytes", "memory", "flops")
    table(heads, [[row[name] for name in heads] for row in found["sizes"]])
