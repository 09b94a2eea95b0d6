"""Coordinator, broker and agent as processes: settings are released, brought to a device, and taken back."""

from __future__ import annotations

from tests.integration.fleet import TIERS, Fleet, until


def test_settings_reach_a_device_and_go_back(fleet: Fleet) -> None:
    api = fleet.server.api
    (agent,) = fleet.join(TIERS[-1:])
    agent.run()
    row = api.get("devices", text=agent.name)["rows"][0]
    note = agent.home / "fleet.toml"

    def deploy(text: str, version: str) -> str:
        api.post("releases", body={"kind": "config", "version": version, "settings": text})
        body = {"release": f"config-{version}", "devices": [row["id"]], "waves": [1.0], "soak": 0}
        return str(api.post("rollouts", body=body)["row"]["id"])

    def state(rollout: str) -> str:
        (execution,) = api.get("rollouts", rollout, "executions")["rows"]
        return str(execution["state"])

    first = deploy("log_level = 'info'\n", "1")
    until(lambda: state(first) == "succeeded", "the first settings are proved")
    second = deploy("checkpoint_seconds = 5\n", "2")
    until(lambda: state(second) == "succeeded", "the second settings are proved")
    assert note.read_text().splitlines()[1:] == ["checkpoint_seconds = 5"]
    back = str(api.post("rollouts", second, "back", body={})["row"]["id"])
    until(lambda: state(back) == "succeeded", "the device is back on the first")
    assert note.read_text().splitlines()[1:] == ["log_level = 'info'"]
