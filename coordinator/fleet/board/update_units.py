"""What the installer writes so that a board updates its agent: where things are, and systemd units."""

from __future__ import annotations

from typing import Final

from .units import HOME

STATE: Final = "/var/lib/shoal-update"
"""Only root writes here; the agent reads."""
INCOMING: Final = "update"
"""Where the agent leaves what it asks for, in its home."""
KEY: Final = "/etc/shoal/release.key.pem"
UPDATER: Final = "/opt/shoal/bin/shoal-update"
AGENT: Final = "shoal-agent.service"

_SERVICE = f"""\
[Unit]
Description=Shoal agent: put a release to use
After=local-fs.target
ConditionPathExists=|{HOME}/{INCOMING}/request.json
ConditionPathExists=|{STATE}/trial.json
StartLimitIntervalSec=60
StartLimitBurst=20

[Service]
Type=exec
ExecStart={UPDATER} take
# What was going on is on disk: it goes on.
Restart=on-failure
RestartSec=5
PrivateNetwork=true
PrivateTmp=true
ProtectHome=true
ProtectSystem=strict
ReadWritePaths=/opt/shoal {STATE} {HOME}

[Install]
WantedBy=multi-user.target
"""
_PATH = f"""\
[Unit]
Description=Shoal agent: a release is to be put to use

[Path]
PathExists={HOME}/{INCOMING}/request.json
Unit=shoal-update.service

[Install]
WantedBy=multi-user.target
"""
_BACK = f"""\
[Unit]
Description=Shoal agent: back to the release before

[Service]
Type=oneshot
ExecStart={UPDATER} back
"""
# Before every start of the agent, also the first after a power cut; that the updater fails must not keep the agent off.
_DROP_IN = f"""\
[Unit]
OnFailure=shoal-update-back.service

[Service]
Environment=SHOAL_UPDATE={STATE}
ExecStartPre=-+/bin/sh -c 'test ! -e {STATE}/trial.json || exec {UPDATER} started'
"""
UNITS: Final = {
    "shoal-update.service": _SERVICE,
    "shoal-update.path": _PATH,
    "shoal-update-back.service": _BACK,
    f"{AGENT}.d/update.conf": _DROP_IN,
}
"""By path below /etc/systemd/system."""
