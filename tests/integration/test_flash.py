"""From the desk to the fleet: a card is flashed, a board installs what is on it and joins over TLS."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from coordinator.cli import main
from coordinator.fleet import bundles
from coordinator.fleet.board.download import Coordinator, target
from coordinator.fleet.board.install import from_card
from coordinator.fleet.board.system import Board, InstallError
from coordinator.fleet.bundles import Bundle, Target
from tests.fleet.board.test_install import Programs
from tests.fleet.flash import cards
from tests.fleet.flash.cards import START, Shape
from tests.integration.fleet import Server, clouds


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    cards.needs_programs()
    with ExitStack() as closing:
        server = Server(tmp_path_factory.mktemp("coordinator"), ("--tls", "on"))
        closing.callback(server.kill)
        server.start()
        yield server


@pytest.fixture(scope="module")
def bundle(server: Server) -> Bundle:
    """The agent for this machine; the wheels it needs are installed here."""
    arch, _, version = target().rpartition("-cp")
    return bundles.build(Target(arch, f"{version[0]}.{version[1:]}", ()), server.home / "bundles")


def shoal(server: Server, *words: str | Path, typed: str = "") -> Result:
    return CliRunner().invoke(main, [*map(str, words), "--home", str(server.home)], input=typed)


def image(folder: Path) -> Path:
    path = Shape(32, 64, 1).make(folder / "os.img")
    for name, text in (("cmdline.txt", "console=tty1 rootwait"), ("user-data", "#cloud-config\nhostname: theirs\n"),
                       ("meta-data", "")):  # fmt: skip
        (folder / name).write_text(text)
        cards.program("mcopy", "-i", f"{path}@@{START}", folder / name, f"::{name}")
    return path


def enrol(board: Board) -> subprocess.CompletedProcess[str]:
    """What shoal-enrol does on a board, with the board's files."""
    options: dict[str, Any] = json.loads(board.path("/etc/shoal/enrolment.json").read_text())
    options |= {"home": str(board.path(options["home"])), "data": str(board.path(options["data"]))}
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    token = board.path("/etc/shoal/token").read_text().strip()
    environment = {**os.environ, "PYTHONPATH": str(board.path("/opt/shoal/current"))}
    command = [sys.executable, "-m", "device_agent.cli", "enrol", *words, "--token", token]
    return subprocess.run(command, env=environment, cwd="/", capture_output=True, text=True, timeout=60)


def test_one_command_on_the_desk_makes_a_board_that_joins(server: Server, bundle: Bundle, tmp_path: Path) -> None:
    sample = clouds(tmp_path / "samples.npz", 50, seed=7)
    done = shoal(
        server, "flash", "--image", image(tmp_path), "--output", tmp_path / "out.img", "--name", "Kitchen", "--group",
        "pi4", "--sample", sample, "--reach", f"https://localhost:{server.port}", "--json", "--manifest",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    receipt = json.loads(done.stdout)
    assert receipt == json.loads((tmp_path / "out.img.receipt.json").read_text())
    assert (receipt["method"], receipt["kept"], receipt["bundles"]) == ("cloudinit", ["user-data"], [bundle.target])
    manifest = json.loads((tmp_path / "out.img.rpi-imager-manifest").read_text())
    assert manifest["os_list"][0]["init_format"] == "cloudinit-rpi"
    cards.extract(tmp_path / "out.img", START, tmp_path / "card")
    board = Board(tmp_path / "root", Programs(tmp_path / "root"))
    board.root.mkdir()
    from_card(board, tmp_path / "card" / "shoal", start=True)
    joined = enrol(board)
    assert joined.returncode == 0, joined.stderr
    device = server.api.get("devices", "kitchen")["row"]
    assert (device["name"], device["group"]) == ("Kitchen", "pi4")
    assert [row["status"] for row in server.api.get("tokens") if row["id"] == receipt["token"]] == ["used"]


def test_a_card_that_cannot_be_made_costs_no_token(server: Server, bundle: Bundle, tmp_path: Path) -> None:
    before = len(server.api.get("tokens"))
    words = ("flash", "--image", image(tmp_path), "--output", tmp_path / "out.img", "--name", "k")
    for more, says in (
        ((), "no board reaches it"),
        (("--reach", "https://shoal.local:8750", "--sha256", "0" * 64), "download it again"),
        (("--reach", "https://shoal.local:8750", "--target", "aarch64-cp311"), "There is no bundle for aarch64-cp311"),
    ):
        done = shoal(server, *words, *more)
        assert done.exit_code == 1
        assert says in done.output
    assert len(server.api.get("tokens")) == before
    (tmp_path / "os.img").write_bytes(bytes(4096))
    done = shoal(server, *words, "--reach", "https://shoal.local:8750")
    assert (done.exit_code, "no partition table" in done.output) == (1, True)
    assert server.api.get("tokens")[0]["status"] == "revoked"
    assert not (tmp_path / "out.img").exists()


def test_the_printed_line_installs_a_board_that_runs(server: Server, bundle: Bundle, tmp_path: Path) -> None:
    """The line itself, with a Python that is not root in place of sudo, up to where root is needed; then its steps."""
    printed = shoal(server, "enrol-command", "--name", "hall", "--json")
    assert printed.exit_code == 0, printed.output
    line = json.loads(printed.stdout)["command"]
    words = shlex.split(line)
    token = next(word for word in words if word.startswith("shoal1."))
    checked = line.split(" && echo shoal1.")[0]
    assert subprocess.run(["sh", "-c", checked], capture_output=True).returncode == 0
    forged = checked.replace(json.loads(printed.stdout)["sha256"], "0" * 64)
    assert subprocess.run(["sh", "-c", forged], capture_output=True).returncode != 0
    coordinator = Coordinator(server.api.url, token)
    sha256, fetch = coordinator.bundle()
    board = Board(tmp_path / "root", Programs(tmp_path / "root"))
    board.root.mkdir()
    data = board.path("/srv/data.npz")
    data.parent.mkdir()
    clouds(data, 50, seed=8)
    settings = {"url": server.api.url, "name": "hall", "data": "/srv/data.npz"}
    settings["release_key"] = coordinator.release_key()
    board.install(settings, {"token": token}, (sha256, fetch))
    joined = enrol(board)
    assert joined.returncode == 0, joined.stderr
    assert server.api.get("devices", "hall")["row"]["name"] == "hall"
    known = json.loads(board.path("/var/lib/shoal-agent/identity.json").read_text())["release_key"]
    assert known == settings["release_key"], "root and the agent trust the same key"


def test_the_installer_tells_its_token_to_nobody_but_the_coordinator_that_made_it(server: Server) -> None:
    token = server.token("pi4")
    other = token.rpartition(".")[0] + "." + "A" * 27
    with pytest.raises(InstallError, match="nothing was told to it"):
        Coordinator(server.api.url, other)
    with pytest.raises(InstallError, match="in the clear"):
        Coordinator(server.api.url.replace("https", "http"), token)
    with pytest.raises(InstallError, match="form"):
        Coordinator(server.api.url, "shoal1.x")
