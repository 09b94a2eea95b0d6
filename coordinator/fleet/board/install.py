"""Installs Shoal's agent on this board. Runs as root, needs Python 3.11 and nothing else; doing it again is harmless.

    python3 install.pyz --from /boot/firmware/shoal     what `shoal flash` has put on the card; no network
    sh install.sh --url URL --token-file FILE           the bundle from the coordinator, once its authority is known

The agent lands in /opt/shoal, its home is /var/lib/shoal-agent, it runs as the user shoal. Secrets leave the card.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tarfile
from contextlib import suppress
from pathlib import Path

from .download import Coordinator, target
from .system import Board, InstallError
from .units import HOME

SETTINGS, SECRETS, FAILED = "shoal.json", "secrets.json", "INSTALL_FAILED.txt"


def from_card(board: Board, folder: Path, start: bool) -> None:
    """Install what lies on the card, then take its secrets off it."""
    settings = json.loads((folder / SETTINGS).read_text())
    wiped = folder / SECRETS
    secrets = json.loads(wiped.read_text()) if wiped.exists() else {}
    found = settings["bundles"].get(target())
    if found is None:
        known = ", ".join(settings["bundles"])
        raise InstallError(f"The card has no bundle for {target()}, only for {known}")
    if data := settings.get("data_file"):
        settings["data_file"] = str(folder / data)
    board.install(settings, secrets, (found["sha256"], (folder / found["file"]).read_bytes))
    wipe(wiped)
    (folder / FAILED).unlink(missing_ok=True)
    if start:
        board.start()


def wipe(path: Path) -> None:
    """Overwrite and remove a file; on flash memory an older copy may outlive it, which is why tokens end."""
    if path.exists():
        with open(path, "r+b") as file:
            file.write(bytes(path.stat().st_size))
            file.flush()
            os.fsync(file.fileno())
        path.unlink()
        os.sync()


def from_coordinator(board: Board, options: argparse.Namespace) -> None:
    piped = options.token_file is None
    token = (sys.stdin.readline() if piped else options.token_file.read_text()).strip()
    coordinator = Coordinator(options.url, token)
    settings = {"url": options.url, "name": options.name, "data": options.data}
    settings["release_key"] = coordinator.release_key()
    board.install(settings, {"token": token}, coordinator.bundle())
    board.start()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--from", dest="folder", type=Path, help="the folder that shoal flash has put on the card")
    where.add_argument("--url", help="the coordinator, e.g. https://shoal.local:8750")
    parser.add_argument("--token-file", type=Path, help="holds the claim token; without it, it is read from stdin")
    parser.add_argument("--name", default=platform.node() or "device", help="what people call this board")
    parser.add_argument("--data", default=f"{HOME}/data.npz", help="where on this board the training data is")
    parser.add_argument("--no-start", action="store_true", help="leave it to the next boot to start the agent")
    options = parser.parse_args(argv)
    if os.geteuid() != 0:
        print("shoal: only root can install the agent: put sudo in front", file=sys.stderr)
        return 1
    try:
        if options.folder:
            from_card(Board(), options.folder, not options.no_start)
        else:
            from_coordinator(Board(), options)
    except (InstallError, OSError, ValueError, KeyError, tarfile.TarError) as error:
        text = str(error) if isinstance(error, InstallError) else f"{type(error).__name__}: {error}"
        print(f"shoal: {text}", file=sys.stderr)
        if options.folder:  # to be read on the desk
            with suppress(OSError):
                (options.folder / FAILED).write_text(text + "\n")
        return 1
    print("shoal: the agent is installed; shoal-agent status says how it is")
    return 0


if __name__ == "__main__":
    sys.exit(main())
