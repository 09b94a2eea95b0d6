"""Boards with and without a LiteRT wheel work on one run."""

from __future__ import annotations

import pytest
from sqlalchemy import select

from coordinator.store import models
from device_agent import runtime
from tests.integration import accounts
from tests.integration.fleet import RECIPE, TIERS, Fleet, until

PREFERRED = runtime.backends()[0]


@pytest.mark.skipif(PREFERRED == runtime.NUMPY, reason="no LiteRT runtime is installed")
def test_an_agent_with_numpy_alone_trains_beside_one_with_litert(fleet: Fleet) -> None:
    run = fleet.server.start_run(RECIPE.replace("goal = 3", "goal = 1"))
    agents = fleet.join(TIERS[:2])
    settings = agents[0].home / "agent.toml"
    settings.write_text('backend = "numpy"\n' + settings.read_text())
    for agent in agents:
        agent.run()

    def applied() -> dict[str, tuple[str, bool]]:
        """Runtime of every device with an applied update, and whether its artifact was a program."""
        work, device, update = models.Assignment, models.Device, models.Update
        rows = (
            select(device.name, device.runtime, work.artifact_sha256)
            .join(update, update.device_id == device.id)
            .join(work, work.id == update.assignment_id)
            .where(update.outcome == "applied")
        )
        with fleet.server.database().read() as session:
            found = session.execute(rows).all()
        blobs = fleet.server.home / "blobs"
        return {n: (r, (blobs / sha[:2] / sha).read_bytes()[:1] == b"{") for n, r, sha in found}

    until(lambda: len(applied()) == 2, "both have an update applied")
    assert applied() == {"small-board": ("numpy", True), "middle-board": (PREFERRED, False)}
    accounts.check(fleet.server, agents, run)
