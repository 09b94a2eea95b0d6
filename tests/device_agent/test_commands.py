"""What the coordinator tells a device is done once, also across restarts, and answered until it is heard."""

from __future__ import annotations

import logging
import queue
from pathlib import Path

import pytest

from device_agent import commands, home
from device_agent.address import parse
from device_agent.commands import Ended, Orders, Recent, Told
from device_agent.home import paused
from device_agent.identity import Identity, forget
from protocol.commands import COMMANDS, Command, CommandResult
from protocol.wire import decode

IDENTITY = Identity(
    device="pi", secret="s" * 43, url="http://localhost:1", broker_host="localhost", broker_port=1, broker_tls=False,
    heartbeat=1.0, authority=None, token="t",
)  # fmt: skip


@pytest.fixture
def inbox() -> queue.SimpleQueue[object]:
    return queue.SimpleQueue()


def orders(at: Path, inbox: queue.SimpleQueue[object], recent: Recent | None = None) -> Orders:
    return Orders(at, parse("http://localhost:1"), recent or Recent(), inbox.put)


def tell(to: Orders, kind: str, id: str = "c1", seconds: float = 60.0) -> list[tuple[str, str, str]]:
    """The answers, as (id, state, text)."""
    to.take(Command(id=id, kind=kind, seconds=seconds), IDENTITY)
    return answers(to)


def answers(to: Orders) -> list[tuple[str, str, str]]:
    said = [decode(CommandResult, payload) for _, payload in to.untold()]
    return [(result.id, result.state, result.text) for result in said]


def test_every_command_of_the_protocol_is_known() -> None:
    assert set(commands._KINDS) == set(COMMANDS)


def test_pause_and_resume_are_those_of_the_boards_owner(tmp_path: Path, inbox: queue.SimpleQueue[object]) -> None:
    assert tell(orders(tmp_path, inbox), "pause") == [("c1", "done", "")]
    assert paused(tmp_path)
    home.resume(tmp_path)
    home.pause(tmp_path)
    assert tell(orders(tmp_path, inbox), "resume", "c2") == [("c1", "done", ""), ("c2", "done", "")]
    assert not paused(tmp_path)


def test_a_pause_that_cannot_be_kept_has_failed(tmp_path: Path, inbox: queue.SimpleQueue[object]) -> None:
    (tmp_path / "paused").mkdir()
    ((_, state, text),) = tell(orders(tmp_path, inbox), "resume")
    assert (state, text.endswith("paused cannot be removed: Is a directory")) == ("failed", True)


def test_an_id_is_carried_out_once_and_answered_as_often_as_asked(
    tmp_path: Path, inbox: queue.SimpleQueue[object]
) -> None:
    once = orders(tmp_path, inbox)
    tell(once, "pause")
    tell(once, "resume", "c2")
    assert tell(once, "pause") == [("c1", "done", "")]
    assert not paused(tmp_path)
    again = orders(tmp_path, inbox)
    assert answers(again) == [("c1", "done", ""), ("c2", "done", "")]  # was it heard before?
    assert tell(again, "pause") == [("c1", "done", "")]
    assert not paused(tmp_path)


def test_answers_are_repeated_on_a_new_connection_only(tmp_path: Path, inbox: queue.SimpleQueue[object]) -> None:
    to = orders(tmp_path, inbox)
    tell(to, "pause")
    assert answers(to) == []
    to.connected()
    assert answers(to) == [("c1", "done", "")]


def test_restart_is_answered_by_the_process_that_comes_after(
    tmp_path: Path, inbox: queue.SimpleQueue[object]
) -> None:
    to = orders(tmp_path, inbox)
    assert tell(to, "restart") == []
    assert to.restart
    after = orders(tmp_path, inbox)
    assert not after.restart
    assert answers(after) == [("c1", "done", "the agent was started anew")]


def test_decommission_waits_until_its_answer_has_left(tmp_path: Path, inbox: queue.SimpleQueue[object]) -> None:
    to = orders(tmp_path, inbox)
    assert tell(to, "decommission")[0][:2] == ("c1", "done")
    assert not to.forgotten
    to.delivered(Told("c1"))
    assert to.forgotten


def test_what_is_unknown_or_late_is_not_done(tmp_path: Path, inbox: queue.SimpleQueue[object]) -> None:
    to = orders(tmp_path, inbox)
    assert tell(to, "dance") == [("c1", "refused", "this agent does not know the command dance")]
    assert tell(to, "pause", "c2", seconds=0.0) == []
    assert not paused(tmp_path)


def test_logs_are_the_last_lines_and_fit_into_a_message(
    tmp_path: Path, inbox: queue.SimpleQueue[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    recent = Recent()
    log = logging.getLogger("device_agent.test")
    monkeypatch.setattr(log, "propagate", False)
    log.addHandler(recent)
    for number in range(1000):
        log.warning("line %d \0 \ud83d ü %s", number, "…" * 50)
    ((_, state, text),) = tell(orders(tmp_path, inbox, recent), "collect-logs")
    assert state == "done"
    assert len(text) <= 20_000
    assert "line 999 " in text
    assert "line 5 " not in text


def test_what_takes_its_time_is_answered_when_it_ends(
    tmp_path: Path, inbox: queue.SimpleQueue[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    led = tmp_path / "leds" / "ACT"
    led.mkdir(parents=True)
    (led / "trigger").write_text("none [mmc0] timer")
    monkeypatch.setattr(commands, "LEDS", led.parent)
    monkeypatch.setattr(commands, "BLINKING", 0.01)
    to = orders(tmp_path, inbox)
    assert tell(to, "identify") == []
    ended = inbox.get(timeout=10)
    assert isinstance(ended, Ended)
    to.ended(ended)
    assert answers(to) == [("c1", "done", "the LED ACT blinked for 0.01 seconds")]
    assert (led / "trigger").read_text() == "mmc0"


def test_a_board_without_an_led_says_so(
    tmp_path: Path, inbox: queue.SimpleQueue[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "LEDS", tmp_path / "none")
    tell(orders(tmp_path, inbox), "identify")
    ended = inbox.get(timeout=10)
    assert isinstance(ended, Ended)
    assert ended.state == "refused"


def test_what_was_cut_short_by_a_power_cut_has_failed(tmp_path: Path, inbox: queue.SimpleQueue[object]) -> None:
    (tmp_path / "commands.json").write_text(
        '{"results": [{"id": "c1", "kind": "identify", "state": "", "text": "", "told": false}]}'
    )
    assert answers(orders(tmp_path, inbox)) == [("c1", "failed", "the agent ended before it was done")]


def test_a_torn_file_is_forgotten(tmp_path: Path, inbox: queue.SimpleQueue[object]) -> None:
    (tmp_path / "commands.json").write_text('{"results":')
    assert answers(orders(tmp_path, inbox)) == []


def test_forgetting_leaves_settings_and_data_only(tmp_path: Path) -> None:
    gone = ("identity.json", "authority.pem", "rotation.json", "spool.db", "spool.db-wal", "status.json", "paused")
    for name in (*gone, "agent.toml", "x.npz"):
        (tmp_path / name).write_text("")
    for folder in ("blobs", "checkpoint", "models", "releases", "spooled", "update"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "1.f32").write_text("weights")
    forget(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["agent.toml", "x.npz"]
