"""Settings: what is refused, and what the coordinator is called by."""

from __future__ import annotations

import pytest

from coordinator.errors import ShoalError
from coordinator.settings import load


@pytest.mark.parametrize(
    ("environ", "sentence"),
    [
        ({"SHOAL_LOG_LEVEL": "loud"}, "Setting log_level is 'loud', expected one of debug, info, warning, error"),
        ({"SHOAL_HOST": "::"}, "Setting host is '::', expected an address of this machine, or 0.0.0.0"),
        ({"SHOAL_HOST": ""}, "Setting host is '', expected an address of this machine, or 0.0.0.0"),
        ({"SHOAL_TLS": "off", "SHOAL_HOST": "0.0.0.0"}, "Setting host is '0.0.0.0', where secrets would travel in the"),
        ({"SHOAL_BROKER": "carrier pigeon"}, "expected one of auto, embedded, mosquitto, external"),
        ({"SHOAL_BROKER": "external"}, "Setting broker_url: '' is not of the form mqtts://host:port"),
        ({"SHOAL_BROKER": "external", "SHOAL_BROKER_URL": "mqtt://x"}, "mqtt:// is for loopback only"),
        ({"SHOAL_BROKER": "external", "SHOAL_BROKER_URL": "mqtts://x"}, "from an encrypted coordinator only"),
        ({"SHOAL_BROKER_ACCOUNTS": "none"}, "Setting broker_accounts is 'none', expected one of dynamic-security, own"),
        ({"SHOAL_LOG": "xml"}, "Setting log is 'xml', expected one of text, json"),
        ({"SHOAL_TRACES": "localhost"}, "Setting traces is 'localhost', expected an http(s):// URL"),
        ({"SHOAL_KEEP_LAST": "1"}, "Setting keep_last is 1, expected at least 2"),
        ({"SHOAL_MAX_BODIES": "nan"}, "Setting max_bodies is nan, expected at least 0"),
        ({"SHOAL_PORT": "many"}, "Setting port is 'many', expected int"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_sentence(tmp_path, environ, sentence):
    with pytest.raises(ShoalError) as refused:
        load({"home": tmp_path}, environ)
    assert refused.value.code == "bad-request"
    assert sentence in refused.value.detail


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8750"),
        ("::1", "http://[::1]:8750"),
        ("fd00::7", "https://[fd00::7]:8750"),
        ("0.0.0.0", "https://localhost:8750"),
    ],
)
def test_an_address_of_ipv6_stands_in_brackets(tmp_path, host, url):
    assert load({"home": tmp_path, "host": host}, {}).url == url


def test_the_log_level_may_be_written_in_capitals(tmp_path):
    assert load({"home": tmp_path}, {"SHOAL_LOG_LEVEL": "DEBUG"}).log_level == "DEBUG"


def test_an_external_broker_is_told_by_its_url(tmp_path):
    given = {"SHOAL_BROKER": "external", "SHOAL_BROKER_URL": "mqtts://mqtt.example", "SHOAL_TLS": "on"}
    assert load({"home": tmp_path}, given).external == ("mqtt.example", 8883, True)
    assert load({"home": tmp_path}, {}).external is None


def test_secrets_are_not_shown(tmp_path):
    settings = load({"home": tmp_path}, {"SHOAL_BROKER_PASSWORD": "swordfish", "SHOAL_BROKER_PROBE": "sesame"})
    assert "swordfish" not in repr(settings)
    assert "sesame" not in repr(settings)
