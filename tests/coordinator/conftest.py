from __future__ import annotations

import shutil

import pytest
from flask import Flask

from coordinator import api, auth, operators
from coordinator.fleet import enrolment, tokens
from coordinator.services import Services
from coordinator.settings import Settings, sqlite_url
from coordinator.store.blobs import Blobs
from coordinator.store.database import Database
from tests.coordinator.people import BOARDS, HEARTBEAT, OPERATORS, START, Clock, DirectCommands, request_of


@pytest.fixture(scope="session")
def migrated(tmp_path_factory):
    """An empty database of the newest revision; copied for every test."""
    path = tmp_path_factory.mktemp("migrated") / "shoal.db"
    database = Database(sqlite_url(path))
    database.upgrade()
    database.close()
    return path


@pytest.fixture
def home(tmp_path, migrated):
    shutil.copy(migrated, tmp_path / "shoal.db")
    return tmp_path


@pytest.fixture
def database(home):
    database = Database(sqlite_url(home / "shoal.db"))
    yield database
    database.close()


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def services(home, database, clock):
    return Services(
        settings=Settings(home=home, heartbeat=HEARTBEAT, mqtt_port=1883),
        database=database,
        commands=DirectCommands(database, clock),
        blobs=Blobs(home / "blobs"),
        clock=clock,
    )


@pytest.fixture
def app(services):
    app = Flask("shoal")
    auth.install(app, services)
    api.install(app)
    return app


@pytest.fixture
def boards(services):
    """pico, tre and cinque have joined with one token of the group kitchen."""
    with services.database.write() as session:
        token = tokens.create(session, START, group="kitchen", uses=3, by="ada")
        for board in BOARDS:
            enrolment.enrol(session, request_of(board, token), START)
    return BOARDS


@pytest.fixture
def bearer(services):
    """The Authorization header of ada, olga and vic, each with an API token of their own role."""
    with services.database.write() as session:
        return {
            name: {
                "Authorization": "Bearer " + operators.mint_api(session, START, name=name, role=role, by="ada")
            }
            for name, role in OPERATORS.items()
        }
