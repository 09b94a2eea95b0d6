"""A session that trains on while its commits travel, whatever happens in whatever order."""

from __future__ import annotations

from attrs import define, evolve
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from device_agent import conversation as c
from device_agent.session import WAITING
from protocol.messages import Amend, Blob, CheckIn, Fresh, Status, Update
from tests.device_agent.conversation_partner import (
    PLAN,
    RESULT,
    Device,
    assignment,
    checkpoint,
    receipt,
    retry,
)

Key = tuple[str, int]
FINAL = ("stored", "stale", "refused", "expired", "unknown")


@define
class Training:
    """What the other thread would be doing. Its bytes are never twice the same, as with a plan in seconds."""

    assignment: str
    commits: int
    step: int = 0


class Machine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.device = Device()
        self.training: Training | None = None
        self.fetching: str | None = None
        self.offers = 0
        self.number = 0  # whatever has to be new each time
        self.bodies: dict[Key, str] = {}
        self.made: set[Key] = set()
        self.final: set[Key] = set()
        self.heard = 0
        self.connect()

    # The device.

    @precondition(lambda self: not self.device.session.connected)
    @rule()
    def connect(self) -> None:
        self.look(self.device.connect)

    @rule(what=st.sampled_from(("power cut", "power cut", "link", "offline", "online")))
    def disturb(self, what: str) -> None:
        if what == "power cut":
            self.device.restart()
            self.training = self.fetching = None
            self.connect()
        elif what == "link":
            self.look(self.device.disconnect)
        else:
            self.look(lambda: self.device.hear(Status(state=what)))

    @rule(seconds=st.sampled_from((1, 20, 90)))
    def wait(self, seconds: float) -> None:
        self.look(lambda: self.device.later(seconds))

    @precondition(lambda self: self.fetching is not None)
    @rule()
    def fetch(self) -> None:
        if self.fetching is None:
            return
        name, self.fetching = self.fetching, None
        self.look(lambda: self.device.feel(c.Fetched(name, 1, 1)))

    @property
    def may_commit(self) -> bool:
        training = self.training
        return training is not None and self.device.allowed.get(training.assignment, 0) > training.commits

    @precondition(lambda self: self.may_commit)
    @rule(chances=st.lists(st.integers(0, 3), min_size=1, max_size=3))
    def commit(self, chances: list[int]) -> None:
        for chance in chances:
            if self.may_commit:
                self.commit_once(chance)

    def commit_once(self, chance: int) -> None:
        training = self.training
        commit = training.commits + 1
        last = chance == 3
        training.commits, training.step, self.number = commit, training.step + 1, self.number + 1
        result = evolve(RESULT, commit=commit, last=last)
        place = None if last else checkpoint(training.assignment, commit, training.step)
        body = b"%d" % self.number * (1 + self.number % 3 * 50_000)
        event = c.Trained(training.assignment, result, 0, body, "", None, place)
        if last:
            self.training = None
        self.look(lambda: self.device.feel(event))

    @precondition(lambda self: self.training is not None)
    @rule()
    def checkpoint(self) -> None:
        training = self.training
        training.step += 1
        place = checkpoint(training.assignment, training.commits, training.step)
        self.look(lambda: self.device.feel(c.Checkpointed(training.assignment, place)))

    @precondition(lambda self: self.training is not None and self.training.commits)
    @rule()
    def diverge(self) -> None:
        name = self.training.assignment
        self.training = None
        self.look(lambda: self.device.feel(c.Failed(name, "training-failed", "no")))

    # The coordinator.

    @property
    def asked(self) -> list[CheckIn]:
        return [message for leaf, message in self.device.told if leaf == "check-in"]

    @property
    def idle(self) -> bool:
        return self.device.session.connected and self.device.session.state in ("idle", "held")

    @precondition(lambda self: self.asked and self.idle)
    @rule(chance=st.integers(0, 9))
    def offer(self, chance: int) -> None:
        self.look(lambda: self.device.later(12))
        question = self.asked[0 if chance == 9 else -1]
        if chance == 8:
            self.look(lambda: self.device.hear(retry(question.id, 60)))
            return
        if question.held is not None and chance < 7:
            name = question.held
        elif self.bodies and chance == 7:
            name = min(self.bodies)[0]  # long finished, or dropped
        else:
            self.offers += 1
            name = f"a{self.offers}"
        work = assignment(question.id, name)
        self.look(lambda: self.device.hear(evolve(work, plan=evolve(PLAN, commits=8))))
        if chance != 6:
            self.fetch()

    @precondition(lambda self: self.bodies)
    @rule(state=st.sampled_from((*FINAL, *["stored"] * 5, "missing")), which=st.integers(0, 3))
    def answer(self, state: str, which: int) -> None:
        sent: list[Update] = [message for leaf, message in self.device.told if leaf == "update"]
        update = sent[-1 - which % len(sent)]
        last = (update.size - 1) // update.chunk if update.chunk else 0
        if state != "missing":
            self.final.add(update.key)
        missing = ((0, last),) if state == "missing" else ()
        self.look(lambda: self.device.hear(receipt(update, state, missing)))

    @precondition(lambda self: self.training is not None)
    @rule(commits=st.integers(0, 12))
    def amend(self, commits: int) -> None:
        self.number += 1
        plan = None if commits == 12 else evolve(PLAN, commits=12 - commits, learning_rate=0.2)
        name = f"a{self.offers}"
        message = Amend(assignment=name, number=self.number, plan=plan, reason="")
        self.look(lambda: self.device.hear(message))

    @precondition(lambda self: self.training is not None)
    @rule()
    def offer_fresh(self) -> None:
        self.number += 1
        blob = Blob(sha256="0" * 64, size=1)
        message = Fresh(
            assignment=f"a{self.offers}", version=7 + self.number, weights=blob, merge=0.5, keep=0
        )
        self.look(lambda: self.device.hear(message))

    def look(self, act) -> None:
        """Do it, and see what the device says and does."""
        updates = self.device.updates
        before = dict(updates)
        act()
        for output in self.device.done:
            match output:
                case c.Fetch(work):
                    self.fetching = work.id
                case c.Train(work, commits):
                    place = self.device.checkpoint
                    assert commits == (place.position.commit if place else 0)
                    self.training = Training(work.id, commits, place.position.step if place else 0)
                case c.Stop(name):
                    self.fetching = None if self.fetching == name else self.fetching
                    if self.training and self.training.assignment == name:
                        self.training = None
        self.device.done.clear()
        self.made |= set(updates)
        known = {**before, **updates}
        for leaf, message in self.device.told[self.heard :]:
            if leaf == "update":
                assert self.bodies.setdefault(message.key, message.sha256) == message.sha256
                earlier = {key for key in known if key[0] == message.assignment and key[1] < message.commit}
                assert not earlier & set(updates), "one that it builds on still waits"
        self.heard = len(self.device.told)

    # What always holds.

    @invariant()
    def nothing_is_lost(self) -> None:
        assert self.made - self.final == set(self.device.updates)
        assert self.device.session.waiting == len(self.device.updates)

    @invariant()
    def commits_are_numbered_without_gaps(self) -> None:
        for name in {name for name, _ in self.made}:
            numbers = sorted(number for other, number in self.made if other == name)
            assert numbers == list(range(1, len(numbers) + 1))

    @invariant()
    def what_waits_is_bounded(self) -> None:
        assert len(self.device.updates) <= WAITING + 1

    @invariant()
    def what_is_spooled_is_what_goes_on(self) -> None:
        held, training = self.device.held, self.training
        if training is not None:
            assert held is not None
            assert held.id == training.assignment
        if self.device.checkpoint is not None:
            assert held is not None
            assert held.id == self.device.checkpoint.assignment

    def teardown(self) -> None:
        """A device with nothing to do comes back to ask, and what is owed is announced."""
        device = self.device
        if not device.session.connected:
            device.connect()
        told = [leaf for leaf, _ in device.later(200)] + [leaf for leaf, _ in device.said]
        if device.updates:
            assert "update" in told
        elif device.session.state in ("idle", "held"):
            asked = [message for leaf, message in device.told if leaf == "check-in"]
            assert asked


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)
