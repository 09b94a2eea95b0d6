"""``shoal login-link``."""

from __future__ import annotations

import getpass

import click

from coordinator.cli.client import Client, operates
from coordinator.cli.output import json_option, moment, print_json


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run as a user without a name
        return "admin"


@click.command
@click.option("--role", type=click.Choice(["viewer", "operator", "admin"]), default="admin", show_default=True)
@click.option("--name", default=_user, show_default="your user name", help="Who will log in.")
@json_option
@operates
def login_link(client: Client, role: str, name: str, as_json: bool) -> None:
    """Make a link that logs somebody in, once.

    A viewer sees everything, an operator also steers runs and devices, an admin also makes login links. Whoever exists
    already has the given role from now on.

    \b
    Example:
      shoal login-link
      shoal login-link --name olga --role operator
    """
    made = client.post("login-links", body={"name": name, "role": role})
    if as_json:
        print_json(made)
        return
    click.echo(made["url"])
    click.echo(f"For {name} ({role}), works once, until {moment(made['expires_at'])}.", err=True)
