"""What the coordinator asks of a broker, whichever program it is: the same for every driver."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Protocol
from urllib.parse import urlsplit

from attrs import field, frozen

BROKERS: Final = ("auto", "embedded", "mosquitto", "external")
"""``auto`` is Mosquitto where it is installed, and the embedded one elsewhere."""

ACCOUNTS: Final = ("dynamic-security", "own")
"""Who makes the devices' accounts at an external broker: the coordinator, or the broker's own operator."""


class BrokerError(Exception):
    """The broker cannot start, or is not running."""


class AddressInUse(BrokerError):
    """Somebody else listens where the broker is to listen."""


@frozen
class Door:
    """Where the coordinator's own link connects, and as whom. ``ca``: PEM file, None where nothing is encrypted."""

    host: str
    port: int
    user: str
    password: str = field(repr=False)
    ca: Path | None = None


def parse_url(url: str) -> tuple[str, int, bool]:
    """Host, port and whether it is encrypted, of ``mqtts://host:port`` or ``mqtt://host:port``; ValueError."""
    parts = urlsplit(url)
    if parts.scheme not in ("mqtt", "mqtts") or not parts.hostname or parts.username or parts.path.strip("/"):
        raise ValueError(f"{url[:120]!r} is not of the form mqtts://host:port")
    encrypted = parts.scheme == "mqtts"
    return parts.hostname, parts.port or (8883 if encrypted else 1883), encrypted


class Driver(Protocol):
    """One broker. Devices log in with their id and their secret; what they may do there is
    :func:`coordinator.broker.access.may`."""

    def start(self) -> None:
        """Returns when clients can connect. BrokerError if that cannot be."""

    def stop(self) -> None:
        """Ends what was started; nothing if not running."""

    @property
    def door(self) -> Door:
        """Known once the broker has started."""

    def admit(self, device: str, secret: str) -> None:
        """From now on the device gets in with this secret, and with no other one that the broker was told.
        BrokerError if the broker could not be told."""

    def shut_out(self, device: str) -> None:
        """The device, which the store no longer knows or wants, gets in no more, and its sessions have ended."""
