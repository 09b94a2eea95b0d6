"""What is logged, and how it is read again."""

from __future__ import annotations

import json
import logging
import threading
from pathlib import Path

import pytest

from device_agent import logs
from device_agent.settings import Settings


def line(message: str, *arguments: object) -> dict[str, object]:
    record = logging.LogRecord("device_agent", logging.WARNING, "", 0, message, arguments, None)
    record.created, record.msecs = 1_700_000_000.25, 250
    found: dict[str, object] = json.loads(logs.JsonLines().format(record))
    return found


def test_keys_become_fields() -> None:
    assert line("committed assignment=%s bytes=%d loss=%.4f", "a-1", 90, 1.5) == {
        "at": "2023-11-14T22:13:20.250Z",
        "level": "warning",
        "event": "committed",
        "assignment": "a-1",
        "bytes": 90,
        "loss": 1.5,
    }


def test_a_message_of_another_form_stays_whole() -> None:
    assert line("received %s", "x")["event"] == "received x"
    assert line("stopped")["event"] == "stopped"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path, log_file=tmp_path / "log" / "agent.log", log_format="json")


def test_the_last_lines_of_a_file(settings: Settings) -> None:
    assert settings.log_file is not None
    settings.log_file.parent.mkdir()
    settings.log_file.write_text("".join(f"{n}\n" for n in range(100)))
    assert list(logs.show(settings, 3, follow=False)) == ["97\n", "98\n", "99\n"]


def test_following_survives_a_rotation(settings: Settings) -> None:
    path = settings.log_file
    assert path is not None
    path.parent.mkdir()
    path.write_text("old\n")
    shown = logs.show(settings, 1, follow=True)
    assert next(shown) == "old\n"

    def rotate() -> None:
        path.rename(path.with_suffix(".1"))
        path.write_text("new\n")

    threading.Timer(0.05, rotate).start()
    assert next(shown) == "new\n"


def test_set_up_writes_json_lines_into_the_file(settings: Settings) -> None:
    root = logging.getLogger()
    before, root.handlers = root.handlers, []
    level = root.level
    try:
        logs.set_up(settings)
        logging.getLogger("device_agent").info("started device=%s", "pi-1")
        (handler,) = root.handlers
        handler.close()
    finally:
        root.handlers = before
        root.setLevel(level)
    assert settings.log_file is not None
    assert json.loads(settings.log_file.read_text())["device"] == "pi-1"
