"""``shoal enrol-command``."""

from __future__ import annotations

import shlex

import click

from coordinator.cli.client import Client, Refused, operates
from coordinator.cli.output import duration, json_option, moment, print_json


@click.command("enrol-command")
@click.option("--name", help="What people call the board (its host name).")
@click.option("--group", default="", help="The group it joins.")
@click.option("--ttl", type=duration, default="1h", show_default=True, help="How long the line works.")
@click.option("--data", help="Where on the board the training data is (/var/lib/shoal-agent/data.npz).")
@click.option("--reach", help="The coordinator's address as the board reaches it, if that is another.")
@json_option
@operates
def enrol_command(
    client: Client, name: str | None, group: str, ttl: float, data: str | None, reach: str | None, as_json: bool
) -> None:
    """Print the line that installs the agent on a board that already runs, and lets it join; it works once.

    The line checks the installer's sha256, the installer the coordinator's authority, before anything is believed.
    The board needs Python 3.11, curl and sudo; the bundles come from `shoal bundle build` at the coordinator.

    \b
    Example:
      shoal enrol-command --name kitchen --group pi4
    """
    installer = client.get("installer")
    if not installer["targets"]:
        raise Refused("The coordinator has no bundles for boards: run there shoal bundle build")
    made = client.post("tokens", body={"group": group, "uses": 1, "ttl": ttl})
    url = (reach or client.url).rstrip("/")
    options = [word for flag, value in (("--name", name), ("--data", data)) if value for word in (flag, value)]
    line = (
        f"d=$(mktemp -d) && curl -fsSk -o $d/install.sh {shlex.quote(url + '/install.sh')} && "
        f"echo '{installer['sha256']}  '$d/install.sh | sha256sum -c --quiet && "
        f"echo {made['token']} | sudo sh $d/install.sh --url {shlex.join([url, *options])}"
    )
    if as_json:
        print_json({"command": line, "token": made["id"], "expires_at": made["expires_at"], **installer})
        return
    click.echo(line)
    known = ", ".join(installer["targets"])
    click.echo(f"It works once, until {moment(made['expires_at'])}, on boards of {known}.", err=True)
