"""How the coordinator's log is written: as text, or as one JSON object per line. The only place that decides it.

Messages read ``what-happened name=value name=value``; as JSON the names become fields. Whatever looks like a secret of
ours is left out of either form.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from datetime import UTC, datetime
from typing import Any, Final, TextIO

TEXT: Final = "%(asctime)s %(levelname)s %(name)s %(message)s"

log = logging.getLogger(__name__)

_FIELD: Final = re.compile(r"(\w+)=%[sdrf]")
_SECRETS: Final = (
    # Claim tokens, API tokens and login secrets begin with what they are; the part that may be shown comes first.
    (re.compile(r"\b(shoal(?:-api)?\d?\.[\w-]{1,16})\.[\w.~-]+"), r"\1.***"),
    (re.compile(r"(/login/)[^\s\"'?]+"), r"\1***"),
    (re.compile(r"(://[^\s:/@]+:)[^\s@/]+@"), r"\1***@"),
    (re.compile(r"(?i)\b(authorization:\s*\w+\s+)\S+"), r"\1***"),
)


def configure(form: str, level: str, stream: TextIO | None = None) -> None:
    """Everything that is logged goes to ``stream`` (stderr), in the ``form`` text or json."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(Lines() if form == "json" else Text(TEXT))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


def unraisable(what: Any) -> None:
    """For ``sys.unraisablehook``: what went wrong where nobody could catch it is logged as everything else is. That a
    peer has left in the middle of an answer (OSError, when its connection is tidied up) is none of our errors."""
    if isinstance(what.exc_value, OSError):
        log.info("connection-broken error=%s", what.exc_value)
    else:
        log.error("unraisable in=%r", what.object, exc_info=(what.exc_type, what.exc_value, what.exc_traceback))


def clean(text: str) -> str:
    """The text without secrets."""
    for pattern, kept in _SECRETS:
        text = pattern.sub(kept, text)
    return text


class Text(logging.Formatter):
    """One line, and the lines of a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        return clean(super().format(record))


class Lines(logging.Formatter):
    """A JSON object: ``at`` (ISO 8601, UTC), ``level``, ``logger``, ``event``, ``thread``, and the message's fields."""

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {"at": at, "level": record.levelname.lower(), "logger": record.name}
        fields = _fields(record)
        line["event"] = str(record.msg).partition(" ")[0] if fields else record.getMessage()
        line["thread"] = record.threadName
        for name, value in fields.items():
            line[name if name not in line else f"{name}_"] = value
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps({name: clean(value) if isinstance(value, str) else value for name, value in line.items()})


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    """The values of a message by their names, if every one of them has a name."""
    values = record.args if isinstance(record.args, tuple) else ()
    names = _FIELD.findall(str(record.msg))
    if not values or len(names) != len(values):
        return {}
    plain = (bool, int, float, type(None))
    return {name: value if isinstance(value, plain) else str(value) for name, value in zip(names, values, strict=True)}
