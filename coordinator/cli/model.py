"""``shoal model``."""

from __future__ import annotations

import click

from coordinator.cli import exchange, networks
from coordinator.cli.client import Client, operates
from coordinator.cli.output import json_option, moment, print_json, table
from coordinator.cli.promote import promote_model


@click.group
def model() -> None:
    """The models there are: what they cost, how they come in and how they go out.

    SPEC is a name of the zoo (`shoal model list`) or a JSON file with a specification. All but `list`,
    `export RUN` and `promote` work without a coordinator.

    \b
    Example:
      shoal model inspect cnn
      shoal model import net.onnx -o net.json
      shoal model export digits-1 --format onnx -o digits.onnx
    """


for command in (
    *(networks.compile_command, networks.inspect, networks.profile, networks.bench),
    *(exchange.import_model, exchange.export_model, promote_model),
):
    model.add_command(command)


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
