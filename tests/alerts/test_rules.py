"""The table [alerts]: what is refused, and which kinds are told of."""

from __future__ import annotations

import pytest

from coordinator.alerts.rules import Rules, read
from coordinator.errors import ShoalError
from coordinator.settings import load

MAIL = {"mail_from": "shoal@example.org", "mail_to": ["ops@example.org"], "smtp_host": "mail.example.org"}


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ("often", r"expected a table \[alerts\] in shoal.toml"),
        ({"webhook": "http://x"}, "has no setting 'webhook', only .*webhooks"),
        ({"webhooks": ["ftp://x"]}, "expected http:// or https:// URLs, which the one at place 1 is not"),
        ({"webhooks": 7}, "Setting webhooks .* expected a list of strings"),
        ({"quiet": "long"}, "Setting quiet .* expected a number"),
        ({"quiet": True}, "Setting quiet .* expected a number"),
        ({"gather": -1}, "Setting gather .* expected 0 to"),
        ({"smtp_port": 0, **MAIL}, "Setting smtp_port .* expected 1 to 65535"),
        ({"mail_to": "ops@example.org"}, "given together with mail_from and smtp_host"),
        ({**MAIL, "mail_to": ["ops@example.org\nBcc: all@example.org"]}, "expected addresses"),
        ({**MAIL, "smtp_tls": "perhaps"}, "expected one of starttls, on, off"),
        ({**MAIL, "smtp_tls": "off", "smtp_user": "shoal"}, "the password would travel in the clear"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_sentence(table, sentence):
    with pytest.raises(ShoalError, match=sentence) as refused:
        read(table)
    assert refused.value.code == "bad-request"


def test_a_refused_url_is_not_repeated_for_it_may_be_as_good_as_a_password():
    with pytest.raises(ShoalError) as refused:
        read({"webhooks": ["hooks.example/T0/swordfish"]})
    assert "swordfish" not in refused.value.detail


def test_kinds_may_be_patterns():
    rules = Rules(kinds=("rollout-*", "device-late"))
    kinds = ("rollout-paused", "rollout-completed", "device-late", "device-later", "run-finished")
    assert [kind for kind in kinds if rules.wants(kind)] == ["rollout-paused", "rollout-completed", "device-late"]


def test_the_settings_file_has_them_in_a_table_of_its_own(tmp_path):
    (tmp_path / "shoal.toml").write_text('port = 1\n[alerts]\nwebhooks = "https://hooks.example/x"\nquiet = 60\n')
    alerts = load({"home": tmp_path}, {}).alerts
    assert (alerts.webhooks, alerts.quiet, alerts.gather) == (("https://hooks.example/x",), 60.0, 30.0)
    assert "hooks.example" not in repr(load({"home": tmp_path}, {}))


def test_the_environment_has_no_place_for_a_table(tmp_path):
    with pytest.raises(ShoalError, match=r"\[alerts\] in shoal.toml"):
        load({"home": tmp_path}, {"SHOAL_ALERTS": "all"})
