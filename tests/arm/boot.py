"""``python -m tests.arm.boot``: from a blank card to an update that counts, in a QEMU; `make test-arm-boot` runs it.

The board then gets a good release of the agent, a bad one, and one during which the power fails again and again; last
it is revoked. Arguments are machines (arm64, amd64) and methods (cloudinit, systemd), by default arm64 with both.
Systems and bundles are kept below SHOAL_ARM_CACHE (default ~/.cache/shoal-arm). Exit codes: 0 all right, 1 something
off, 2 not possible here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attrs import define

from coordinator.cli.client import Client
from coordinator.fleet import bundles
from tests.integration.fleet import RECIPE, SHOAL, Server, clouds, single_threaded

from .board import MACHINES, Board, Machine, check_host
from .debian import NotPossible
from .updates import CUTS, Releases, own_bundles, power_cuts

SECONDS = 900.0
HOST = "10.0.2.2"
"""This machine, as QEMU's network shows it to the board."""


@define
class Desk(Server):
    """A coordinator that boards reach by another address than this machine."""

    @property
    def api(self) -> Client:
        return Client(self.here, (self.home / "api.token").read_text().strip(), str(self.home / "tls" / "ca.pem"))

    @property
    def here(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def flash(self, image: Path, output: Path, sample: Path, target: str) -> dict[str, object]:
        """The one command on the desk; its receipt."""
        command = [
            *SHOAL, "flash", "--home", str(self.home), "--url", self.here, "--ca", str(self.home / "tls" / "ca.pem"),
            "--image", str(image), "--output", str(output), "--name", "kitchen", "--group", "boards", "--sample",
            str(sample), "--target", target, "--reach", f"https://{HOST}:{self.port}", "--json",
        ]  # fmt: skip
        environment = {**single_threaded(), "SHOAL_API_TOKEN": (self.home / "api.token").read_text().strip()}
        done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE)
        return dict(json.loads(done.stdout))


class Failed(Exception):
    """What did not come true."""


def main(words: list[str]) -> int:
    cache = Path(os.environ.get("SHOAL_ARM_CACHE") or Path.home() / ".cache" / "shoal-arm")
    machines = [MACHINES[word] for word in words if word in MACHINES] or [MACHINES["arm64"]]
    methods = [word for word in words if word in ("cloudinit", "systemd")] or ["cloudinit", "systemd"]
    failed = 0
    try:
        cache.mkdir(parents=True, exist_ok=True)
        for machine in machines:
            check_host(machine)
            say(f"{machine.name}: {cache / machine.name}")
            system = machine.make(cache)
            bundles.build(bundles.target(machine.target), cache / "bundles")  # of the agent as it is now
            for method in methods:
                with tempfile.TemporaryDirectory(prefix="shoal-boot-") as temporary:
                    failed += not one(machine, system, method, Path(temporary), cache / "bundles")
    except NotPossible as error:
        say(f"make test-arm-boot: {error}")
        return 2
    return 1 if failed else 0


def one(machine: Machine, system: Path, method: str, folder: Path, packed: Path) -> bool:
    """One card, from blank to trained; prints when what was reached, in seconds of the wall."""
    desk = Desk(folder / "home", ("--tls", "on", "--name", HOST))
    desk.home.mkdir()
    own = own_bundles(desk.home, packed, machine.target)
    log = folder / "serial.log"
    board = Board(machine, system, folder / "card.img", log)
    times: dict[str, float] = {}
    try:
        blank = machine.card(system, method, folder / "blank.img")
        desk.start()
        run = desk.start_run(RECIPE.replace("goal = 3", "goal = 1"))
        started = time.monotonic()
        receipt = desk.flash(blank, board.card, clouds(folder / "samples.npz", 300, seed=10), machine.target)
        times["flash"] = time.monotonic() - started
        require(receipt["method"] == method, f"the method is {receipt['method']}")
        blank.unlink()
        started = time.monotonic()
        board.on()
        if method == "systemd":
            wait(lambda: not board.running(), "the board has installed itself and starts again", board, started)
            times["installed"] = time.monotonic() - started
            require("systemd.run" not in board.read("cmdline.txt").decode(), "the command line is as it was")
            board.on()
        wait(lambda: bool(desk.api.get("devices", text="kitchen")["rows"]), "the board has enrolled", board, started)
        times["enrolled"] = time.monotonic() - started
        wait(lambda: desk.version(run) >= 1, "an update of the board's has been merged", board, started)
        times["trained"] = time.monotonic() - started
        board.off()
        require(not board.has("shoal/secrets.json"), "the secrets are off the card")
        require(method == "systemd" or board.has("theirs"), "somebody else's user-data was carried out too")
        started = time.monotonic()
        before = desk.version(run)
        board.on()
        wait(lambda: desk.version(run) > before, "the board works again after a power cut", board, started)
        times["again"] = time.monotonic() - started
        update(desk, board, own, times)
    except Failed as error:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-25:]) if log.exists() else "(no console)"
        say(f"{machine.arch} {method}: not so: {error}\n{tail}")
        if board.card.exists() and board.has("shoal/INSTALL_FAILED.txt"):
            say(board.read("shoal/INSTALL_FAILED.txt").decode())
        return False
    finally:
        board.off()
        desk.kill()
    row = "  ".join(f"{name} {seconds:.1f} s" for name, seconds in times.items())
    print(f"{machine.arch:6} {method:10} {row}", flush=True)
    return True


def update(desk: Desk, board: Board, folder: Path, times: dict[str, float]) -> None:
    """Releases of the agent come to the board, which is never lost."""
    started = time.monotonic()

    def patiently(condition: Callable[[], bool], what: str) -> None:
        wait(condition, what, board, time.monotonic())

    def device() -> dict[str, Any]:
        return dict(desk.api.get("devices", "kitchen")["row"])

    def heard() -> None:
        since = time.time()
        patiently(lambda: (device()["last_seen"] or 0) > since, "the board is heard after a power cut")

    releases = Releases(desk.api, folder, device()["id"], patiently)
    for make, end in ((releases.good, "succeeded"), (releases.bad, "rolled-back")):
        state, text = releases.ended(make())
        require(state == end, f"the release is {state} ({text}), expected {end}")
        times[end] = time.monotonic() - started
        started = time.monotonic()
    state, text = power_cuts(board, releases, heard, seed=len(times))
    say(f"after {CUTS} power cuts the update is {state}: {text}")
    times["cuts"] = time.monotonic() - started
    state, text = releases.ended(releases.good())
    require(state == "succeeded", f"after the power cuts a good release is {state} ({text})")
    desk.api.post("devices", device()["id"], "revoke")
    since = time.time() + 5
    time.sleep(30)
    require((device()["last_seen"] or 0) < since, "a revoked board is heard no more")


def wait(condition: Callable[[], bool], what: str, board: Board, started: float) -> None:
    while not condition():
        require(time.monotonic() - started < SECONDS, what)
        require(board.running() or "starts again" in what, f"{what} (the board has stopped)")
        time.sleep(0.5)


def require(true: bool, what: str) -> None:
    if not true:
        raise Failed(what)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
