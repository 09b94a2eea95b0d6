from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import zipfile
from pathlib import Path

import pytest
from attrs import evolve
from packaging.requirements import Requirement

from coordinator.errors import ShoalError
from coordinator.fleet import bundles
from coordinator.fleet.bundles import TARGETS, Bundle, Target

ROOT = Path(__file__).parents[2]
TINY = Target("aarch64", "3.13", ("tiny==1.0",))


def wheel(folder: Path, files: dict[str, str], tag: str = "py3-none-any") -> Path:
    path = folder / f"tiny-1.0-{tag}.whl"
    about = "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n"
    kind = f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n"
    record = {"METADATA": about, "WHEEL": kind, "RECORD": ""}
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in {**files, **{f"tiny-1.0.dist-info/{name}": text for name, text in record.items()}}.items():
            archive.writestr(name, text)
    return path


FILES = {
    "tiny/__init__.py": "value = 1\n",
    "tiny/tests/test_tiny.py": "assert False\n",
    "tiny/typing.pyi": "",
    "tiny-1.0.data/purelib/tiny_more.py": "value = 2\n",
    "tiny-1.0.data/scripts/tiny": "#!python\n",
}


def names(bundle: Bundle) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(bundle.read())) as archive:
        return {info.name: info for info in archive}


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Bundle:
    folder = tmp_path_factory.mktemp("wheels")
    wheel(folder, FILES, "cp313-cp313-manylinux_2_28_aarch64")
    return bundles.build(TINY, tmp_path_factory.mktemp("bundles"), folder)


def test_a_bundle_holds_the_agent_and_what_wheels_put_on_the_import_path(built) -> None:
    found = names(built)
    assert {"protocol/messages.py", "device_agent/cli.py", "tiny/__init__.py", "tiny_more.py"} <= set(found)
    assert not {"tiny/tests/test_tiny.py", "tiny/typing.pyi", "tiny-1.0.data/scripts/tiny"} & set(found)
    assert not [name for name in found if name.startswith(("coordinator", "web")) or "__pycache__" in name]
    with tarfile.open(built.path) as archive:
        about = json.load(archive.extractfile("bundle.json"))
    assert about.pop("version") == built.version
    assert about == {"arch": "aarch64", "python": "3.13", "wheels": ["tiny==1.0"], "board": []}


def test_the_same_wheels_give_the_same_bytes_named_by_their_sum(built, tmp_path) -> None:
    wheel(tmp_path, FILES, "cp313-cp313-manylinux_2_28_aarch64")
    again = bundles.build(TINY, tmp_path / "bundles", tmp_path)
    assert again.sha256 == built.sha256 == hashlib.sha256(again.path.read_bytes()).hexdigest()
    assert {(info.mtime, info.uid, info.mode) for info in names(again).values()} == {(1_577_836_800, 0, 0o644)}


def test_a_wheel_of_another_machine_is_not_taken(tmp_path) -> None:
    wheel(tmp_path, FILES, "cp313-cp313-manylinux_2_28_x86_64")
    with pytest.raises(ShoalError, match="wheels for aarch64-cp313 cannot be had"):
        bundles.build(TINY, tmp_path / "bundles", tmp_path)
    assert bundles.listed(tmp_path / "bundles") == []


def test_a_wheel_that_would_write_elsewhere_is_refused(tmp_path) -> None:
    wheel(tmp_path, {"tiny/../../escape.py": ""})
    with pytest.raises(ShoalError, match="outside its folder"):
        bundles.build(TINY, tmp_path / "bundles", tmp_path)


def test_cards_get_the_newest_bundle_of_each_target_and_a_damaged_one_is_refused(built, tmp_path) -> None:
    older = tmp_path / built.path.name
    older.write_bytes(b"older")
    newer = tmp_path / built.path.name.replace(built.sha256, "a" * 64)
    newer.write_bytes(b"newer")
    os.utime(older, (1000, 1000))
    (tmp_path / "something.tar.xz").touch()
    assert [one.path for one in bundles.listed(tmp_path)] == [newer, older]
    assert bundles.newest(tmp_path)["aarch64-cp313"].path == newer
    with pytest.raises(ShoalError, match="damaged"):
        bundles.newest(tmp_path)["aarch64-cp313"].read()


def test_targets_are_found_by_name() -> None:
    assert [bundles.target(one.name) for one in TARGETS] == list(TARGETS)
    with pytest.raises(ShoalError, match="only aarch64-cp311"):
        bundles.target("riscv64-cp313")
    assert evolve(TINY, python="3.9").name == "aarch64-cp39"


@pytest.mark.parametrize("target", TARGETS, ids=lambda one: one.name)
def test_what_is_packed_is_what_was_tested(target) -> None:
    """Every wheel has the version that constraints.txt names for that Python."""
    pinned = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            one = Requirement(line)
            if one.marker is None or one.marker.evaluate({"python_version": target.python}):
                pinned[one.name.lower().replace("_", "-").replace(".", "-")] = str(one.specifier)
    for text in target.wheels:
        one = Requirement(text)
        assert pinned[one.name.lower().replace("_", "-").replace(".", "-")] == str(one.specifier), text
