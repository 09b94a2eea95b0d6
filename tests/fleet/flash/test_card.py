"""Whole cards: synthetic images as Raspberry Pi OS and cloud images have them, flashed and read by mtools."""

from __future__ import annotations

import json
import zipfile
from datetime import UTC, datetime
from pathlib import Path

import pytest
from attrs import asdict, evolve

from coordinator.fleet import bundles
from coordinator.fleet.bundles import Target
from coordinator.fleet.flash import card, flashing
from coordinator.fleet.flash.card import Card
from coordinator.fleet.flash.disk import Disk
from coordinator.fleet.flash.errors import FlashError
from coordinator.fleet.flash.flashing import Claim, Order
from coordinator.fleet.flash.wifi import wifi
from tests.fleet.flash import cards
from tests.fleet.flash.cards import START, Shape

AT = datetime(2026, 3, 31, 12, 30, 10, tzinfo=UTC)
TOKEN = "shoal1.0123456789ab.secretsecretsecretsecretsecretsecretsecret0.AAAAAAAAAAAAAAAAAAAAAAAAAAA"
THEIRS = b"#cloud-config\nhostname: theirs\nruncmd: [touch /root/theirs]\n"
CMDLINE = b"console=tty1 root=PARTUUID=1-02 rootwait\n"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ ada@desk"


@pytest.fixture(autouse=True)
def judges():
    cards.needs_programs()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return bundles.build(Target("aarch64", "3.13", ()), tmp_path_factory.mktemp("bundles"))


@pytest.fixture
def made(bundle) -> Card:
    return Card(
        name="Kitchen Pi", url="https://shoal.local:8750", token=TOKEN, data="/srv/data.npz", bundles=(bundle,),
        ssh_keys=(KEY,), release_key="ab" * 32,
    )  # fmt: skip


def image(folder: Path, files: dict[str, bytes], shape: Shape = Shape(32, 64, 1)) -> Path:  # noqa: B008
    path = shape.make(folder / "os.img")
    for name, content in files.items():
        (folder / "content").write_bytes(content)
        cards.program("mcopy", "-i", f"{path}@@{START}", folder / "content", f"::{name}")
    return path


BOOKWORM = {"cmdline.txt": CMDLINE, "config.txt": b"# arm\n"}
TRIXIE = {**BOOKWORM, "user-data": b"# stock\n", "meta-data": b"dsmode: local\n", "network-config": b"# stock\n"}


def test_a_bookworm_card_boots_into_the_installer_by_its_command_line(made, tmp_path) -> None:
    path = image(tmp_path, BOOKWORM)
    written = card.write(path, evolve(made, wifi=wifi("Home", "correct horse", "DE")), AT, None)
    assert (written.method, written.partition) == ("systemd", 1)
    found = cards.extract(path, START, tmp_path / "read")
    assert found["cmdline.txt"].startswith(CMDLINE.strip() + b" systemd.run=/boot/firmware/shoal/firstrun.sh ")
    assert found["config.txt"] == BOOKWORM["config.txt"]
    assert {name for name in found if name.startswith("shoal/")} == {
        "shoal/bundle-aarch64-cp313.tar.xz", "shoal/firstrun.sh", "shoal/install.pyz", "shoal/secrets.json",
        "shoal/shoal.json",
    }  # fmt: skip
    settings, secrets = json.loads(found["shoal/shoal.json"]), json.loads(found["shoal/secrets.json"])
    assert (settings["hostname"], settings["ssh_keys"], settings["wifi"], settings["release_key"]) == (
        "kitchen-pi", [KEY], {"ssid": "Home", "hidden": False}, "ab" * 32,
    )  # fmt: skip
    assert secrets == {"token": TOKEN, "psk": wifi("Home", "correct horse", "DE").psk}
    assert TOKEN.encode() not in b"".join(found[name] or b"" for name in found if name != "shoal/secrets.json")
    cards.check(path, START, 64 << 20, tmp_path / "volume")


def test_a_trixie_card_boots_into_the_installer_by_cloud_init(made, tmp_path) -> None:
    path = image(tmp_path, TRIXIE)
    written = card.write(path, made, AT, None)
    assert written.method == "cloudinit"
    found = cards.extract(path, START, tmp_path / "read")
    assert found["user-data"] == TRIXIE["user-data"]
    assert b'local-hostname: "kitchen-pi"' in found["meta-data"]
    assert b"install.pyz" in found["vendor-data"]
    assert b" ds=nocloud;i=shoal-" in found["cmdline.txt"]
    cards.check(path, START, 64 << 20, tmp_path / "volume")


def test_foreign_user_data_survives(made, tmp_path) -> None:
    path = image(tmp_path, {**TRIXIE, "user-data": THEIRS})
    written = card.write(path, made, AT, None)
    assert written.kept == ("user-data",)
    assert cards.extract(path, START, tmp_path / "read")["user-data"] == THEIRS


def test_flashing_the_same_card_again_gives_the_same_files(made, tmp_path) -> None:
    path = image(tmp_path, TRIXIE)
    card.write(path, made, AT, None)
    first = cards.extract(path, START, tmp_path / "first")
    card.write(path, made, AT, None)
    assert cards.extract(path, START, tmp_path / "second") == first
    cards.check(path, START, 64 << 20, tmp_path / "volume")


@pytest.mark.parametrize("table", ["mbr", "gpt"])
def test_a_cloud_image_becomes_its_own_seed_where_that_is_wished(made, tmp_path, table) -> None:
    path = image(tmp_path, {}, Shape(32, 64, 1, table))
    with pytest.raises(FlashError, match="--seed-only"):
        card.write(path, made, AT, None)
    assert card.write(path, made, AT, "cloudinit").method == "cloudinit"
    assert "CIDATA" in cards.program("mlabel", "-s", "-i", f"{path}@@{START}")
    assert cards.extract(path, START, tmp_path / "read")["user-data"] == b"#cloud-config\n"


def test_a_boot_partition_that_is_mounted_by_its_name_keeps_it(made, tmp_path) -> None:
    path = image(tmp_path, {})
    cards.program("mlabel", "-i", f"{path}@@{START}", "::UEFI")
    with pytest.raises(FlashError, match="by the name UEFI"):
        card.write(path, made, AT, "cloudinit")


def test_a_boot_partition_without_room_is_refused_before_anything_is_written(made, tmp_path) -> None:
    path = image(tmp_path, TRIXIE)
    before = path.read_bytes()
    sample = tmp_path / "data.npz"
    sample.write_bytes(bytes(60 << 20))
    with pytest.raises(FlashError, match=r"has \d+ MiB free, the card needs \d+"):
        card.write(path, evolve(made, sample=sample), AT, None)
    assert path.read_bytes() == before


def test_a_seed_is_a_folder_for_its_owner_only(made, tmp_path) -> None:
    written = card.write_seed(tmp_path / "seed", made, AT)
    found = cards.tree(tmp_path / "seed")
    assert {"user-data", "meta-data", "vendor-data", "shoal/install.pyz"} <= set(found)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "seed").rglob("*") if path.is_file()} == {0o600}
    assert written.method == "cloudinit"
    with pytest.raises(FlashError, match="not empty"):
        card.write_seed(tmp_path / "seed", made, AT)


def order(path: Path, target: Path | Disk, **more) -> Order:
    return Order(image=path, target=target, **more)


CLAIM = Claim(TOKEN, "0123456789ab", "pi4", 1e9)


def silent(*_: object) -> None:
    pass


def test_a_packed_image_becomes_a_card_with_a_receipt_that_tells_no_secret(made, tmp_path) -> None:
    path = image(tmp_path, TRIXIE)
    with zipfile.ZipFile(tmp_path / "os.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(path, "os.img")
    made = evolve(made, wifi=wifi("Home", "correct horse", "DE"))
    receipt = flashing.flash(order(tmp_path / "os.zip", tmp_path / "out.img"), lambda: CLAIM, lambda _: made, silent)
    assert (tmp_path / "out.img").stat().st_mode & 0o777 == 0o600
    found = cards.extract(tmp_path / "out.img", START, tmp_path / "read")
    assert receipt.files["shoal/install.pyz"]["size"] == len(found["shoal/install.pyz"])
    text = json.dumps(asdict(receipt))
    assert TOKEN not in text
    assert TOKEN.split(".")[2] not in text
    assert made.wifi.psk not in text
    assert (receipt.group, receipt.method, receipt.image_checked) == ("pi4", "cloudinit", False)
    assert [path.name for path in tmp_path.glob(".shoal-flash-*")] == []
    about = flashing.manifest(tmp_path / "out.img", receipt.method, silent)["os_list"][0]
    assert (about["init_format"], about["extract_size"]) == ("cloudinit-rpi", (tmp_path / "out.img").stat().st_size)


def test_an_image_with_another_sum_is_refused_before_a_token_is_made(made, tmp_path) -> None:
    path = image(tmp_path, TRIXIE)

    def claim() -> Claim:
        raise AssertionError("a token was made for nothing")

    with pytest.raises(FlashError, match="expected 00"):
        flashing.flash(order(path, tmp_path / "out.img", sha256="00" * 32), claim, lambda _: made, silent)
    (tmp_path / "os.img.sha256").write_text("11" * 32 + "  os.img\n")
    with pytest.raises(FlashError, match="expected 11"):
        flashing.flash(order(path, tmp_path / "out.img"), claim, lambda _: made, silent)
    (tmp_path / "os.img.sha256").unlink()
    small = Disk(tmp_path / "card", "sdb", "", 1 << 20, True)
    with pytest.raises(FlashError, match="has 1048576 bytes"):
        flashing.flash(order(path, small), claim, lambda _: made, silent)
    assert not (tmp_path / "out.img").exists()


def test_a_disk_gets_the_whole_card(made, tmp_path) -> None:
    path = image(tmp_path, TRIXIE)
    target = tmp_path / "disk"
    target.write_bytes(bytes([255]) * (path.stat().st_size + 4096))
    receipt = flashing.flash(
        order(path, Disk(target, "sdb", "", target.stat().st_size, True)), lambda: CLAIM, lambda _: made, silent
    )
    assert receipt.output == str(target)
    assert "shoal/secrets.json" in cards.extract(target, START, tmp_path / "read")


def test_only_public_keys_are_taken() -> None:
    assert card.ssh_keys(f"# mine\n{KEY}\n") == (KEY,)
    with pytest.raises(FlashError, match="private"):
        card.ssh_keys("-----BEGIN OPENSSH PRIVATE KEY-----\nsecret\n")
    with pytest.raises(FlashError, match="not the begin"):
        card.ssh_keys("password\n")
    with pytest.raises(FlashError, match="no public"):
        card.ssh_keys("\n")
