"""The command ``shoal``. Each group of commands is a module that is imported when it is called."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Any, Final

import click

from coordinator import __version__
from coordinator.errors import NO_ROOM, ShoalError

COMMANDS: Final[dict[str, tuple[str, str]]] = {
    "serve": ("coordinator.cli.serve:serve", "Run the coordinator."),
    "demo": ("coordinator.cli.demo:demo", "A coordinator and a small fleet on this machine, in the browser."),
    "login-link": ("coordinator.cli.login:login_link", "Make a link that logs somebody in, once."),
    "api-token": ("coordinator.cli.api_token:api_token", "Bearer tokens for programs and other machines."),
    "run": ("coordinator.cli.run:run", "Start, steer and look at trainings."),
    "device": ("coordinator.cli.device:device", "Look at devices, name, steer, command or revoke them."),
    "token": ("coordinator.cli.token:token", "Enrolment tokens: how devices join."),
    "broker": ("coordinator.cli.broker:broker", "For brokers of other people: rules, accounts, a certificate."),
    "bundle": ("coordinator.cli.bundle:bundle", "The agent packed for boards."),
    "flash": ("coordinator.cli.flash:flash", "Make a card whose board enrols by itself."),
    "enrol-command": ("coordinator.cli.enrol_command:enrol_command", "The line that installs a board that runs."),
    "release": ("coordinator.cli.release:release", "What devices may be told to run: agents, models, settings."),
    "rollout": ("coordinator.cli.rollout:rollout", "Bring a release to devices, wave by wave, and back."),
    "history": ("coordinator.cli.history:history", "Ask the database what was: lists, files, SQL."),
    "model": ("coordinator.cli.model:model", "The models there are."),
    "recipe": ("coordinator.cli.recipe:recipe", "The recipes there are."),
    "simulate": ("coordinator.cli.simulate:simulate", "Try a recipe on a made-up fleet, in virtual time."),
    "compare": ("coordinator.cli.compare:compare", "Simulations side by side: a table and a report."),
    "replay-trace": ("coordinator.cli.trace:replay_trace", "Make a population of the conditions a run met with."),
    "db": ("coordinator.cli.db:db", "Check, upgrade, back up, restore and move the database."),
}
"""name: (module:attribute, what it is for). The sentence stands here so that ``--help`` need not import them all."""


class _Shoal(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ShoalError as error:
            raise click.ClickException(error.detail) from error
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            _forget_output()
            raise click.ClickException(f"What is asked for cannot be written: {error.strerror}") from error


def _forget_output() -> None:
    """What waits to be written is not written at the end either, and complained about once more."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


@click.group(cls=_Shoal, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="shoal")
def main() -> None:
    """Train one model on a fleet of small devices, each at the size it can carry.

    \b
    Example:
      shoal serve &
      shoal login-link
      shoal token create --uses 10 --ttl 3d
      shoal run start --model mlp --recipe whale-fl --dataset test.npz

    The commands that operate the fleet talk to the coordinator that runs on this machine, by the address and the token
    in its home folder; --url, --ca and the variable SHOAL_API_TOKEN name another one.

    Exit codes: 0 done, 1 refused or failed, 2 wrong usage, 3 no coordinator answers.
    """
