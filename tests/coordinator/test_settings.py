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
