"""Settings: where they come from, and what is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from device_agent.errors import UsageError
from device_agent.settings import Settings, load, remember


def test_without_a_file_there_are_defaults(tmp_path: Path) -> None:
    assert load(tmp_path, {}) == Settings(home=tmp_path)


def test_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    (tmp_path / "agent.toml").write_text('pace = 2\nthreads = 2\ndata = "train.npz"\n')
    settings = load(tmp_path, {"SHOAL_AGENT_THREADS": "3", "SHOAL_AGENT_HEARTBEAT": "0.5"})
    assert (settings.pace, settings.threads, settings.heartbeat) == (2.0, 3, 0.5)
    assert settings.data == tmp_path / "train.npz", "a relative path is one inside the home"


def test_the_home_may_come_from_the_environment(tmp_path: Path) -> None:
    assert load(None, {"SHOAL_AGENT_HOME": str(tmp_path)}).home == tmp_path


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("paces = 2", "unknown setting 'paces', known are url, data"),
        ("pace = 0.5", "pace is 0.5, expected 1 to 1000"),
        ("pace = nan", "pace is nan"),
        ('threads = "2"', "threads is '2', expected int"),
        ("threads = true", "threads is True, expected int"),
        ("threads = 0", "threads is 0"),
        ("cache_bytes = 1.5", "cache_bytes is 1.5, expected int"),
        ('log_level = "loud"', "expected one of debug, info, warning, error"),
        ("pace = ", "not valid TOML"),
    ],
)
def test_a_bad_file_is_refused_by_name(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "agent.toml").write_text(text)
    with pytest.raises(UsageError, match=sentence):
        load(tmp_path, {})


@pytest.mark.parametrize(
    ("variable", "text", "sentence"),
    [
        ("SHOAL_AGENT_PACES", "2", "SHOAL_AGENT_PACES names no setting"),
        ("SHOAL_AGENT_PACE", "fast", "SHOAL_AGENT_PACE is 'fast', expected float"),
    ],
)
def test_a_bad_variable_is_refused_by_name(tmp_path: Path, variable: str, text: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        load(tmp_path, {variable: text})


def test_what_is_remembered_leaves_the_rest_alone(tmp_path: Path) -> None:
    path = tmp_path / "agent.toml"
    path.write_text('# my board\ndata = "old.npz"\npace = 2.0  # slow\n')
    remember(tmp_path, {"data": '/data/ä "b".npz'})
    assert load(tmp_path, {}).data == Path('/data/ä "b".npz')
    assert "# my board\npace = 2.0  # slow" in path.read_text()
