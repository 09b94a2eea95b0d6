"""The commands and their exit codes, as a shell sees them."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from coordinator.compiler.spec import Dense, ModelSpec
from device_agent import cli
from device_agent.home import Home
from device_agent.runtime import backends
from protocol.messages import Plan
from tests.device_agent.stand_in import StandIn

SPEC = ModelSpec("tiny", (4,), 2, (Dense(2),))
PLAN = Plan(width=1.0, batch=4, steps=1, learning_rate=0.1, coding="float32")


@pytest.fixture
def coordinator(tmp_path: Path) -> Iterator[StandIn]:
    with StandIn(SPEC, PLAN, 0, tmp_path / "ca") as coordinator:
        yield coordinator


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.npz"
    np.savez(path, x=np.zeros((6, 4), np.float32), y=np.array([0, 1] * 3))
    return path


def enrol(url: str, token: str, data: Path, home: Path, *options: str) -> int:
    return cli.main(
        ["enrol", "--url", url, "--token", token, "--data", str(data), "--home", str(home), *options]
    )


def test_enrol_then_status(
    coordinator: StandIn, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "home"
    assert enrol(coordinator.url, coordinator.token, data, home, "--json") == 0
    assert json.loads(capsys.readouterr().out) == {
        "device": "pi-1",
        "url": coordinator.url,
        "home": str(home),
        "samples": 6,
    }
    assert cli.main(["status", "--home", str(home), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "device": "pi-1",
        "url": coordinator.url,
        "running": False,
        "connected": False,
        "cause": None,
        "state": "stopped",
        "reason": None,
        "assignment": None,
        "run": None,
        "width": None,
        "step": None,
        "runtime": None,
        "data": None,
        "clock": None,
        "board": None,
        "model": None,
        "updates": [],
    }
    assert cli.main(["status", "--home", str(home)]) == 0
    assert "the agent is not running" in capsys.readouterr().out


def test_enrolment_says_how_the_agent_of_this_home_is_started(
    coordinator: StandIn, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "attic pi"
    assert enrol(coordinator.url, coordinator.token, data, home) == 0
    assert capsys.readouterr().out.endswith(f"start it with: shoal-agent run --home '{home}'\n")


@pytest.mark.parametrize("arguments", [[], ["fly"], ["enrol"], ["run", "--fast"]])
def test_wrong_usage_is_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        cli.main(arguments)
    assert leaving.value.code == 2
    assert "usage: shoal-agent" in capsys.readouterr().err


def test_a_wrong_setting_is_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "agent.toml").write_text("speed = 9")
    assert cli.main(["run", "--home", str(tmp_path)]) == 2
    assert "'speed'" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["run", "status", "pause", "resume", "doctor"])
def test_not_enrolled_is_3(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "data.npz", x=np.zeros((6, 4), np.float32), y=np.array([0, 1] * 3))
    (tmp_path / "agent.toml").write_text('data = "data.npz"')
    assert cli.main([command, "--home", str(tmp_path)]) == 3
    assert "not enrolled" in "".join(capsys.readouterr())


def test_refused_is_4(
    coordinator: StandIn, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert enrol(coordinator.url, "shoal1.abc.wrong.-", data, tmp_path / "home", "--json") == 4
    said = capsys.readouterr()
    assert json.loads(said.out)["code"] == 4
    assert "token-used" in said.err
    assert "wrong" not in said.err


def test_bad_data_is_5_and_does_not_spend_the_token(
    coordinator: StandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert enrol(coordinator.url, coordinator.token, tmp_path / "none.npz", tmp_path / "home") == 5
    assert "does not exist" in capsys.readouterr().err
    assert coordinator.claimed == {}


@pytest.mark.parametrize("way", ["file", "stdin", "environment"])
def test_the_token_need_not_stand_in_the_command(
    way: str, coordinator: StandIn, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["enrol", "--url", coordinator.url, "--data", str(data), "--home", str(tmp_path / "home")]
    if way == "file":
        (tmp_path / "token").write_text(coordinator.token + "\n")
        arguments += ["--token-file", str(tmp_path / "token")]
    elif way == "stdin":
        monkeypatch.setattr(sys, "stdin", io.StringIO(coordinator.token + "\n"))
        arguments += ["--token-file", "-"]
    else:
        monkeypatch.setenv("SHOAL_AGENT_TOKEN", coordinator.token)
    assert cli.main(arguments) == 0
    assert len(coordinator.claimed) == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "no claim token"),
        (["--token", "a", "--token-file", "b"], "not both"),
        (["--token-file", "/nowhere/token"], "/nowhere/token cannot be read"),
    ],
)
def test_without_a_token_nothing_is_enrolled(
    arguments: list[str], sentence: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = ["--url", "http://127.0.0.1:1", "--home", str(tmp_path / "home"), "--data", str(data)]
    assert cli.main(["enrol", *url, *arguments]) == 2
    assert sentence in capsys.readouterr().err


def test_enrolment_measures_the_board_and_keeps_the_table_of_the_data(
    coordinator: StandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "data.csv").write_text("a,b,c,d,kind\n1,2,3,4,cat\n5,6,7,8,dog\n")
    table = '[data]\npath = "data.csv"\nlabel = "kind"\nclasses = ["cat", "dog"]\n'
    (home / "agent.toml").write_text(table)
    arguments = ["enrol", "--url", coordinator.url, "--token", coordinator.token, "--home", str(home), "--json"]
    assert cli.main([*arguments, "--data", "other.npz"]) == 2
    assert "has a table [data]: leave --data out" in capsys.readouterr().err
    assert cli.main(arguments) == 0
    assert json.loads(capsys.readouterr().out)["samples"] == 2
    assert (home / "agent.toml").read_text() == table
    speed = coordinator.capability.speed
    assert speed is not None
    assert set(speed) == {"1", "0.5", "0.25", "0.125"}
    assert all(0 < milliseconds < 10_000 for milliseconds in speed.values())


def test_a_pause_is_seen_while_the_agent_is_not_running(
    coordinator: StandIn, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = ["--home", str(tmp_path / "home")]
    enrol(coordinator.url, coordinator.token, data, tmp_path / "home")
    for command, state in (("pause", "paused"), ("pause", "paused"), ("resume", "stopped"), ("resume", "stopped")):
        assert cli.main([command, *home]) == 0
        capsys.readouterr()
        assert cli.main(["status", "--json", *home]) == 0
        assert json.loads(capsys.readouterr().out)["state"] == state


def test_bench_remembers_which_runtime_is_the_fastest(
    coordinator: StandIn, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "home"
    enrol(coordinator.url, coordinator.token, data, home)
    capsys.readouterr()
    assert cli.main(["bench", "--json", "--home", str(home)]) == 0
    speeds = json.loads(capsys.readouterr().out)
    assert list(speeds) == backends()
    assert json.loads((home / "speed.json").read_text()) == speeds


def test_logs_without_a_file_or_a_journal_say_what_to_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert cli.main(["logs", "--home", str(tmp_path)]) == 2
    assert "set log_file in agent.toml" in capsys.readouterr().err


def test_unreachable_is_6(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert enrol("http://127.0.0.1:1", "shoal1.abc.secret.-", data, tmp_path / "home") == 6
    assert "cannot be reached" in capsys.readouterr().err


def test_an_unusable_home_is_7(
    coordinator: StandIn, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    assert enrol(coordinator.url, coordinator.token, data, in_the_way / "home") == 7
    assert "cannot be made" in capsys.readouterr().err
    assert coordinator.claimed == {}


def test_a_second_agent_in_the_same_home_is_7(
    coordinator: StandIn, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "home"
    enrol(coordinator.url, coordinator.token, data, home)
    with Home(home):
        assert cli.main(["run", "--home", str(home)]) == 7
    assert "another agent runs" in capsys.readouterr().err


COMMANDS = ("enrol", "run", "status", "pause", "resume", "doctor", "bench", "logs", "systemd")


@pytest.mark.parametrize("command", [[], *([command] for command in COMMANDS)], ids=str)
def test_every_help_has_an_example_and_the_exit_codes(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as leaving:
        cli.main([*command, "--help"])
    assert leaving.value.code == 0
    said = capsys.readouterr().out
    assert "example:" in said
    assert "7  the home cannot be written" in said


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert capsys.readouterr().out.startswith("shoal-agent ")


def test_asking_for_help_imports_nothing_heavy() -> None:
    program = (
        "import sys, device_agent.cli\n"
        "print([m for m in ('paho', 'sqlite3', 'tflite_runtime', 'ai_edge_litert') if m in sys.modules])"
    )
    root = Path(__file__).parents[2]
    environ = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environ, check=True
    )
    assert done.stdout == "[]\n"
