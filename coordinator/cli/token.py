"""``shoal token``."""

from __future__ import annotations

import click

from coordinator.cli.client import Client, operates
from coordinator.cli.output import duration, json_option, moment, print_json, table


@click.group
def token() -> None:
    """Enrolment tokens: how devices join.

    \b
    Example:
      shoal token create --uses 10 --ttl 3d
    """


@token.command
@click.option("--group", default="", help="The group that devices join.")
@click.option("--uses", type=int, default=1, show_default=True, help="How many devices may join with it.")
@click.option("--ttl", type=duration, default="72h", show_default=True, help="How long it lasts: 90s, 15m, 72h, 3d.")
@click.option("--manual", is_flag=True, help="Who joins waits until `shoal device adopt`.")
@json_option
@operates
def create(client: Client, group: str, uses: int, ttl: float, manual: bool, as_json: bool) -> None:
    """Make a token and print it; it is stored nowhere, so it cannot be printed again.

    \b
    Example:
      shoal token create --group kitchen --uses 3 --ttl 15m
    """
    made = client.post("tokens", body={"group": group, "uses": uses, "ttl": ttl, "manual": manual})
    if as_json:
        print_json(made)
        return
    click.echo(made["token"])
    click.echo(f"Token {made['id']}, for {uses}, until {moment(made['expires_at'])}.", err=True)


@token.command("list")
@json_option
@operates
def list_tokens(client: Client, as_json: bool) -> None:
    """List tokens, the newest first.

    \b
    Example:
      shoal token list
    """
    found = client.get("tokens")
    if as_json:
        print_json(found)
        return
    table(
        ("id", "status", "group", "uses", "adoption", "expires", "made", "by"),
        [
            [
                row["id"],
                row["status"],
                row["group"],
                f"{row['uses']} of {row['max_uses']}",
                "manual" if row["manual"] else "at once",
                moment(row["expires_at"]),
                moment(row["created_at"]),
                row["created_by"],
            ]
            for row in found
        ],
    )


@token.command
@click.argument("name", metavar="TOKEN-ID")
@json_option
@operates
def revoke(client: Client, name: str, as_json: bool) -> None:
    """End a token; devices that have joined with it stay.

    \b
    Example:
      shoal token revoke 0f3c5a9b1d2e
    """
    ended = client.post("tokens", name, "revoke")
    if as_json:
        print_json(ended)
    else:
        click.echo(f"Token {ended['id']} is revoked.")
