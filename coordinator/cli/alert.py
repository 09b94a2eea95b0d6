"""``shoal alert``."""

from __future__ import annotations

import click

from coordinator.cli.client import Client, operates
from coordinator.cli.output import facts, json_option, moment, print_json, table


@click.group
def alert() -> None:
    """What operators are told of by webhook and mail: the table [alerts] of shoal.toml.

    \b
    Example:
      shoal alert test
    """


@alert.command
@json_option
@operates
def test(client: Client, as_json: bool) -> None:
    """Send a test message to every channel, now. Exit code 1 if one does not arrive.

    \b
    Example:
      shoal alert test
    """
    found = client.post("alerts", "test")
    if as_json:
        print_json(found)
    else:
        table(("channel", "result"), [[row["channel"], row["error"] or "arrived"] for row in found])
    if not found:
        raise click.ClickException("There is no channel: name webhooks or mail_to in the table [alerts] of shoal.toml")
    if any(row["error"] for row in found):
        raise click.exceptions.Exit(1)


@alert.command("list")
@json_option
@operates
def list_alerts(client: Client, as_json: bool) -> None:
    """Show the rules, the channels, and the messages delivered last.

    \b
    Example:
      shoal alert list
    """
    found = client.get("alerts")
    if as_json:
        print_json(found)
        return
    facts(
        [
            ("told of", ", ".join(found["kinds"])),
            ("a device is late after", f"{found['late_after']:g} s"),
            ("a run stalls after", f"{found['stalled_after']:g} s"),
            ("the disk is low below", f"{found['disk_low']:g} GB"),
            ("ends are told of", f"{found['credential_days']:g} days before"),
            ("the same not within", f"{found['quiet']:g} s"),
            ("messages wait for more", f"{found['gather']:g} s"),
        ]
    )
    click.echo()
    columns = ("channel", "failed attempts", "next attempt", "error")
    rows = [[one["name"], one["attempts"], moment(one["next_at"]), one["error"]] for one in found["channels"]]
    table(columns, rows)
    click.echo()
    sent = [[moment(one["at"]), one["channel"], one["count"], one["text"]] for one in found["deliveries"]]
    table(("delivered", "channel", "about", "text"), sent)
