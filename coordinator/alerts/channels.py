"""Where messages go: webhooks, signed with HMAC-SHA256, and mail."""

from __future__ import annotations

import hashlib
import hmac
import json
import smtplib
import ssl
from collections.abc import Sequence
from datetime import UTC, datetime
from email.message import EmailMessage
from email.utils import format_datetime, make_msgid
from http.client import HTTPException
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from attrs import frozen

from coordinator.alerts.notice import Notice, plain
from coordinator.alerts.rules import Rules

TIMEOUT: Final = 15.0
"""Seconds that the other side may take."""


class Undelivered(Exception):
    """The message did not arrive; the sentence says why, without a secret."""


class Channel(Protocol):
    @property
    def name(self) -> str:
        """What people and the database know it by; never a secret."""

    def send(self, notice: Notice, at: float) -> None:
        """Deliver, or raise Undelivered."""


def channels(rules: Rules) -> tuple[Channel, ...]:
    """Every webhook, and mail where it is set up."""
    hooks: list[Channel] = [Webhook(url, rules.secret) for url in rules.webhooks]
    return (*hooks, Mail(rules)) if rules.mail_to else tuple(hooks)


class _NoRedirect(HTTPRedirectHandler):
    """A post that is redirected would arrive as an empty question."""

    def redirect_request(self, *_: Any) -> None:
        return None


@frozen
class Webhook:
    """Posts JSON. ``X-Shoal-Signature`` is ``sha256=`` and the HMAC, in hexadecimal, of the header
    ``X-Shoal-Timestamp``, a full stop and the body."""

    url: str
    secret: str

    @property
    def name(self) -> str:
        """Host and a digest: the rest of the URL may be as good as a password."""
        return f"webhook {urlsplit(self.url).hostname} {hashlib.sha256(self.url.encode()).hexdigest()[:6]}"[:120]

    def send(self, notice: Notice, at: float) -> None:
        body = json.dumps(plain(notice, at), ensure_ascii=False).encode()
        headers = {"Content-Type": "application/json", "User-Agent": "shoal", "X-Shoal-Delivery": notice.id}
        if self.secret:
            stamp = f"{at:.0f}"
            signed = hmac.new(self.secret.encode(), stamp.encode() + b"." + body, hashlib.sha256).hexdigest()
            headers |= {"X-Shoal-Timestamp": stamp, "X-Shoal-Signature": f"sha256={signed}"}
        request = Request(self.url, body, headers)  # noqa: S310 - the rules take http and https only
        try:
            with build_opener(_NoRedirect()).open(request, timeout=TIMEOUT) as answer:
                answer.read(1024)
        except HTTPError as error:
            error.close()
            raise Undelivered(f"{self.name} answered with {error.code}") from None
        except (OSError, HTTPException, ValueError) as error:
            raise Undelivered(f"{self.name} cannot be reached: {_cause(error)}") from None


@frozen
class Mail:
    rules: Rules

    @property
    def name(self) -> str:
        return f"mail {self.rules.smtp_host}"[:120]

    def send(self, notice: Notice, at: float) -> None:
        rules = self.rules
        try:
            with self._connect() as server:
                if rules.smtp_user:
                    server.login(rules.smtp_user, _password(rules.smtp_password_file))
                refused = server.send_message(self._message(notice, at))
        except smtplib.SMTPResponseException as error:
            raise Undelivered(f"{self.name} answered with {error.smtp_code}") from None
        except (smtplib.SMTPException, OSError, ValueError) as error:
            raise Undelivered(f"{self.name} cannot be used: {_cause(error)}") from None
        if refused:
            raise Undelivered(f"{self.name} refused {', '.join(sorted(refused))}")

    def _connect(self) -> smtplib.SMTP:
        rules = self.rules
        context = ssl.create_default_context()
        if rules.smtp_tls == "on":
            return smtplib.SMTP_SSL(rules.smtp_host, rules.smtp_port, timeout=TIMEOUT, context=context)
        server = smtplib.SMTP(rules.smtp_host, rules.smtp_port, timeout=TIMEOUT)
        if rules.smtp_tls == "starttls":
            try:
                server.starttls(context=context)
            except BaseException:
                server.close()
                raise
        return server

    def _message(self, notice: Notice, at: float) -> EmailMessage:
        message = EmailMessage()
        message["From"] = self.rules.mail_from
        message["To"] = ", ".join(self.rules.mail_to)
        message["Subject"] = " ".join(f"Shoal: {notice.headline}".split())[:200]
        message["Date"] = format_datetime(datetime.fromtimestamp(at, UTC))
        message["Message-ID"] = make_msgid(f"shoal-{notice.id}", domain=self.rules.mail_from.rpartition("@")[2])
        message["Auto-Submitted"] = "auto-generated"
        lines = [f"{_moment(alert.last_at)}  {alert.text}" for alert in notice.alerts]
        message.set_content("\n".join([*lines, "", f"Sent by the coordinator at {_moment(at)}."]) + "\n")
        return message


def tried(those: Sequence[Channel], notice: Notice, at: float) -> list[tuple[str, str]]:
    """Send to every channel, once: its name, and what went wrong, or nothing."""
    found = []
    for channel in those:
        try:
            channel.send(notice, at)
        except Undelivered as error:
            found.append((channel.name, str(error)))
        else:
            found.append((channel.name, ""))
    return found


def _password(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError as error:
        raise ValueError(f"smtp_password_file cannot be read: {error.strerror}") from None


def _cause(error: BaseException) -> str:
    reason = getattr(error, "reason", error)
    if isinstance(error, ValueError):
        return str(error)
    return getattr(reason, "strerror", None) or type(reason).__name__


def _moment(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
