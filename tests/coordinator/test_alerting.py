"""``shoal alert`` and what it asks: the rules, a test of every channel, and what was delivered."""

from __future__ import annotations

import json

import pytest
from attrs import evolve
from click.testing import CliRunner
from flask import Flask

from coordinator import api, auth, operators
from coordinator.alerts import record
from coordinator.alerts.channels import channels
from coordinator.alerts.notice import trial
from coordinator.alerts.record import Standing
from coordinator.alerts.rules import Rules
from coordinator.cli import main
from tests.alerts.servers import hook, post
from tests.coordinator.people import START
from tests.coordinator.test_cli import announce, listening

__all__ = ["listening"]


@pytest.fixture
def servers():
    with hook() as web, post() as mail:
        yield web, mail


@pytest.fixture
def shoal(services, home, listening):
    """``shoal`` beside a coordinator with these rules."""

    def begin(rules):
        app = Flask("shoal")
        auth.install(app, evolve(services, settings=evolve(services.settings, alerts=rules)))
        api.install(app)
        with services.database.write() as session:
            operators.ensure_local_token(session, home, START)
        announce(home, f"http://127.0.0.1:{listening(app)}")
        return lambda *words: CliRunner().invoke(main, list(words), env={"SHOAL_HOME": str(home)})

    return begin


def rules_of(servers):
    web, mail = servers
    by_mail = {"smtp_host": "127.0.0.1", "smtp_port": mail.port, "smtp_tls": "off"}
    return Rules(webhooks=(web.url,), secret="tuna", mail_from="s@x.org", mail_to=("o@x.org",), **by_mail)


def test_a_test_message_goes_to_every_channel(shoal, servers):
    run = shoal(rules_of(servers))
    assert run("alert", "test").exit_code == 0
    web, mail = servers
    assert json.loads(web.got[0][1])["text"] == "This is a test: alerts of Shoal arrive here."
    assert "Subject: Shoal: This is a test" in mail.got[0][2]


def test_a_test_says_which_channel_does_not_work(shoal, servers):
    run, (web, _) = shoal(rules_of(servers)), servers
    web.answers = [410, 410]
    tried = run("alert", "test")
    assert tried.exit_code == 1
    assert "answered with 410" in tried.output
    assert [bool(row["error"]) for row in json.loads(run("alert", "test", "--json").output)] == [True, False]
    assert "swordfish" not in tried.output


def test_without_a_channel_there_is_nothing_to_test(shoal):
    tried = shoal(Rules())("alert", "test")
    assert tried.exit_code == 1
    assert "There is no channel: name webhooks or mail_to" in tried.output


def test_rules_channels_and_the_last_messages_are_shown(shoal, servers, services):
    rules = rules_of(servers)
    run, (first, second) = shoal(rules), channels(rules)
    with services.database.write() as session:
        record.stand(session, first.name, Standing(12, 3, "it answered with 500", START + 60))
        record.delivered(session, second.name, trial(START), START)
    shown = json.loads(run("alert", "list", "--json").output)
    assert (shown["quiet"], shown["signed"], "device-late" in shown["kinds"]) == (3600, True, True)
    assert [(row["name"], row["seq"], row["attempts"]) for row in shown["channels"]] == [
        (first.name, 12, 3),
        (second.name, None, 0),
    ]
    assert [(row["channel"], row["count"]) for row in shown["deliveries"]] == [(second.name, 1)]
    listed = run("alert", "list").output
    assert "it answered with 500" in listed
    assert "This is a test" in listed
    assert not {"tuna", "swordfish"} & {*listed.split(), *str(shown).split()}
    assert "swordfish" not in listed + str(shown)
