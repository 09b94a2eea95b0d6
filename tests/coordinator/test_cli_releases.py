"""``shoal release`` and ``shoal rollout``: made, signed here or elsewhere, begun, looked at, steered."""

from __future__ import annotations

import json
import subprocess

import pytest

from coordinator.fleet import releases
from coordinator.fleet.releases import ReleaseKey
from coordinator.store import models
from tests.coordinator.test_cli import announce, listening, running, shoal  # noqa: F401 - fixtures

__all__ = ["announce", "listening", "running"]


@pytest.fixture
def settings(tmp_path):
    path = tmp_path / "night.toml"
    path.write_text("threads = 2\n[conditions]\nhours = ['22:00-06:00']\n")
    return str(path)


@pytest.fixture
def night(shoal, settings):  # noqa: F811
    return json.loads(shoal("release", "create", "config", settings, "--version", "night", "--json").output)


@pytest.mark.usefixtures("running")
class TestReleases:
    def test_settings_are_released_listed_shown_and_withdrawn(self, shoal, settings):  # noqa: F811
        made = shoal("release", "create", "config", settings, "--version", "night", "--notes", "quiet", "--days", "30")
        assert made.exit_code == 0, made.output
        assert "config" in made.output
        assert "night" in shoal("release", "list", "--kind", "config").output
        assert "night" not in shoal("release", "list", "--kind", "agent").output
        assert "quiet" in shoal("release", "show", "config-night").output
        assert shoal("release", "withdraw", "config-night").exit_code == 0
        assert "is withdrawn" in shoal("rollout", "start", "config-night", "--every").output

    def test_what_may_not_come_from_afar_is_named(self, shoal, tmp_path):  # noqa: F811
        (tmp_path / "bad.toml").write_text("url = 'https://elsewhere'\n")
        refused = shoal("release", "create", "config", str(tmp_path / "bad.toml"), "--version", "x")
        assert refused.exit_code == 1
        assert "not to be set from afar: 'url'" in refused.output
        missing = shoal("release", "create", "config", str(tmp_path / "none.toml"), "--version", "x")
        assert "cannot be read" in missing.output

    def test_an_agent_without_bundles_says_how_to_make_some(self, shoal):  # noqa: F811
        assert "shoal bundle build" in shoal("release", "create", "agent").output

    def test_a_release_is_signed_by_openssl_elsewhere(self, shoal, services, settings, tmp_path):  # noqa: F811
        key, draft = tmp_path / "key.pem", tmp_path / "night.json"
        releases.take_out(services.settings.home, key)
        assert "kept elsewhere" in shoal("release", "create", "config", settings, "--version", "night").output
        exported = shoal("release", "export-unsigned", str(draft), "--config", settings, "--version", "night")
        assert exported.exit_code == 0, exported.output
        sign = ["openssl", "pkeyutl", "-sign", "-rawin", "-inkey", key, "-in", draft, "-out", tmp_path / "signature"]
        subprocess.run(sign, check=True, capture_output=True)
        taken = shoal("release", "import", str(draft), "--signature", str(tmp_path / "signature"), "--json")
        assert json.loads(taken.output)["manifest"] == draft.read_text()
        assert "is there already" in shoal("release", "import", str(draft), "--key", str(key)).output
        assert shoal("release", "import", str(draft)).exit_code == 2

    def test_a_key_signs_where_the_command_runs(self, shoal, services, settings, tmp_path):  # noqa: F811
        key, draft = tmp_path / "key.pem", tmp_path / "night.json"
        releases.take_out(services.settings.home, key)
        shoal("release", "export-unsigned", str(draft), "--config", settings, "--version", "night")
        assert shoal("release", "import", str(draft), "--key", str(key), "--notes", "n").exit_code == 0
        other = tmp_path / "other"
        other.mkdir()
        ReleaseKey.of(other)
        shoal("release", "export-unsigned", str(draft), "--config", settings, "--version", "day")
        refused = shoal("release", "import", str(draft), "--key", str(other / "release.key"))
        assert "is not one of the key" in refused.output


@pytest.mark.usefixtures("running", "night")
class TestRollouts:
    def test_one_is_begun_listed_and_shown(self, shoal):  # noqa: F811
        begun = shoal("rollout", "start", "config-night", "--group", "kitchen", "--waves", "34%,100%", "--soak", "1m")
        assert begun.exit_code == 0, begun.output
        assert "group kitchen" in begun.output
        assert "config-night" in shoal("rollout", "list").output
        shown = shoal("rollout", "show", "1").output
        assert [name for name in ("pico", "tre", "cinque") if name in shown] == ["pico", "tre", "cinque"]
        plain = json.loads(shoal("rollout", "show", "1", "--json").output)
        assert plain["rules"]["waves"] == [0.34, 1.0]
        assert plain["executions"]["total"] == 3
        assert "pico" not in shoal("rollout", "show", "1", "--state", "failed").output

    def test_it_is_steered(self, shoal):  # noqa: F811
        shoal("rollout", "start", "config-night", "--device", "pico", "--device", "tre")
        assert "paused by" in shoal("rollout", "pause", "1").output
        assert "does not wait for approval" in shoal("rollout", "approve", "1").output
        assert "running" in shoal("rollout", "resume", "1").output
        assert "aborted" in shoal("rollout", "abort", "1").output
        assert "could go back to" in shoal("rollout", "back", "1").output

    def test_it_is_brought_back(self, shoal, services, settings):  # noqa: F811
        shoal("release", "create", "config", settings, "--version", "day")
        shoal("rollout", "start", "config-day", "--device", "pico")
        with services.database.write() as session:
            one = session.query(models.Execution).one()
            one.state, one.before_id = "succeeded", 1
        back = json.loads(shoal("rollout", "back", "1", "--parallel", "7", "--json").output)
        assert (back["row"]["back_of"], back["rules"]["parallel"]) == (1, 7)
        assert "back from config-day" in shoal("rollout", "list").output
        assert "night" in shoal("device", "releases", "pico").output

    @pytest.mark.parametrize(
        ("words", "code", "sentence"),
        [
            (("config-night",), 1, "Name the devices"),
            (("config-night", "--every", "--waves", "some"), 2, "are no waves"),
            (("config-night", "--every", "--waves", "10%"), 1, "the last of them 1"),
            (("agent-9", "--every"), 1, "There is no release"),
        ],
    )
    def test_what_is_not_begun(self, shoal, words, code, sentence):  # noqa: F811
        refused = shoal("rollout", "start", *words)
        assert refused.exit_code == code
        assert sentence in refused.output
