"""The coordinator's systemd unit. What is told to systemd while it runs is the same as of the agent's,
:class:`device_agent.service.Notifier`."""

from __future__ import annotations

import os
import pwd
import shutil
import sys
from pathlib import Path
from typing import Final

from coordinator.settings import Settings

UNIT: Final = "shoal.service"
WATCHDOG: Final = 60  # seconds without a sign after which systemd starts the coordinator anew
_TEMPLATE: Final = """\
[Unit]
Description=Shoal coordinator
After=network-online.target time-sync.target postgresql.service
Wants=network-online.target
StartLimitIntervalSec=600
StartLimitBurst=20

[Service]
Type=notify
NotifyAccess=main
ExecStart={command}
User={user}
Environment=OMP_NUM_THREADS=1 PYTHONUNBUFFERED=1
{state}WatchdogSec={watchdog}
# Migrations and replays take their time.
TimeoutStartSec=900
TimeoutStopSec=120
Restart=always
RestartSec=10
# Wrong settings want a person, not another try.
RestartPreventExitStatus=2
# The broker is a child, which the coordinator ends by itself.
KillMode=mixed
OOMPolicy=stop
LimitNOFILE=65536

NoNewPrivileges=true
CapabilityBoundingSet={capability}
AmbientCapabilities={capability}
ProtectSystem=strict
ReadWritePaths={writable}
ProtectHome={protect_home}
PrivateTmp={private_tmp}
PrivateDevices=true
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


def unit(settings: Settings, user: str) -> str:
    """The unit for the coordinator of these settings, run as ``user``."""
    home = settings.home.resolve()
    needed = [home, Path(sys.prefix).resolve(), Path(__file__).resolve()]
    found = shutil.which("shoal", path=str(Path(sys.executable).parent))
    program = quoted(found) if found else f"{quoted(sys.executable)} -m coordinator.cli"
    low = any(0 < port < 1024 for port in (settings.port, settings.mqtt_port))
    state = f"StateDirectory={home.name}\nStateDirectoryMode=0700\n" if home.parent == Path("/var/lib") else ""
    return _TEMPLATE.format(
        command=f"{program} serve --home {quoted(str(home))}",
        user=user,
        state=state,
        watchdog=WATCHDOG,
        capability="CAP_NET_BIND_SERVICE" if low else "",
        writable=quoted(str(home)),
        protect_home="read-only" if _any_below(needed, "/home", "/root") else "true",
        private_tmp="false" if _any_below(needed, "/tmp", "/var/tmp") else "true",  # noqa: S108 - left visible
    )


def known(user: str) -> bool:
    """Whether there is such an account."""
    try:
        pwd.getpwnam(user)
    except KeyError:
        return False
    return True


def make_home(home: Path, user: str) -> None:
    """The folder, for this account alone. OSError if that is not allowed."""
    account = pwd.getpwnam(user)
    if not home.exists():
        home.mkdir(mode=0o700, parents=True)
        os.chown(home, account.pw_uid, account.pw_gid)


def quoted(text: str) -> str:
    """``text`` as one word of a unit file."""
    text = text.replace("%", "%%").replace("$", "$$").replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"' if any(c in text for c in " \t\"'\\") else text


def _any_below(paths: list[Path], *folders: str) -> bool:
    return any(Path(folder) in path.parents for path in paths for folder in folders)
