"""A backup is whole or not there, a restored home goes on, and a copied database has every row."""

from __future__ import annotations

import io
import os
import tarfile

import pytest
from alembic import command
from sqlalchemy import insert, inspect, select, text

from benchmarks.fleet import Fleet
from coordinator.errors import ShoalError
from coordinator.settings import sqlite_url
from coordinator.store import archive, copying
from coordinator.store.blobs import Blobs
from coordinator.store.database import Database, _config
from coordinator.store.models import Base, Event, Input, Snapshot, Update
from coordinator.store.segments import Segments
from coordinator.store.views import metadata as history
from tests.conftest import BACKENDS, NEWEST
from tests.store import killing

SEEDS = range(20 if os.environ.get("SHOAL_SOAK") == "1" else 3)
TABLES = list(Base.metadata.tables.values())
VIEWS = list(history.tables.values())


@pytest.fixture
def home(tmp_path):
    folder = tmp_path / "home"
    folder.mkdir()
    (folder / "tls").mkdir()
    (folder / "tls" / "ca.pem").write_text("certificate")
    (folder / "shoal.toml").write_text('name = "shoal.local"\n')
    (folder / "release.key").touch(0o600)
    (folder / "release.key").write_text("key")
    return folder


@pytest.fixture
def blob(home):
    return Blobs(home / "blobs").put(b"a snapshot")


@pytest.fixture(params=BACKENDS)
def fleet(request, home, blob, new_database, migrated):
    """A home with a past: two bodies in a segment, one snapshot."""
    if request.param == "sqlite":
        (home / "shoal.db").write_bytes(migrated.read_bytes())
    url = sqlite_url(home / "shoal.db") if request.param == "sqlite" else new_database(request.param)
    database = Database(url)
    Fleet().write(database)
    segments = Segments(home / "segments")
    place = segments.append(b"a body")
    segments.close()
    with database.write() as session:
        session.execute(insert(Snapshot).values(run_id="digits-1", seq=1, version=0, sha256=blob, at=0.0))
        session.execute(text('UPDATE "update" SET segment = 1'))
        body = {"update": {}, "place": list(place)}
        session.execute(insert(Input).values(seq=1, run_id="digits-1", kind="delivered", body=body, at=0.0))
    yield database
    database.close()


def prints(database):
    with database.engine.connect() as connection:
        return {table.name: copying.fingerprint(connection, table) for table in TABLES}


def silent(table, rows):
    pass


def test_what_was_backed_up_is_what_is_restored(fleet, home, tmp_path, blob):
    file, new = tmp_path / "shoal.tar", tmp_path / "new"
    new.mkdir()
    made = archive.backup(home, fleet.url, file)
    assert (made.missing, made.rows["device"], made.revision) == ((), 12, NEWEST)
    assert file.stat().st_mode & 0o777 == 0o600
    url = sqlite_url(new / "shoal.db")
    archive.restore(file, new, url)
    restored = Database(url)
    assert prints(restored) == prints(fleet)
    restored.close()
    assert Blobs(new / "blobs").get(blob) == b"a snapshot"
    assert Segments(new / "segments").read(1, 0, 6) == b"a body"
    assert (new / "tls" / "ca.pem").read_text() == "certificate"
    assert (new / "shoal.toml").exists()
    assert (new / "release.key").read_text() == "key"
    assert (new / "release.key").stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in home.iterdir() if path.name.startswith(".")) == []


def test_the_weights_that_a_run_began_with_are_part_of_it(fleet, home, tmp_path):
    given = Blobs(home / "blobs").put(b"first weights")
    with fleet.write() as session:
        session.execute(text("UPDATE run SET initial_sha256 = :given WHERE id = 'digits-1'"), {"given": given})
    assert archive.backup(home, fleet.url, tmp_path / "shoal.tar").missing == ()
    Blobs(home / "blobs").remove(given)
    assert archive.backup(home, fleet.url, tmp_path / "short.tar").missing == (f"blobs/{given[:2]}/{given}",)


def test_the_files_of_releases_are_part_of_it(fleet, home, tmp_path):
    given = Blobs(home / "blobs").put(b"a bundle")
    manifest = '{"files": [{"name": "aarch64-cp313", "sha256": "%s", "size": 8}]}' % given  # noqa: UP031 - braces
    with fleet.write() as session:
        session.execute(text("UPDATE release SET manifest = :manifest WHERE id = 2"), {"manifest": manifest})
    assert archive.backup(home, fleet.url, tmp_path / "shoal.tar").missing == ()
    Blobs(home / "blobs").remove(given)
    assert archive.backup(home, fleet.url, tmp_path / "short.tar").missing == (f"blobs/{given[:2]}/{given}",)


def test_a_backup_is_restored_into_postgresql_as_well(fleet, home, tmp_path, new_database):
    file, new = tmp_path / "shoal.tar", tmp_path / "new"
    new.mkdir()
    archive.backup(home, fleet.url, file)
    url = new_database("postgresql", migrated=False)
    archive.restore(file, new, url)
    restored = Database(url)
    assert prints(restored) == prints(fleet)
    restored.close()


def test_a_database_of_an_older_program_can_be_backed_up_before_it_is_upgraded(home, tmp_path):

    database = Database(sqlite_url(home / "shoal.db"))
    with database.engine.begin() as connection:
        command.upgrade(_config(connection), "0001")
    made = archive.backup(home, database.url, tmp_path / "shoal.tar")
    assert (made.revision, "telemetry_5m" in made.rows) == ("0001", False)
    database.close()


def test_files_that_are_gone_are_named(fleet, home, tmp_path, blob):
    Blobs(home / "blobs").remove(blob)
    made = archive.backup(home, fleet.url, tmp_path / "shoal.tar")
    assert made.missing == (f"blobs/{blob[:2]}/{blob}",)


def test_a_backup_is_taken_while_the_writer_writes(fleet, home, tmp_path):
    with fleet.write() as session:
        session.add(Event(seq=10_000, at=0.0, kind="x", text="not committed yet"))
        session.flush()
        made = archive.backup(home, fleet.url, tmp_path / "shoal.tar")
        with fleet.read() as other:
            assert made.rows["event"] == len(other.execute(select(Event.seq)).all())


def test_a_home_in_use_is_not_restored_over(fleet, home, tmp_path):
    file = tmp_path / "shoal.tar"
    archive.backup(home, fleet.url, file)
    with pytest.raises(ShoalError, match=r"There is a (database|folder) .* already") as caught:
        archive.restore(file, home, sqlite_url(home / "shoal.db"))
    assert caught.value.code == "conflict"


def damaged(file, change):
    """The same archive with other members."""
    with tarfile.open(file) as tar:
        members = [(one, tar.extractfile(one).read()) for one in tar]
    with tarfile.open(file, "w") as tar:
        for one, content in change(members):
            one.size = len(content)
            tar.addfile(one, io.BytesIO(content))


def test_a_damaged_archive_is_refused_and_the_home_stays_empty(fleet, home, tmp_path):
    file, new = tmp_path / "shoal.tar", tmp_path / "new"
    new.mkdir()

    def flipped(name):
        return lambda members: [(m, c[:-1] + b"x" if m.name.startswith(name) else c) for m, c in members]

    def escaping(members):
        return [*members, (tarfile.TarInfo("../evil"), b"x")]

    for change in (flipped("shoal.db"), flipped("blobs/"), lambda members: members[:-1], escaping):
        archive.backup(home, fleet.url, file)
        damaged(file, change)
        with pytest.raises(ShoalError, match="is no backup") as caught:
            archive.restore(file, new, sqlite_url(new / "shoal.db"))
        assert caught.value.code == "bad-request"
        assert list(new.iterdir()) == []
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(ShoalError, match="is no backup, or damaged"):
        archive.restore(file, new, sqlite_url(new / "shoal.db"))
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_copy_has_every_row_and_goes_on_counting(fleet, new_database, backend):
    target = Database(new_database(backend, migrated=False))
    told = []
    sent = copying.copy(fleet, target, lambda table, rows: told.append((table, rows)))
    assert prints(target) == prints(fleet) == sent
    assert ("update", 384) in told
    with target.write() as session:  # the next keys are free
        session.add(Event(at=0.0, kind="x", text=""))
        row = session.execute(select(Update).limit(1)).scalar_one()
        values = {column.name: getattr(row, column.name) for column in Update.__table__.columns if column.name != "id"}
        session.execute(insert(Update).values(**{**values, "commit": 2}))
    target.close()


def test_a_copy_into_a_database_in_use_is_refused(fleet):
    with pytest.raises(ShoalError, match=r"is in use: .* has rows already") as caught:
        copying.copy(fleet, fleet, silent)
    assert caught.value.code == "conflict"


def test_a_copy_that_differs_is_taken_back(fleet, new_database, monkeypatch):
    target = Database(new_database("sqlite"))
    monkeypatch.setattr(copying, "fingerprint", lambda connection, table: copying.Fingerprint(0, ""))
    with pytest.raises(ShoalError, match="arrived as 0 rows"):
        copying.copy(fleet, target, silent)
    monkeypatch.undo()
    assert sum(one.rows for one in prints(target).values()) == 0
    target.close()


class TestKilled:
    """Killed at some moment: before or after, never between."""

    @pytest.fixture(scope="class")
    def big(self, tmp_path_factory, migrated):
        home = tmp_path_factory.mktemp("big")
        (home / "shoal.db").write_bytes(migrated.read_bytes())
        database = Database(sqlite_url(home / "shoal.db"))
        Fleet(updates=1000).write(database)
        for number in range(20):
            Blobs(home / "blobs").put(bytes([number]) * 100_000)
        whole = prints(database)
        database.close()
        return home, sqlite_url(home / "shoal.db"), whole

    def test_a_backup(self, big, tmp_path):
        home, url, whole = big
        file = tmp_path / "shoal.tar"

        def work():
            archive.backup(home, url, file)

        usual = killing.seconds(work)
        for seed in SEEDS:
            file.unlink(missing_ok=True)
            killing.killed(work, usual, seed)
            if file.exists():
                self.restores(file, tmp_path / f"after-{seed}", whole)
        work()
        self.restores(file, tmp_path / "last", whole)
        assert not list(home.glob(".backup-*"))

    def test_a_restoration(self, big, tmp_path):
        home, url, whole = big
        file = tmp_path / "shoal.tar"
        archive.backup(home, url, file)

        def into(new):
            new.mkdir()
            return lambda: archive.restore(file, new, sqlite_url(new / "shoal.db"))

        usual = killing.seconds(into(tmp_path / "usual"))
        for seed in SEEDS:
            new = tmp_path / f"new-{seed}"
            work = into(new)
            killing.killed(work, usual, seed)
            if not (new / "shoal.db").exists():
                work()
            database = Database(sqlite_url(new / "shoal.db"))
            assert prints(database) == whole
            assert len(list((new / "blobs").glob("*/*"))) == 20
            database.close()

    def restores(self, file, new, whole):
        new.mkdir()
        archive.restore(file, new, sqlite_url(new / "shoal.db"))
        database = Database(sqlite_url(new / "shoal.db"))
        assert prints(database) == whole
        database.close()

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_a_copy(self, big, new_database, backend):
        _, url, whole = big

        def into(target):
            def work():
                ends = Database(url, read_only=True), Database(target)
                copying.copy(*ends, silent)

            return work

        usual = killing.seconds(into(new_database(backend)))
        for seed in SEEDS:
            target = new_database(backend, migrated=False)
            killing.killed(into(target), usual, seed)
            database = Database(target)
            database.upgrade()
            if prints(database) != whole:
                assert sum(one.rows for one in prints(database).values()) == 0
                into(target)()
                assert prints(database) == whole
            database.close()

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_a_migration(self, new_database, backend):

        def older():
            url = new_database(backend)
            database = Database(url)
            with database.engine.begin() as connection:
                command.downgrade(_config(connection), "0001")
            database.close()
            return url

        def upgrade(url):
            return lambda: Database(url).upgrade()

        usual = killing.seconds(upgrade(older()))
        for seed in SEEDS:
            url = older()
            killing.killed(upgrade(url), usual, seed)
            database = Database(url)
            found = database.revision()[0]
            views = inspect(database.engine).get_view_names()
            assert (found, len(views)) in (("0001", 0), (NEWEST, len(VIEWS)))
            database.upgrade()
            assert database.revision()[0] == NEWEST
            database.close()
