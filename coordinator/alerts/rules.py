"""What operators want to be told of, and where: the table ``[alerts]`` of ``shoal.toml``."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any, Final
from urllib.parse import urlsplit

from attrs import field, fields, frozen

from coordinator.errors import ShoalError

KINDS: Final = (
    "device-late",
    "device-quarantined",
    "device-revoked",
    "device-cloned",
    "run-stalled",
    "run-finished",
    "run-stopped",
    "run-unrecoverable",
    "rollout-paused",
    "rollout-aborted",
    "rollout-completed",
    "disk-low",
    "credential-ending",
)
"""Kinds of the journal's lines that are told of unless the settings name others."""

TLS: Final = ("starttls", "on", "off")


@frozen(kw_only=True)
class Rules:
    """``webhooks`` are URLs that messages are posted to, signed with ``secret``. Mail goes from ``mail_from`` to
    ``mail_to`` by way of ``smtp_host``; ``smtp_tls`` is ``starttls``, ``on`` (from the first byte) or ``off``.
    ``kinds`` may hold patterns such as ``run-*``.

    In seconds: nothing is told twice of the same kind and subject within ``quiet``; a message waits ``gather`` for more
    like it; a device is late after ``late_after``, a run stalls after ``stalled_after`` without a version. ``disk_low``
    is in GB free, ``credential_days`` is how early the end of a credential is told of. 0 of the last four: never.
    """

    webhooks: tuple[str, ...] = field(default=(), repr=False)
    secret: str = field(default="", repr=False)
    mail_from: str = ""
    mail_to: tuple[str, ...] = ()
    smtp_host: str = ""
    smtp_port: int = 587
    smtp_tls: str = "starttls"
    smtp_user: str = ""
    smtp_password_file: str = ""
    kinds: tuple[str, ...] = KINDS
    quiet: float = 3600.0
    gather: float = 30.0
    late_after: float = 900.0
    stalled_after: float = 3600.0
    disk_low: float = 1.0
    credential_days: float = 14.0

    def wants(self, kind: str) -> bool:
        return any(fnmatchcase(kind, one) for one in self.kinds)


def read(value: Any) -> Rules:
    """Rules from the table; ShoalError bad-request names what does not fit."""
    if not isinstance(value, Mapping):
        raise _refused("alerts", "a table [alerts] in shoal.toml")
    known = {one.name: one.default for one in fields(Rules)}
    read: dict[str, Any] = {}
    for name, given in value.items():
        if name not in known:
            raise ShoalError("bad-request", f"[alerts] has no setting {name!r}, only {', '.join(sorted(known))}")
        read[name] = _fitting(name, known[name], given)
    rules = Rules(**read)
    _check(rules)
    return rules


def _fitting(name: str, default: Any, given: Any) -> Any:
    """A value of the type of its default; a list where several may be given, also of one."""
    if isinstance(default, tuple):
        several = [given] if isinstance(given, str) else given
        if not isinstance(several, list) or not all(isinstance(one, str) and one for one in several):
            raise _refused(name, "a list of strings")
        return tuple(several)
    expected = (int, float) if isinstance(default, float) else (type(default),)
    if isinstance(given, bool) or not isinstance(given, expected):
        raise _refused(name, "a number" if isinstance(default, int | float) else "a string")
    return type(default)(given)


def _check(rules: Rules) -> None:
    for place, url in enumerate(rules.webhooks, 1):
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise _refused("webhooks", f"http:// or https:// URLs, which the one at place {place} is not")
    if bool(rules.mail_to) != bool(rules.smtp_host) or bool(rules.mail_to) != bool(rules.mail_from):
        raise _refused("mail_to", "given together with mail_from and smtp_host")
    if any("\n" in one or "\r" in one or "@" not in one for one in (*rules.mail_to, *filter(None, [rules.mail_from]))):
        raise _refused("mail_to", "addresses such as ops@example.org, as mail_from")
    if rules.smtp_tls not in TLS:
        raise _refused("smtp_tls", f"one of {', '.join(TLS)}")
    loopback = rules.smtp_host in ("localhost", "::1") or rules.smtp_host.startswith("127.")
    if rules.smtp_user and rules.smtp_tls == "off" and not loopback:
        raise _refused("smtp_tls", "starttls or on: the password would travel in the clear")
    if not 1 <= rules.smtp_port <= 65535:
        raise _refused("smtp_port", "1 to 65535")
    for name in ("quiet", "gather", "late_after", "stalled_after", "disk_low", "credential_days"):
        if not 0 <= getattr(rules, name) <= 1e9:
            raise _refused(name, "0 to 1000000000")


def _refused(name: str, expected: str) -> ShoalError:
    return ShoalError("bad-request", f"Setting {name} of [alerts] cannot be used: expected {expected}")
