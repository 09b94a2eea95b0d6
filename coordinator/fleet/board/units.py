"""What the installer writes: commands, systemd units, a Wi-Fi connection."""

from __future__ import annotations

from typing import Final

USER: Final = "shoal"
HOME: Final = "/var/lib/shoal-agent"

WRAPPER = """\
#!/bin/sh
PYTHONPATH=/opt/shoal/current PYTHONSAFEPATH=1 PYTHONNOUSERSITE=1 exec /usr/bin/python3 -m device_agent.cli "$@"
"""
ENROL = """\
#!/usr/bin/python3 -Ps
# Joins the fleet. The token stays in its file, out of the list of processes.
import json
import sys

sys.path.insert(0, "/opt/shoal/current")
from device_agent.cli import main

with open("/etc/shoal/enrolment.json") as file:
    options = {**json.load(file), "token-file": "/etc/shoal/token"}
sys.exit(main(["enrol", *(word for name, value in options.items() for word in (f"--{name}", value))]))
"""
ENROL_UNIT = f"""\
[Unit]
Description=Shoal agent: join the fleet
After=network-online.target time-sync.target
Wants=network-online.target
ConditionPathExists=/etc/shoal/token
StartLimitIntervalSec=0

[Service]
Type=oneshot
User={USER}
Environment=OMP_NUM_THREADS=1
ExecStart=/opt/shoal/bin/shoal-enrol
ExecStartPost=+rm -f /etc/shoal/token
ExecStartPost=+systemctl start --no-block shoal-agent.service
# No network yet, no coordinator, no data: it will come. A refused token will not.
Restart=on-failure
RestartSec=20
RestartPreventExitStatus=2 4
NoNewPrivileges=true
ProtectSystem=strict
ReadWritePaths={HOME}
PrivateTmp=true

[Install]
WantedBy=multi-user.target
"""
DROP_IN = f"""\
[Unit]
ConditionPathExists={HOME}/identity.json

[Service]
Environment=PYTHONPATH=/opt/shoal/current PYTHONSAFEPATH=1 PYTHONNOUSERSITE=1
"""
WIFI = """\
[connection]
id=shoal-wifi
type=wifi

[wifi]
mode=infrastructure
ssid={ssid}
hidden={hidden}

[wifi-security]
key-mgmt=wpa-psk
psk={psk}

[ipv4]
method=auto

[ipv6]
method=auto
"""
