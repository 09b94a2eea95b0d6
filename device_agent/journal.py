"""What a person should be able to read later: kept until the broker has it. Sans-IO, a part of the session."""

from __future__ import annotations

from collections.abc import Mapping

from protocol.messages import DeviceEvent
from protocol.wire import encode

from .conversation import Discard, Keep, Output, Publish

EVENTS = 50  # events kept while offline; the oldest give way


class Journal:
    """``events`` by number are those of earlier processes."""

    def __init__(self, events: Mapping[int, DeviceEvent]) -> None:
        self._events = dict(events)
        self._number = max(events, default=0)

    def note(self, event: DeviceEvent, *, send: bool) -> list[Output]:
        out: list[Output] = []
        if len(self._events) >= EVENTS:
            oldest = min(self._events)
            del self._events[oldest]
            out.append(Discard(oldest))
        self._number += 1
        self._events[self._number] = event
        out.append(Keep(self._number, event))
        return [*out, _publish(self._number, event)] if send else out

    def repeat(self) -> list[Output]:
        """All that the broker may not have."""
        return [_publish(number, event) for number, event in self._events.items()]

    def told(self, number: int) -> list[Output]:
        """The broker has it."""
        return [Discard(number)] if self._events.pop(number, None) is not None else []


def _publish(number: int, event: DeviceEvent) -> Publish:
    return Publish("event", encode(event), number)
