"""What stands in the way of work, by its weight."""

from __future__ import annotations

from device_agent.conditions import Conditions
from device_agent.readiness import READING, Readiness
from device_agent.telemetry import Reading


def reading(temperature: float) -> Reading:
    return Reading(0.0, temperature, 1, 1, 1, None, None, None, None)


def test_one_word_and_every_reason() -> None:
    readiness = Readiness(Conditions(temperature=75))
    assert (readiness.state, readiness.sentence) == ("starting", READING)
    readiness.data = "the data is empty"
    assert readiness.state == "no-data"
    readiness.data = None
    assert (readiness.state, readiness.sentence) == (None, None)
    readiness.judge(reading(80), 0)
    assert readiness.state == "waiting"
    readiness.paused = True
    assert readiness.state == "paused"
    readiness.data = "the data is empty"
    assert readiness.state == "paused", "nobody looks for a fault in a device that rests"
    readiness.revoked = True
    assert readiness.state == "revoked"
    sentence = readiness.sentence or ""
    assert all(part in sentence for part in ("revoked", "shoal-agent resume", "the data is empty", "80.0 °C"))


def test_heat_is_judged_with_its_past() -> None:
    readiness = Readiness(Conditions(temperature=75), data=None)
    states = []
    for degrees in (76, 72, 69, 72):
        readiness.judge(reading(degrees), 0)
        states.append(readiness.state)
    assert states == ["waiting", "waiting", None, None]
