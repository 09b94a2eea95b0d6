"""docs/history.ipynb runs from the first cell to the last, on a coordinator with a made-up past."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from sqlalchemy import update

from benchmarks.fleet import Fleet
from coordinator.app import Coordinator
from coordinator.settings import Settings, sqlite_url
from coordinator.store.database import Database
from coordinator.store.models import Run

NOTEBOOK = Path(__file__).parents[1] / "docs" / "history.ipynb"
CELLS = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]


@pytest.fixture
def home(tmp_path, migrated, monkeypatch):
    """The home of a coordinator that is running, as the notebook looks for it."""
    home = tmp_path / "home"
    home.mkdir()
    shutil.copy(migrated, home / "shoal.db")
    database = Database(sqlite_url(home / "shoal.db"))
    Fleet().write(database)
    with database.write() as session:  # nobody is there to train for them
        session.execute(update(Run).values(state="finished", ended_at=Fleet().end))
    database.close()
    monkeypatch.setenv("SHOAL_HOME", str(home))
    monkeypatch.delenv("SHOAL_API_TOKEN", raising=False)
    monkeypatch.chdir(tmp_path)
    with Coordinator(Settings(home=home, port=0, mqtt_port=0)):
        yield home


def test_every_cell_runs_and_shows_what_the_ledger_holds(home):
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    names = {}
    for cell in CELLS:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"{NOTEBOOK.name} {cell['id']}", "exec"), names)
    assert list(names["runs"].index) == ["digits-1", "digits-2", "har-1"]
    assert names["runs"].loc["digits-1", "updates"] == len(names["updates"]) == len(names["ledger"])
    assert names["progress"]["accuracy"].is_monotonic_increasing
    assert names["ledger"]["bytes_up"].sum() == pytest.approx(names["by_hour"]["bytes_up"].sum())
    assert set(names["updates"]["outcome"]) <= {"stored", "applied", "stale", "refused", "expired"}
    assert len(pandas.read_parquet("updates.parquet")) == names["runs"]["updates"].sum()
    names["database"].close()


def test_it_is_a_clean_notebook():
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in CELLS}) == len(CELLS)
    for cell in CELLS:
        assert cell["cell_type"] == "markdown" or (cell["outputs"], cell["execution_count"]) == ([], None)
