from __future__ import annotations

import pytest

from coordinator.store.database import Database
from tests.conftest import BACKENDS


@pytest.fixture(params=BACKENDS)
def backend(request):
    """Which database a test runs on: both, unless its module says otherwise."""
    return request.param


@pytest.fixture
def path(database):
    """The file of a SQLite database."""
    return database.engine.url.database


@pytest.fixture
def database(backend, new_database):
    database = Database(new_database(backend))
    yield database
    database.close()
