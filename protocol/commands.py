"""What a device is told to do once, what it answers, and how it replaces its secret when it is told to."""

from __future__ import annotations

from attrs import field, frozen

from . import fields
from .fields import check
from .messages import Message

COMMANDS = ("rotate", "pause", "resume", "restart", "identify", "collect-logs", "decommission")


@frozen(kw_only=True)
class Command(Message):
    """Do ``kind`` once, within ``seconds`` after receipt. The same id may come again until it is answered."""

    id: str = field(validator=fields.name)
    kind: str = field(validator=fields.name)
    seconds: float = field(validator=fields.seconds)


RESULTS = ("done", "refused", "failed")


@frozen(kw_only=True)
class CommandResult(Message):
    """What came of the command ``id``; ``text`` is what it was to bring, or why it came to nothing."""

    id: str = field(validator=fields.name)
    state: str = field(validator=check(lambda value: value in RESULTS, f"one of {', '.join(RESULTS)}"))
    text: str = field(validator=check(lambda value: fields.storable(value, 20_000), "at most 20000 characters, no NUL"))


@frozen(kw_only=True)
class NextSecret(Message):
    """The secret that a device has made to follow its present one."""

    secret: str = field(validator=fields.secret, repr=False)


@frozen(kw_only=True)
class Accepted(Message):
    """The coordinator has stored it."""

    device: str = field(validator=fields.name)
