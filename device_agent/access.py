"""Whether the coordinator still knows this device: asked over HTTP when the broker does not let it in."""

from __future__ import annotations

import base64
import http.client

from .address import Address
from .errors import HomeError

_NOTHING = "/api/v1/device/blobs/" + "0" * 64
TIMEOUT = 10.0  # seconds


def granted(address: Address, device: str, secret: str) -> bool | None:
    """False if the device was revoked (or never enrolled), None if nobody can tell now."""
    login = base64.b64encode(f"{device}:{secret}".encode()).decode()
    try:
        connection = address.connect(TIMEOUT)
    except HomeError:  # its authority cannot be read
        return None
    try:
        connection.request("GET", address.prefix + _NOTHING, headers={"Authorization": f"Basic {login}"})
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
    if status == 401:
        return False
    # Whatever else it has to say about a blob that nobody has, it said it to a device it knows.
    return True if status < 500 and status not in (408, 429) else None
