"""The documentation names everything there is: commands, settings, topics, tables, strategies, error codes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import click
import pytest
from attrs import asdict, fields, fields_dict
from flask import Flask

import web
from coordinator.alerts import rules as alert_rules
from coordinator.cli import COMMANDS, main
from coordinator.cli.flash import flash
from coordinator.compiler.zoo import ZOO
from coordinator.errors import CATALOGUE
from coordinator.fleet import bundles
from coordinator.services import Services
from coordinator.settings import Settings
from coordinator.simulator.hands import SPLITS
from coordinator.simulator.population import Availability, Compute, Energy, Link, builtin
from coordinator.simulator.population import load as population
from coordinator.simulator.population import parse as parse_population
from coordinator.store.models import Base
from coordinator.store.registry import STATUSES
from coordinator.strategies import AGGREGATORS, GATES, POLICIES, TRANSFORMS
from coordinator.training.recipe import BasePlan, parse, presets
from coordinator.training.stopping import Stop
from device_agent import cli as agent_cli
from device_agent.data.source import KINDS
from device_agent.readiness import STATES as STANDING
from device_agent.runtime import MODULES
from device_agent.settings import TABLES
from device_agent.settings import Settings as AgentSettings
from device_agent.settings import load as load_agent_settings
from protocol import tensors, topics
from protocol.messages import FEATURES, STATES

DOCS = Path(__file__).parent.parent / "docs"
STRATEGIES = {**AGGREGATORS, **POLICIES, **TRANSFORMS, **GATES}


def page(name: str) -> str:
    return (DOCS / name).read_text()


def commands() -> list[str]:
    """Every command of ``shoal``, e.g. ``run start``."""
    context = click.Context(main)
    found = []
    for name in COMMANDS:
        command = main.get_command(context, name)
        below = command.list_commands(context) if isinstance(command, click.Group) else [""]
        found += [f"{name} {sub}".strip() for sub in below]
    return found


@pytest.mark.parametrize("command", commands())
def test_every_command_stands_in_operations(command: str) -> None:
    group, _, name = command.partition(" ")
    line = next((line for line in page("operations.md").splitlines() if line.startswith(f"| `shoal {group}")), "")
    assert line, f"docs/operations.md has no row for shoal {group}"
    assert not name or f"`{name}`" in line or f"{group} {name}`" in line


def agent_commands() -> list[str]:
    choices = next(a.choices for a in agent_cli._parser()._actions if isinstance(a.choices, dict))
    return list(choices)


@pytest.mark.parametrize("command", agent_commands())
def test_every_command_of_the_agent_stands_in_operations_and_on_its_own_page(command: str) -> None:
    line = next(line for line in page("operations.md").splitlines() if line.startswith("| `shoal-agent"))
    assert f"{command}`" in line
    assert f"| `shoal-agent {command}` |" in page("agent.md")


CARD = [one.opts[0] for one in flash.params if one.name not in ("home", "url", "ca", "as_json")]


@pytest.mark.parametrize("option", CARD)
def test_every_option_of_a_card_stands_in_fleet(option: str) -> None:
    assert f"| `{option}` |" in page("fleet.md")


@pytest.mark.parametrize("target", bundles.TARGETS, ids=lambda one: one.name)
def test_every_target_stands_in_fleet_with_its_runtime(target: bundles.Target) -> None:
    (row,) = [line for line in page("fleet.md").splitlines() if line.startswith(f"| `{target.name}` |")]
    runtime = [name for name in ("tflite-runtime", "ai-edge-litert") if any(w.startswith(name) for w in target.wheels)]
    assert row.endswith(f"| {' '.join(runtime) or 'the NumPy interpreter'} |")
    assert all(name in row.lower() for name in target.board)


def written() -> list[str]:
    """Every ``shoal …`` that a page tells people to type, from blocks of shell."""
    pages = [path.read_text().replace("\\\n", " ").replace("-u shoal ", "") for path in sorted(DOCS.glob("*.md"))]
    blocks = [block for page in pages for block in re.findall(r"```sh\n(.*?)```", page, re.DOTALL)]
    lines = [line.split(" #")[0].strip() for block in blocks for line in block.splitlines()]
    found = [re.search(r"(?:^|[ /])shoal ((?:[a-z-]+)(?: .*)?)$", line) for line in lines]
    return sorted({match[1] for match in found if match is not None})


@pytest.mark.parametrize("words", written())
def test_what_pages_tell_people_to_type_is_a_command_with_these_options(words: str) -> None:
    found: click.Command | None = main
    context = click.Context(main)
    left = words.split()
    while isinstance(found, click.Group) and left:
        name = left.pop(0)
        found = found.get_command(context, name)
        assert found is not None, f"there is no shoal {name}: {words}"
    assert found is not None
    known = {one for parameter in found.params for one in (*parameter.opts, *parameter.secondary_opts)} | {"--help"}
    assert {word.partition("=")[0] for word in left if word.startswith("--")} <= known


@pytest.mark.parametrize("command", commands())
def test_every_command_has_help_with_an_example(command: str) -> None:
    found: click.Command | None = main
    context = click.Context(main, info_name="shoal")
    for word in command.split():
        assert isinstance(found, click.Group)
        found = found.get_command(context, word)
    assert found is not None
    assert "xample" in found.get_help(click.Context(found, parent=context, info_name=command))


def test_every_page_stands_on_the_page_of_the_pages(tmp_path: Path) -> None:
    app = Flask("pages")
    services = Services(Settings(home=tmp_path), *[None] * 3, lambda: 0.0)  # type: ignore[arg-type]
    app.register_blueprint(web.create_blueprint(services))
    shown = {
        rule.rule.replace("<int:", "<")
        for rule in app.url_map.iter_rules()
        if rule.methods and "GET" in rule.methods and "/static/" not in rule.rule
    }
    table = re.findall(r"^\| `(/[^`]*)` \|", page("web.md"), re.MULTILINE)
    assert shown == set(table)


@pytest.mark.parametrize("setting", [f.name for f in fields(Settings)])
def test_every_setting_of_the_coordinator_stands_in_operations(setting: str) -> None:
    assert f"| `{setting}` |" in page("operations.md")


@pytest.mark.parametrize("setting", [f.name for f in fields(alert_rules.Rules)])
def test_every_setting_of_alerts_stands_in_operations(setting: str) -> None:
    rows = [line for line in page("operations.md").split("## Alerts")[1].split("## ")[0].splitlines() if "|" in line]
    assert any(f"`{setting}`" in row.split("|")[1] for row in rows)


def test_every_kind_that_is_told_of_stands_in_operations() -> None:
    section = page("operations.md").split("## Alerts")[1].split("## ")[0]
    assert set(alert_rules.KINDS) <= set(re.findall(r"`([\w-]+)`", section))


@pytest.mark.parametrize("setting", [f.name for f in fields(AgentSettings) if f.name != "home"])
def test_every_setting_of_the_agent_stands_on_its_page_with_its_default(setting: str) -> None:
    section = page("agent.md").split("## Settings")[1].split("###")[0]
    check_default(section, AgentSettings, setting)


@pytest.mark.parametrize(
    ("table", "setting"), [(table, field.name) for table, cls in TABLES.items() for field in fields(cls)]
)
def test_every_setting_of_a_table_of_the_agent_stands_on_its_page_with_its_default(table: str, setting: str) -> None:
    section = page("agent.md").split(f"### `[{table}]`")[1].split("##")[0]
    check_default(section, TABLES[table], setting)


def check_default(section: str, cls: type, setting: str) -> None:
    default = fields_dict(cls)[setting].default
    row = next((line for line in section.splitlines() if line.startswith(f"| `{setting}` |")), "")
    assert row, f"docs/agent.md has no row for {setting}"
    written = row.split("|")[2].strip().strip("`")
    if isinstance(default, bool | int | float | str):
        assert written == (str(default).lower() if isinstance(default, bool) else f"{default}".removesuffix(".0"))


@pytest.mark.parametrize("word", [*KINDS, *STANDING, "data-usable", "data-unusable", *MODULES])
def test_sources_states_and_runtimes_stand_on_the_page_of_the_agent(word: str) -> None:
    assert f"`{word}`" in page("agent.md")


def test_the_example_of_the_agents_page_is_read_as_settings(tmp_path: Path) -> None:
    (tmp_path / "agent.toml").write_text(page("agent.md").split("```toml")[1].split("```")[0])
    data = load_agent_settings(tmp_path, {}).data
    assert data is not None
    assert (data.kind, data.classes) == ("images", ("good", "scratched", "bent"))


@pytest.mark.parametrize("code", CATALOGUE)
def test_every_error_code_stands_in_operations_with_its_status(code: str) -> None:
    assert f"| `{code}` | {CATALOGUE[code].status} |" in page("operations.md")


@pytest.mark.parametrize("status", STATUSES)
def test_every_status_stands_in_operations(status: str) -> None:
    assert f"| {status} |" in page("operations.md")


@pytest.mark.parametrize("leaf", topics.CHANNELS)
def test_every_topic_stands_in_the_protocol_with_direction_and_message(leaf: str) -> None:
    channel = topics.CHANNELS[leaf]
    row = f"| `{leaf}` | {channel.direction} | {channel.qos} | `{channel.message.__name__}`"
    assert row in page("protocol.md")


@pytest.mark.parametrize("word", [*STATES, *FEATURES, *tensors.DTYPES])
def test_states_features_and_dtypes_stand_in_the_protocol(word: str) -> None:
    assert word in page("protocol.md")


@pytest.mark.parametrize("table", Base.metadata.tables)
def test_every_table_stands_in_the_database_page(table: str) -> None:
    assert f"| `{table}` |" in page("database.md")


@pytest.mark.parametrize("kind", STRATEGIES)
def test_every_strategy_stands_in_recipes_with_its_options(kind: str) -> None:
    text = page("recipes.md")
    assert f"**`{kind}`**" in text
    section = text.split(f"**`{kind}`**")[1].split("**`")[0]
    for option in fields(STRATEGIES[kind]):
        assert f"`{option.name.rstrip('_')}" in section, f"{kind} has an option {option.name}"


@pytest.mark.parametrize("kind", GATES)
def test_every_number_of_a_gate_stands_in_recipes_with_its_default(kind: str) -> None:
    section = page("recipes.md").split(f"**`{kind}`**")[1].split("**`")[0]
    numbers = {name: value for name, value in asdict(GATES[kind]()).items() if not isinstance(value, str)}
    assert {f"`{name}` ({value:g})" for name, value in numbers.items()} <= set(re.findall(r"`\w+` \([\d.]+\)", section))


@pytest.mark.parametrize("name", presets())
def test_every_preset_stands_in_recipes_and_parses(name: str) -> None:
    assert f"`{name}`" in page("recipes.md")
    assert parse(presets()[name]).name == name


@pytest.mark.parametrize("key", [f.name for f in fields(BasePlan)])
def test_every_key_of_the_plan_stands_in_recipes_with_its_default(key: str) -> None:
    default = getattr(BasePlan(), key)
    written = f"`{default}`" if isinstance(default, str) else json.dumps(default).removesuffix(".0")
    assert f"| `{key}` | {written} |" in page("recipes.md")


@pytest.mark.parametrize("key", [attribute.name for attribute in fields(Stop)])
def test_every_stop_rule_stands_in_recipes(key: str) -> None:
    assert f"| `{key}` | 0 |" in page("recipes.md")


@pytest.mark.parametrize("name", ZOO)
def test_every_model_stands_in_models_with_what_it_takes(name: str) -> None:
    spec = ZOO[name]
    assert f"| `{name}` | {list(spec.input)} | {spec.classes} |" in page("models.md")


def test_the_example_recipe_of_the_page_is_a_recipe() -> None:
    text = page("recipes.md").split("```toml")[1].split("```")[0]
    assert parse(text).name == "my-recipe"


@pytest.mark.parametrize("name", builtin())
def test_every_population_stands_in_simulator_with_its_size(name: str) -> None:
    assert f"| `{name}` | {population(name).devices} |" in page("simulator.md")


@pytest.mark.parametrize("key", [f.name for cls in (Compute, Link, Availability, Energy) for f in fields(cls)])
def test_every_key_of_a_population_stands_in_simulator(key: str) -> None:
    assert f"`{key}`" in page("simulator.md")


@pytest.mark.parametrize("split", SPLITS.items())
def test_every_split_stands_in_simulator(split: tuple[str, str]) -> None:
    assert f"| `{split[0]}` | {split[1]} |" in page("simulator.md")


def test_every_option_of_simulate_stands_in_simulator() -> None:
    command = main.get_command(click.Context(main), "simulate")
    assert command is not None
    options = [one for parameter in command.params for one in parameter.opts if one.startswith("--")]
    assert [one for one in options if f"| `{one}` |" not in page("simulator.md")] == []


def test_the_example_population_of_the_page_is_one() -> None:
    text = page("simulator.md").split("```toml")[1].split("```")[0]
    assert [group.name for group in parse_population(text, Path()).groups] == ["pi4", "solar"]
