"""``shoal device``."""

from __future__ import annotations

import time
from typing import Any

import click

from coordinator.cli.client import Client, operates
from coordinator.cli.output import cell, duration, facts, json_option, moment, print_json, table
from protocol.commands import COMMANDS

ACTIONS = ("adopt", "release", "pause", "resume", "tag", "untag", "group", "command")
"""What may be done to many devices at once."""


@click.group
def device() -> None:
    """Look at devices, name, steer, command or revoke them.

    \b
    Example:
      shoal device list --status offline
      shoal device pause pico
    """


@device.command("list")
@click.option(
    "--status", help="Only these: pending, new, idle, training, late, offline, paused, quarantined or revoked."
)
@click.option("--group", help="Only devices of this group.")
@click.option("--tag", help="Only devices with this tag.")
@click.option("--text", help="Part of the name, id, group, tags, agent or runtime.")
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
_steer("adopt", "Let a device work that joined with a token for manual adoption.")


def _name(action: str, field: str, sentence: str, example: str) -> None:
    @device.command(action, help=f"{sentence}\n\n\b\nExample:\n  shoal device {action} pico {example}")
    @click.argument("name", metavar="DEVICE")
    @click.argument("word", metavar=field.upper())
    @json_option
    @operates
    def name(client: Client, name: str, word: str, as_json: bool) -> None:
        _show(client.post("devices", name, action, body={field: word}), as_json)


_name("tag", "tag", "Call a device by one more word.", "roof")
_name("untag", "tag", "Take a word from a device.", "roof")
_name("group", "group", "Move a device into another group; recipes tell boards apart by it.", "pi4")


@device.command
@click.argument("name", metavar="DEVICE")
@click.argument("kind", type=click.Choice(COMMANDS))
@click.option("--ttl", type=duration, default="1h", show_default=True, help="How long it may wait: 90s, 15m, 3d.")
@click.option("--wait", type=duration, default="0s", help="Wait so long for the answer.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@operates
def command(client: Client, name: str, kind: str, ttl: float, wait: float, yes: bool, as_json: bool) -> None:
    """Tell a device to do something once; `commands` shows what came of it.

    \b
    Example:
      shoal device command pico collect-logs --wait 30s
    """
    if kind == "decommission" and not yes:
        click.confirm(f"Shall {name} forget who it is, for good?", abort=True, err=True)
    told = client.post("devices", name, "commands", body={"kind": kind, "ttl": ttl})
    deadline = time.monotonic() + wait
    while told["state"] == "open" and time.monotonic() < deadline:
        time.sleep(0.5)
        told = next(row for row in client.get("devices", name, "commands") if row["id"] == told["id"])
    if as_json:
        print_json(told)
        return
    click.echo(f"{kind} {told['id']}: {told['state']}", err=True)
    if told["text"]:
        click.echo("\n".join(map(cell, told["text"].splitlines())))


@device.command("commands")
@click.argument("name", metavar="DEVICE")
@json_option
@operates
def list_commands(client: Client, name: str, as_json: bool) -> None:
    """What a device was told to do, the newest first.

    \b
    Example:
      shoal device commands pico
    """
    found = client.get("devices", name, "commands")
    if as_json:
        print_json(found)
        return
    rows = [
        [row["id"], row["kind"], row["state"], moment(row["at"]), row["by"], row["text"].partition("\n")[0][:80]]
        for row in found
    ]
    table(("id", "command", "state", "told", "by", "answer"), rows)


@device.command("releases")
@click.argument("name", metavar="DEVICE")
@json_option
@operates
def list_releases(client: Client, name: str, as_json: bool) -> None:
    """What a device says it runs, and what it was told to run, the newest first.

    \b
    Example:
      shoal device releases pico
    """
    found = client.get("devices", name, "releases")
    if as_json:
        print_json(found)
        return
    table(("runs", "version", "since"), [[row["kind"], row["version"], moment(row["at"])] for row in found["runs"]])
    click.echo()
    rows = [
        [row["rollout"], row["kind"], row["version"], row["state"], moment(row["since"]), row["text"]]
        for row in found["told"]
    ]
    table(("rollout", "kind", "version", "state", "since", "text"), rows, ("since",))


@device.command
@click.argument("action", type=click.Choice(ACTIONS))
@click.argument("value", default="")
@click.option("--status", help="Only devices with this status.")
@click.option("--group", help="Only devices of this group.")
@click.option("--tag", help="Only devices with this tag.")
@click.option("--text", help="Part of the name, id, group, tags, agent or runtime.")
@click.option("--every", is_flag=True, help="All of them.")
@json_option
@operates
def bulk(client: Client, action: str, value: str, every: bool, as_json: bool, **wanted: str | None) -> None:
    """Do the same to all devices that pass a filter; VALUE is the tag, the group or the command.

    \b
    Example:
      shoal device bulk adopt --status pending
      shoal device bulk command restart --tag roof
    """
    given = {name: one for name, one in wanted.items() if one is not None}
    found = client.post("device-actions", body={"action": action, "value": value, "every": every, **given})
    if as_json:
        print_json(found)
        return
    click.echo(f"{action}: {found['devices'] - found['refused']} of {found['devices']} devices.")
    if found["refused"]:
        click.echo(f"{found['refused']} refused, e.g.: {found['reason']}", err=True)


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
            ("tags", row["tags"]),
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
