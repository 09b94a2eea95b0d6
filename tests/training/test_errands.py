"""Commands reach a device until it has answered, and are settled once; who is two is told of."""

from __future__ import annotations

import pytest

from coordinator.errors import ShoalError
from coordinator.store import credentials, models
from coordinator.training import errands
from coordinator.training.twins import Twins
from protocol.commands import Command, CommandResult
from protocol.wire import encode
from tests.training.house import House


def issue(house: House, kind: str, life: float = 60.0) -> str:
    return house.steward.command("pi", kind, life=life, by="ada")


def commands(house: House) -> list[Command]:
    return [message for message in house.sent["pi"] if isinstance(message, Command)]


def answer(house: House, id: str, state: str = "done", text: str = "", device: str = "pi") -> None:
    house.tell(device, "result", encode(CommandResult(id=id, state=state, text=text)))


def test_a_command_is_sent_at_once_and_says_how_long_it_holds(house):
    house.enrol("pi")
    id = issue(house, "identify")
    house.until(lambda: commands(house))
    assert commands(house) == [Command(id=id, kind="identify", seconds=60.0)]
    row = house.row(models.Command)
    assert (row.state, row.created_by, row.expires_at - row.created_at) == ("open", "ada", 60.0)


def test_it_is_sent_again_to_a_device_that_is_heard_and_has_not_answered(house):
    (pi,) = house.enrol("pi")
    id = issue(house, "identify")
    house.clock.now += 1
    pi.check_in()  # it has just come
    assert len(commands(house)) == 2
    house.clock.now += errands.AGAIN - 1
    house.tell("pi", "event", b'{"kind": "x", "text": ""}')
    assert len(commands(house)) == 2
    house.clock.now += 1
    house.tell("pi", "event", b'{"kind": "x", "text": ""}')
    assert commands(house)[-1] == Command(id=id, kind="identify", seconds=60.0 - errands.AGAIN - 1)
    answer(house, id, text="blinked")
    pi.check_in()
    assert len(commands(house)) == 3
    row = house.row(models.Command)
    assert (row.state, row.text) == ("done", "blinked")


def test_open_commands_survive_a_restart(house):
    (pi,) = house.enrol("pi")
    id = issue(house, "restart")
    house.reopened()
    pi.check_in()
    assert [command.id for command in commands(house)] == [id, id]


def test_what_is_not_answered_in_time_expires_and_a_late_answer_still_counts(house):
    house.enrol("pi")
    id = issue(house, "identify", life=5.0)
    house.clock.now += 6
    house.until(lambda: house.row(models.Command).state == "expired")
    answer(house, id)
    assert house.row(models.Command).state == "done"


def test_only_the_device_itself_answers_and_only_once(house):
    house.enrol("pi", "eve")
    id = issue(house, "identify")
    answer(house, id, text="I was it", device="eve")
    assert house.row(models.Command).state == "open"
    answer(house, id, "refused", "no LED")
    answer(house, id, "done", "after all")
    assert (house.row(models.Command).state, house.row(models.Command).text) == ("refused", "no LED")
    assert house.events("command-refused") == ["pi: identify is refused: no LED"]


def test_a_device_that_has_forgotten_itself_is_revoked_and_cut_off(house):
    house.enrol("pi")
    answer(house, issue(house, "decommission"))
    assert house.row(models.Device).status == "revoked"
    house.until(lambda: house.cut_off == ["pi"])


@pytest.mark.parametrize(
    ("device", "kind", "life", "code"),
    [
        ("pi", "dance", 60.0, "bad-request"),
        ("pi", "identify", 1.0, "bad-request"),
        ("pi", "identify", 1e9, "bad-request"),
        ("eve", "identify", 60.0, "not-found"),
    ],
)
def test_what_cannot_be_commanded(house, device, kind, life, code):
    house.enrol("pi")
    with pytest.raises(ShoalError) as refused:
        house.steward.command(device, kind, life=life, by="ada")
    assert refused.value.code == code
    assert house.rows(models.Command) == []


def test_a_pending_device_is_heard_and_gets_no_work(house):
    house.start_run()
    (pi,) = house.enrol("pi")

    def wait(session) -> None:
        session.get(models.Device, "pi").pending_at = house.clock.now

    house.steward.write(wait)
    assert pi.check_in().reason == "the device waits for an operator to adopt it"
    assert house.rows(models.Assignment) == []
    assert house.row(models.Device).status == "pending"


def test_old_secrets_are_replaced_once_by_devices_that_are_there(house):
    pi, *_ = house.enrol("pi", "away")
    house.steward._errands.rotate_after = 3600.0

    def secrets(session) -> None:
        for device in ("pi", "away"):
            credentials.register(session, device, f"secret of {device}", "", house.clock.now)

    house.steward.write(secrets)
    pi.check_in()
    house.clock.now += 3601.0
    pi.check_in()  # it was silent for an hour, and is there again
    house.clock.now += errands.LOOK
    pi.check_in()
    house.until(lambda: house.rows(models.Command))
    row = house.row(models.Command)
    assert (row.device_id, row.kind, row.created_by) == ("pi", "rotate", "the coordinator")
    house.clock.now += errands.LOOK
    house.until(lambda: house.steward._errands._looked == house.clock.now)
    assert len(house.rows(models.Command)) == 1


class TestTwins:
    def test_restarts_are_no_twins(self):
        twins = Twins()
        assert [twins.heard("pi", boot, 0.0) for boot in ("a", "a", "b", "b", "c")] == [None] * 5

    def test_a_process_that_comes_back_after_its_successor_is_one(self):
        twins = Twins()
        said = [twins.heard("pi", boot, 0.0) for boot in ("a", "b", "a", "b")]
        assert [sentence is None for sentence in said] == [True, True, False, True]
        assert "processes b and a" in said[2]

    def test_it_is_told_of_once_an_hour_and_other_devices_do_not_count(self):
        twins = Twins()
        for boot in "ab":
            twins.heard("pi", boot, 0.0)
            twins.heard("tre", boot, 0.0)
        assert twins.heard("pi", "a", 0.0)
        assert twins.heard("tre", "b", 0.0) is None
        assert twins.heard("pi", "b", 3599.0) is None
        assert twins.heard("pi", "a", 3600.0)
