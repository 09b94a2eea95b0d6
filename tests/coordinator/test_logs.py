"""The log: text or JSON lines, told apart by names, without secrets."""

from __future__ import annotations

import gc
import io
import json
import logging

import pytest

from coordinator import logs


@pytest.fixture
def said():
    """``said(form)`` is what is logged from then on."""
    root = logging.getLogger()
    before = root.handlers[:], root.level

    def start(form):
        stream = io.StringIO()
        logs.configure(form, "info", stream)
        return stream

    yield start
    root.handlers[:], level = before
    root.setLevel(level)


def lines(stream):
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_of_json_has_the_fields_that_the_message_names(said):
    stream = said("json")
    logging.getLogger("shoal.x").warning("refused device=%s tries=%d seconds=%s", "pi4-007", 3, 0.5)
    (line,) = lines(stream)
    assert (line["event"], line["device"], line["tries"], line["seconds"]) == ("refused", "pi4-007", 3, 0.5)
    assert (line["level"], line["logger"], line["thread"]) == ("warning", "shoal.x", "MainThread")
    assert line["at"].endswith("+00:00")


def test_what_has_no_fields_is_told_whole_and_stays_one_line(said):
    stream = said("json")
    log = logging.getLogger("x")
    log.info("http %s", "broken\npipe")
    log.error("two=%s words %s", 1, 2)
    log.info("level=%s", "a field of a name that is taken")
    assert [line["event"] for line in lines(stream)] == ["http broken\npipe", "two=1 words 2", "level=%s"]
    assert lines(stream)[2]["level_"] == "a field of a name that is taken"


def test_an_exception_is_a_field_of_its_line(said):
    stream = said("json")
    try:
        raise RuntimeError("out of order")
    except RuntimeError:
        logging.getLogger("x").exception("input-failed")
    (line,) = lines(stream)
    assert "RuntimeError: out of order" in line["traceback"]


def test_text_is_as_it_was(said):
    stream = said("text")
    logging.getLogger("x").info("run-started run=%s", "mlp-1")
    logging.getLogger("x").debug("not at this level")
    assert stream.getvalue().endswith(" INFO x run-started run=mlp-1\n")


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize(
    ("told", "kept"),
    [
        ("token shoal1.0a1b2c3d4e5f.SWORDFISH.abc used", "shoal1.0a1b2c3d4e5f.***"),
        ("Bearer shoal-api.0a1b2c3d4e5f.SWORDFISH", "shoal-api.0a1b2c3d4e5f.***"),
        ("GET /login/SWORDFISH 302", "/login/***"),
        ("postgresql+psycopg://ada:SWORDFISH@db/shoal", "ada:***@db"),
        ("Authorization: Bearer SWORDFISH", "Bearer ***"),
    ],
)
def test_secrets_are_left_out(said, form, told, kept):
    stream = said(form)
    logging.getLogger("x").warning("refused reason=%s", told)
    logging.getLogger("x").warning(told)
    assert "SWORDFISH" not in stream.getvalue()
    assert stream.getvalue().count(kept) == 2


@pytest.mark.parametrize(
    ("error", "line"),
    [(OSError(9, "Bad file descriptor"), "connection-broken error=[Errno 9]"), (ValueError("odd"), "ValueError: odd")],
)
def test_what_nobody_can_catch_is_a_line_of_the_log(said, monkeypatch, error, line):
    class Left:
        def __del__(self):
            raise error

    stream = said("text")
    monkeypatch.setattr("sys.unraisablehook", logs.unraisable)
    Left()
    gc.collect()
    assert line in stream.getvalue()
    assert ("Traceback" in stream.getvalue()) == (not isinstance(error, OSError))
