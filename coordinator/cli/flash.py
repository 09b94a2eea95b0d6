"""``shoal flash``."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import click
from attrs import asdict

from coordinator import settings
from coordinator.cli.client import Client, connect, home_option
from coordinator.cli.output import duration, facts, json_option, moment, print_json
from coordinator.fleet import bundles
from coordinator.fleet.board.units import HOME
from coordinator.fleet.flash import card, disk, flashing
from coordinator.fleet.flash.card import Card
from coordinator.fleet.flash.disk import Disk, Machine
from coordinator.fleet.flash.errors import FlashError
from coordinator.fleet.flash.flashing import Claim, Order, Receipt
from coordinator.fleet.flash.wifi import Wifi, wifi

Command = Callable[..., Any]
_FILE: Final = click.Path(path_type=Path, exists=True, dir_okay=False)
_NEW_FILE: Final = click.Path(path_type=Path, dir_okay=False)


def _where(command: Command) -> Command:
    """What is written, and onto what."""
    for option in reversed(
        (
            click.option("--image", type=_FILE, help="The system: .img, or that packed as .xz, .gz, .zst or .zip."),
            click.option("--sha256", help="Of the image; without it IMAGE.sha256 or SHA256SUMS beside it is asked."),
            click.option("--output", type=_NEW_FILE, help="Write an image; needs no rights."),
            click.option("--device", type=click.Path(path_type=Path), help="Write onto a card, such as /dev/sdb."),
            click.option("--seed-only", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
                         help="Write the files of a seed volume, to be labelled CIDATA, for cloud images."),
            click.option("--method", type=click.Choice(["auto", "cloudinit", "systemd"]), default="auto",
                         show_default=True, help="How the first boot is reached; auto looks."),
            click.option("--target", "targets", multiple=True, help="Only this bundle, as aarch64-cp313; repeatable."),
            click.option("--receipt", type=_NEW_FILE, help="Where the receipt goes (OUTPUT.receipt.json)."),
            click.option("--manifest", is_flag=True, help="Also OUTPUT.rpi-imager-manifest, for Raspberry Pi Imager."),
        )
    ):  # fmt: skip
        command = option(command)
    return command


def _board(command: Command) -> Command:
    """What the board becomes."""
    for option in reversed(
        (
            click.option("--name", required=True, help="What people call the board, and its host name."),
            click.option("--group", default="", help="The group it joins."),
            click.option("--ttl", type=duration, default="72h", show_default=True, help="How long its token lasts."),
            click.option("--reach", help="The coordinator's address as the board reaches it, if that is another."),
            click.option("--data", default=f"{HOME}/data.npz", show_default=True,
                         help="Where on the board the training data is, or will be."),
            click.option("--sample", type=_FILE, help="Training data to go onto the card, instead."),
            click.option("--wifi", "ssid", metavar="SSID", help="The Wi-Fi to join; the passphrase is asked for."),
            click.option("--wifi-passphrase-file", type=_FILE, help="Holds the passphrase, instead of being asked."),
            click.option("--wifi-country", metavar="CC", help="Where the board is, e.g. DE; with --wifi."),
            click.option("--wifi-hidden", is_flag=True, help="The Wi-Fi does not announce its name."),
            click.option("--user", default="pi", show_default=True, help="Who may log in with --ssh-key."),
            click.option("--ssh-key", "key_files", type=_FILE, multiple=True, help="A public SSH key; more than once."),
        )
    ):  # fmt: skip
        command = option(command)
    return command


@click.command
@_where
@_board
@home_option
@click.option("--url", help="The coordinator's address, if it is not the one that runs here.")
@click.option("--ca", type=_NEW_FILE, envvar="SHOAL_CA", help="Its authority's certificate (or SHOAL_CA).")
@json_option
def flash(home: Path | None, url: str | None, ca: Path | None, as_json: bool, **given: Any) -> None:
    """Make a card whose board enrols by itself: an image, the agent, and a token that counts once.

    The agent's bundles come from `shoal bundle build`. The board's first boot needs the coordinator and nothing else:
    no pip, no apt, no internet. The output holds the token: treat it like a key until the board has joined.

    \b
    Example:
      shoal flash --image raspios.img.xz --device /dev/sdb --name kitchen --wifi Home --wifi-country DE
      shoal flash --image debian.raw --method cloudinit --output kitchen.img --name kitchen --ssh-key ~/.ssh/id.pub
    """
    target = _target(given)
    network, keys = _wifi(given), _keys(given["key_files"])
    packed = _bundles(settings.load({"home": home}).home / bundles.FOLDER, given["targets"])
    client = connect(home, url, ca)
    reach = given["reach"] or _reachable(client.url)
    made: list[Claim] = []

    def claim() -> Claim:
        answer = client.post("tokens", body={"group": given["group"], "uses": 1, "ttl": given["ttl"]})
        made.append(Claim(answer["token"], answer["id"], answer["group"], answer["expires_at"]))
        return made[0]

    def card_of(claimed: Claim) -> Card:
        return Card(
            name=given["name"], url=reach, token=claimed.text, data=given["data"], sample=given["sample"], wifi=network,
            bundles=packed, user=given["user"], ssh_keys=keys, release_key=client.get("release-key")["public"],
        )  # fmt: skip

    order = Order(
        image=given["image"], target=target, sha256=given["sha256"],
        method=None if given["method"] == "auto" else given["method"],
    )  # fmt: skip
    try:
        receipt = flashing.flash(order, claim, card_of, _Progress())
        _leave(receipt, order, given)
    except BaseException:
        _take_back(client, made)
        raise
    _tell(receipt, as_json)


def _target(given: dict[str, Any]) -> Disk | Path:
    places = [given[name] for name in ("output", "device", "seed_only") if given[name] is not None]
    if len(places) != 1:
        raise click.UsageError("Say where to write, once: --output FILE, --device /dev/sdX or --seed-only DIR")
    if (given["image"] is None) != (given["seed_only"] is not None):
        raise click.UsageError("--image and --seed-only exclude each other, and one is needed")
    if given["output"] is not None and given["output"].exists():
        raise FlashError(f"{given['output']} exists already: remove it first")
    if given["device"] is None:
        return Path(places[0])
    found = disk.disk(given["device"], Machine())
    about = f"{found.path} ({found.model or 'unknown model'}, {found.size / 1e9:.1f} GB)"
    if not found.removable:
        click.echo(f"{about} does not say that it is removable.", err=True)
    typed = click.prompt(f"Everything on {about} will be lost. Type {found.name} to go on", err=True)
    if typed != found.name:
        raise FlashError(f"{typed[:40]!r} is not {found.name}: nothing was written")
    return found


def _wifi(given: dict[str, Any]) -> Wifi | None:
    if given["ssid"] is None:
        return None
    if given["wifi_country"] is None:
        raise click.UsageError("--wifi needs --wifi-country, for what the radio may do there")
    if given["wifi_passphrase_file"] is not None:
        passphrase = given["wifi_passphrase_file"].read_text().rstrip("\r\n")
    else:
        passphrase = click.prompt(f"Passphrase of {given['ssid']}", hide_input=True, err=True)
    return wifi(given["ssid"], passphrase, given["wifi_country"], given["wifi_hidden"])


def _keys(files: tuple[Path, ...]) -> tuple[str, ...]:
    return tuple(key for file in files for key in card.ssh_keys(file.read_text(errors="replace")))


def _bundles(folder: Path, wanted: tuple[str, ...]) -> tuple[bundles.Bundle, ...]:
    there = bundles.newest(folder)
    for name in wanted:
        if bundles.target(name).name not in there:
            raise FlashError(f"There is no bundle for {name} in {folder}: shoal bundle build {name}")
    if not there:
        raise FlashError(f"There is no bundle in {folder}: shoal bundle build")
    return tuple(bundle for name, bundle in sorted(there.items()) if not wanted or name in wanted)


def _reachable(url: str) -> str:
    parts = urlsplit(url)
    host = parts.hostname or "localhost"
    if host in ("localhost", "::1") or host.startswith("127."):
        raise FlashError(
            f"{url} is an address of this machine's own, no board reaches it: start the coordinator with "
            "shoal serve --host 0.0.0.0 --name NAME, or give --reach"
        )
    return url


def _leave(receipt: Receipt, order: Order, given: dict[str, Any]) -> None:
    """The files beside the output."""
    output = given["output"]
    if (place := given["receipt"] or (output and output.with_name(output.name + ".receipt.json"))) is not None:
        flashing.write_json(place, asdict(receipt))
    if given["manifest"] and output is not None:
        about = flashing.manifest(output, receipt.method, _Progress())
        flashing.write_json(output.with_name(output.name + ".rpi-imager-manifest"), about)


def _take_back(client: Client, made: list[Claim]) -> None:
    """No card, no token."""
    for claim in made:
        try:
            client.post("tokens", claim.id, "revoke")
        except click.ClickException as error:
            click.echo(f"Token {claim.id} could not be revoked: {error.format_message()}", err=True)


def _tell(receipt: Receipt, as_json: bool) -> None:
    if as_json:
        print_json(json.loads(json.dumps(asdict(receipt))))
        return
    size = sum(file["size"] for file in receipt.files.values())
    facts(
        [
            ("written", receipt.output),
            ("board", f"{receipt.name}, joins {receipt.coordinator}"),
            ("token", f"{receipt.token}, once, until {moment(receipt.expires_at)}"),
            ("method", receipt.method),
            ("image", "checked" if receipt.image_checked else "nobody told its sha256, not checked"),
            ("bundles", receipt.bundles),
            ("files", f"{len(receipt.files)} of {size / 1e6:.1f} MB, read back"),
            ("left as it was", receipt.kept),
            ("free", f"{receipt.free / 1e6:.0f} MB of the boot partition" if receipt.partition else None),
            ("seconds", receipt.seconds),
        ]
    )


class _Progress:
    """A bar on a terminal, and silence elsewhere."""

    def __init__(self) -> None:
        self._shown = 0.0

    def __call__(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if not sys.stderr.isatty() or (done < total and now - self._shown < 0.1):
            return
        self._shown = now
        share = done / total if total else 1.0
        bar = "█" * round(share * 30)
        click.echo(f"\r{what:14}{bar:30} {share:4.0%}", nl=done >= total, err=True)
