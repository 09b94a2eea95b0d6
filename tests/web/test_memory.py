"""How long a figure is remembered."""

from __future__ import annotations

from attrs import define

from web.memory import MOST, Memory


@define
class World:
    """A clock, and what the next figure costs."""

    now: float = 0.0
    spent: float = 0.0
    taken: int = 0

    def figure(self, price):
        def take():
            self.spent += price
            self.taken += 1
            return self.taken

        return take


def test_what_is_cheap_is_taken_anew_every_time():
    world = World()
    memory = Memory(lambda: world.now, lambda: world.spent)

    assert [memory.recall("a", world.figure(0.003)) for _ in range(3)] == [1, 2, 3]


def test_what_is_dear_is_remembered_for_five_hundred_times_its_price_and_no_longer_than_twenty_seconds():
    world = World()
    memory = Memory(lambda: world.now, lambda: world.spent)

    assert memory.recall("a", world.figure(0.01)) == 1
    world.now = 4.9
    assert memory.recall("a", world.figure(0.01)) == 1
    assert memory.recall("b", world.figure(9.0)) == 2
    world.now = 5.1
    assert memory.recall("a", world.figure(0.01)) == 3
    world.now = 24.8
    assert memory.recall("b", world.figure(9.0)) == 2
    world.now = 25.0
    assert memory.recall("b", world.figure(9.0)) == 4


def test_it_does_not_grow_without_end():
    world = World()
    memory = Memory(lambda: world.now, lambda: world.spent)
    for number in range(MOST + 1):
        memory.recall(number, world.figure(1.0))

    assert memory.recall(1, world.figure(1.0)) == 2
    assert memory.recall(0, world.figure(1.0)) == MOST + 2
