"""The agent as a systemd service: the unit, and what it tells systemd while it runs (sd_notify(3))."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import sys
from collections.abc import MutableMapping
from pathlib import Path

from .errors import HomeError
from .settings import Settings

UNIT = "shoal-agent.service"
WATCHDOG = 60  # seconds of silence after which systemd starts the agent anew
_TEMPLATE = """\
[Unit]
Description=Shoal agent
After=network-online.target time-sync.target
Wants=network-online.target
StartLimitIntervalSec=0

[Service]
Type=notify
NotifyAccess=main
ExecStart={command}
User={user}
Environment=OMP_NUM_THREADS=1 PYTHONUNBUFFERED=1
WatchdogSec={watchdog}
TimeoutStartSec=120
Restart=always
RestartSec=10
# Wrong settings and a device that is not enrolled want a person, not another try.
RestartPreventExitStatus=2 3
OOMPolicy=stop
MemoryHigh=60%
MemoryMax=75%

NoNewPrivileges=true
CapabilityBoundingSet=
AmbientCapabilities=
ProtectSystem=strict
ReadWritePaths={writable}
ProtectHome={protect_home}
PrivateTmp={private_tmp}
PrivateDevices={private_devices}
ProtectClock=true
ProtectHostname=true
ProtectKernelLogs=true
ProtectKernelModules=true
ProtectKernelTunables=true
ProtectControlGroups=true
ProtectProc=invisible
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
RestrictNamespaces=true
RestrictRealtime=true
RestrictSUIDSGID=true
LockPersonality=true
RemoveIPC=true
SystemCallArchitectures=native
SystemCallFilter=@system-service
UMask=0077

[Install]
WantedBy=multi-user.target
"""


def unit(settings: Settings) -> str:
    """The unit for the agent of these settings; it runs as the home's owner and may write there and into its log."""
    home = settings.home.resolve()
    writable = [home] if settings.log_file is None else [home, settings.log_file.resolve().parent]
    needed = [*writable, Path(sys.prefix).resolve(), Path(__file__).resolve()]
    if settings.data is not None and settings.data.path is not None:
        needed.append(settings.data.path.resolve())
    found = shutil.which("shoal-agent", path=str(Path(sys.executable).parent))
    program = _quoted(found) if found else f"{_quoted(sys.executable)} -m device_agent.cli"
    return _TEMPLATE.format(
        command=f"{program} run --home {_quoted(str(home))}",
        user=_owner(home),
        watchdog=WATCHDOG,
        writable=" ".join(_quoted(str(path)) for path in dict.fromkeys(writable)),
        protect_home="read-only" if _any_below(needed, "/home", "/root") else "true",
        private_tmp="false" if _any_below(needed, "/tmp", "/var/tmp") else "true",  # noqa: S108  # not used, left visible
        # A Raspberry Pi's vcgencmd reads /dev/vcio.
        private_devices="false" if Path("/dev/vcio").exists() else "true",
    )


def install(settings: Settings, folder: Path) -> Path:
    """Write the unit into ``folder``; where it is. HomeError if that is not allowed."""
    path = folder / UNIT
    try:
        path.write_text(unit(settings))
    except OSError as error:
        raise HomeError(f"{path} cannot be written: {error.strerror}; run this as root") from error
    return path


def _any_below(paths: list[Path], *folders: str) -> bool:
    return any(Path(folder) in path.parents for path in paths for folder in folders)


def _owner(home: Path) -> str:
    try:
        return pwd.getpwuid(home.stat().st_uid).pw_name
    except (OSError, KeyError) as error:
        raise HomeError(f"the home {home} does not exist or has no owner: enrol first, with the same --home") from error


def _quoted(text: str) -> str:
    """One word of a unit file."""
    text = text.replace("%", "%%").replace("$", "$$").replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"' if any(c in text for c in " \t\"'\\") else text


class Notifier:
    """Tells systemd how the agent is; does nothing where systemd has not asked.

    Takes its variables out of ``environ``: the programs the agent runs must not speak in its name. The process that
    takes this one's place needs them again: they are in ``taken``.
    """

    def __init__(self, environ: MutableMapping[str, str] = os.environ) -> None:
        names = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
        self.taken = {name: environ[name] for name in names if name in environ}
        address = environ.pop("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        wanted, own = environ.pop("WATCHDOG_USEC", ""), str(os.getpid())
        self._watched = bool(wanted) and environ.pop("WATCHDOG_PID", own) == own
        self._text: str | None = None

    def ready(self) -> None:
        self._send("READY=1")

    def alive(self, text: str) -> None:
        """The main loop goes round; ``text`` is what ``systemctl status`` shows."""
        if self._watched:
            self._send("WATCHDOG=1")
        if text != self._text:
            self._text = text
            self._send("STATUS=" + text.replace("\n", " "))

    def stopping(self) -> None:
        self._send("STOPPING=1")

    def _send(self, line: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as there:
                there.connect(self._address)
                there.sendall(line.encode())
        except OSError:
            pass  # systemd is gone or refuses: nothing the agent could do about it
