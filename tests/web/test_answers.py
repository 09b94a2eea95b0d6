"""Answers that open pages share."""

from __future__ import annotations

import gzip
import threading

import pytest

from web.answers import LEAST, LONGEST, MOST, Answer, Answers


@pytest.fixture
def passing():
    """Seconds that have gone by, and those that the processor has worked."""
    return {"clock": 100.0, "price": 0.0}


@pytest.fixture
def answers(passing):
    return Answers(lambda: passing["clock"], lambda: passing["price"])


def made(passing, cost, tag="a"):
    def take():
        passing["price"] += cost
        return Answer(tag, tag)

    return take


@pytest.mark.parametrize(("cost", "good"), [(0.0, LEAST), (0.03, 5.0), (9.0, LONGEST)])
def test_an_answer_is_good_for_as_long_as_it_was_dear(answers, passing, cost, good):
    answers.make("run", made(passing, cost))

    passing["clock"] += good - 0.01
    assert answers.fresh("run").tag == "a"
    passing["clock"] += 0.01
    assert answers.fresh("run") is None
    assert answers.last("run").tag == "a"


def test_a_clock_that_is_set_back_makes_nothing_last(answers, passing):
    answers.make("run", made(passing, 0.0))
    passing["clock"] -= 3600

    assert answers.fresh("run") is None


def test_an_answer_that_still_holds_is_renewed(answers, passing):
    answers.make("run", made(passing, 0.0))
    passing["clock"] += 10
    answers.renew("run")

    assert answers.fresh("run").tag == "a"


def test_what_is_forgotten_is_made_anew(answers, passing):
    answers.make("run", made(passing, 0.0))
    answers.forget("run")

    assert answers.last("run") is None


def test_only_so_many_are_kept(answers, passing):
    for number in range(MOST + 1):
        answers.make(number, made(passing, 0.0))

    assert answers.last(0) is None
    assert answers.last(1) is not None


def test_one_makes_it_and_the_others_wait(answers, passing):
    taken, go = [], threading.Barrier(4)

    def ask():
        go.wait()
        with answers.turn("run"):
            if answers.fresh("run") is None:
                answers.make("run", lambda: taken.append(1) or Answer("a", "a"))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert taken == [1]


def test_pieces_go_to_who_lacks_them_and_nothing_ends_them_early():
    answer = Answer("a", "<p>", {"curve": '["</script>"]', "bars": "[1]"})
    whole = answer.body((), packed=False).decode()

    assert whole.count("</script>") == 2
    assert whole.startswith("<p><script")
    assert gzip.decompress(answer.body((), packed=True)).decode() == whole
    marks = [part.split('"')[0] for part in whole.split('data-mark="')[1:]]
    assert answer.body(marks, packed=False) == b"<p>"
    assert b"bars" in answer.body(marks[:1], packed=False)
    assert b"curve" not in answer.body(marks[:1], packed=False)


def test_addresses_that_nobody_asks_for_again_leave_nothing_behind(answers):
    for number in range(3 * MOST):
        with answers.turn(number):
            pass
        answers.forget(-number)

    assert len(answers._turns) <= 2 * MOST
