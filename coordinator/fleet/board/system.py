"""The board's system, as far as the installer changes it."""

from __future__ import annotations

import base64
import compileall
import hashlib
import json
import os
import re
import shutil
import subprocess
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import updater
from .units import DROP_IN, ENROL, ENROL_UNIT, HOME, UNIT, USER, WIFI, WRAPPER
from .update_units import KEY, UNITS, UPDATER

ROOM = 8  # a bundle unpacks to about five times its size, and is compiled

Run = Callable[..., subprocess.CompletedProcess[str]]
Bundle = tuple[str, Callable[[], bytes]]
"""Its sha256, and how to get its bytes."""


class InstallError(Exception):
    """The text says what is wrong and what to do."""


def run(*command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """A program of the system's; InstallError if it is missing, or fails though it must not."""
    try:
        done = subprocess.run(command, check=False, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    except OSError as error:
        raise InstallError(f"{command[0]} cannot be run: {error.strerror}") from error
    if check and done.returncode:
        raise InstallError(f"{' '.join(command[:3])} failed with {done.returncode}: {done.stdout.strip()[-400:]}")
    return done


class Board:
    """The system below ``root``; ``run`` starts its programs."""

    def __init__(self, root: Path = Path("/"), run: Run = run) -> None:
        self.root = root
        self.run = run

    def path(self, path: str) -> Path:
        return self.root / path.lstrip("/")

    def install(self, settings: dict[str, Any], secrets: dict[str, str], bundle: Bundle) -> None:
        self._set_clock(settings.get("made_at", 0.0))
        self._unpack(*bundle)
        if self.run("id", USER, check=False).returncode:
            shell = "/usr/sbin/nologin"
            self.run("useradd", "--system", "--home-dir", HOME, "--no-create-home", "--shell", shell, USER)
        self._settle(settings, secrets)
        if key := settings.get("release_key"):
            self._let_update(key)
        self._set_name(settings.get("hostname"))
        self._admit(settings.get("user"), settings.get("ssh_keys", []))
        self._join_wifi(settings.get("wifi"), secrets.get("psk"))

    def start(self) -> None:
        for unit in ("shoal-enrol.service", "shoal-agent.service"):
            self.run("systemctl", "restart", "--no-block", unit)

    def write(self, path: str, text: str | bytes, mode: int = 0o644) -> Path:
        """Replace a file; it never shows with a wider mode."""
        place = self.path(path)
        place.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        aside = place.with_name(place.name + ".new")
        aside.unlink(missing_ok=True)
        with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(text.encode() if isinstance(text, str) else text)
            file.flush()
            os.fsync(file.fileno())
        aside.chmod(mode)
        aside.replace(place)
        return place

    def _set_clock(self, made_at: float) -> None:
        """Boards without a clock battery start in the past, where no certificate is valid yet."""
        if time.time() < made_at:
            self.run("date", "-s", f"@{made_at:.0f}")
            stamp = self.path("/var/lib/systemd/timesync/clock")
            if stamp.parent.is_dir():
                stamp.touch()
                os.utime(stamp, (made_at, made_at))

    def _unpack(self, sha256: str, fetch: Callable[[], bytes]) -> None:
        place = self.path(f"/opt/shoal/releases/{sha256[:16]}")
        if not (place / ".complete").exists():
            content = fetch()
            if hashlib.sha256(content).hexdigest() != sha256:
                raise InstallError("The agent's bundle is damaged: its sha256 is not what was announced")
            place.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            if (free := shutil.disk_usage(place.parent).free) < len(content) * ROOM:
                raise InstallError(f"{place.parent} has {free >> 20} MiB free, expected {len(content) * ROOM >> 20}")
            packed = place.with_name(place.name + ".tar.xz")
            packed.write_bytes(content)
            self.extract(packed, place)
            packed.unlink()
        self.point(sha256[:16])
        self.write("/opt/shoal/bin/shoal-agent", WRAPPER, 0o755)
        self.write("/opt/shoal/bin/shoal-enrol", ENROL, 0o755)
        command = self.path("/usr/local/bin/shoal-agent")
        if not command.is_symlink() and not command.exists():
            command.parent.mkdir(parents=True, exist_ok=True)
            command.symlink_to("/opt/shoal/bin/shoal-agent")
        self._try(place)

    def point(self, release: str) -> None:
        """``release`` is the current one, in one step."""
        link = self.path("/opt/shoal/current.new")
        link.unlink(missing_ok=True)
        link.symlink_to(f"releases/{release}")
        link.replace(self.path("/opt/shoal/current"))
        os.sync()

    def extract(self, packed: Path, place: Path) -> None:
        """A release from its bundle: written aside, and in its place once it is whole."""
        aside = place.with_name(place.name + ".new")
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(mode=0o755)
        with tarfile.open(packed) as archive:
            if not all(one.isfile() and not {"", "..", "."} & set(one.name.split("/")) for one in archive):
                raise InstallError("The agent's bundle holds something else than files of its own")
            archive.extractall(aside)  # noqa: S202 - looked at above; Python 3.11.2 has no filters
        compileall.compile_dir(aside, quiet=2, workers=0)
        (aside / ".complete").touch()
        os.sync()
        shutil.rmtree(place, ignore_errors=True)
        aside.replace(place)
        os.sync()

    def complete(self, place: Path) -> None:
        """InstallError if a release needs a module that has to come from the board, and what to install."""
        for name in json.loads((place / "bundle.json").read_text())["board"]:
            if self.run("python3", "-c", f"import {name}", check=False).returncode:
                package = f"python3-{name}"
                raise InstallError(f"This board lacks {package}: apt-get install {package}, then install again")

    def _try(self, place: Path) -> None:
        """InstallError if the agent cannot run here."""
        self.complete(place)
        started = self.run(str(self.path("/opt/shoal/bin/shoal-agent")), "--version", check=False)
        if started.returncode:
            raise InstallError(f"The agent does not start on this board: {started.stdout.strip()[-400:]}")

    def _settle(self, settings: dict[str, Any], secrets: dict[str, str]) -> None:
        """The agent's home, its units, and what it needs to enrol."""
        home = self.path(HOME)
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        if (data := settings.get("data_file")) and not (home / Path(data).name).exists():
            shutil.copyfile(data, home / Path(data).name)
        self.run("chown", "-R", f"{USER}:{USER}", str(home))
        options = {"home": HOME, "url": settings["url"], "name": settings["name"], "data": settings["data"]}
        self.write("/etc/shoal/enrolment.json", json.dumps(options, indent=1) + "\n")
        if not (home / "identity.json").exists() and "token" in secrets:
            token = self.write("/etc/shoal/token", secrets["token"] + "\n", 0o600)
            self.run("chown", f"{USER}:{USER}", str(token))
        printed = self.run(str(self.path("/opt/shoal/bin/shoal-agent")), "systemd", "--home", HOME, check=False)
        self.write("/etc/systemd/system/shoal-agent.service", UNIT if printed.returncode else printed.stdout)
        self.write("/etc/systemd/system/shoal-agent.service.d/bundle.conf", DROP_IN)
        self.write("/etc/systemd/system/shoal-enrol.service", ENROL_UNIT)
        self.run("systemctl", "daemon-reload", check=False)  # nobody to tell where systemd is not up yet
        self.run("systemctl", "enable", "shoal-agent.service", "shoal-enrol.service")

    def _let_update(self, key: str) -> None:
        """The updater, and the key of the releases that it takes: 32 bytes in hexadecimal digits."""
        der = bytes.fromhex("302a300506032b6570032100" + key)  # RFC 8410
        self.write(KEY, f"-----BEGIN PUBLIC KEY-----\n{base64.b64encode(der).decode()}\n-----END PUBLIC KEY-----\n")
        self.write(UPDATER, updater(), 0o755)
        for name, text in UNITS.items():
            self.write(f"/etc/systemd/system/{name}", text)
        self.run("systemctl", "daemon-reload", check=False)
        self.run("systemctl", "enable", "shoal-update.path", "shoal-update.service")

    def _set_name(self, name: str | None) -> None:
        if not name:
            return
        self.write("/etc/hostname", name + "\n")
        hosts = self.path("/etc/hosts")
        lines = hosts.read_text().splitlines() if hosts.exists() else ["127.0.0.1\tlocalhost"]
        kept = [line for line in lines if not re.match(r"127\.0\.1\.1\s", line)]
        self.write("/etc/hosts", "\n".join([*kept, f"127.0.1.1\t{name}"]) + "\n")
        self.run("hostname", name)

    def _admit(self, user: str | None, keys: list[str]) -> None:
        """Let the owner of these keys log in as ``user``, who may become root."""
        if not user or not keys:
            return
        if self.run("id", user, check=False).returncode:
            self.run("useradd", "--create-home", "--shell", "/bin/bash", user)
            self.write(f"/etc/sudoers.d/010_{user}", f"{user} ALL=(ALL) NOPASSWD: ALL\n", 0o440)
        folder = self.path(f"/home/{user}/.ssh")
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        place = folder / "authorized_keys"
        known = place.read_text().splitlines() if place.exists() else []
        lines = [*known, *(key for key in keys if key not in known)]
        self.write(f"/home/{user}/.ssh/authorized_keys", "\n".join(lines) + "\n", 0o600)
        self.run("chown", "-R", f"{user}:{user}", str(folder))
        self.run("systemctl", "enable", "--now", "--no-block", "ssh.service", check=False)

    def _join_wifi(self, wifi: dict[str, Any] | None, psk: str | None) -> None:
        if not wifi or not psk:
            return
        hidden = "true" if wifi["hidden"] else "false"
        # As a list of bytes, for a name may hold anything.
        ssid = ";".join(str(byte) for byte in wifi["ssid"].encode()) + ";"
        text = WIFI.format(ssid=ssid, hidden=hidden, psk=psk)
        self.write("/etc/NetworkManager/system-connections/shoal-wifi.nmconnection", text, 0o600)
