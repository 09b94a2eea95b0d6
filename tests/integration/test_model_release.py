"""What the fleet has trained comes back to it: promoted, rolled out, judged and asked on the board."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.integration.fleet import PATIENCE, RECIPE, TIERS, Fleet, free_port, single_threaded, until

RULES = {"every": True, "waves": [1.0], "soak": 0.0, "trial": 2.0, "lock": 0.0}


def rolled_out(fleet: Fleet, release: int) -> list[dict[str, Any]]:
    """The executions of a rollout of it, once all have ended."""
    api = fleet.server.api
    rollout = str(api.post("rollouts", body={"release": str(release), **RULES})["row"]["id"])

    def ended() -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = api.get("rollouts", rollout, "executions")["rows"]
        over = {"succeeded", "failed", "rejected", "rolled-back", "timed-out"}
        return rows if rows and all(row["state"] in over for row in rows) else []

    return list(until(ended, f"release {release} came to its end on every device"))


def infer(home: Path, file: Path) -> dict[str, Any]:
    """What ``shoal-agent infer`` says, beside the running agent."""
    command = [sys.executable, "-m", "device_agent.cli", "infer", str(file), "--home", str(home), "--json"]
    done = subprocess.run(command, env=single_threaded(), capture_output=True, text=True, timeout=PATIENCE, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_trained_model_answers_on_the_boards_that_trained_it_and_a_worse_one_does_not(fleet: Fleet) -> None:
    server, port = fleet.server, free_port()
    agents = fleet.join(TIERS[1:])
    for agent in agents:
        data = server.home / f"{agent.name}.npz"
        serve = f"[serve]\nport = {port}\n" if agent is agents[0] else ""
        (agent.home / "agent.toml").write_text(f'[data]\npath = "{data}"\nholdout = 0.25\n{serve}')
        agent.run()
    run = server.start_run()
    until(lambda: (server.api.get("runs", run)["row"]["best_accuracy"] or 0) > 0.8, "the model learns")
    server.api.post("runs", run, "pause")

    good = server.api.post("runs", run, "promote", body={"version": "newest", "name": "good"})
    ends = rolled_out(fleet, good["release"])
    assert [row["state"] for row in ends] == ["succeeded"] * 2, ends

    reached = {size["width"]: size["accuracy"] for size in good["sizes"]}
    test = np.load(server.home / "test.npz")
    for agent in agents:
        answer = infer(agent.home, server.home / "test.npz")
        assert (answer["version"], answer["model_version"]) == ("good", good["model_version"])
        classes = [result["class"] for result in answer["answers"]]
        assert reached[answer["width"]] == max(reached.values())
        # In batches of one sums are rounded in another way, which may turn a draw.
        assert np.mean(np.array(classes) == test["y"]) == pytest.approx(max(reached.values()), abs=0.005)

    dull = server.start_run(RECIPE.replace("learning_rate = 0.05", "learning_rate = 0.0"))
    bad = server.api.post("runs", dull, "promote", body={"name": "bad", "widths": [1.0], "accuracy_drop": 0.05})
    ends = rolled_out(fleet, bad["release"])
    assert [row["state"] for row in ends] == ["failed"] * 2, ends
    assert all("of this device's hold-out right" in row["text"] for row in ends)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/model", timeout=PATIENCE) as reply:
        assert json.load(reply)["version"] == "good"
