from __future__ import annotations

import shutil

import pytest

from coordinator.settings import sqlite_url
from coordinator.store.database import Database


@pytest.fixture(scope="session")
def migrated(tmp_path_factory):
    """An empty database of the newest revision."""
    path = tmp_path_factory.mktemp("migrated") / "shoal.db"
    database = Database(sqlite_url(path))
    database.upgrade()
    database.close()
    return path


@pytest.fixture
def path(tmp_path, migrated):
    """A copy of it."""
    return shutil.copy(migrated, tmp_path / "shoal.db")


@pytest.fixture
def database(path):
    database = Database(sqlite_url(path))
    yield database
    database.close()
