"""``shoal recipe``."""

from __future__ import annotations

import click

from coordinator.cli.client import Client, operates
from coordinator.cli.output import json_option, print_json
from coordinator.cli.run import text_of
from coordinator.training.recipe import load


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


@recipe.command
@click.argument("name", metavar="FILE|RECIPE")
@json_option
def check(name: str, as_json: bool) -> None:
    """Say whether a recipe is sound, and print it with every default; no coordinator is needed.

    Exit codes: 0 it is, 1 it is not, and the sentence names the key.

    \b
    Example:
      shoal recipe check mine.toml
    """
    found = load(text_of(name))
    if as_json:
        print_json({"name": found.name, "toml": found.to_toml()})
    else:
        click.echo(found.to_toml(), nl=False)
