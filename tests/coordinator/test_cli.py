"""The commands against a coordinator's API on a free port, and against its database while nothing runs."""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import socket
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import click
import pyarrow
import pytest
from attrs import evolve
from cheroot.ssl.builtin import BuiltinSSLAdapter
from cheroot.wsgi import Server
from click.testing import CliRunner
from flask import Flask, redirect
from pyarrow import parquet

from benchmarks.fleet import Fleet
from coordinator import __version__, api, auth, operators
from coordinator.cli import COMMANDS, main
from coordinator.fleet.authority import establish
from coordinator.home import claim
from coordinator.store.models import Device
from tests.conftest import NEWEST
from tests.coordinator.people import START, add_assignment, add_run, add_update


@pytest.fixture
def shoal(home):
    """Run ``shoal`` with some words, in the home folder of the test."""

    def run(*words, **environment):
        return CliRunner().invoke(main, list(words), env={"SHOAL_HOME": str(home), **environment})

    return run


def serve(app, certificate=None):
    server = Server(("127.0.0.1", 0), app, numthreads=2, timeout=2)
    if certificate is not None:
        server.ssl_adapter = BuiltinSSLAdapter(str(certificate.certificate), str(certificate.key))
    server.expiration_interval = 0.02  # how long stopping takes
    server.error_log = lambda *_, **__: None  # broken handshakes are part of the tests
    server.prepare()
    thread = threading.Thread(target=server.serve)
    thread.start()
    return server, thread


@pytest.fixture
def listening():
    """Serve an application on a free port of this machine; all are stopped in the end."""
    started = []

    def listen(app, certificate=None):
        server, thread = serve(app, certificate)
        started.append((server, thread))
        return server.bind_addr[1]

    yield listen
    for server, thread in started:
        server.stop()
        thread.join()


def announce(home, url, ca=None):
    (home / "coordinator.json").write_text(json.dumps({"url": url, "ca": ca, "pid": 1}))


@pytest.fixture
def running(app, services, home, boards, listening):
    """A coordinator with three devices and one run, announced in its home folder."""
    with services.database.write() as session:
        operators.ensure_local_token(session, home, START)
        add_run(session, "run-1", START)
        add_assignment(session, "a-1", "pico", START)
        for commit, outcome in enumerate(("applied", "stale", "refused"), start=1):
            add_update(session, "a-1", "pico", START + commit, commit=commit, outcome=outcome, reason="\x1b[2Jtoo late")
    url = f"http://127.0.0.1:{listening(app)}"
    announce(home, url)
    return url


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def on_a_terminal(code, columns):
    """What a program shows on a terminal so many characters wide."""
    terminal, end = pty.openpty()
    with closing(open(terminal, "rb", buffering=0)) as shown:
        environment = {**os.environ, "COLUMNS": str(columns), "TERM": "xterm"}
        subprocess.run([sys.executable, "-c", code], stdout=end, env=environment, check=True)
        os.close(end)
        return os.read(shown.fileno(), 65536).decode()


class TestHelp:
    def every(self, command, path=()):
        yield path, command
        if isinstance(command, click.Group):
            context = click.Context(command)
            for name in command.list_commands(context):
                yield from self.every(command.get_command(context, name), (*path, name))

    def test_every_command_explains_itself_with_an_example(self, shoal):
        commands = list(self.every(main))
        assert len(commands) > 25
        for path, _ in commands:
            shown = shoal(*path, "--help")
            assert shown.exit_code == 0, path
            assert "Example:" in shown.output, path

    def test_the_help_names_the_exit_codes_and_every_command(self, shoal):
        shown = shoal("--help").output
        assert "Exit codes: 0 done, 1 refused or failed, 2 wrong usage, 3 no coordinator" in shown
        assert all(f"  {name} " in shown for name in COMMANDS)

    def test_the_help_is_shown_without_importing_what_it_does_not_need(self):
        code = (
            "import sys; from coordinator.cli import main; main(['--help'], standalone_mode=False);"
            "print([m for m in ('flask', 'sqlalchemy', 'numpy', 'rich', 'amqtt') if m in sys.modules])"
        )
        said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert said.stdout.splitlines()[-1] == "[]"

    def test_the_version(self, shoal):
        assert shoal("--version").output == f"shoal, version {__version__}\n"

    def test_wrong_usage_has_its_own_exit_code(self, shoal):
        for words in ("nonsense", "run start", "token create --ttl soon", "history updates -x"):
            assert shoal(*words.split()).exit_code == 2


class TestOperating:
    def test_a_token_is_made_listed_and_revoked(self, shoal, running):
        made = shoal("token", "create", "--group", "attic", "--ttl", "15m")
        assert made.exit_code == 0
        token_id = made.stdout.split(".")[1]
        assert "2023-11-14 22:28:20Z" in made.stderr
        lines = [line.split()[:6] for line in shoal("token", "list").output.splitlines()]
        assert [token_id, "valid", "attic", "0", "of", "1"] in lines
        assert "revoked" in shoal("token", "revoke", token_id).output
        again = shoal("token", "revoke", token_id)
        assert again.exit_code == 1
        assert f"This contradicts the present state: Token {token_id} is already revoked" in again.output

    def test_devices_are_listed_shown_paused_resumed_and_revoked(self, shoal, running, services):
        lines = shoal("device", "list", "--group", "kitchen").output.splitlines()
        assert lines[0].split()[:4] == ["ID", "NAME", "GROUP", "STATUS"]
        assert [line.split()[0] for line in lines[1:]] == ["cinque", "pico", "tre"]
        assert "machine aarch64" in shoal("device", "show", "pico").output
        assert "paused since" in shoal("device", "pause", "pico").output
        assert json.loads(shoal("device", "resume", "pico", "--json").output)["row"]["status"] == "new"
        assert shoal("device", "revoke", "pico").exit_code == 1  # nobody there to say yes
        assert "revoked since" in shoal("device", "revoke", "pico", "--yes").output
        with services.database.read() as session:
            assert session.get(Device, "pico").revoked_at == START

    def test_a_device_that_does_not_exist_is_told_as_such(self, shoal, running):
        said = shoal("device", "show", "../tokens")
        assert said.exit_code == 1
        assert "Error: There is no such thing: There is n" in said.output

    def test_a_run_is_started_from_files_listed_steered_and_stopped(self, shoal, running, services, tmp_path):
        (tmp_path / "spec.json").write_text('{"layers": []}')
        started = shoal(
            *("run", "start", "--model", str(tmp_path / "spec.json"), "--recipe", "fedbuff", "--dataset", "test.npz"),
            *("--target", "0.9", "--seed", "7", "--name", "run-2", "--weights", "given.safetensors", "--json"),
        )
        assert started.exit_code == 0, started.output
        found = json.loads(started.output)
        assert (found["row"]["id"], found["seed"], found["row"]["created_by"]) == ("run-2", 7, "local")
        assert found["dataset"].startswith("/")
        assert found["dataset"].endswith("test.npz")
        assert services.commands.given == [str(Path("given.safetensors").absolute())]
        listed = shoal("run", "list").output
        assert all(run in listed for run in ("run-1", "run-2"))
        for action, state in (("pause", "paused"), ("resume", "running"), ("stop", "stopped")):
            assert state in shoal("run", action, "run-2").output
        assert "Run run-2 has ended" in shoal("run", "stop", "run-2").output
        assert "applied 1, refused 1, stale 1" in shoal("run", "show", "run-1").output

    def test_a_recipe_that_does_not_exist_starts_no_run(self, shoal, running):
        said = shoal("run", "start", "--model", "mlp", "--recipe", "nonsense", "--dataset", "x.npz")
        assert (said.exit_code, said.stderr) == (
            1,
            "Error: The recipe cannot be used: There is no recipe 'nonsense'\n",
        )
        missing = shoal("run", "start", "--model", "mlp", "--recipe", "gone.toml", "--dataset", "x.npz")
        assert missing.exit_code == 1
        assert "gone.toml cannot be read" in missing.stderr

    def test_models_and_recipes_are_listed(self, shoal, running):
        assert "mlp" in shoal("model", "list").output
        assert {"fedbuff", "fedasmu"} <= set(shoal("recipe", "list").output.split())
        assert 'name = "fedbuff"' in shoal("recipe", "show", "fedbuff").output

    def test_a_login_link_is_for_the_person_who_asks_unless_named(self, shoal, running, app):
        made = shoal("login-link", "--name", "olga", "--role", "operator")
        assert "olga (operator)" in made.stderr
        path = made.stdout.strip().partition("/login/")[2]
        assert app.test_client().get(f"/login/{path}").status_code == 302
        assert shoal("login-link", "--name", "local", "--role", "viewer").exit_code == 1


class TestNoCoordinator:
    def test_nothing_has_ever_run_here(self, shoal, home):
        said = shoal("run", "list")
        assert said.exit_code == 3
        assert f"No coordinator runs in {home}. Start it with: shoal serve" in said.stderr

    def test_it_died_without_a_word(self, shoal, home):
        announce(home, f"http://127.0.0.1:{free_port()}")
        (home / "api.token").write_text("shoal-api.x.y")
        said = shoal("device", "list")
        assert said.exit_code == 3
        assert "No coordinator answers at http://127.0.0.1:" in said.stderr
        assert "refused" in said.stderr

    def test_what_answers_is_something_else(self, shoal, home, listening):
        def page(environ, start_response):
            start_response("200 OK", [("Content-Type", "text/html")])
            return [b"<html>"]

        url = f"http://127.0.0.1:{listening(page)}"
        said = shoal("device", "list", "--url", url, SHOAL_API_TOKEN="shoal-api.x.y")
        assert said.exit_code == 1
        assert "is not a coordinator" in said.stderr

    @pytest.mark.parametrize("answer", ["[]", "{}", '{"rows": [{}], "total": 1}', "3"])
    def test_an_answer_of_another_form_is_told_in_a_sentence(self, shoal, listening, answer):
        def other(environ, start_response):
            start_response("200 OK", [("Content-Type", "application/json")])
            return [answer.encode()]

        url = f"http://127.0.0.1:{listening(other)}"
        said = shoal("device", "list", "--url", url, SHOAL_API_TOKEN="shoal-api.x.y")
        assert said.exit_code == 1
        assert "gave an answer that this version of shoal does not understand" in said.stderr

    def test_the_token_of_the_home_folder_is_for_its_own_coordinator_only(self, shoal, running, listening):
        reached = []
        thief = Flask("thief")
        thief.add_url_rule("/api/v1/devices", "steal", lambda: reached.append(1) or "{}")
        said = shoal("device", "list", "--url", f"http://127.0.0.1:{listening(thief)}")
        assert (said.exit_code, reached) == (1, [])
        assert "api.token is not sent there: set SHOAL_API_TOKEN" in said.stderr
        assert shoal("device", "list", "--url", f"{running}/").exit_code == 0

    def test_a_token_does_not_go_over_the_network_in_the_clear(self, shoal, home):
        for host in ("shoal.local", "192.0.2.7:8750", "127.evil.example"):
            said = shoal("device", "list", "--url", f"http://{host}", SHOAL_API_TOKEN="shoal-api.x.y")
            assert said.exit_code == 1
            assert "plain http is for this machine only" in said.stderr

    def test_the_token_is_not_carried_where_a_redirect_points(self, shoal, home, listening):
        reached = []
        thief, lure = Flask("thief"), Flask("lure")
        thief.add_url_rule("/", "steal", lambda: reached.append(1) or "{}")
        target = f"http://127.0.0.1:{listening(thief)}/"
        lure.add_url_rule("/api/v1/devices", "lure", lambda: redirect(target))
        url = f"http://127.0.0.1:{listening(lure)}"
        said = shoal("device", "list", "--url", url, SHOAL_API_TOKEN="shoal-api.x.y")
        assert said.exit_code == 1
        assert "it said 302" in said.stderr
        assert reached == []

    def test_a_token_that_is_not_known_is_refused_with_a_hint(self, shoal, running):
        said = shoal("device", "list", SHOAL_API_TOKEN="shoal-api.000000000000." + "A" * 43)
        assert said.exit_code == 1
        assert "The token comes from SHOAL_API_TOKEN" in said.stderr

    def test_another_token_has_its_own_rights(self, shoal, running):
        made = shoal("api-token", "create", "--name", "vic", "--ttl", "1h")
        assert "for vic (viewer), until 2023-11-14 23:13:20Z" in made.stderr
        token = made.stdout.strip()
        assert shoal("device", "list", SHOAL_API_TOKEN=token).exit_code == 0
        said = shoal("device", "pause", "pico", SHOAL_API_TOKEN=token)
        assert said.exit_code == 1
        assert "This needs the role operator; vic is viewer" in said.stderr
        token_id = token.split(".")[1]
        assert f"{token_id}  vic" in shoal("api-token", "list").output
        assert "is revoked" in shoal("api-token", "revoke", token_id).output
        assert shoal("device", "list", SHOAL_API_TOKEN=token).exit_code == 1

    def test_an_address_that_is_none_is_wrong_usage(self, shoal, running):
        for url in ("file:///etc/passwd", "https://", "https://shoal.local:port", "https://[::1"):
            assert shoal("device", "list", "--url", url).exit_code == 2


class TestEncrypted:
    @pytest.fixture
    def files(self, home):
        return establish(home, now=datetime.now(UTC))

    @pytest.fixture
    def encrypted(self, services, boards, home, files, listening):
        app = Flask("encrypted")
        auth.install(app, evolve(services, settings=evolve(services.settings, tls="on")))
        api.install(app)
        with services.database.write() as session:
            operators.ensure_local_token(session, home, START)
        return f"https://localhost:{listening(app, files)}"

    def test_the_own_authority_is_trusted(self, shoal, home, files, encrypted):
        announce(home, encrypted, str(files.ca))
        said = shoal("device", "list")
        assert said.exit_code == 0, said.output
        assert "pico" in said.output

    def test_a_stranger_is_not_even_shown_the_token(self, shoal, home, encrypted):
        announce(home, encrypted)
        said = shoal("device", "list")
        assert said.exit_code == 3
        assert "cannot be trusted" in said.stderr

    def test_from_another_machine_a_token_and_a_copy_of_the_authority_are_enough(
        self, shoal, home, files, encrypted, tmp_path
    ):
        (tmp_path / "ca.pem").write_bytes(files.ca.read_bytes())
        token = (home / "api.token").read_text()
        elsewhere = {"SHOAL_HOME": str(tmp_path / "nothing"), "SHOAL_API_TOKEN": token}
        words = ("device", "list", "--url", encrypted)
        assert "pico" in shoal(*words, "--ca", str(tmp_path / "ca.pem"), **elsewhere).output
        assert "pico" in shoal(*words, **elsewhere, SHOAL_CA=str(tmp_path / "ca.pem")).output
        assert "cannot be trusted" in shoal(*words, **elsewhere).stderr
        assert "gone.pem cannot be read" in shoal(*words, "--ca", "gone.pem", **elsewhere).stderr


class TestHistory:
    """``running`` fills the database; the commands read the file and never ask the coordinator."""

    @pytest.fixture(autouse=True)
    def filled(self, running, home):
        (home / "coordinator.json").unlink()

    def test_updates_as_a_table_for_people(self, shoal):
        lines = shoal("history", "updates").output.splitlines()
        assert lines[0].split()[:3] == ["AT", "RUN", "DEVICE"]
        assert [line.split()[-3] for line in lines[1:]] == ["applied", "stale", "refused"]
        assert lines[1].startswith("2023-11-14 22:13:21Z  run-1  pico")

    def test_what_a_device_says_does_not_steer_the_terminal(self, shoal):
        assert "\x1b" not in shoal("history", "updates").output

    @pytest.mark.parametrize(
        ("words", "outcomes"),
        [
            ([], ["applied", "stale", "refused"]),
            (["--outcome", "stale"], ["stale"]),
            (["--limit", "2"], ["stale", "refused"]),
            (["--limit", "0"], ["applied", "stale", "refused"]),
            (["--since", "2023-11-14T22:13:22"], ["stale", "refused"]),
            (["--until", "2023-11-14T23:13:22+01:00"], ["applied", "stale"]),
            (["--since", "1h"], []),
            (["--device", "tre"], []),
            (["--run", "run-1", "--device", "pico", "--limit", "1"], ["refused"]),
        ],
    )
    def test_updates_are_filtered(self, shoal, words, outcomes):
        rows = json.loads(shoal("history", "updates", "--format", "json", *words).output)
        assert [row["outcome"] for row in rows] == outcomes

    def test_updates_as_csv_have_all_columns(self, shoal):
        rows = list(csv.DictReader(io.StringIO(shoal("history", "updates", "--format", "csv").output)))
        assert [row["commit"] for row in rows] == ["1", "2", "3"]
        assert rows[0]["at"] == "2023-11-14T22:13:21.000Z"

    def test_assignments_and_events(self, shoal):
        (row,) = json.loads(shoal("history", "assignments", "--state", "taken", "--format", "json").output)
        assert (row["id"], row["device"], row["width"], row["closed_at"]) == ("a-1", "pico", 0.5, None)
        assert json.loads(shoal("history", "assignments", "--state", "expired", "--format", "json").output) == []
        assert "a-1" in shoal("history", "assignments").output
        kinds = [
            row["kind"] for row in json.loads(shoal("history", "events", "--limit", "2", "--format", "json").output)
        ]
        assert kinds == ["api-token", "run-started"]
        assert "pico joined with token" in shoal("history", "events", "--device", "pico").output

    def test_the_history_can_be_read_while_the_writer_writes(self, shoal, database):
        with database.write() as session:
            session.get(Device, "pico").samples = 1
            session.flush()
            assert "run-1" in shoal("history", "updates").output

    @pytest.mark.parametrize("time", ["yesterday", "2h30", "-1h", "2026-13-01", "99999d99"])
    def test_a_time_that_is_none_is_wrong_usage(self, shoal, time):
        said = shoal("history", "updates", "--since", time)
        assert said.exit_code == 2
        assert "is no time: write 2026-03-31" in said.stderr

    def test_on_a_narrow_terminal_columns_that_matter_less_are_left_out(self):
        code = (
            "from coordinator.cli.output import table;"
            "row = ['pi-zero-2', 'training', 'x' * 20, 'digits-1'];"
            "table(['id', 'status', 'since', 'run'], [row], ['since', 'run'])"
        )
        found = {columns: on_a_terminal(code, columns) for columns in (60, 40, 24)}
        heads = ("status", "since", "run")
        shown = {columns: [head for head in heads if head in text] for columns, text in found.items()}
        assert shown == {60: ["status", "since", "run"], 40: ["status", "run"], 24: ["status"]}
        assert all("pi-zero-2" in text for text in found.values())

    def test_on_a_terminal_a_long_reason_is_folded_and_markup_is_text(self):
        code = "from coordinator.cli.output import table; table(['id', 'reason'], [['pico', '[red]late[/red] ' * 20]])"
        text = on_a_terminal(code, 40)
        assert text.count("[red]late[/red]") == 20
        assert len(text.splitlines()) > 8


class TestAsking:
    """Lists and SQL over a made-up fleet."""

    @pytest.fixture(autouse=True)
    def fleet(self, database):
        Fleet(updates=60).write(database)

    @pytest.mark.parametrize("name", ["runs", "devices", "decisions"])
    def test_a_list_is_shown_and_written(self, shoal, name):
        shown = shoal("history", name)
        assert shown.exit_code == 0, shown.output
        assert shown.output.splitlines()[0].startswith(("RUN ID", "OFFERED"))
        rows = json.loads(shoal("history", name, "--run", "digits-1", "--limit", "0", "--format", "json").output)
        assert {row["run_id"] for row in rows} == {"digits-1"}
        assert json.loads(shoal("history", name, "--since", "1h", "--format", "json").output) == []
        file = shoal("history", name, "--run", "digits-1", "--limit", "0", "--format", "parquet")
        assert parquet.read_table(io.BytesIO(file.stdout_bytes)).num_rows == len(rows)

    def test_updates_are_written_as_arrow(self, shoal):
        file = shoal("history", "updates", "--limit", "3", "--format", "arrow")
        table = pyarrow.ipc.open_stream(file.stdout_bytes).read_all()
        assert (table.num_rows, str(table.schema.field("at").type)) == (3, "timestamp[us, tz=UTC]")

    def test_a_question_in_sql(self, shoal):
        said = shoal("history", "sql", "SELECT id, seed FROM run ORDER BY id", "--limit", "2")
        assert said.stdout.split() == ["ID", "SEED", "digits-1", "0", "digits-2", "1"]
        assert "the first 2 rows" in said.stderr
        rows = json.loads(shoal("history", "sql", "SELECT count(*) AS n FROM device", "--format", "json").stdout)
        assert rows == [{"n": 12}]

    @pytest.mark.parametrize("statement", ["DROP TABLE run", "SELECT 1; SELECT 2", "SELECT * FROM credential"])
    def test_a_statement_that_is_no_question_is_refused(self, shoal, statement):
        said = shoal("history", "sql", statement)
        assert said.exit_code == 1
        assert "The statement" in said.stderr

    def test_a_question_without_end_is_cut_off(self, shoal):
        endless = "SELECT count(*) FROM assignment a, assignment b, assignment c, assignment d, assignment e"
        said = shoal("history", "sql", endless, "--timeout", "0.3s")
        assert said.exit_code == 1
        assert "stopped after 0.3 s" in said.stderr


class TestDatabase:
    def test_where_there_is_none_none_is_made_by_looking(self, shoal, tmp_path):
        empty = tmp_path / "empty"
        for words in (["history", "updates"], ["db", "check"]):
            said = shoal(*words, SHOAL_HOME=str(empty))
            assert said.exit_code == 1
            assert "make it with `shoal db upgrade`" in said.stderr
        assert not empty.exists()

    def test_the_database_that_the_coordinator_left_word_of_is_read(self, shoal, running, home, tmp_path):
        elsewhere = tmp_path / "elsewhere.db"
        with closing(sqlite3.connect(home / "shoal.db")) as source:
            source.execute("VACUUM INTO ?", (str(elsewhere),))
        with closing(sqlite3.connect(elsewhere)) as moved:
            moved.execute("UPDATE event SET text = 'moved'")
            moved.commit()
        (home / "coordinator.json").write_text(
            json.dumps({"url": running, "ca": None, "pid": 1, "database": f"sqlite:///{elsewhere}"})
        )
        assert "moved" in shoal("history", "events").output
        asked = shoal("history", "sql", "SELECT DISTINCT text FROM event")
        assert asked.output.split() == ["TEXT", "moved"]
        assert shoal("db", "path").output == f"{elsewhere}\n"
        assert shoal("db", "check").exit_code == 0

    def test_a_database_elsewhere_is_asked_for_and_not_made_anew(self, shoal, running, home):
        (home / "shoal.db").rename(home / "moved.db")
        for words in (["history", "updates"], ["db", "check"]):
            said = shoal(*words)
            assert said.exit_code == 1
            assert "set SHOAL_DATABASE to the same URL" in said.stderr
            assert "db upgrade" not in said.stderr

    def test_upgrade_makes_it_and_check_finds_it_well(self, shoal, tmp_path):
        new = str(tmp_path / "new folder #1")
        assert f"has revision {NEWEST}" in shoal("db", "upgrade", SHOAL_HOME=new).output
        assert shoal("db", "path", SHOAL_HOME=new).output == f"{new}/shoal.db\n"
        checked = shoal("db", "check", "--json", SHOAL_HOME=new)
        assert checked.exit_code == 0, checked.output
        found = json.loads(checked.output)
        assert (found["revision"], found["newest"], found["integrity"]) == (NEWEST, NEWEST, "ok")
        assert found["rows"]["device"] == 0

    def test_check_counts_rows(self, shoal, running):
        rows = dict(line.split()[-2:] for line in shoal("db", "check").output.splitlines() if line.startswith("rows"))
        assert (rows["device"], rows["update"], rows["snapshot"]) == ("3", "3", "0")

    def test_check_finds_rows_that_refer_to_nothing(self, shoal, running, home):
        with closing(sqlite3.connect(home / "shoal.db")) as careless:
            careless.execute("DELETE FROM device WHERE id = 'pico'")
            careless.commit()
        said = shoal("db", "check")
        assert said.exit_code == 1
        assert "refers to nothing" in said.output

    def test_a_database_of_another_revision_is_not_well(self, shoal, home):
        with closing(sqlite3.connect(home / "shoal.db")) as older:
            older.execute("UPDATE alembic_version SET version_num = '0000'")
            older.commit()
        said = shoal("db", "check", "--json")
        assert said.exit_code == 1
        assert (json.loads(said.output)["revision"], json.loads(said.output)["rows"]) == ("0000", {})

    def test_a_home_is_backed_up_and_restored(self, shoal, running, home, tmp_path):
        said = shoal("db", "backup", str(tmp_path / "shoal.tar"))
        assert said.exit_code == 0, said.output
        assert f"of revision {NEWEST}" in said.output
        new = str(tmp_path / "new")
        assert shoal("db", "restore", str(tmp_path / "shoal.tar"), "--home", new).exit_code == 0
        ids = [
            json.loads(shoal("history", "updates", "--format", "json", "--home", place).output)[0]["id"]
            for place in (str(home), new)
        ]
        assert ids == [1, 1]
        again = shoal("db", "restore", str(tmp_path / "shoal.tar"), "--home", new)
        assert again.exit_code == 1
        assert "already: restore into another home" in again.stderr

    def test_the_database_is_copied_to_another_while_no_coordinator_runs(self, shoal, running, home, new_database):
        target = new_database("sqlite", migrated=False)
        with claim(home):
            said = shoal("db", "copy", "--to", target)
            assert (said.exit_code, "Another coordinator is running" in said.stderr) == (1, True)
        said = shoal("db", "copy", "--to", target)
        assert "has all" in said.output
        assert "with equal hashes" in said.output
        assert "is in use" in shoal("db", "copy", "--to", target).stderr

    def test_what_is_old_is_pruned_at_once_while_no_coordinator_runs(self, shoal, running, home):
        with closing(sqlite3.connect(home / "shoal.db")) as filled:
            rows = [("2001-01-01 00:00:00.000000", "x", str(number)) for number in range(1500)]
            filled.executemany("INSERT INTO event (at, kind, text) VALUES (?, ?, ?)", rows)
            filled.commit()
        with claim(home):
            assert "Another coordinator is running" in shoal("db", "prune").stderr
        said = shoal("db", "prune")
        assert said.exit_code == 0, said.output
        removed = dict(line.rsplit(maxsplit=1) for line in said.output.splitlines())
        assert int(removed["events removed"]) >= 1499  # the newest stays
        assert shoal("history", "events").output.count(" x ") == 1
        assert removed["inputs removed"] == "0"

    def test_a_file_that_is_no_database_is_told_as_such(self, shoal, home):
        (home / "shoal.db").write_bytes(b"not a database " * 100)
        said = shoal("db", "check")
        assert said.exit_code == 1
        assert "The database cannot be read: file is not a database" in said.stderr
