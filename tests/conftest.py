from __future__ import annotations

import os
import shutil
from importlib.util import find_spec
from itertools import count
from pathlib import Path

import pytest

from coordinator.settings import sqlite_url
from coordinator.store.database import Database
from tests import postgresql

BACKENDS = ("sqlite", "postgresql")
NEWEST = max(path.name[:4] for path in (Path(__file__).parents[1] / "migrations" / "versions").glob("0*.py"))
"""The newest revision of the database."""

# What PyTorch judges can only be asked where it is installed.
JUDGED = ["compiler/test_numerics.py", "compiler/test_onnx_torch.py", "compiler/test_signatures.py"]
collect_ignore = [] if find_spec("torch") else JUDGED


def pytest_report_header() -> list[str]:
    left_out = ", ".join(f"tests/{path}" for path in collect_ignore)
    return [f"PyTorch is not installed (make oracle): {left_out} are left out"] if left_out else []


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the soak tests out unless SHOAL_SOAK=1."""
    if os.environ.get("SHOAL_SOAK") == "1":
        return
    soak = [item for item in items if item.get_closest_marker("soak")]
    if soak:
        config.hook.pytest_deselected(items=soak)
        items[:] = [item for item in items if not item.get_closest_marker("soak")]


@pytest.fixture(scope="session")
def cluster():
    """A PostgreSQL of the test run's own; in CI it has to be there."""
    programs = postgresql.binaries()
    if programs is None:
        missing = "PostgreSQL is not installed (apt-get install postgresql)"
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)
    with postgresql.cluster(programs) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def migrated(tmp_path_factory):
    """An empty SQLite file of the newest revision, to be copied."""
    path = tmp_path_factory.mktemp("migrated") / "shoal.db"
    database = Database(sqlite_url(path))
    database.upgrade()
    database.close()
    return path


@pytest.fixture(scope="session")
def new_database(request, migrated, tmp_path_factory):
    """``new_database(backend)`` makes an empty database, of the newest revision unless ``migrated=False``; its URL."""
    numbers = count(1)

    def make(backend: str, *, migrated: bool = True) -> str:
        if backend == "postgresql":
            return request.getfixturevalue("cluster").create(f"test{next(numbers)}", migrated=migrated)
        path = tmp_path_factory.mktemp("database") / "shoal.db"
        if migrated:
            shutil.copy(request.getfixturevalue("migrated"), path)
        return sqlite_url(path)

    return make
