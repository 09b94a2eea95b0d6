"""``shoal rollout``."""

from __future__ import annotations

from typing import Any

import click

from coordinator.cli.client import Client, operates
from coordinator.cli.output import duration, facts, json_option, moment, print_json, table

STEERED = {
    "pause": "Tell nobody new of a rollout until it is resumed; who is under way goes on.",
    "resume": "Take back a pause; after a gate that did not hold, go on with the next wave.",
    "approve": "Let the next wave begin of a rollout that waits for approval.",
    "abort": "Let nobody begin any more; who is under way comes to an end by itself.",
}


@click.group
def rollout() -> None:
    """Bring a release to devices, wave by wave, and back.

    \b
    Example:
      shoal rollout start agent-0.2.0 --group roof
      shoal rollout show 3
      shoal rollout back 3
    """


def _shares(_: click.Context, __: click.Parameter, text: str | None) -> list[float] | None:
    """``1%,10%,50%,100%`` as numbers."""
    if text is None:
        return None
    try:
        return [float(part.strip().removesuffix("%")) / 100 for part in text.split(",")]
    except ValueError as error:
        raise click.BadParameter(f"{text!r} are no waves: write 1%,10%,50%,100%") from error


@rollout.command
@click.argument("name", metavar="RELEASE")
@click.option("--device", "devices", multiple=True, help="For this device; may be given several times.")
@click.option("--group", default="", help="For all devices of this group.")
@click.option("--tag", default="", help="For all devices with this tag.")
@click.option("--every", is_flag=True, help="For all devices.")
@click.option("--waves", callback=_shares, help="Cumulative shares (normally 1%,10%,50%,100%).")
@click.option("--success", type=float, help="Share of a wave that must succeed for the next (normally 0.95).")
@click.option("--soak", type=duration, help="How long a wave is watched before the next (normally 10m).")
@click.option("--approval", is_flag=True, help="Let an operator approve every further wave.")
@click.option("--abort-share", type=float, help="Share of failures that aborts it, from two on (normally 0.1).")
@click.option("--parallel", type=int, help="Devices under way at a time (normally 10).")
@click.option("--within", "seconds", type=duration, help="How long a device may take in all (normally 30m).")
@click.option("--lock", type=duration, help="How long the switch may wait for training (normally 6h).")
@click.option("--trial", type=duration, help="How long a device tries it before it keeps it (normally 180s).")
@click.option("--expiry", type=duration, help="After this, who was not there is given up (normally 14d).")
@click.option("--force", is_flag=True, help="Offer it also to devices that went back from it once.")
@json_option
@operates
def start(client: Client, name: str, as_json: bool, **given: Any) -> None:
    """Begin to bring a release to devices; RELEASE is its id, or its kind and version.

    \b
    Example:
      shoal rollout start agent-0.2.0 --group roof --waves 1%,10%,50%,100% --soak 1h
    """
    given["devices"] = list(given["devices"])
    body = {"release": name, **{key: value for key, value in given.items() if value is not None}}
    _show(client.post("rollouts", body=body), as_json)


@rollout.command("list")
@json_option
@operates
def list_rollouts(client: Client, as_json: bool) -> None:
    """List rollouts, the newest first.

    \b
    Example:
      shoal rollout list
    """
    found = client.get("rollouts")
    if as_json:
        print_json(found)
        return
    rows = [
        [row["id"], _what(row), row["state"], f"{row['wave']} of {row['waves']}", row["devices"],
         row["states"].get("succeeded", 0), moment(row["created_at"]), row["created_by"], row["reason"]]
        for row in found
    ]  # fmt: skip
    heads = ("id", "release", "state", "wave", "devices", "succeeded", "began", "by", "why")
    table(heads, rows, ("by", "began", "why"))


@rollout.command
@click.argument("number", type=int, metavar="ROLLOUT")
@click.option("--state", help="List only devices in this state.")
@click.option("--page", type=int, default=1)
@json_option
@operates
def show(client: Client, number: int, state: str | None, page: int, as_json: bool) -> None:
    """Show a rollout with its waves and its devices, 100 to a page.

    \b
    Example:
      shoal rollout show 3 --state failed
    """
    found = client.get("rollouts", str(number))
    devices = client.get("rollouts", str(number), "executions", state=state, page=page)
    if as_json:
        print_json({**found, "executions": devices})
        return
    _show(found, as_json=False)
    click.echo()
    rows = [[one["wave"], one["state"], one["devices"], one["states"]] for one in found["waves"]]
    table(("wave", "state", "devices", "of them"), rows)
    click.echo()
    lines = [
        [one["device"], one["wave"], one["state"], moment(one["since"]), one["before"], one["attempts"], one["text"]]
        for one in devices["rows"]
    ]
    table(("device", "wave", "state", "since", "before", "attempts", "text"), lines, ("attempts", "before", "since"))
    if len(lines) < devices["total"]:
        click.echo(f"{len(lines)} of {devices['total']} devices, page {page}.", err=True)


def _steer(action: str, sentence: str) -> None:
    @rollout.command(action, help=f"{sentence}\n\n\b\nExample:\n  shoal rollout {action} 3")
    @click.argument("number", type=int, metavar="ROLLOUT")
    @json_option
    @operates
    def steer(client: Client, number: int, as_json: bool) -> None:
        _show(client.post("rollouts", str(number), action), as_json)


for _action, _sentence in STEERED.items():
    _steer(_action, _sentence)


@rollout.command
@click.argument("number", type=int, metavar="ROLLOUT")
@click.option("--parallel", type=int, default=0, help="Devices that go back at a time (normally 100).")
@json_option
@operates
def back(client: Client, number: int, parallel: int, as_json: bool) -> None:
    """Bring the devices of a rollout back to what each had before, by a rollout of its own.

    \b
    Example:
      shoal rollout back 3
    """
    _show(client.post("rollouts", str(number), "back", body={"parallel": parallel}), as_json)


def _what(row: dict[str, Any]) -> str:
    return f"{'back from ' if row['back_of'] else ''}{row['kind']}-{row['version']}"


def _show(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    row = found["row"]
    facts(
        [
            ("rollout", row["id"]),
            ("release", _what(row)),
            ("state", f"{row['state']} ({row['reason']})" if row["reason"] else row["state"]),
            ("wave", f"{row['wave']} of {row['waves']} since {moment(found['wave_at'])}"),
            ("gate holds since", moment(found["passed_at"])),
            ("devices", row["states"]),
            ("for", {name: value for name, value in found["target"].items() if value}),
            ("rules", found["rules"]),
            ("began", f"{moment(row['created_at'])} by {row['created_by']}"),
            ("ended", moment(row["ended_at"])),
        ]
    )
