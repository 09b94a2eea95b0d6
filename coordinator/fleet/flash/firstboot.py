"""How the first boot comes to run the installer: through cloud-init, or through systemd's command line.

cloud-init reads ``user-data``, ``meta-data``, ``vendor-data`` and ``network-config`` from the boot partition (its data
source NoCloud). Ours is a script in ``vendor-data``, the name and the instance stand in ``meta-data``: somebody else's
``user-data`` stays as it is, byte for byte, and both are carried out. Without cloud-init ``systemd.run=`` on the
kernel's command line starts a script, which takes itself off the line.
"""

from __future__ import annotations

import json
import re
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText
from typing import Final, Literal

from attrs import frozen

from coordinator.fleet.flash.errors import FlashError
from coordinator.fleet.flash.volume import Volume
from coordinator.fleet.flash.wifi import Wifi, netplan

Method = Literal["cloudinit", "systemd"]
FOLDER: Final = "shoal"
SEED_LABEL: Final = "CIDATA"
"""cloud-init takes a volume of this name for a seed."""
_USER, _META, _VENDOR, _NETWORK = "user-data", "meta-data", "vendor-data", "network-config"

_VENDOR_SCRIPT: Final = """\
#!/bin/sh
# Shoal: installs the agent that is on the card, at the first boot.
exec >>/var/log/shoal-install.log 2>&1
for boot in /boot/firmware /boot/efi /boot; do
    if [ -f "$boot/shoal/install.pyz" ]; then
        exec python3 "$boot/shoal/install.pyz" --from "$boot/shoal"
    fi
done
seed=$(mktemp -d)
mount LABEL=CIDATA "$seed" || mount LABEL=cidata "$seed"
python3 "$seed/shoal/install.pyz" --from "$seed/shoal"
done=$?
umount "$seed"
exit $done
"""
_FIRST_RUN: Final = """\
#!/bin/sh
# Shoal: runs once, in place of the first boot, then the board starts again.
boot=/boot/firmware
[ -f "$boot/shoal/install.pyz" ] || mount "$boot" || boot=/boot
sed -i 's# systemd\\.run=[^ ]*##; s# systemd\\.run_[a-z_]*=[^ ]*##g; s# systemd\\.unit=[^ ]*##' "$boot/cmdline.txt"
python3 "$boot/shoal/install.pyz" --from "$boot/shoal" --no-start >>/var/log/shoal-install.log 2>&1
rm -f "$boot/shoal/firstrun.sh"
sync
exit 0
"""
_RUN: Final = (
    " systemd.run=/boot/firmware/shoal/firstrun.sh systemd.run_success_action=reboot"
    " systemd.run_failure_action=reboot systemd.unit=kernel-command-line.target"
)


@frozen
class Existing:
    """What an image's own files for the first boot hold; None where there is no such file."""

    user: bytes | None = None
    meta: bytes | None = None
    vendor: bytes | None = None
    network: bytes | None = None
    cmdline: bytes | None = None

    @classmethod
    def of(cls, volume: Volume) -> Existing:
        names = (_USER, _META, _VENDOR, _NETWORK, "cmdline.txt")
        return cls(*(volume.read(name) if volume.has(name) else None for name in names))


def detect(existing: Existing) -> Method:
    """FlashError if the image shows neither way."""
    if existing.user is not None and existing.meta is not None:
        return "cloudinit"
    if existing.cmdline is not None:
        return "systemd"
    raise FlashError(
        "The boot partition has neither user-data and meta-data (cloud-init) nor cmdline.txt (Raspberry Pi OS): "
        "--method cloudinit makes it a seed all the same, --seed-only DIR writes one for another volume"
    )


def cloudinit(existing: Existing, hostname: str, instance: str, wifi: Wifi | None) -> dict[str, bytes]:
    """The files to write, by path; ``instance`` is new for every card, cloud-init runs once for each."""
    files = {_META: _meta(existing.meta or b"", hostname, instance), _VENDOR: _vendor(existing.vendor or b"")}
    if existing.user is None:
        files[_USER] = b"#cloud-config\n"
    if wifi is not None:
        if _says_something(existing.network or b""):
            raise FlashError("The image's network-config sets up a network already: leave --wifi out")
        files[_NETWORK] = netplan(wifi)
    if existing.cmdline is not None:
        line = _line(existing.cmdline)
        if not re.search(r"(^| )ds=", line):  # else cloud-init searches again at every boot
            line += f" ds=nocloud;i={_instance(files[_META].decode())}"
        files["cmdline.txt"] = (line + _regulatory(line, wifi) + "\n").encode()
    return files


def systemd(existing: Existing, wifi: Wifi | None) -> dict[str, bytes]:
    """The files to write, by path."""
    if existing.cmdline is None:
        raise FlashError("The boot partition has no cmdline.txt, which --method systemd needs: try --method cloudinit")
    line = _line(existing.cmdline)
    if "systemd.run=" in line and "systemd.run=/boot/firmware/shoal/" not in line:
        raise FlashError(
            "The image runs a script of somebody else's at its first boot (systemd.run= in cmdline.txt): "
            "take it as it was downloaded"
        )
    if "systemd.run=" not in line:
        line += _RUN
    return {
        f"{FOLDER}/firstrun.sh": _FIRST_RUN.encode(),
        "cmdline.txt": (line + _regulatory(line, wifi) + "\n").encode(),
    }


def _meta(existing: bytes, hostname: str, instance: str) -> bytes:
    """What was there, with what was missing."""
    text = existing.decode(errors="replace")
    for key, value in (("instance-id", instance), ("local-hostname", hostname)):
        if not re.search(rf"^{key}\s*:", text, re.MULTILINE):
            text = text + ("\n" if text and not text.endswith("\n") else "") + f"{key}: {json.dumps(value)}\n"
    return text.encode()


def _instance(meta: str) -> str:
    found = re.search(r"^instance-id\s*:\s*[\"']?([^\s\"']+)", meta, re.MULTILINE)
    assert found is not None
    return found[1]


def _vendor(existing: bytes) -> bytes:
    """Our script, beside what was there in a message of several parts."""
    if not _says_something(existing) or _VENDOR_SCRIPT.encode() in existing:
        return existing if _VENDOR_SCRIPT.encode() in existing else _VENDOR_SCRIPT.encode()
    whole = MIMEMultipart(boundary="===============shoal==")
    # Of plain text cloud-init looks at the first line.
    whole.attach(MIMEText(existing.decode(errors="replace"), "plain", "utf-8"))
    whole.attach(MIMEText(_VENDOR_SCRIPT, "x-shellscript", "us-ascii"))
    return whole.as_bytes()


def _says_something(content: bytes) -> bool:
    """Whether a file has a line that is no comment; a ``#!`` or ``#cloud-`` first line alone says nothing either."""
    if content.startswith(b"#!"):
        return True
    lines = (line.strip() for line in content.splitlines())
    return any(line and not line.startswith(b"#") for line in lines)


def _line(cmdline: bytes) -> str:
    return " ".join(cmdline.decode("utf-8", "surrogateescape").split())


def _regulatory(line: str, wifi: Wifi | None) -> str:
    if wifi is None or "cfg80211.ieee80211_regdom=" in line:
        return ""
    return f" cfg80211.ieee80211_regdom={wifi.country}"
