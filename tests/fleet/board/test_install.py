"""The installer in a folder that stands for a board; programs of the system are noted, the agent's are run."""

from __future__ import annotations

import hashlib
import io
import json
import os
import stat
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from coordinator.fleet import board, bundles
from coordinator.fleet.board import install
from coordinator.fleet.board.download import target
from coordinator.fleet.board.system import Board, InstallError
from coordinator.fleet.board.update_units import UNITS
from coordinator.fleet.bundles import Target

TOKEN = "shoal1.0123456789ab." + "s" * 43 + ".-"


class Programs:
    """What the installer starts. Users are missing until they are made; the agent is this machine's Python."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.started: list[tuple[str, ...]] = []

    def __call__(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        self.started.append(command)
        known = any(one[0] == "useradd" and one[-1] == command[-1] for one in self.started)
        code, out = (1 if command[0] == "id" and not known else 0), ""
        if command[0].endswith("/shoal-agent"):
            environment = {**os.environ, "PYTHONPATH": str(self.root / "opt/shoal/current"), "PYTHONSAFEPATH": "1"}
            words = [sys.executable, "-m", "device_agent.cli", *command[1:]]
            done = subprocess.run(words, capture_output=True, text=True, env=environment, cwd="/")
            code, out = done.returncode, done.stdout
        return subprocess.CompletedProcess(command, code, out)

    def names(self) -> list[str]:
        return [" ".join(Path(word).name for word in command[:2]) for command in self.started]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    arch, _, version = target().rpartition("-cp")
    python = f"{version[0]}.{version[1:]}"
    return bundles.build(Target(arch, python, (), board=("numpy",)), tmp_path_factory.mktemp("bundles"))


@pytest.fixture
def card(tmp_path, bundle) -> Path:
    folder = tmp_path / "card"
    folder.mkdir()
    (folder / "bundle.tar.xz").write_bytes(bundle.path.read_bytes())
    (folder / "samples.npz").write_bytes(b"samples")
    settings = {
        "url": "https://shoal.local:8750", "name": "Kitchen Pi", "data": "/var/lib/shoal-agent/samples.npz",
        "data_file": "samples.npz", "made_at": 0, "hostname": "kitchen-pi",
        "user": "ada", "ssh_keys": ["ssh-ed25519 A"],
        "bundles": {bundle.target: {"file": "bundle.tar.xz", "sha256": bundle.sha256}},
        "wifi": {"ssid": "Home", "hidden": True}, "release_key": "0f" * 32,
    }  # fmt: skip
    (folder / "shoal.json").write_text(json.dumps(settings))
    (folder / "secrets.json").write_text(json.dumps({"token": TOKEN, "psk": "ab" * 32}))
    return folder


@pytest.fixture
def system(tmp_path) -> Board:
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    (root / "etc/hosts").write_text("127.0.0.1 localhost\n127.0.1.1 raspberrypi\n")
    return Board(root, Programs(root))


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_card_becomes_an_installed_agent_and_loses_its_secrets(system, card) -> None:
    install.from_card(system, card, start=True)
    root = system.root
    assert (root / "opt/shoal/current/device_agent/cli.py").is_file()
    assert (root / "etc/shoal/token").read_text().strip() == TOKEN
    assert mode(root / "etc/shoal/token") == 0o600
    assert mode(root / "var/lib/shoal-agent") == 0o700
    assert (root / "var/lib/shoal-agent/samples.npz").read_bytes() == b"samples"
    assert json.loads((root / "etc/shoal/enrolment.json").read_text())["name"] == "Kitchen Pi"
    assert TOKEN not in (root / "etc/shoal/enrolment.json").read_text()
    for unit in ("shoal-agent.service", "shoal-enrol.service"):
        assert "User=shoal" in (root / "etc/systemd/system" / unit).read_text()
    assert not (card / "secrets.json").exists()
    assert TOKEN.encode() not in b"".join(path.read_bytes() for path in card.iterdir())
    names = system.run.names()
    assert names.index("useradd --system") < names.index("systemctl enable") < names.index("systemctl restart")


def test_the_board_gets_an_updater_of_roots_own(system, card) -> None:
    """Its key is what openssl reads; without a key there is no updater, and the agent knows."""
    install.from_card(system, card, start=False)
    root = system.root
    assert (root / "opt/shoal/bin/shoal-update").read_bytes() == board.updater()
    assert mode(root / "opt/shoal/bin/shoal-update") == 0o755
    command = ["openssl", "pkey", "-pubin", "-in", str(root / "etc/shoal/release.key.pem"), "-outform", "DER"]
    der = subprocess.run(command, check=True, capture_output=True).stdout
    assert der[-32:] == bytes.fromhex("0f" * 32)
    for unit in UNITS:
        assert (root / "etc/systemd/system" / unit).exists()
    assert ("systemctl", "enable", "shoal-update.path", "shoal-update.service") in system.run.started


def test_without_a_key_there_is_no_updater(system, card) -> None:
    settings = json.loads((card / "shoal.json").read_text())
    (card / "shoal.json").write_text(json.dumps({**settings, "release_key": None}))
    install.from_card(system, card, start=False)
    assert not (system.root / "opt/shoal/bin/shoal-update").exists()
    assert not (system.root / "etc/systemd/system/shoal-agent.service.d/update.conf").exists()


def test_name_login_and_wifi_of_a_board_without_cloud_init(system, card) -> None:
    install.from_card(system, card, start=False)
    root = system.root
    assert (root / "etc/hostname").read_text() == "kitchen-pi\n"
    assert (root / "etc/hosts").read_text() == "127.0.0.1 localhost\n127.0.1.1\tkitchen-pi\n"
    assert (root / "home/ada/.ssh/authorized_keys").read_text() == "ssh-ed25519 A\n"
    connection = root / "etc/NetworkManager/system-connections/shoal-wifi.nmconnection"
    assert f"\nssid={';'.join(str(byte) for byte in b'Home')};\nhidden=true\n" in connection.read_text()
    assert "psk=" + "ab" * 32 in connection.read_text()
    assert mode(connection) == 0o600
    assert "systemctl restart" not in system.run.names()


def test_installing_again_is_harmless(system, card) -> None:
    install.from_card(system, card, start=False)
    (system.root / "var/lib/shoal-agent/identity.json").write_text("{}")
    (system.root / "etc/shoal/token").unlink()  # it has enrolled since
    before = {path: path.read_bytes() for path in (system.root / "opt").rglob("*") if path.is_file()}
    (card / "secrets.json").write_text(json.dumps({"token": TOKEN}))
    install.from_card(system, card, start=True)
    assert {path: path.read_bytes() for path in (system.root / "opt").rglob("*") if path.is_file()} == before
    assert not (system.root / "etc/shoal/token").exists()
    assert (system.root / "home/ada/.ssh/authorized_keys").read_text() == "ssh-ed25519 A\n"


def test_an_installation_that_was_cut_off_is_taken_up(system, card, bundle) -> None:
    half = system.root / f"opt/shoal/releases/{bundle.sha256[:16]}"
    half.mkdir(parents=True)
    (half / "half").touch()
    install.from_card(system, card, start=False)
    assert (half / ".complete").exists()
    assert not (half / "half").exists()


def test_a_damaged_bundle_is_refused_and_the_secrets_stay_for_another_try(system, card) -> None:
    with open(card / "bundle.tar.xz", "r+b") as file:
        file.write(b"damage")
    with pytest.raises(InstallError, match="damaged"):
        install.from_card(system, card, start=False)
    assert (card / "secrets.json").exists()
    assert not (system.root / "etc/shoal").exists()


def test_a_board_that_no_bundle_fits_says_which_there_are(system, card) -> None:
    settings = json.loads((card / "shoal.json").read_text())
    settings["bundles"] = {"mips-cp313": settings["bundles"][target()]}
    (card / "shoal.json").write_text(json.dumps(settings))
    with pytest.raises(InstallError, match=f"no bundle for {target()}, only for mips-cp313"):
        install.from_card(system, card, start=False)


def test_a_bundle_with_links_or_foreign_paths_is_refused(system) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:xz") as archive:
        archive.addfile(tarfile.TarInfo("../outside"), io.BytesIO())
    content = packed.getvalue()
    with pytest.raises(InstallError, match="something else"):
        system.install({"url": "", "name": "", "data": ""}, {}, (hashlib.sha256(content).hexdigest(), lambda: content))
    assert not (system.root / "opt/shoal/outside").exists()


@pytest.mark.parametrize(
    ("program", "says"), [("python3", "apt-get install python3-numpy"), ("shoal-agent", "does not start on this")]
)
def test_a_board_on_which_the_agent_cannot_run_says_why(system, card, program, says) -> None:
    class Broken(Programs):
        def __call__(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
            if Path(command[0]).name == program:
                return subprocess.CompletedProcess(command, 1, "x")
            return super().__call__(*command, check=check)

    with pytest.raises(InstallError, match=says):
        install.from_card(Board(system.root, Broken(system.root)), card, start=False)
    assert (card / "secrets.json").exists()


def test_the_installer_travels_as_one_file_of_the_standard_library(tmp_path) -> None:
    """Isolated Python: nothing of this machine's packages is there."""
    (tmp_path / "install.pyz").write_bytes(board.program())
    (tmp_path / "install.sh").write_text(board.script())
    assert board.program() == board.program()
    for command in ([sys.executable, "-I", "-S", "install.pyz", "--help"], ["sh", "install.sh", "--help"]):
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "shoal flash" in done.stdout
    with zipfile.ZipFile(tmp_path / "install.pyz") as archive:
        modules = {name.partition("/")[2].removesuffix(".py") for name in archive.namelist() if "/" in name}
    assert modules == {path.stem for path in Path(board.__file__).parent.glob("*.py")}
