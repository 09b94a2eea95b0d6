"""``shoal device``."""

from __future__ import annotations

from typing import Any

import click

from coordinator.cli.client import Client, operates
from coordinator.cli.output import facts, json_option, moment, print_json, table


@click.group
def device() -> None:
    """Look at devices, pause or revoke them.

    \b
    Example:
      shoal device list --status offline
      shoal device pause pico
    """


@device.command("list")
@click.option("--status", help="Only these: new, idle, training, late, offline, paused, quarantined or revoked.")
@click.option("--group", help="Only devices of this group.")
@click.option("--text", help="Part of the name, id, group, agent or runtime.")
@click.option("--page", type=int, default=1)
@json_option
@operates
def list_devices(client: Client, page: int, as_json: bool, **wanted: str | None) -> None:
    """List devices by name, 100 to a page.

    \b
    Example:
      shoal device list --group kitchen
    """
    found = client.get("devices", page=page, **wanted)
    if as_json:
        print_json(found)
        return
    heads = ("id", "name", "group", "status", "since", "last seen", "run", "width", "applied", "flags")
    spare = ("since", "flags", "width", "run", "group", "applied", "last seen", "name")
    table(heads, [_line(row) for row in found["rows"]], spare)
    shown = len(found["rows"])
    if shown < found["total"]:
        click.echo(f"{shown} of {found['total']} devices, page {page}.", err=True)


@device.command
@click.argument("name", metavar="DEVICE")
@json_option
@operates
def show(client: Client, name: str, as_json: bool) -> None:
    """Show one device in full.

    \b
    Example:
      shoal device show pico
    """
    _show(client.get("devices", name), as_json)


def _steer(action: str, sentence: str) -> None:
    @device.command(action, help=f"{sentence}\n\n\b\nExample:\n  shoal device {action} pico")
    @click.argument("name", metavar="DEVICE")
    @json_option
    @operates
    def steer(client: Client, name: str, as_json: bool) -> None:
        _show(client.post("devices", name, action), as_json)


_steer("pause", "Give a device no more work until it is resumed.")
_steer("resume", "Take back a pause.")
_steer("release", "Take a device out of quarantine, into which an admission rule put it.")


@device.command
@click.argument("name", metavar="DEVICE")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@operates
def revoke(client: Client, name: str, yes: bool, as_json: bool) -> None:
    """Shut a device out for good; it can come back with a new token only.

    \b
    Example:
      shoal device revoke pico --yes
    """
    if not yes:
        click.confirm(f"Shut {name} out for good?", abort=True, err=True)
    _show(client.post("devices", name, "revoke"), as_json)


def _line(row: dict[str, Any]) -> list[Any]:
    who = [row[name] for name in ("id", "name", "group", "status")]
    work = [row[name] for name in ("run", "width", "applied", "flags")]
    return [*who, moment(row["since"]), moment(row["last_seen"]), *work]


def _show(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    row = found["row"]
    facts(
        [
            ("device", row["id"]),
            ("name", row["name"]),
            ("group", row["group"]),
            ("status", f"{row['status']} since {moment(row['since'])}"),
            ("flags", row["flags"]),
            ("last seen", moment(row["last_seen"])),
            ("assignment", row["assignment"]),
            ("run", row["run"]),
            ("width", row["width"]),
            ("samples", row["samples"]),
            ("updates", found["outcomes"]),
            ("bytes up", found["bytes_up"]),
            ("bytes down", found["bytes_down"]),
            ("agent", row["agent"]),
            ("runtime", row["runtime"]),
            ("capability", found["capability"]),
            ("enrolled", f"{moment(found['enrolled_at'])} with token {found['token']}"),
        ]
    )
