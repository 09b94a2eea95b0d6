"""``shoal-agent infer FILE`` asks the deployed model, whether the agent runs or not."""

from __future__ import annotations

import json

import numpy as np
import pytest

from device_agent import cli, status
from tests.device_agent.toy_model import deployed, release


@pytest.fixture(autouse=True)
def sample(tmp_path):
    np.savez(tmp_path / "sample.npz", x=np.array([[0.25, 1.0, 0.5, 9.0], [1, 0, 0, 0]], np.float32))


def infer(tmp_path, *more: str) -> int:
    return cli.main(["infer", str(tmp_path / "sample.npz"), "--home", str(tmp_path), *more])


def test_without_a_model_it_says_so(tmp_path, capsys):
    assert infer(tmp_path) == 8
    assert capsys.readouterr().err == "shoal-agent: no model is deployed on this device\n"


def test_every_sample_has_a_line(tmp_path, capsys):
    deployed(tmp_path, release(tmp_path / "fetched"), width=0.5)
    (tmp_path / "agent.toml").write_text('[data]\npath = "."\nclasses = ["still", "walking", "running"]\n')
    assert infer(tmp_path) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert first.startswith("1.0 at width 0.5 on ")
    assert [line.split("(")[0].strip() for line in lines] == [
        "walking 48.1%, running 29.2%, still 22.7%",
        "still 57.6%, walking 21.2%, running 21.2%",
    ]


def test_the_answer_in_json_is_complete(tmp_path, capsys):
    deployed(tmp_path, release(tmp_path / "fetched"))
    assert infer(tmp_path, "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["version"], answer["run"], answer["model_version"]) == ("1.0", "toy-1", 3)
    assert [(result["class"], result["label"]) for result in answer["answers"]] == [(1, None), (0, None)]


def test_a_file_that_does_not_fit_is_bad_data(tmp_path, capsys):
    deployed(tmp_path, release(tmp_path / "fetched"))
    np.savez(tmp_path / "sample.npz", x=np.zeros((2, 7), np.float32))
    assert infer(tmp_path) == 5
    assert "the model takes samples of shape [4]" in capsys.readouterr().err


def test_the_status_names_the_model(tmp_path):
    deployed(tmp_path, release(tmp_path / "fetched"), width=0.5)
    told = status.collect(tmp_path, "pi-1", "http://localhost:1")
    assert told["model"] == {"version": "1.0", "width": 0.5, "trial": False}
    assert "  model: 1.0 at width 0.5" in status.sentences(told)
