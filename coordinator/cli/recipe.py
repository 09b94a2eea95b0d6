"""``shoal recipe``."""

from __future__ import annotations

import click

from coordinator.cli.client import Client, operates
from coordinator.cli.output import json_option, print_json


@click.group
def recipe() -> None:
    """The recipes there are.

    \b
    Example:
      shoal recipe show whale-fl > mine.toml
    """


@recipe.command("list")
@json_option
@operates
def list_recipes(client: Client, as_json: bool) -> None:
    """List the recipes that come with Shoal.

    \b
    Example:
      shoal recipe list
    """
    found = client.get("recipes")
    if as_json:
        print_json(found)
        return
    for row in found:
        click.echo(row["name"])


@recipe.command
@click.argument("name", metavar="RECIPE")
@json_option
@operates
def show(client: Client, name: str, as_json: bool) -> None:
    """Print a recipe as TOML, with every default written out.

    \b
    Example:
      shoal recipe show fedbuff
    """
    found = client.get("recipes", name)
    if as_json:
        print_json(found)
    else:
        click.echo(found["toml"], nl=False)
