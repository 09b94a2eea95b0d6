from __future__ import annotations

import shutil

import pytest

from coordinator import operators
from coordinator.app import create_app
from coordinator.services import Services
from coordinator.settings import Settings, sqlite_url
from coordinator.store.blobs import Blobs
from coordinator.store.database import Database
from tests.coordinator.people import OPERATORS, DirectCommands
from tests.web.fleet import NOW, write_fleet


class Clock:
    """Stands still until a test moves it."""

    now = NOW

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="session")
def empty_file(tmp_path_factory):
    """An empty database of the newest revision."""
    path = tmp_path_factory.mktemp("empty") / "shoal.db"
    database = Database(sqlite_url(path))
    database.upgrade()
    database.close()
    return path


@pytest.fixture(scope="session")
def fleet_file(empty_file, tmp_path_factory):
    """The same with twelve boards and three runs."""
    path = tmp_path_factory.mktemp("fleet") / "shoal.db"
    shutil.copy(empty_file, path)
    database = Database(sqlite_url(path))
    with database.write() as session:
        write_fleet(session, devices=12, minutes=5)
    database.close()
    return path


@pytest.fixture
def clock():
    return Clock()


def serve(file, home, clock):
    """An application over a copy of a database file."""
    shutil.copy(file, home / "shoal.db")
    database = Database(sqlite_url(home / "shoal.db"))
    commands = DirectCommands(database, clock)
    services = Services(Settings(home=home), database, commands, Blobs(home / "blobs"), clock)
    app = create_app(services)
    for part in ("shoal-answers", "shoal-figures"):
        app.extensions[part].price = lambda: 0.0  # how fast this machine is decides nothing
    return app, database


@pytest.fixture
def opened(fleet_file, tmp_path, clock):
    app, database = serve(fleet_file, tmp_path, clock)
    yield app, database
    database.close()


@pytest.fixture
def app(opened):
    return opened[0]


@pytest.fixture
def database(opened):
    return opened[1]


@pytest.fixture
def bare(empty_file, tmp_path, clock):
    """Olga, logged in where nothing has happened yet."""
    home = tmp_path / "bare"
    home.mkdir()
    app, database = serve(empty_file, home, clock)
    yield log_in(app, database, "olga")
    database.close()


def log_in(app, database, name):
    """A browser in which ada (admin), olga (operator) or vic (viewer) has opened a login link."""
    with database.write() as session:
        link = operators.mint_login(session, NOW, name=name, role=OPERATORS[name], by="local")
    client = app.test_client()
    assert client.get(f"/login/{link}").status_code == 302
    return client


def post(client, path, **fields):
    """Send a form as this browser would, with the token of its session."""
    with client.session_transaction() as session:
        token = session["csrf"]
    return client.post(path, data={"csrf": token, **fields})


@pytest.fixture
def ada(app, database):
    return log_in(app, database, "ada")


@pytest.fixture
def olga(app, database):
    return log_in(app, database, "olga")


@pytest.fixture
def vic(app, database):
    return log_in(app, database, "vic")
