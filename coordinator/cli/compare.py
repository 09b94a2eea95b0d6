"""``shoal compare``: simulations side by side."""

from __future__ import annotations

from pathlib import Path

import click

from coordinator.cli.output import table
from coordinator.errors import ShoalError


@click.command(epilog="Example:  shoal compare out/fedavg out/fedbuff out/whale-fl --html report.html")
@click.argument("folders", metavar="DIR...", nargs=-1, required=True, type=click.Path(path_type=Path, file_okay=False))
@click.option("--target", type=click.FloatRange(0, 1), help="Accuracy (default: 0.98 of the first one's final one).")
@click.option("--html", "html_file", type=click.Path(path_type=Path), help="Write the report to this file.")
def compare(folders: tuple[Path, ...], target: float | None, html_file: Path | None) -> None:
    """Compare what `shoal simulate` left in each DIR; the first is what the others are set against, seed by seed.

    Accuracy is the mean of three successive evaluations. A seed that never reaches the target counts with all it spent.
    """
    from coordinator.simulator import comparison as comparisons
    from coordinator.simulator import report

    found = comparisons.compare(folders, target)
    click.echo(f"To accuracy {found.target:.4g}:")
    rows = [
        (
            entry.label,
            f"{entry.reached}/{len(entry.results)}",
            *(report.shown(name, entry.costs[name]) for name in comparisons.COSTS),
            report.points(entry.final),
            report.points(entry.waiting),
        )
        for entry in found.entries
    ]
    table(("experiment", "reached", *report.TITLES.values(), "final accuracy", "waiting"), rows)
    if len(found.entries) > 1:
        click.echo(f"\nAgainst {found.entries[0].label} (geometric mean over equal seeds, 95 % interval):")
        table(
            ("experiment", *report.TITLES.values()),
            [
                (entry.label, *(report.shown_ratio(entry.ratios.get(name)) for name in comparisons.COSTS))
                for entry in found.entries[1:]
            ],
        )
    if html_file is not None:
        try:
            html_file.write_text(report.html(found))
        except OSError as error:
            raise ShoalError("home-unusable", f"{html_file} cannot be written: {error.strerror}") from error
        click.echo(f"\nReport: {html_file}")
