"""A fleet whose coordinator has no data at all: the devices' own hold-outs say how good the model is."""

from __future__ import annotations

from sqlalchemy import select

from coordinator.store import models
from tests.integration.fleet import RECIPE, Fleet, until

MEASURED = RECIPE.replace("lease = 300", "lease = 300\nevaluate = true") + "[stop]\ntarget = 0.9\n"


def test_devices_measure_and_the_run_ends_at_its_target(fleet: Fleet) -> None:
    for agent in fleet.join():
        data = fleet.server.home / f"{agent.name}.npz"
        (agent.home / "agent.toml").write_text(f'[data]\npath = "{data}"\nholdout = 0.25\n')
        agent.run()
    run = fleet.server.start_run(MEASURED, measured=False)
    until(lambda: fleet.server.api.get("runs", run)["row"]["state"] == "finished", "the hold-outs reach the target")
    with fleet.server.database().read() as session:
        assert "devices' hold-outs say 0.9" in session.get_one(models.Run, run).reason
        updates = session.scalars(select(models.Update).where(models.Update.outcome != "expired")).all()
    assert all(50 < update.holdout_samples < 100 for update in updates)  # a quarter of 300, by the samples' hashes
    best = max(updates, key=lambda update: update.holdout_accuracy)
    assert best.base_version > 0
    assert best.holdout_loss < updates[0].holdout_loss
