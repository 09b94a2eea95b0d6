"""The commands that name, steer and command devices, and what an external broker is given."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from coordinator.fleet.authority import establish
from coordinator.store.models import Device
from tests.coordinator.test_cli import announce, listening, running, shoal  # noqa: F401 - fixtures

__all__ = ["announce"]


@pytest.mark.usefixtures("running")
class TestDevices:
    def test_tags_and_groups(self, shoal):  # noqa: F811
        assert shoal("device", "tag", "pico", "roof").exit_code == 0
        assert "tags      roof" in shoal("device", "show", "pico").output.replace("        ", "      ")
        assert "pico" in shoal("device", "list", "--tag", "roof").output
        assert "tre" not in shoal("device", "list", "--tag", "roof").output
        assert "attic" in shoal("device", "group", "pico", "attic").output
        shoal("device", "untag", "pico", "roof")
        assert "pico" not in shoal("device", "list", "--tag", "roof").output

    def test_commands(self, shoal):  # noqa: F811
        told = json.loads(shoal("device", "command", "pico", "identify", "--json").output)
        assert (told["kind"], told["state"]) == ("identify", "open")
        listed = shoal("device", "commands", "pico").output
        assert told["id"] in listed
        assert "identify" in listed
        assert "forget who it is" in shoal("device", "command", "pico", "decommission").output
        assert len(json.loads(shoal("device", "commands", "pico", "--json").output)) == 1
        assert shoal("device", "command", "pico", "dance").exit_code == 2

    def test_bulk(self, shoal, services):  # noqa: F811
        assert shoal("device", "bulk", "pause", "--group", "kitchen").output == "pause: 3 of 3 devices.\n"
        with services.database.read() as session:
            assert {device.status for device in session.query(Device)} == {"paused"}
        again = shoal("device", "bulk", "pause", "--status", "paused")
        assert "0 of 3 devices" in again.output
        assert "already paused" in again.output
        refused = shoal("device", "bulk", "resume")
        assert refused.exit_code == 1
        assert "Name the devices" in refused.output

    def test_adoption(self, shoal):  # noqa: F811
        made = shoal("token", "create", "--manual")
        assert made.exit_code == 0
        assert "manual" in shoal("token", "list").output
        assert "does not wait for adoption" in shoal("device", "adopt", "pico").output


class TestBroker:
    def test_the_rules_name_no_device(self, shoal):  # noqa: F811
        assert "pattern readwrite shoal/v1/d/%u/#" in shoal("broker", "acl").output
        assert '["shoal/v1/d/${username}/#"]' in shoal("broker", "acl", "--format", "emqx").output

    def test_accounts_are_lines_of_a_password_file(self, shoal, boards):  # noqa: F811
        lines = shoal("broker", "accounts").output.splitlines()
        assert [line.split(":")[0] for line in lines] == sorted(boards)
        assert all(line.split(":")[1].startswith("$7$101$") for line in lines)

    def test_a_certificate_for_a_broker_is_signed_by_the_fleets_authority(self, shoal, home, tmp_path):  # noqa: F811
        out = tmp_path / "broker"
        missing = shoal("broker", "certificate", "mqtt.example", "--out", str(out))
        assert "There is no authority" in missing.output
        files = establish(home, now=datetime.now(UTC))
        made = shoal("broker", "certificate", "mqtt.example", "--out", str(out))
        assert made.exit_code == 0, made.output
        assert (out / "ca.pem").read_bytes() == files.ca.read_bytes()
        assert (out / "broker-key.pem").stat().st_mode & 0o077 == 0
        assert "-----BEGIN CERTIFICATE" in (out / "broker.pem").read_text()
