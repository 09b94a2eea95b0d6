"""What a card is to become, and putting it there."""

from __future__ import annotations

import hashlib
import json
import re
import secrets as random
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from attrs import field, frozen

from coordinator.fleet import board
from coordinator.fleet.board.install import SECRETS, SETTINGS
from coordinator.fleet.board.units import HOME
from coordinator.fleet.bundles import Bundle
from coordinator.fleet.flash import firstboot
from coordinator.fleet.flash.errors import FlashError
from coordinator.fleet.flash.firstboot import FOLDER, Existing, Method
from coordinator.fleet.flash.volume import Volume, boot_partition
from coordinator.fleet.flash.wifi import Wifi

_SPARE: Final = 8 << 20
"""Bytes of the boot partition that stay free, for the system's own updates of it."""
_KEY = re.compile(r"(ssh-(ed25519|rsa)|ecdsa-sha2-nistp\d+|sk-[a-z0-9@.-]+) [A-Za-z0-9+/=]+( [^\r\n]*)?")


@frozen(kw_only=True)
class Card:
    """``name`` is what people call the board, ``data`` where on it the training data is; ``sample`` a file of the desk
    that becomes this data. ``token`` and the Wi-Fi's key are secret. ``user`` may log in with ``ssh_keys``. The board
    takes releases that are signed with ``release_key`` (32 bytes in hexadecimal digits), none without."""

    name: str
    url: str
    token: str = field(repr=False)
    data: str
    bundles: tuple[Bundle, ...]
    sample: Path | None = None
    wifi: Wifi | None = None
    user: str = "pi"
    ssh_keys: tuple[str, ...] = ()
    release_key: str | None = None

    @property
    def hostname(self) -> str:
        """The name as a host may have it."""
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower())[:63].strip("-") or "device"

    def files(self, made_at: datetime, method: Method) -> dict[str, bytes]:
        """Everything below the folder ``shoal``, by path on the boot partition."""
        if not self.bundles:
            raise FlashError("There is no bundle for the card: make one first, shoal bundle build")
        packed = {one.target: f"bundle-{one.target}.tar.xz" for one in self.bundles}
        settings: dict[str, Any] = {
            "url": self.url,
            "name": self.name,
            "data": f"{HOME}/data{self.sample.suffix}" if self.sample else self.data,
            "data_file": f"data{self.sample.suffix}" if self.sample else None,
            "made_at": made_at.timestamp(),
            "bundles": {one.target: {"file": packed[one.target], "sha256": one.sha256} for one in self.bundles},
            "hostname": self.hostname if method == "systemd" else None,  # cloud-init gives it from meta-data
            "user": self.user,
            "ssh_keys": list(self.ssh_keys),
            "release_key": self.release_key,
        }
        secrets = {"token": self.token}
        if self.wifi is not None and method == "systemd":
            settings["wifi"] = {"ssid": self.wifi.ssid, "hidden": self.wifi.hidden}
            secrets["psk"] = self.wifi.psk
        files = {packed[one.target]: one.read() for one in self.bundles}
        if self.sample is not None:
            files[settings["data_file"]] = self.sample.read_bytes()
        files["install.pyz"] = board.program()
        files[SETTINGS] = (json.dumps(settings, indent=1) + "\n").encode()
        files[SECRETS] = (json.dumps(secrets) + "\n").encode()
        return {f"{FOLDER}/{name}": content for name, content in files.items()}


def ssh_keys(text: str) -> tuple[str, ...]:
    """The public keys of a file like ``id_ed25519.pub`` or ``authorized_keys``; FlashError for anything else."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    for line in lines:
        if "PRIVATE KEY" in line:
            raise FlashError("This is a private SSH key: name the public one, which ends in .pub")
        if not _KEY.fullmatch(line):
            raise FlashError(f"{line[:30]!r} is not the begin of a public SSH key")
    if not lines:
        raise FlashError("The file holds no public SSH key")
    return tuple(lines)


@frozen(kw_only=True)
class Written:
    """What is on a card now: the boot partition's number and free bytes, and every file with its size and sha256; that
    of a secret is left out."""

    method: Method
    partition: int
    free: int
    kept: tuple[str, ...]
    files: dict[str, dict[str, Any]]


def write(image: Path, card: Card, at: datetime, method: Method | None) -> Written:
    """Put ``card`` onto the boot partition of an unpacked image, and read it back."""
    with open(image, "r+b") as file:
        partition, volume = boot_partition(file, at)
        existing = Existing.of(volume)
        chosen = method or firstboot.detect(existing)
        files = card.files(at, chosen)
        files |= _first_boot(card, existing, chosen)
        if chosen == "cloudinit" and existing.user is None and existing.cmdline is None:
            if volume.label.upper() == "UEFI":
                raise FlashError("This image mounts its boot partition by the name UEFI: use --seed-only")
            volume.relabel(firstboot.SEED_LABEL)
        _require_room(volume, files)
        volume.make_folder(FOLDER)
        for path, content in files.items():
            volume.write(path, content)
        volume.flush()
    with open(image, "rb") as file:
        partition, volume = boot_partition(file, at)
        for path, content in files.items():
            if volume.read(path) != content:
                raise FlashError(f"{path} was read back other than it was written: the disk is damaged")
        return Written(
            method=chosen,
            partition=partition.number,
            free=volume.free,
            kept=tuple(name for name in ("user-data",) if existing.user is not None and name not in files),
            files=_told(files),
        )


def write_seed(folder: Path, card: Card, at: datetime) -> Written:
    """Put what a seed volume has to hold into an empty folder; it must be labelled CIDATA."""
    if folder.exists() and any(folder.iterdir()):
        raise FlashError(f"The folder {folder} is not empty")
    files = card.files(at, "cloudinit") | _first_boot(card, Existing(), "cloudinit")
    (folder / FOLDER).mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    for path, content in files.items():
        place = folder / path
        place.touch(0o600)
        place.write_bytes(content)
    return Written(method="cloudinit", partition=0, free=0, kept=(), files=_told(files))


def _first_boot(card: Card, existing: Existing, method: Method) -> dict[str, bytes]:
    if method == "systemd":
        return firstboot.systemd(existing, card.wifi)
    return firstboot.cloudinit(existing, card.hostname, f"shoal-{random.token_hex(6)}", card.wifi)


def _require_room(volume: Volume, files: dict[str, bytes]) -> None:
    need = volume.room([len(content) for content in files.values()]) + _SPARE
    if need > volume.free:
        raise FlashError(
            f"The boot partition has {volume.free >> 20} MiB free, the card needs {-(-need >> 20)}: "
            "take fewer bundles (--target)"
        )


def _told(files: dict[str, bytes]) -> dict[str, dict[str, Any]]:
    secret = {f"{FOLDER}/{SECRETS}", "network-config"}
    return {
        path: {"size": len(content)} | ({} if path in secret else {"sha256": hashlib.sha256(content).hexdigest()})
        for path, content in sorted(files.items())
    }
