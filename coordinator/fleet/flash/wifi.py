"""A Wi-Fi network, as the first boot of a card is told of it."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

from attrs import field, frozen

from coordinator.fleet.flash.errors import FlashError


@frozen
class Wifi:
    """``psk`` is the key made of the passphrase (IEEE 802.11i, PBKDF2), 64 hex digits: it opens this network and tells
    the passphrase to nobody. ``country`` as two letters, for what the radio may do there."""

    ssid: str
    psk: str = field(repr=False)
    country: str
    hidden: bool = False


def wifi(ssid: str, passphrase: str, country: str, hidden: bool = False) -> Wifi:
    """FlashError if a network cannot have this name, this passphrase or this country."""
    if not 1 <= len(ssid.encode()) <= 32 or not ssid.isprintable():
        raise FlashError(f"{ssid[:40]!r} cannot be the name of a Wi-Fi: expected 1 to 32 bytes, all printable")
    if not re.fullmatch(r"[A-Z]{2}", country):
        raise FlashError(f"The country {country[:10]!r} is not of two capital letters, as in DE or US")
    if re.fullmatch(r"[0-9a-fA-F]{64}", passphrase):
        return Wifi(ssid, passphrase.lower(), country, hidden)
    if not re.fullmatch(r"[ -~]{8,63}", passphrase):
        raise FlashError("The Wi-Fi passphrase does not have 8 to 63 characters of ASCII")
    psk = hashlib.pbkdf2_hmac("sha1", passphrase.encode(), ssid.encode(), 4096, 32)
    return Wifi(ssid, psk.hex(), country, hidden)


def netplan(network: Wifi) -> bytes:
    """cloud-init's ``network-config``: any wired port by DHCP, and this network. JSON is YAML too."""
    point: dict[str, Any] = {"password": network.psk}
    if network.hidden:
        point["hidden"] = True
    config = {
        "version": 2,
        "ethernets": {"wired": {"match": {"name": "e*"}, "dhcp4": True, "optional": True}},
        "wifis": {
            "wlan0": {
                "dhcp4": True,
                "optional": True,
                "regulatory-domain": network.country,
                "access-points": {network.ssid: point},
            }
        },
    }
    return (json.dumps({"network": config}, indent=1) + "\n").encode()
