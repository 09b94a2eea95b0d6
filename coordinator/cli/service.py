"""``shoal service``: the coordinator as a systemd service."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click

from coordinator import service, settings
from coordinator.errors import ShoalError

HOME: Final = Path("/var/lib/shoal")
FOLDER: Final = Path("/etc/systemd/system")

Command = Callable[..., Any]


@click.group("service")
def group() -> None:
    """The coordinator as a systemd service: started at boot, watched, and as little trusted as can be.

    \b
    Example:
      sudo shoal service install
      sudo systemctl enable --now shoal
    """


def _about(command: Command) -> Command:
    """Which coordinator the unit is for."""
    for option in (
        click.option("--user", default="shoal", show_default=True, help="The account that it runs as."),
        click.option(
            "--home",
            type=click.Path(path_type=Path, file_okay=False),
            default=HOME,
            show_default=True,
            help="The coordinator's folder; shoal.toml in it holds the settings.",
        ),
    ):
        command = option(command)
    return command


def _folder(command: Command) -> Command:
    return click.option(
        "--folder",
        type=click.Path(path_type=Path, file_okay=False),
        default=FOLDER,
        show_default=True,
        help="Where the unit goes.",
    )(command)


@group.command
@_about
def show(home: Path, user: str) -> None:
    """Print the unit.

    \b
    Example:
      shoal service show --home /srv/shoal
    """
    click.echo(service.unit(settings.load({"home": home}), user), nl=False)


@group.command
@_about
@_folder
def install(home: Path, user: str, folder: Path) -> None:
    """Make the account if there is none, and write the unit; as root.

    \b
    Example:
      sudo shoal service install
    """
    text = service.unit(settings.load({"home": home}), user)
    if not service.known(user):
        shell = shutil.which("nologin") or "/usr/sbin/nologin"
        _run("useradd", "--system", "--home-dir", str(home), "--no-create-home", "--shell", shell, user)
    path = folder / service.UNIT
    try:
        path.write_text(text)
        service.make_home(home, user)
    except OSError as error:
        raise click.ClickException(f"{error.filename} cannot be written: {error.strerror}; run this as root") from error
    click.echo(f"{path} is written; start it with: systemctl daemon-reload && systemctl enable --now {path.name}")
    click.echo(f"Its settings go into {home / 'shoal.toml'}.")
    click.echo(f"Log in with: sudo -u {user} shoal login-link --home {home}")


@group.command
@_folder
def remove(folder: Path) -> None:
    """Stop the service and remove its unit; its home and its account stay.

    \b
    Example:
      sudo shoal service remove
    """
    path = folder / service.UNIT
    if not path.exists():
        raise click.ClickException(f"There is no {path}")
    if folder == FOLDER and shutil.which("systemctl"):
        _run("systemctl", "disable", "--now", service.UNIT)
    try:
        path.unlink()
    except OSError as error:
        raise click.ClickException(f"{path} cannot be removed: {error.strerror}; run this as root") from error
    if folder == FOLDER and shutil.which("systemctl"):
        _run("systemctl", "daemon-reload")
    click.echo(f"{path} is removed.")


def _run(*command: str) -> None:
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True)
    except OSError as error:
        raise ShoalError("home-unusable", f"{command[0]} cannot be run: {error.strerror}") from error
    if done.returncode:
        said = (done.stderr or done.stdout).strip()[-400:]
        raise ShoalError("home-unusable", f"{command[0]} failed with {done.returncode}: {said}; run this as root")
