"""The gate before every batch."""

from __future__ import annotations

import threading
import time

from device_agent.gate import Gate


def test_an_open_gate_costs_nothing_and_a_stopping_agent_is_let_through_as_such() -> None:
    gate, stopping = Gate(), threading.Event()
    assert gate.passed(stopping.is_set)
    stopping.set()
    assert not gate.passed(stopping.is_set)


def test_who_stands_before_it_goes_on_when_it_opens_and_that_time_does_not_count() -> None:
    clock = [10.0]
    gate, stopping, passed = Gate(lambda: clock[0]), threading.Event(), []
    gate.shut()
    walker = threading.Thread(target=lambda: passed.append(gate.passed(stopping.is_set)))
    walker.start()
    while not gate.waiting:
        time.sleep(0.001)
    clock[0] = 40.0
    assert gate.clock() == 10.0, "the clock stands still as well"
    gate.open()
    walker.join(10)
    assert passed == [True]
    clock[0] = 45.0
    assert gate.clock() == 15.0


def test_stopping_frees_who_stands_before_it() -> None:
    gate, stopping, passed = Gate(), threading.Event(), []
    gate.shut()
    walker = threading.Thread(target=lambda: passed.append(gate.passed(stopping.is_set)))
    walker.start()
    stopping.set()
    walker.join(10)
    assert passed == [False]
