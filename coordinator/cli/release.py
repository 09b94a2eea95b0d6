"""``shoal release``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from coordinator import settings as coordinator_settings
from coordinator.cli.client import Client, home_option, operates
from coordinator.cli.output import facts, json_option, moment, print_json, table
from coordinator.fleet import releases
from coordinator.fleet.releases import ReleaseKey


@click.group
def release() -> None:
    """What devices may be told to run: agents, models and settings, signed and never changed.

    \b
    Example:
      shoal release create agent
      shoal rollout start agent-0.2.0 --every
    """


@release.group
def create() -> None:
    """Make and sign a release; `shoal rollout start` brings it to devices.

    \b
    Example:
      shoal release create config night.toml --version night-1
    """


def _terms(command: Any) -> Any:
    """The options that every release has."""
    for option in (
        click.option("--notes", default="", help="What has changed, for whoever reads the list."),
        click.option(
            "--floor", type=int, default=0, help="A device that has this one takes none below this number any more."
        ),
        click.option("--days", type=float, help="No device begins with it after so many days (normally 365)."),
    ):
        command = option(command)
    return command


@create.command
@click.option("--agent", default="", help="Version of the bundles (normally that of the newest).")
@click.option("--version", default="", help="What the release is called (normally as the bundles are).")
@_terms
@json_option
@operates
def agent(client: Client, as_json: bool, **given: Any) -> None:
    """Release the newest bundles that `shoal bundle build` has made, one for every target.

    \b
    Example:
      shoal release create agent --notes "Faster convolutions"
    """
    _show(client.post("releases", body=_body("agent", given)), as_json)


@create.command
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--version", required=True, help="What the release is called.")
@_terms
@json_option
@operates
def config(client: Client, file: Path, as_json: bool, **given: Any) -> None:
    """Release settings for agents, from a TOML file as agent.toml is.

    What may come from afar: heartbeat, pace, threads, checkpoint_seconds, cache_bytes, spool_bytes, log_level and the
    table conditions. What stands in a device's own agent.toml outweighs it.

    \b
    Example:
      shoal release create config night.toml --version night-1
    """
    _show(client.post("releases", body={**_body("config", given), "settings": _text(file)}), as_json)


@release.command("export-unsigned")
@click.argument("output", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--config", "file", type=click.Path(path_type=Path, dir_okay=False), help="Settings; else an agent.")
@click.option("--agent", default="", help="Version of the bundles (normally that of the newest).")
@click.option("--version", default="", help="What the release is called (settings need one).")
@_terms
@operates
def export_unsigned(client: Client, output: Path, file: Path | None, **given: Any) -> None:
    """Write the manifest of a release to a file, to be signed where the key is.

    Sign it with `shoal release import --key` there, or with openssl: `openssl pkeyutl -sign -rawin -inkey release.key
    -in OUTPUT -out OUTPUT.sig`.

    \b
    Example:
      shoal release export-unsigned agent.json --version 0.3.0
    """
    given["notes"] = ""
    body = _body("config" if file else "agent", given) | ({"settings": _text(file)} if file else {})
    draft = client.post("release-drafts", body=body)
    try:
        output.write_bytes(draft["manifest"].encode())
    except OSError as error:
        raise click.ClickException(f"{output} cannot be written: {error.strerror}") from error
    click.echo(f"Sign it byte for byte, then: shoal release import {output} --signature {output}.sig", err=True)


@release.command("import")
@click.argument("manifest", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--signature", type=click.Path(path_type=Path, dir_okay=False), help="64 bytes, or as 128 digits.")
@click.option("--key", type=click.Path(path_type=Path, dir_okay=False), help="Sign it with this private key, here.")
@click.option("--notes", default="", help="What has changed, for whoever reads the list.")
@json_option
@operates
def take_in(
    client: Client, manifest: Path, signature: Path | None, key: Path | None, notes: str, as_json: bool
) -> None:
    """Take in a manifest of `export-unsigned` with its signature, or sign it with a key file first.

    \b
    Example:
      shoal release import agent.json --signature agent.json.sig
    """
    if (signature is None) == (key is None):
        raise click.UsageError("Give --signature or --key, one of them")
    text = _text(manifest)
    signed = ReleaseKey.read(key).sign(text) if key else _signature(_bytes(signature or manifest))
    _show(client.post("signed-releases", body={"manifest": text, "signature": signed, "notes": notes}), as_json)


@release.command("list")
@click.option("--kind", type=click.Choice(["agent", "model", "config"]), help="Only these.")
@json_option
@operates
def list_releases(client: Client, kind: str | None, as_json: bool) -> None:
    """List releases, the newest first, with how many devices say that they run them.

    \b
    Example:
      shoal release list --kind agent
    """
    found = client.get("releases", kind=kind)
    if as_json:
        print_json(found)
        return
    rows = [
        [row["id"], row["kind"], row["version"], row["number"], row["devices"], f"{row['size'] / 1e6:.1f} MB",
         moment(row["created_at"]), row["created_by"], moment(row["withdrawn_at"])]
        for row in found
    ]  # fmt: skip
    table(("id", "kind", "version", "number", "devices", "size", "made", "by", "withdrawn"), rows)


@release.command
@click.argument("name", metavar="RELEASE")
@json_option
@operates
def show(client: Client, name: str, as_json: bool) -> None:
    """Show one release in full; RELEASE is its id, or its kind and version.

    \b
    Example:
      shoal release show agent-0.2.0
    """
    _show(client.get("releases", name), as_json)


@release.command
@click.argument("name", metavar="RELEASE")
@json_option
@operates
def withdraw(client: Client, name: str, as_json: bool) -> None:
    """Let no rollout begin with a release any more; those that go on do.

    \b
    Example:
      shoal release withdraw agent-0.2.0
    """
    _show(client.post("releases", name, "withdraw"), as_json)


@release.command
@click.option(
    "--take-out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Move the private half into this file; from then on releases are signed where it is.",
)
@home_option
@json_option
def key(home: Path | None, take_out: Path | None, as_json: bool) -> None:
    """Show the key that devices trust releases by, on the coordinator's machine; it is made if there is none.

    \b
    Example:
      shoal release key --take-out /media/stick/release.key
    """
    place = coordinator_settings.load({"home": home}).home
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        found = releases.take_out(place, take_out) if take_out else ReleaseKey.of(place)
    except FileExistsError as error:
        raise click.ClickException(f"{take_out} is there already: name a file that is not") from error
    if as_json:
        print_json({"public": found.public, "here": found.private is not None})
        return
    facts([("public key", found.public), ("signs", "here" if found.private else "elsewhere")])


def _body(kind: str, given: dict[str, Any]) -> dict[str, Any]:
    return {"kind": kind, **{name: value for name, value in given.items() if value is not None}}


def _text(path: Path) -> str:
    try:
        return _bytes(path).decode()
    except UnicodeDecodeError as error:
        raise click.ClickException(f"{path} is no text in UTF-8") from error


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise click.ClickException(f"{path} cannot be read: {error.strerror}") from error


def _signature(content: bytes) -> str:
    """As openssl writes it, or as digits."""
    return content.hex() if len(content) == 64 else content.decode(errors="replace").strip().lower()


def _show(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    row = found["row"]
    made_from = f"{row['run']} version {row['model_version']}" if row["run"] else None
    facts(
        [
            ("release", row["id"]),
            ("kind", row["kind"]),
            ("version", row["version"]),
            ("number", row["number"]),
            ("files", f"{row['files']}, {row['size'] / 1e6:.1f} MB"),
            ("made from", made_from),
            ("devices", row["devices"]),
            ("rollouts", found["rollouts"]),
            ("sha256", row["sha256"]),
            ("signature", found["signature"]),
            ("notes", row["notes"]),
            ("made", f"{moment(row['created_at'])} by {row['created_by']}"),
            ("runs out", moment(row["expires_at"])),
            ("withdrawn", moment(row["withdrawn_at"])),
        ]
    )
