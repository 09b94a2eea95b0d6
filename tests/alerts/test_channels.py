"""Delivery to a real web server and a real mail server."""

from __future__ import annotations

import hashlib
import hmac
import json
from email import message_from_string, policy

import pytest

from coordinator.alerts.channels import Undelivered, Webhook, channels
from coordinator.alerts.notice import Occurrence, compose
from coordinator.alerts.rules import Rules
from tests.alerts.servers import hook, post

NOTICE = compose([Occurrence(7, 1.7e9, "device-late", "pico", "pico", "pico was last heard 20 minutes ago")], {}, 0)


def rules(port, **changes) -> Rules:
    known = {
        "mail_from": "shoal@example.org",
        "mail_to": ("ops@example.org", "ada@example.org"),
        "smtp_host": "127.0.0.1",
        "smtp_port": port,
        "smtp_tls": "off",
    }
    return Rules(**{**known, **changes})


def test_a_webhook_can_check_who_sent_it():
    with hook() as server:
        Webhook(server.url, "tuna").send(NOTICE, 1.7e9)
    ((headers, body),) = server.got
    signed = hmac.new(b"tuna", b"1700000000." + body, hashlib.sha256).hexdigest()
    assert headers["X-Shoal-Signature"] == f"sha256={signed}"
    assert (headers["X-Shoal-Timestamp"], headers["X-Shoal-Delivery"]) == ("1700000000", "7")
    assert json.loads(body)["text"] == "pico was last heard 20 minutes ago"


def test_without_a_secret_nothing_is_signed():
    with hook() as server:
        Webhook(server.url, "").send(NOTICE, 1.7e9)
    assert "X-Shoal-Signature" not in server.got[0][0]


@pytest.mark.parametrize("code", [302, 404, 500])
def test_anything_but_yes_is_not_delivered_and_the_sentence_keeps_the_urls_secret(code):
    with hook() as server:
        server.answers = [code]
        with pytest.raises(Undelivered, match=f"webhook 127.0.0.1 .* answered with {code}") as refused:
            Webhook(server.url, "tuna").send(NOTICE, 1.7e9)
    assert "swordfish" not in str(refused.value)


def test_nobody_there_is_not_delivered():
    with hook() as server:
        pass
    with pytest.raises(Undelivered, match="cannot be reached: Connection refused"):
        Webhook(server.url, "").send(NOTICE, 1.7e9)


def test_two_webhooks_of_one_host_have_names_of_their_own():
    one, other = (Webhook(f"https://hooks.example/{path}", "").name for path in "ab")
    assert one != other
    assert one.startswith("webhook hooks.example ")


def test_mail_arrives_at_everybody():
    with post() as server:
        (channel,) = channels(rules(server.port))
        channel.send(NOTICE, 1.7e9)
    ((sender, to, text),) = server.got
    message = message_from_string(text, policy=policy.default)
    assert (sender, to) == ("shoal@example.org", ["ops@example.org", "ada@example.org"])
    assert message["Subject"] == "Shoal: pico was last heard 20 minutes ago"
    assert "2023-11-14 22:13:20 UTC  pico was last heard 20 minutes ago" in message.get_content()


def test_mail_logs_in_with_the_password_of_a_file(tmp_path):
    password = tmp_path / "password"
    password.write_text("tuna\n")
    with post() as server:
        (channel,) = channels(rules(server.port, smtp_user="ada", smtp_password_file=str(password)))
        channel.send(NOTICE, 1.7e9)
        password.write_text("cod\n")
        with pytest.raises(Undelivered, match=r"mail 127.0.0.1 answered with 535") as refused:
            channel.send(NOTICE, 1.7e9)
    assert {*server.logins} == {("ada", "tuna"), ("ada", "cod")}
    assert len(server.got) == 1
    assert "cod" not in str(refused.value)


def test_a_server_without_encryption_gets_nothing_where_encryption_is_wanted():
    with post() as server:
        (channel,) = channels(rules(server.port, smtp_tls="starttls"))
        with pytest.raises(Undelivered, match=r"mail 127.0.0.1 cannot be used"):
            channel.send(NOTICE, 1.7e9)
    assert server.got == []
