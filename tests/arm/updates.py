"""A board that runs gets other agents: a good one, a bad one, one with power cuts in the middle of its update."""

from __future__ import annotations

import hashlib
import io
import random
import shutil
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from coordinator.cli.client import Client
from coordinator.fleet import bundles

from .board import Board

CUTS = 5
_ENDED = ("succeeded", "failed", "timed-out", "rejected", "rolled-back")
_LINK = "device_agent/link.py"

Wait = Callable[[Callable[[], bool], str], None]
"""Until something is so; the sentence says what."""


class Releases:
    """Releases of the agent for one device, made of the bundle in ``folder``, which is the coordinator's."""

    def __init__(self, api: Client, folder: Path, device: str, wait: Wait) -> None:
        self._api, self._folder, self._device, self._wait = api, folder, device, wait
        (self._bundle,) = bundles.listed(folder)
        self._number = 0

    def good(self) -> str:
        """Another agent that does what the present one does; its rollout."""
        return self._begin({"news.txt": str(self._number).encode()}, trial=300)

    def bad(self) -> str:
        """One that starts, and never says that it is connected."""
        with tarfile.open(self._bundle.path) as archive:
            member = archive.extractfile(_LINK)
            assert member is not None
            broken = member.read().replace(b"self._report(Up())", b"pass")
        return self._begin({_LINK: broken}, trial=120)

    def _begin(self, changes: dict[str, bytes], trial: float) -> str:
        self._number += 1
        content = altered(self._bundle.read(), changes)
        version, sha256 = f"9.{self._number}", hashlib.sha256(content).hexdigest()
        (self._folder / f"shoal-agent-{version}-{self._bundle.target}-{sha256}.tar.xz").write_bytes(content)
        self._api.post("releases", body={"kind": "agent", "agent": version})
        order = {"release": f"agent-{version}", "devices": [self._device], "waves": [1.0], "soak": 0, "trial": trial}
        order |= {"lock": 10, "seconds": 3000, "step": 1500}
        return str(self._api.post("rollouts", body=order)["row"]["id"])

    def execution(self, rollout: str) -> dict[str, Any]:
        (row,) = self._api.get("rollouts", rollout, "executions")["rows"]
        return dict(row)

    def ended(self, rollout: str) -> tuple[str, str]:
        """How it went on the device, and what it says of it."""
        self._wait(lambda: self.execution(rollout)["state"] in _ENDED, f"rollout {rollout} has ended on the device")
        row = self.execution(rollout)
        return row["state"], row["text"]

    def reached(self, rollout: str, *states: str) -> None:
        self._wait(lambda: self.execution(rollout)["state"] in (*states, *_ENDED), f"rollout {rollout} is {states[0]}")


def altered(bundle: bytes, changes: dict[str, bytes]) -> bytes:
    """The bundle with files added or replaced."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(bundle)) as old, tarfile.open(fileobj=packed, mode="w:xz", preset=1) as new:
        for one in old:
            if one.name not in changes:
                new.addfile(one, old.extractfile(one))
        for name, content in changes.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            new.addfile(info, io.BytesIO(content))
    return packed.getvalue()


def own_bundles(home: Path, packed: Path, target: str) -> Path:
    """The coordinator's folder of bundles, with the newest one for the board."""
    folder = home / bundles.FOLDER
    folder.mkdir()
    shutil.copy2(bundles.newest(packed)[target].path, folder)
    return folder


def power_cuts(board: Board, releases: Releases, heard: Callable[[], None], seed: int) -> tuple[str, str]:
    """Pull the plug at any moment of an update, and again; ``heard`` returns once the device was. Its end."""
    chance = random.Random(seed)
    rollout = releases.good()
    for _ in range(CUTS):
        releases.reached(rollout, "accepted", "downloading", "verifying", "staged", "switching", "probation")
        time.sleep(chance.uniform(0, 25))
        board.off()
        board.on()
        heard()
    return releases.ended(rollout)
