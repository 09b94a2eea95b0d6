"""``shoal model``."""

from __future__ import annotations

import click

from coordinator.cli.client import Client, operates
from coordinator.cli.output import json_option, moment, print_json, table


@click.group
def model() -> None:
    """The models there are.

    \b
    Example:
      shoal model list
    """


@model.command("list")
@json_option
@operates
def list_models(client: Client, as_json: bool) -> None:
    """List the models that come with Shoal, and those that were trained here.

    \b
    Example:
      shoal model list --json
    """
    found = client.get("models")
    if as_json:
        print_json(found)
        return
    table(
        ("name", "comes with Shoal", "specification", "since"),
        [[row["name"], row["builtin"], (row["spec_sha256"] or "")[:12], moment(row["created_at"])] for row in found],
    )
