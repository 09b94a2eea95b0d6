"""A broker that somebody else runs: connected to by URL, and trusted only after it has been tried.

Device accounts are made by the coordinator where the broker has Mosquitto's dynamic security (``accounts`` is
``dynamic-security``). Elsewhere (``own``) the broker asks the database or is given the accounts by its operator, along
with the one that tries to break out.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from coordinator.broker.access import COORDINATOR
from coordinator.broker.breakout import PROBE, escapes
from coordinator.broker.driver import BrokerError, Door, parse_url
from coordinator.broker.security import Control

log = logging.getLogger(__name__)

FORMATS: Final = ("mosquitto", "emqx")


def acl(form: str) -> str:
    """The rules to give to a broker of ``form``, one of FORMATS."""
    if form == "emqx":
        return (
            f'{{allow, {{user, "{COORDINATOR}"}}, all, ["shoal/#"]}}.\n'
            '{allow, all, all, ["shoal/v1/d/${username}/#"]}.\n'
            '{allow, all, subscribe, [{eq, "shoal/v1/coordinator/status"}]}.\n'
            "{deny, all}.\n"
        )
    return (
        "# acl_file of Mosquitto. Needs allow_anonymous false, and accounts whose names are the devices' ids.\n"
        f"user {COORDINATOR}\n"
        "topic readwrite shoal/#\n"
        "pattern readwrite shoal/v1/d/%u/#\n"
        "pattern read shoal/v1/coordinator/status\n"
    )


class External:
    """The broker at ``url``, with the account ``user``; ``ca`` signs its certificate, None without encryption."""

    def __init__(
        self,
        url: str,
        user: str,
        password: str,
        *,
        ca: Path | None,
        devices: Callable[[], Iterable[str]],
        accounts: str = "dynamic-security",
        probe: str = "",
    ) -> None:
        """`devices` may come in, by id. `probe` is the password of the account :data:`PROBE`, for ``own``."""
        host, port, encrypted = parse_url(url)
        self._door = Door(host, port, user, password, ca if encrypted else None)
        self._devices = devices
        self._own = accounts == "own"
        self._probe = probe
        self._control: Control | None = None

    @property
    def door(self) -> Door:
        return self._door

    def start(self) -> None:
        """BrokerError also if a device could break out of its topics there."""
        try:
            if self._own:
                self._try_to_break_out(self._probe)
                return
            self._control = Control(self._door)
            self._control.open()
            self._tidy(self._control)
            secret = secrets.token_urlsafe(32)
            self._control.admit(PROBE, secret)
            try:
                self._try_to_break_out(secret)
            finally:
                self._control.remove(PROBE)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        if self._control is not None:
            self._control.close()
            self._control = None

    def admit(self, device: str, secret: str) -> None:
        if self._control is not None:
            self._control.admit(device, secret)
        elif not self._own:
            raise BrokerError("The broker is not connected.")

    def shut_out(self, device: str) -> None:
        if self._own:
            log.warning("session-not-ended device=%s reason=the broker's operator has to remove its account", device)
        elif self._control is None:
            raise BrokerError("The broker is not connected.")
        else:
            self._control.remove(device)

    def _tidy(self, control: Control) -> None:
        """Accounts of devices that were shut out while we were away have to go."""
        wanted, there = set(self._devices()), control.accounts()
        for gone in sorted(there - wanted):
            control.remove(gone)
        if missing := wanted - there:
            log.warning("accounts-missing count=%d first=%s hint=they must enrol anew", len(missing), min(missing))

    def _try_to_break_out(self, secret: str) -> None:
        if found := escapes(self._door, PROBE, secret):
            raise BrokerError(
                f"The broker at {self._door.host} does not keep devices to their topics: {'; '.join(found)}. "
                "Apply what `shoal broker acl` prints."
            )
