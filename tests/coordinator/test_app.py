"""The coordinator as a process: what keeps it from starting is said in one sentence; of no use, it ends."""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import time
import urllib.request

import pytest
from click.testing import CliRunner
from sqlalchemy import select

from coordinator.alerts.rules import Rules
from coordinator.app import Coordinator
from coordinator.broker.mosquitto import installed
from coordinator.cli.serve import serve
from coordinator.errors import ShoalError
from coordinator.settings import Settings, sqlite_url
from coordinator.store.ledger import note
from coordinator.store.models import Alert, AlertChannel
from tests.alerts.servers import hook
from tests.broker.test_conformance import need_mosquitto
from tests.coordinator.people import START

ANY = {"port": 0, "mqtt_port": 0}


@pytest.fixture
def folder(tmp_path, migrated):
    """A home whose database is made already."""
    folder = tmp_path / "home"
    folder.mkdir()
    shutil.copy(migrated, folder / "shoal.db")
    return folder


def refusal(settings: Settings) -> ShoalError:
    with pytest.raises(ShoalError) as refused:
        Coordinator(settings, lambda: START).start()
    return refused.value


def test_a_new_home_is_for_its_owner_alone(tmp_path):
    with Coordinator(Settings(home=tmp_path / "home", **ANY)) as coordinator:
        assert coordinator.healthy
        assert stat.S_IMODE((tmp_path / "home").stat().st_mode) == 0o700


def test_two_coordinators_do_not_share_a_database(folder, tmp_path):
    url = sqlite_url(folder / "shoal.db")
    with Coordinator(Settings(home=folder, **ANY)):
        found = refusal(Settings(home=tmp_path / "other", database=url, **ANY))
        assert found.code == "database-unusable"
        assert "Another coordinator is using the database" in found.detail
    with Coordinator(Settings(home=tmp_path / "other", database=url, **ANY)):
        pass


@pytest.mark.skipif(not socket.has_ipv6, reason="this machine does not speak IPv6")
@pytest.mark.parametrize("tls", ["off", "on"])
def test_it_can_live_at_an_address_of_ipv6(folder, tls):
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no loopback address of IPv6")
    with Coordinator(Settings(home=folder, host="::1", tls=tls, **ANY)) as coordinator:
        assert coordinator.url.partition("//")[2].startswith("[::1]:")
        if tls == "off":
            with urllib.request.urlopen(f"{coordinator.url}/login", timeout=10) as answer:
                assert answer.status == 200


@pytest.mark.parametrize("name", ["kücheninsel", "two words"])
def test_a_name_that_is_none_is_refused(folder, name):
    found = refusal(Settings(home=folder, tls="on", name=name, **ANY))
    assert (found.code, repr(name) in found.detail) == ("bad-request", True)


def test_half_an_authority_is_told_of(folder):
    with Coordinator(Settings(home=folder, tls="on", **ANY)):
        pass
    (folder / "tls" / "ca-key.pem").unlink()
    found = refusal(Settings(home=folder, tls="on", **ANY))
    assert (found.code, "ca-key.pem is missing beside ca.pem" in found.detail) == ("home-unusable", True)


@pytest.mark.parametrize("host", ["no-such-host.invalid", "192.0.2.1", "." * 70])
def test_a_host_that_is_not_here_is_not_called_a_port_in_use(folder, host):
    found = refusal(Settings(home=folder, host=host, **ANY))
    assert found.code == "bad-request"
    assert "This machine cannot listen at" in found.detail


@pytest.mark.parametrize("which", ["port", "mqtt_port"])
@pytest.mark.parametrize("broker", ["embedded", "mosquitto"])
def test_a_port_in_use_is_told_of(folder, which, broker):
    if broker == "mosquitto":
        need_mosquitto()
    with socket.create_server(("127.0.0.1", 0)) as other:
        found = refusal(Settings(home=folder, broker=broker, **{**ANY, which: other.getsockname()[1]}))
    assert found.code == "port-in-use"
    assert "Address already in use" in found.detail


@pytest.mark.parametrize("which", ["port", "mqtt_port"])
def test_a_port_that_takes_more_rights_is_not_called_one_in_use(folder, which, monkeypatch):
    """As for a user without rights to ports below 1024; tests may run as root."""
    create = socket.create_server

    def refuse(address, **options):
        if address[1] == 443:
            raise PermissionError(errno.EACCES, "Permission denied")
        return create(address, **options)

    monkeypatch.setattr(socket, "create_server", refuse)
    found = refusal(Settings(home=folder, broker="embedded", **{**ANY, which: 443}))
    assert found.code in ("port-unusable", "broker-unusable")
    assert "ports below 1024 take the right" in found.detail


def test_without_a_broker_named_mosquitto_is_taken_where_it_is_installed(folder):
    with Coordinator(Settings(home=folder, **ANY)):
        assert (folder / "mosquitto" / "accounts.json").exists() == installed()


def test_a_home_in_which_nothing_can_be_written_is_told_of(folder):
    """Here a folder is in the way of the file that says where the coordinator is; a full disk ends alike."""
    (folder / "coordinator.new").mkdir()
    found = refusal(Settings(home=folder, **ANY))
    assert found.code == "home-unusable"
    assert "coordinator.new" in found.detail


def test_a_full_disk_is_told_of_in_one_sentence(folder):
    """/dev/full in place of a file takes nothing, as a full disk does."""
    (folder / "coordinator.new").symlink_to("/dev/full")
    found = refusal(Settings(home=folder, **ANY))
    assert (found.code, "No space left on device" in found.detail) == ("home-unusable", True)


@pytest.mark.parametrize(
    ("options", "status", "sentence"),
    [
        (["--heartbeat", "0"], 2, "Setting heartbeat is 0.0"),
        (["--host", "::"], 2, "Setting host is '::'"),
        (["--database", "nonsense"], 1, "'nonsense' is no URL of a database"),
    ],
)
def test_serve_ends_with_a_sentence(tmp_path, options, status, sentence):
    found = CliRunner().invoke(serve, ["--home", str(tmp_path / "home"), *options])
    assert (found.exit_code, sentence in found.output) == (status, True), found.output


SERVE_WITH_A_STEWARD_THAT_ENDS = """
import sys, threading, time
from pathlib import Path
from coordinator.cli.serve import serve
from coordinator.training.steward import Steward

home = Path(sys.argv[1])

def end():
    while not (home / "coordinator.json").exists():
        time.sleep(0.05)
    time.sleep(0.5)
    next(thread for thread in threading.enumerate() if isinstance(thread, Steward))._queue.put(None)

threading.Thread(target=end, daemon=True).start()
serve(["--home", str(home), "--port", "0", "--mqtt-port", "0"])
"""


def test_without_its_steward_the_process_ends_and_says_why(folder):
    command = [sys.executable, "-c", SERVE_WITH_A_STEWARD_THAT_ENDS, str(folder)]
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    found = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60)
    assert found.returncode == 1
    assert "The thread that writes has ended" in found.stderr
    assert "Traceback" not in found.stderr


def test_its_log_can_be_json_lines_with_fields(folder):
    told = ["--home", str(folder), "--port", "0", "--mqtt-port", "0", "--log", "json", "--log-level", "debug"]
    command = [sys.executable, "-m", "coordinator.cli", "serve", *told]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline().startswith("Shoal is at ")
        process.terminate()
        _, log = process.communicate(timeout=20)
    finally:
        process.kill()
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    assert all({"at", "level", "logger", "event", "thread"} <= line.keys() for line in lines)
    assert lines
    assert "login" not in log


def test_alerts_are_delivered_beside_everything_else(folder, monkeypatch):
    monkeypatch.setattr("coordinator.alerts.courier.LOOK", 0.02)
    with hook() as web:
        rules = Rules(webhooks=(web.url,), gather=0.0)
        with Coordinator(Settings(home=folder, alerts=rules, **ANY)) as coordinator:
            waiting = select(AlertChannel.seq)
            while not reading(coordinator, waiting):
                time.sleep(0.01)
            coordinator.steward.write(lambda session: note(session, START, "rollout-paused", "canary-2 is paused"))
            while not reading(coordinator, select(Alert.text)):
                time.sleep(0.01)
            assert reading(coordinator, select(Alert.text)) == ["canary-2 is paused"]
        assert json.loads(web.got[0][1])["text"] == "canary-2 is paused"


def reading(coordinator, query):
    with coordinator.database.read() as session:
        return list(session.scalars(query))
