from __future__ import annotations

import shutil

import pytest

from coordinator.settings import sqlite_url
from coordinator.store.database import Database

from .house import House


@pytest.fixture(scope="session")
def migrated(tmp_path_factory):
    """An empty database of the newest revision; copied for every test."""
    path = tmp_path_factory.mktemp("migrated") / "shoal.db"
    database = Database(sqlite_url(path))
    database.upgrade()
    database.close()
    return path


@pytest.fixture
def house(tmp_path, migrated):
    """A steward at work in an empty home."""
    home = tmp_path / "home"
    home.mkdir()
    shutil.copy(migrated, home / "shoal.db")
    house = House(home).open()
    yield house
    house.close()
