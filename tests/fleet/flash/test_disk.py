"""A machine with disks, as a folder like /sys tells of them: sda holds the system, sdb is a card in a reader."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from coordinator.fleet.flash import disk
from coordinator.fleet.flash.disk import Machine
from coordinator.fleet.flash.errors import FlashError


@pytest.fixture
def machine(tmp_path) -> Machine:
    for name, parts, size in (("sda", ("sda1", "sda2"), 1), ("sdb", ("sdb1",), 2048), ("mmcblk0", ("mmcblk0p1",), 9)):
        top = tmp_path / "sys" / "block" / name
        (top / "device").mkdir(parents=True)
        (top / "holders").mkdir()
        (top / "size").write_text(f"{size}\n")
        (top / "removable").write_text("0\n" if name == "sda" else "1\n")
        (top / "ro").write_text("0\n")
        (top / "device" / "model").write_text("Card  Reader \n")
        for part in parts:
            (top / part / "holders").mkdir(parents=True)
            (top / part / "partition").write_text("1\n")
    (tmp_path / "mounts").write_text("/dev/sda2 / ext4 rw 0 0\nproc /proc proc rw 0 0\n")
    (tmp_path / "swaps").write_text("Filename Type Size Used Priority\n/dev/sda1 partition 1 0 -2\n")
    return Machine(tmp_path / "sys", tmp_path / "mounts", tmp_path / "swaps")


def test_a_card_is_told_with_its_model_and_size(machine) -> None:
    found = disk.whole(Path("/dev/sdb"), machine)
    assert (found.name, found.model, found.size, found.removable) == ("sdb", "Card Reader", 1 << 20, True)


def test_the_disk_of_the_system_is_refused(machine) -> None:
    with pytest.raises(FlashError, match="this system lives on it"):
        disk.whole(Path("/dev/sda"), machine)


def test_a_disk_with_swap_is_refused(machine) -> None:
    machine.mounts.write_text("")
    with pytest.raises(FlashError, match="in use"):
        disk.whole(Path("/dev/sda"), machine)


def test_a_mounted_card_is_refused(machine) -> None:
    with open(machine.mounts, "a") as file:
        file.write("/dev/mmcblk0p1 /media/card vfat rw 0 0\n")
    with pytest.raises(FlashError, match="in use at /media/card: unmount it first"):
        disk.whole(Path("/dev/mmcblk0"), machine)


def test_a_disk_that_carries_something_is_refused(machine) -> None:
    (machine.sys / "block" / "sdb" / "sdb1" / "holders" / "dm-0").mkdir()
    with pytest.raises(FlashError, match="dm-0 is built on it"):
        disk.whole(Path("/dev/sdb"), machine)


def test_a_partition_and_a_protected_card_are_refused(machine) -> None:
    with pytest.raises(FlashError, match="name the whole disk"):
        disk.whole(Path("/dev/sdb1"), machine)
    (machine.sys / "block" / "sdb" / "ro").write_text("1\n")
    with pytest.raises(FlashError, match="write-protected"):
        disk.whole(Path("/dev/sdb"), machine)


def test_a_file_is_no_disk(machine, tmp_path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "nothing"):
        with pytest.raises(FlashError, match=r"--output|cannot be looked at"):
            disk.disk(path, machine)


def test_what_is_burnt_is_read_back_whole(tmp_path) -> None:
    content = os.urandom(9 << 20)
    (tmp_path / "image").write_bytes(content)
    (tmp_path / "card").write_bytes(bytes([255]) * (12 << 20))
    seen = []
    disk.burn(tmp_path / "image", tmp_path / "card", lambda what, done, total: seen.append((what, done / total)))
    assert (tmp_path / "card").read_bytes() == content + bytes([255]) * (3 << 20)
    assert seen[-1] == ("reading back", 1)


def test_the_first_block_comes_last(tmp_path) -> None:
    """Whoever pulls the card out in between has one without a partition table."""
    (tmp_path / "image").write_bytes(b"table" + os.urandom(9 << 20))
    card = tmp_path / "card"
    card.write_bytes(b"older" * (2 << 20))
    heads = []
    disk.burn(tmp_path / "image", card, lambda what, done, total: heads.append((what, card.read_bytes()[:5])))
    assert {head for what, head in heads if what == "writing"} == {bytes(5)}
    assert heads[-1] == ("reading back", b"table")
