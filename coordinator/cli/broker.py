"""``shoal broker``: what a broker that somebody else runs has to be given."""

from __future__ import annotations

from pathlib import Path

import click

from coordinator import settings
from coordinator.broker.external import FORMATS, acl
from coordinator.cli.client import home_option
from coordinator.fleet import authority
from coordinator.fleet.authority import AuthorityError
from coordinator.store import credentials
from coordinator.store.database import Database


@click.group
def broker() -> None:
    """For brokers of other people: rules, accounts and a certificate.

    \b
    Example:
      shoal broker acl --format emqx > acl.conf
    """


@broker.command("acl")
@click.option("--format", "form", type=click.Choice(FORMATS), default=FORMATS[0], show_default=True)
def print_acl(form: str) -> None:
    """Print the rules that keep every device to its own topics.

    \b
    Example:
      shoal broker acl --format mosquitto > /etc/mosquitto/acl
    """
    click.echo(acl(form), nl=False)


@broker.command
@home_option
def accounts(home: Path | None) -> None:
    """Print the devices' accounts as lines of a password file (PBKDF2 with HMAC-SHA512, as Mosquitto's).

    \b
    Example:
      shoal broker accounts > /etc/mosquitto/passwords
    """
    database = Database(settings.load({"home": home}).database_url, read_only=True)
    with database.read() as session:
        for device, verifier in sorted(credentials.accounts(session)):
            click.echo(f"{device}:{verifier}")
    database.close()


@broker.command
@click.argument("name")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default=Path("broker-tls"), show_default=True)
@home_option
def certificate(name: str, out: Path, home: Path | None) -> None:
    """Make a certificate for a broker called NAME, signed by the authority that the devices know.

    \b
    Example:
      shoal broker certificate mqtt.example.com --out broker-tls
    """
    try:
        made = authority.lend(settings.load({"home": home}).home, name, out)
    except AuthorityError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{made.certificate} and {made.key} are for {name}; its clients check it by {made.ca}.")
