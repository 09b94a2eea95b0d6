"""``shoal run``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from coordinator.cli.client import Client, operates
from coordinator.cli.output import facts, json_option, moment, print_json, table
from coordinator.cli.replay import replay_run


@click.group
def run() -> None:
    """Start, steer and look at trainings.

    \b
    Example:
      shoal run start --model mlp --recipe whale-fl --dataset test.npz
      shoal run list
    """


@run.command
@click.option("--model", required=True, help="A name of `shoal model list`, or a JSON file with a specification.")
@click.option("--recipe", required=True, help="A name of `shoal recipe list`, or a TOML file.")
@click.option("--dataset", type=click.Path(path_type=Path), help="The test set (npz); without one devices may measure.")
@click.option("--target", type=float, help="Accuracy at which the run ends by itself, e.g. 0.95.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--weights", type=click.Path(path_type=Path), help="Begin with these (safetensors; default: drawn).")
@click.option("--name", help="Stem of the run's id: digits makes digits-1, then digits-2 (default: the model's name).")
@json_option
@operates
def start(client: Client, as_json: bool, dataset: Path | None, weights: Path | None, **options: Any) -> None:
    """Start a run.

    \b
    Example:
      shoal run start --model mlp --recipe whale-fl --dataset test.npz --target 0.9
    """
    for name in ("model", "recipe"):
        options[name] = text_of(options[name])
    # The coordinator has another working folder.
    files = {"dataset": dataset, "weights": weights}
    body = {**options, **{name: path and str(path.absolute()) for name, path in files.items()}}
    _show(client.post("runs", body={name: value for name, value in body.items() if value is not None}), as_json)


run.add_command(replay_run)


@run.command("list")
@click.option("--state", type=click.Choice(["running", "paused", "stopped", "finished"]), help="Only these.")
@click.option("--page", type=int, default=1)
@json_option
@operates
def list_runs(client: Client, state: str | None, page: int, as_json: bool) -> None:
    """List runs, the newest first.

    \b
    Example:
      shoal run list --state running
    """
    found = client.get("runs", state=state, page=page)
    if as_json:
        print_json(found)
        return
    names = ("id", "model", "recipe", "state", "version", "last_accuracy", "best_accuracy", "active")
    heads = (*(name.replace("_", " ") for name in names), "created")
    table(heads, [[*(row[name] for name in names), moment(row["created_at"])] for row in found["rows"]])


@run.command
@click.argument("name", metavar="RUN")
@json_option
@operates
def show(client: Client, name: str, as_json: bool) -> None:
    """Show one run in full.

    \b
    Example:
      shoal run show run-1
    """
    _show(client.get("runs", name), as_json)


def _steer(action: str, sentence: str) -> None:
    @run.command(action, help=f"{sentence}\n\n\b\nExample:\n  shoal run {action} run-1")
    @click.argument("name", metavar="RUN")
    @json_option
    @operates
    def steer(client: Client, name: str, as_json: bool) -> None:
        _show(client.post("runs", name, action), as_json)


_steer("pause", "Offer no more work of a run until it is resumed.")
_steer("resume", "Take back a pause.")
_steer("stop", "End a run for good; its versions and its history stay.")


def text_of(value: str) -> str:
    """The contents of a file, or the value itself if it names none."""
    path = Path(value)
    if path.suffix not in (".json", ".toml"):
        return value
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise click.ClickException(f"{path} cannot be read: {error}") from error


def _show(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    row = found["row"]
    facts(
        [
            ("run", row["id"]),
            ("state", f"{row['state']} ({row['reason']})" if row["reason"] else row["state"]),
            ("model", row["model"]),
            ("recipe", row["recipe"]),
            ("version", row["version"]),
            ("accuracy", row["last_accuracy"]),
            ("best accuracy", row["best_accuracy"]),
            ("target", row["target"]),
            ("updates", row["outcomes"]),
            ("devices", found["devices"]),
            ("widths", found["widths"]),
            ("bytes up", found["bytes_up"]),
            ("bytes down", found["bytes_down"]),
            ("seed", found["seed"]),
            ("first weights", found["initial_sha256"] or "drawn by the seed"),
            ("test set", found["dataset"]),
            ("started", f"{moment(row['created_at'])} by {row['created_by']}"),
            ("ended", moment(row["ended_at"])),
        ]
    )
