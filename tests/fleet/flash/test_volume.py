from __future__ import annotations

import os
import string
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coordinator.fleet.flash.entries import fold
from coordinator.fleet.flash.errors import FlashError
from coordinator.fleet.flash.partitions import partitions
from coordinator.fleet.flash.volume import Volume, boot_partition
from tests.fleet.flash import cards
from tests.fleet.flash.cards import START, Shape

AT = datetime(2026, 3, 31, 12, 30, 10, tzinfo=UTC)
SHAPES = [Shape(16, 16, 4), Shape(32, 40, 1), Shape(32, 40, 1, "gpt"), Shape(16, 16, 4, "none")]


@pytest.fixture(autouse=True)
def judges():
    cards.needs_programs()


@pytest.fixture
def image(tmp_path) -> Path:
    return Shape(32, 40, 1).make(tmp_path / "card.img")


def changed(image: Path):
    file = open(image, "r+b")  # noqa: SIM115 - closed by the caller
    return file, boot_partition(file, AT)[1]


LETTERS = string.ascii_letters + string.digits + " ._-+,;=[]~äÖß€λ漢字🙂"
NAMES = st.text(LETTERS, min_size=1, max_size=40).filter(
    lambda name: name == name.strip(". ") and not name.startswith("~")
)
PATHS = st.tuples(st.sampled_from(["", "overlays/", "a longer folder/"]), NAMES).map("".join)
ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), PATHS, st.binary(max_size=40) | st.integers(0, 9000).map(os.urandom)),
        st.tuples(st.just("rewrite"), st.integers(0, 50), st.integers(0, 5000).map(os.urandom)),
        st.tuples(st.just("remove"), st.integers(0, 50), st.none()),
        st.tuples(st.just("reopen"), st.none(), st.none()),
    ),
    max_size=40,
)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"fat{shape.bits}-{shape.table}")
@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(actions=ACTIONS)
def test_what_is_written_is_what_other_programs_read(shape: Shape, actions) -> None:
    """Any sequence of writes, replacements and removals: mtools reads every byte, fsck.vfat finds nothing."""
    with tempfile.TemporaryDirectory() as folder:
        image = shape.make(Path(folder) / "card.img")
        file, volume = changed(image)
        expected: dict[str, bytes | None] = {}
        for name in ("overlays", "a longer folder"):
            volume.make_folder(name)
            expected[name] = None
        known = {fold(name): name for name in expected}
        for action, which, content in actions:
            files = [name for name in expected if expected[name] is not None]
            if action == "write":
                name = known.setdefault(fold(which), which)
                if expected.get(name, b"") is not None:
                    volume.write(which, content)
                    expected[name] = content
            elif action == "reopen":
                file.close()
                file, volume = changed(image)
            elif files:
                name = files[which % len(files)]
                if action == "rewrite":
                    volume.write(name.swapcase() if name.isascii() else name, content)
                    expected[name] = content
                else:
                    volume.remove(name)
                    del expected[name], known[fold(name)]
        assert {name: volume.read(name) for name, content in expected.items() if content is not None} == {
            name: content for name, content in expected.items() if content is not None
        }
        file.close()
        assert cards.extract(image, shape.start, Path(folder) / "read") == expected
        cards.check(image, shape.start, shape.mib << 20, Path(folder) / "volume")


def test_a_file_written_by_other_programs_is_found_whatever_its_case_and_keeps_its_name(image, tmp_path) -> None:
    (tmp_path / "cmdline.txt").write_bytes(b"console=tty1\n")
    cards.program("mcopy", "-i", f"{image}@@{START}", tmp_path / "cmdline.txt", "::CMDLINE.TXT")
    cards.program("mcopy", "-i", f"{image}@@{START}", tmp_path / "cmdline.txt", "::lower.txt")  # flags, no long name
    file, volume = changed(image)
    with file:
        assert volume.read("/cmdline.txt") == b"console=tty1\n"
        assert [item.name for item in volume.items()] == ["CMDLINE.TXT", "lower.txt"]
        volume.write("/cmdline.txt", b"quiet")
        volume.write("LOWER.TXT", b"")
        assert [(item.name, item.size) for item in volume.items()] == [("CMDLINE.TXT", 5), ("lower.txt", 0)]
    assert cards.extract(image, START, tmp_path / "read") == {"CMDLINE.TXT": b"quiet", "lower.txt": b""}


def test_both_tables_stay_in_step_and_the_free_space_is_told_rightly(image, tmp_path) -> None:
    file, volume = changed(image)
    with file:
        before = volume.free
        volume.write("big", bytes(1_000_000))
        assert before - volume.free == volume.room([1_000_000]) == 1_000_448
        volume.remove("big")
        assert volume.free == before
        volume.write("small", b"x")
        tables = volume._geometry.tables
        first, second = (volume._window.read(at, tables[1] - tables[0]) for at in tables)
        assert first == second
        free = int.from_bytes(volume._window.read(volume._geometry.info + 488, 4), "little")
        assert free * 512 == volume.free
    cards.check(image, START, 40 << 20, tmp_path / "volume")


@pytest.mark.parametrize("shape", [Shape(16, 16, 4), Shape(32, 40, 1)], ids=["fat16", "fat32"])
def test_a_full_partition_is_refused_and_left_as_it_was(shape, tmp_path) -> None:
    image = shape.make(tmp_path / "card.img")
    file, volume = changed(image)
    with file:
        volume.write("kept", b"kept")
        free = volume.free
        with pytest.raises(FlashError, match=r"full: \d+ bytes are missing"):
            volume.write("huge", bytes(free + 1))
        with pytest.raises(FlashError, match="full"):
            volume.write("kept", bytes(free + 1))
        assert volume.free == free
        assert volume.read("kept") == b"kept"
        volume.write("exact", bytes(free))
        with pytest.raises(FlashError, match="full"):
            volume.make_folder("folder")
        assert volume.free == 0
    cards.check(image, START, shape.mib << 20, tmp_path / "volume")


def test_a_folder_grows_and_the_root_of_fat16_does_not(tmp_path) -> None:
    image = Shape(16, 16, 4).make(tmp_path / "card.img")
    file, volume = changed(image)
    with file:
        volume.make_folder("many")
        for number in range(40):
            volume.write(f"many/a long enough name, number {number}", b"")
        for number in range(10, 35):  # of 512 entries 3 are taken, each name needs 19 and a short one: 9 are left
            volume.write("x" * 240 + str(number), b"")
        with pytest.raises(FlashError, match="root folder of the boot partition is full"):
            volume.write("x" * 240 + "35", b"")
    read = cards.extract(image, START, tmp_path / "read")
    assert sum(name.startswith("many/") for name in read) == 40
    cards.check(image, START, 16 << 20, tmp_path / "volume")


@pytest.mark.parametrize(
    "name", ["", "a:b", "a\\b", "dot.", "space ", "\ud800", "x" * 256, 'quote"', "new\nline", ".."]
)
def test_a_name_that_fat_cannot_hold_is_refused(image, name) -> None:
    file, volume = changed(image)
    with file:
        with pytest.raises(FlashError):
            volume.write(f"/{name}", b"x")
        assert volume.items() == []


def test_files_and_folders_are_not_taken_for_each_other(image) -> None:
    file, volume = changed(image)
    with file:
        volume.make_folder("folder")
        volume.make_folder("FOLDER")
        volume.write("folder/file", b"x")
        for refused in (
            lambda: volume.write("folder", b"x"),
            lambda: volume.make_folder("folder/file"),
            lambda: volume.write("folder/file/below", b"x"),
            lambda: volume.write("nowhere/file", b"x"),
            lambda: volume.read("folder"),
            lambda: volume.read("nothing"),
            lambda: volume.remove("folder"),
        ):
            with pytest.raises(FlashError):
                refused()
        volume.remove("folder/file")
        volume.remove("folder")
        assert volume.items() == []


def test_a_volume_is_given_another_label(image, tmp_path) -> None:
    file, volume = changed(image)
    with file:
        volume.relabel("CIDATA")
        assert volume.label == "CIDATA"
    assert "CIDATA" in cards.program("mlabel", "-s", "-i", f"{image}@@{START}")
    cards.check(image, START, 40 << 20, tmp_path / "volume")


@pytest.mark.parametrize("table", ["mbr", "gpt"])
def test_partitions_are_found_in_both_kinds_of_tables(table, tmp_path) -> None:
    image = Shape(32, 40, 1, table).make(tmp_path / "card.img")
    with open(image, "rb") as file:
        (found,) = partitions(file)
    assert (found.start, found.size, found.fat) == (START, 40 << 20, True)
    assert found.number == (2 if table == "gpt" else 1)


@pytest.mark.parametrize("table", ["mbr", "gpt"])
def test_an_image_that_was_cut_short_is_refused(table, tmp_path) -> None:
    image = Shape(32, 40, 1, table).make(tmp_path / "card.img")
    os.truncate(image, 20 << 20)
    with open(image, "rb") as file, pytest.raises(FlashError, match="cut short"):
        boot_partition(file, AT)


@pytest.mark.parametrize(
    "content", [b"", b"x" * 600, bytes(510) + b"\x55\xaa", bytes(446) + b"\xee" * 64 + b"\x55\xaa"]
)
def test_what_is_no_image_is_refused(content, tmp_path) -> None:
    (tmp_path / "odd.img").write_bytes(content.ljust(700, b"\0") if content else b"")
    with open(tmp_path / "odd.img", "rb") as file, pytest.raises(FlashError):
        boot_partition(file, AT)


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    st.lists(st.tuples(st.integers(0, 4095), st.binary(min_size=1, max_size=8)), min_size=1, max_size=6), st.booleans()
)
def test_a_damaged_file_system_is_refused_by_a_sentence(small: Path, flips, tables) -> None:
    """Any bytes in the boot sector, FSInfo and the begin of the tables: refused or read, never another exception."""
    with tempfile.TemporaryFile() as file:
        file.write(small.read_bytes())
        for at, content in flips:
            file.seek((32 * 512 if tables else 0) + at)
            file.write(content)
        try:
            volume = boot_partition(file, AT)[1]
            volume.make_folder("folder")
            volume.write("folder/file", b"x" * 2000)
            volume.items()
        except FlashError:
            pass


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    cards.needs_programs()
    return Shape(32, 2, 1, "none").make(tmp_path_factory.mktemp("small") / "card.img")


def test_forty_megabytes_are_written_in_a_moment(tmp_path, capsys) -> None:
    """The figure is printed; only that every byte arrives is judged."""
    image = Shape(32, 256, 1).make(tmp_path / "card.img")
    files = {f"bundle-{number}.tar.xz": os.urandom(10 << 20) for number in range(4)}
    started = time.perf_counter()
    file, volume = changed(image)
    with file:
        for name, content in files.items():
            volume.write(name, content)
        file.flush()
        os.fsync(file.fileno())
    seconds = time.perf_counter() - started
    with capsys.disabled():
        print(f"\n40 MiB onto a FAT32 of 512-byte clusters: {seconds:.2f} s")
    assert cards.extract(image, START, tmp_path / "read") == files


def test_a_volume_never_writes_outside_its_partition(tmp_path) -> None:
    image = Shape(16, 16, 4).make(tmp_path / "card.img")
    with open(image, "r+b") as file:
        file.seek(START + (16 << 20))
        file.write(b"root" * 1000)
    before = image.read_bytes()
    file, volume = changed(image)
    with file:
        volume.write("file", os.urandom(volume.free))
    after = image.read_bytes()
    assert after[:START] == before[:START]
    assert after[START + (16 << 20) :] == before[START + (16 << 20) :]
    assert isinstance(volume, Volume)
