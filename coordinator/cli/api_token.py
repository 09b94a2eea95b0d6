"""``shoal api-token``."""

from __future__ import annotations

import click

from coordinator.cli.client import Client, operates
from coordinator.cli.output import duration, json_option, moment, print_json, table


@click.group
def api_token() -> None:
    """Bearer tokens for programs, and for these commands on other machines.

    \b
    Example:
      shoal api-token create --name grafana --role viewer
      SHOAL_API_TOKEN=shoal-api.… shoal device list --url https://shoal.local:8750
    """


@api_token.command
@click.option("--name", required=True, help="Whom the program acts as; stands in the history of what it does.")
@click.option("--role", type=click.Choice(["viewer", "operator", "admin"]), default="viewer", show_default=True)
@click.option("--ttl", type=duration, help="How long it lasts: 90s, 15m, 72h, 3d; without it, until it is revoked.")
@json_option
@operates
def create(client: Client, name: str, role: str, ttl: float | None, as_json: bool) -> None:
    """Make a token and print it; it is stored nowhere, so it cannot be printed again.

    \b
    Example:
      shoal api-token create --name nightly --role operator --ttl 90d
    """
    made = client.post("api-tokens", body={"name": name, "role": role, "ttl": ttl})
    if as_json:
        print_json(made)
        return
    click.echo(made["token"])
    until = "until it is revoked" if ttl is None else f"until {moment(made['expires_at'])}"
    click.echo(f"API token {made['id']} for {name} ({role}), {until}.", err=True)


@api_token.command("list")
@json_option
@operates
def list_tokens(client: Client, as_json: bool) -> None:
    """List API tokens, the newest first.

    \b
    Example:
      shoal api-token list
    """
    found = client.get("api-tokens")
    if as_json:
        print_json(found)
        return
    times = ("created_at", "expires_at", "revoked_at")
    table(
        ("id", "for", "made", "expires", "revoked"),
        [[row["id"], row["name"], *(moment(row[name]) for name in times)] for row in found],
    )


@api_token.command
@click.argument("name", metavar="TOKEN-ID")
@json_option
@operates
def revoke(client: Client, name: str, as_json: bool) -> None:
    """End an API token.

    \b
    Example:
      shoal api-token revoke 0f3c5a9b1d2e
    """
    ended = client.post("api-tokens", name, "revoke")
    if as_json:
        print_json(ended)
    else:
        click.echo(f"API token {ended['id']} is revoked.")
