"""Settings: where they come from, and what is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from device_agent.data.source import Source
from device_agent.errors import UsageError
from device_agent.settings import Settings, load, remember


def test_without_a_file_there_are_defaults(tmp_path: Path) -> None:
    assert load(tmp_path, {}) == Settings(home=tmp_path)


def test_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    (tmp_path / "agent.toml").write_text('pace = 2\nthreads = 2\ndata = "train.npz"\n')
    settings = load(tmp_path, {"SHOAL_AGENT_THREADS": "3", "SHOAL_AGENT_HEARTBEAT": "0.5"})
    assert (settings.pace, settings.threads, settings.heartbeat) == (2.0, 3, 0.5)
    assert settings.data == Source(path=tmp_path / "train.npz"), "a relative path is one inside the home"


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
        ('home = "/x"', "unknown setting 'home'"),
        ('backend = "torch"', "backend is 'torch', expected one of litert, tflite, numpy"),
        ("conditions = 3", r"conditions is 3, expected a table \[conditions\]"),
        ("[data]\nsauce = 1", "unknown setting 'data.sauce', known are source, path"),
        ('[data]\nclasses = "cat"', "data.classes is 'cat', expected a list of str"),
        ("[data]\nshape = [28, 0]", "data.shape is 0, expected 1 to"),
        ("[data]\nholdout = 1", r"data.holdout is 1.0, expected 0 to 0.9"),
        ("[data]\npath = 3", "data.path is 3, expected str"),
        ("[privacy]\nlabel_histogram = 1", "privacy.label_histogram is 1, expected bool"),
        ("[conditions]\nnice = 20", "conditions.nice is 20, expected 0 to 19"),
        ('[conditions]\nhours = ["6-8"]', "conditions.hours has '6-8', expected spans such as 22:00-06:00"),
        ("[conditions]\ntemperature = 70\ntemperature_resume = 80", "expected less than conditions.temperature"),
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
        ("SHOAL_AGENT_CONDITIONS_MAINS", "perhaps", "SHOAL_AGENT_CONDITIONS_MAINS is 'perhaps', expected bool"),
        ("SHOAL_AGENT_DATA_SHAPE", "28,x", "SHOAL_AGENT_DATA_SHAPE is 'x', expected int"),
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
    assert load(tmp_path, {}).data == Source(path=Path('/data/ä "b".npz'))
    assert "# my board\npace = 2.0  # slow" in path.read_text()


def test_tables_and_their_variables(tmp_path: Path) -> None:
    (tmp_path / "agent.toml").write_text(
        'data = "old.npz"\n[privacy]\nlabel_histogram = true\n[conditions]\ntemperature = 75\nmains = true\n'
    )
    environ = {
        "SHOAL_AGENT_DATA": "/new.csv",
        "SHOAL_AGENT_DATA_CLASSES": "cat, dog",
        "SHOAL_AGENT_DATA_SHAPE": "28,28,1",
        "SHOAL_AGENT_CONDITIONS_MAINS": "false",
        "SHOAL_AGENT_TOKEN": "is no setting, and no mistake",
    }
    settings = load(tmp_path, environ)
    assert settings.data == Source(path=Path("/new.csv"), classes=("cat", "dog"), shape=(28, 28, 1))
    assert settings.privacy.label_histogram
    assert (settings.conditions.temperature, settings.conditions.mains) == (75.0, False)


def test_nothing_about_labels_is_told_unless_the_owner_says_so(tmp_path: Path) -> None:
    assert not load(tmp_path, {}).privacy.label_histogram
