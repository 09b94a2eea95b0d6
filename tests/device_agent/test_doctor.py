"""The doctor, in front of a real coordinator that is well or not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from coordinator.compiler.spec import Dense, ModelSpec
from device_agent import cli, doctor
from device_agent.errors import DataError
from protocol.messages import Plan
from tests.device_agent.stand_in import DEVICE, StandIn

SPEC = ModelSpec("tiny", (4,), 2, (Dense(2),))
PLAN = Plan(width=1.0, batch=4, steps=1, learning_rate=0.1, coding="float32")


@pytest.fixture
def coordinator(tmp_path: Path) -> Iterator[StandIn]:
    with StandIn(SPEC, PLAN, 0, tmp_path / "ca", tls=True) as coordinator:
        yield coordinator


@pytest.fixture
def home(coordinator: StandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    np.savez(tmp_path / "data.npz", x=np.zeros((6, 4), np.float32), y=np.array([0, 1] * 3))
    (tmp_path / "token").write_text(coordinator.token)
    arguments = ["--token-file", str(tmp_path / "token"), "--data", str(tmp_path / "data.npz")]
    assert cli.main(["enrol", "--url", coordinator.url, "--home", str(tmp_path / "home"), *arguments]) == 0
    capsys.readouterr()
    return tmp_path / "home"


def examined(home: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, dict[str, str]]]:
    code = cli.main(["doctor", "--json", "--home", str(home)])
    answer = json.loads(capsys.readouterr().out)
    assert answer["code"] == code
    return code, {finding["check"]: finding for finding in answer["findings"]}


def test_a_healthy_device(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, found = examined(home, capsys)
    checks = "settings home disk memory runtime data conditions identity network broker tls clock"
    assert [*found] == [*checks.split(), "broker tls", "access"]
    assert code == 0
    assert {finding["state"] for finding in found.values()} <= {"ok", "warning"}
    assert found["runtime"]["state"] == "ok"
    secret = json.loads((home / "identity.json").read_text())["secret"]
    assert secret not in json.dumps(found)


def test_for_people_every_trouble_has_advice(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home.parent / "data.npz").unlink()
    assert cli.main(["doctor", "--home", str(home)]) == DataError.exit_code
    said = capsys.readouterr().out
    assert "bad     data" in said
    assert "does not exist" in said
    assert "→ mend the data or [data] in agent.toml" in said


def test_a_revoked_device(home: Path, coordinator: StandIn, capsys: pytest.CaptureFixture[str]) -> None:
    del coordinator._passwords[DEVICE]
    code, found = examined(home, capsys)
    assert (code, found["access"]["state"]) == (4, "bad")
    assert "it was revoked" in found["access"]["text"]
    assert "enrol again" in found["access"]["advice"]


def test_a_coordinator_that_is_away(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    known = json.loads((home / "identity.json").read_text())
    (home / "identity.json").write_text(json.dumps(known | {"url": "https://127.0.0.1:1"}))
    code, found = examined(home, capsys)
    assert (code, found["network"]["state"], found["broker"]["state"]) == (6, "bad", "ok")
    assert "127.0.0.1:1 cannot be reached" in found["network"]["text"]


def test_a_certificate_of_another_authority(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with StandIn(SPEC, PLAN, 0, tmp_path / "other", tls=True) as other:
        assert other.files is not None
        authority = json.loads((home / "identity.json").read_text())["authority"]
        (home / authority).write_bytes(other.files.ca.read_bytes())
        code, found = examined(home, capsys)
    assert (code, found["tls"]["state"]) == (4, "bad")
    assert "enrol again" in found["tls"]["advice"]


def test_a_clock_two_days_off() -> None:
    behind = doctor._clock("Thu, 01 Jan 2099 00:00:00 GMT")
    assert behind.state == "warning"
    assert "behind the coordinator's" in behind.text
    assert "timedatectl set-ntp true" in behind.advice
    assert doctor._clock("nonsense").state == "ok"


def test_conditions_that_cannot_be_measured_are_named(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open(home / "agent.toml", "a") as file:
        file.write('[conditions]\nhours = ["00:00-24:00"]\nbattery = 1\n')
    _, found = examined(home, capsys)
    assert found["conditions"]["text"] in ("this board cannot measure: battery", "training may happen now")


def test_a_broken_setting_ends_the_examination(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "agent.toml").write_text("pace = 0")
    code, found = examined(home, capsys)
    assert (code, [*found]) == (2, ["settings"])
