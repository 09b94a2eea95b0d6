"""``shoal bundle``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import click
from attrs import asdict

from coordinator import settings
from coordinator.cli.client import home_option
from coordinator.cli.output import json_option, moment, print_json, table
from coordinator.fleet import bundles

USUAL: Final = ("aarch64-cp311", "aarch64-cp313")


@click.group
def bundle() -> None:
    """The agent with all it imports, packed for boards: one file per architecture and Python.

    \b
    Example:
      shoal bundle build
    """


@bundle.command
@click.argument("targets", nargs=-1, metavar="[TARGET]...")
@click.option("--all", "every", is_flag=True, help="Every target there is.")
@click.option(
    "--wheels",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Take wheels from this folder only, for a machine without an index.",
)
@home_option
@json_option
def build(home: Path | None, targets: tuple[str, ...], every: bool, wheels: Path | None, as_json: bool) -> None:
    """Make bundles, by default for 64-bit Raspberry Pi OS 12 and 13. Takes a minute each; needs pip, and an index once.

    \b
    Targets: aarch64-cp311 aarch64-cp312 aarch64-cp313 armv7l-cp311 armv7l-cp313 x86_64-cp311 x86_64-cp312 x86_64-cp313

    \b
    Example:
      shoal bundle build aarch64-cp313 armv7l-cp311
    """
    wanted = [bundles.target(name) for name in targets] or [
        one for one in bundles.TARGETS if every or one.name in USUAL
    ]
    made = []
    for one in wanted:
        made.append(bundles.build(one, _folder(home), wheels))
        if not as_json:
            click.echo(f"{made[-1].path} ({made[-1].size / 1e6:.1f} MB)")
    if as_json:
        print_json([_plain(one) for one in made])


@bundle.command("list")
@home_option
@json_option
def list_bundles(home: Path | None, as_json: bool) -> None:
    """List bundles, the newest of each target first; cards and boards get the newest.

    \b
    Example:
      shoal bundle list --json
    """
    found = bundles.listed(_folder(home))
    if as_json:
        print_json([_plain(one) for one in found])
        return
    table(
        ("target", "version", "size", "made", "sha256"),
        [(one.target, one.version, f"{one.size / 1e6:.1f} MB", moment(one.made_at), one.sha256[:16]) for one in found],
    )


def _folder(home: Path | None) -> Path:
    return settings.load({"home": home}).home / bundles.FOLDER


def _plain(one: bundles.Bundle) -> dict[str, Any]:
    return {**asdict(one), "path": str(one.path)}
