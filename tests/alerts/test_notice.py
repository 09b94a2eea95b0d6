"""Which lines of the journal become which message: storms become one, and nothing is said twice."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from coordinator.alerts.notice import LONGEST_WAIT, Occurrence, compose, plain, ripe, wait


def late(number: int, at: float = 0.0) -> Occurrence:
    return Occurrence(number, at, "device-late", f"d{number}", f"pi-{number}", f"pi-{number} was last heard … ago")


def run(seq: int, kind: str, at: float = 0.0) -> Occurrence:
    return Occurrence(seq, at, kind, "digits-1", "digits-1", f"digits-1: {kind}")


def test_five_hundred_late_devices_are_one_message_with_the_first_ten_names():
    notice = compose([late(number) for number in range(1, 501)], {}, 3600)
    assert notice is not None
    (alert,) = notice.alerts
    assert (alert.count, len(alert.names)) == (500, 10)
    names = ", ".join(f"pi-{number}" for number in range(1, 11))
    assert notice.headline == f"500 devices late: {names} and 490 more"
    assert (notice.seq, notice.count, len(notice.subjects)) == ((1, 500), 500, 500)


def test_one_device_is_told_of_in_its_own_words():
    notice = compose([late(7)], {}, 3600)
    assert notice is not None
    assert notice.headline == notice.text == "pi-7 was last heard … ago"


def test_kinds_stay_apart_within_one_message():
    notice = compose([late(1), run(2, "run-finished"), late(3)], {}, 3600)
    assert notice is not None
    assert [(alert.kind, alert.count) for alert in notice.alerts] == [("device-late", 2), ("run-finished", 1)]
    assert notice.headline == "2 devices late: pi-1, pi-3 (and 1 more of other kinds)"


def test_the_same_device_twice_counts_once_and_its_last_word_counts():
    notice = compose([late(1), run(2, "run-stalled"), run(3, "run-stalled", at=5.0)], {}, 3600)
    assert notice is not None
    assert [(alert.count, alert.last_at) for alert in notice.alerts] == [(1, 0.0), (1, 5.0)]


def test_who_was_told_of_is_quiet_for_a_while_and_for_this_kind_only():
    told = {("run-stalled", "digits-1"): 100.0}
    assert compose([run(1, "run-stalled", at=159.0)], told, 60) is None
    assert compose([run(1, "run-stalled", at=160.0)], told, 60) is not None
    assert compose([run(1, "run-finished", at=159.0)], told, 60) is not None


def test_a_message_waits_for_more_like_it():
    pending = [late(1, at=100.0), late(2, at=120.0)]
    assert not ripe(pending, 129.9, 30)
    assert ripe(pending, 130.0, 30)
    assert not ripe([], 1e9, 30)


@given(st.integers(1, 10_000), st.floats(0, 1))
def test_attempts_wait_longer_and_longer_up_to_an_hour_and_not_all_at_the_same_time(attempts, chance):
    assert 2.5 <= wait(attempts, chance) <= LONGEST_WAIT
    assert wait(attempts, 0.0) * 2 == wait(attempts, 1.0)
    assert wait(attempts + 1, chance) >= wait(attempts, chance)


def test_as_json_a_chat_program_finds_the_text_on_top():
    notice = compose([late(1, at=5.0)], {}, 0)
    assert notice is not None
    assert plain(notice, 9.0) == {
        "id": "1",
        "at": 9.0,
        "text": "pi-1 was last heard … ago",
        "alerts": [
            {
                "kind": "device-late",
                "count": 1,
                "first_at": 5.0,
                "last_at": 5.0,
                "names": ["pi-1"],
                "text": "pi-1 was last heard … ago",
            }
        ],
    }
