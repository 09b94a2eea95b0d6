"""Recipes: one aggregator, policies, transforms, gates, a base plan and stop rules, as TOML that is read strictly."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from attrs import asdict, field, fields, frozen

from coordinator.errors import ShoalError
from coordinator.strategies import AGGREGATORS, GATES, POLICIES, TRANSFORMS, Cohort, FedAvg
from coordinator.strategies.base import Aggregator, Gate, Member, Policy, Transform
from coordinator.training.stopping import Stop
from protocol.errors import ProtocolError
from protocol.messages import Plan

PRESETS = Path(__file__).parent / "presets"


@frozen(kw_only=True)
class BasePlan:
    """What every plan of the run starts from: the fields of :class:`protocol.messages.Plan`, at width 1.

    ``lease`` seconds are given to a device for an assignment, and again with every commit. ``seconds`` and
    ``refresh`` 0: none.
    """

    batch: int = 32
    steps: int = 20
    learning_rate: float = 0.05
    coding: str = "float32"
    lease: float = 900.0
    seconds: float = 0.0
    commits: int = 1
    refresh: int = 0
    momentum: float = 0.0
    dampening: float = 0.0
    weight_decay: float = 0.0
    clip: float = 0.0
    proximal: float = 0.0
    evaluate: bool = False
    labels: bool = False

    def plan(self) -> Plan:
        given = asdict(self, filter=lambda a, _: a.name != "lease")
        optional = {"seconds": self.seconds or None, "refresh": self.refresh or None}
        return Plan(**{**given, **optional}, width=1.0)


@frozen(kw_only=True)
class Recipe:
    """How a run decides."""

    name: str
    plan: BasePlan
    aggregator: Aggregator
    policies: tuple[Policy, ...] = ()
    transforms: tuple[Transform, ...] = ()
    gates: tuple[Gate, ...] = ()
    stop: Stop = field(factory=Stop)

    def to_toml(self) -> str:
        """The recipe with every default written out; :func:`parse` reads it back."""
        lines = [f"name = {_toml(self.name)}", "", "[plan]", *_items(asdict(self.plan))]
        lines += ["", "[stop]", *_items(asdict(self.stop))]
        members: list[tuple[str, Member]] = [("[aggregator]", self.aggregator)]
        members += [("[[policy]]", policy) for policy in self.policies]
        members += [("[[transform]]", transform) for transform in self.transforms]
        members += [("[[admission]]", gate) for gate in self.gates]
        for header, member in members:
            lines += ["", header, f'kind = "{member.kind}"', *_items(_options(member))]
        return "\n".join(lines) + "\n"


def presets() -> dict[str, str]:
    """The TOML text of every recipe that comes with Shoal, by name."""
    return {path.stem: path.read_text() for path in sorted(PRESETS.glob("*.toml"))}


def load(recipe: str) -> Recipe:
    """A recipe from a preset's name or from TOML text."""
    known = presets()
    if recipe not in known and "=" not in recipe:
        raise ShoalError("bad-recipe", f"There is no recipe {recipe[:80]!r}, only {', '.join(known)}, or one as TOML")
    return parse(known.get(recipe, recipe))


def parse(text: str) -> Recipe:
    """Read TOML; ShoalError ``bad-recipe`` names the offending key."""
    try:
        table = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        known = ", ".join(presets())
        raise ShoalError("bad-recipe", f"The recipe is neither one of {known} nor TOML: {error}") from error
    _known(table, {"name", "plan", "stop", "aggregator", "policy", "transform", "admission"}, "the recipe")
    name = table.get("name", "custom")
    if not isinstance(name, str) or not 1 <= len(name) <= 80:
        raise ShoalError("bad-recipe", f"name is {name!r}, expected 1 to 80 characters")
    recipe = Recipe(
        name=name,
        plan=_build(BasePlan, _table(table, "plan"), "[plan]"),
        aggregator=_member(AGGREGATORS, _table(table, "aggregator"), "[aggregator]"),
        policies=tuple(_member(POLICIES, t, "[[policy]]") for t in _tables(table, "policy")),
        transforms=tuple(_member(TRANSFORMS, t, "[[transform]]") for t in _tables(table, "transform")),
        gates=tuple(_member(GATES, t, "[[admission]]") for t in _tables(table, "admission")),
        stop=_build(Stop, _table(table, "stop"), "[stop]"),
    )
    _check(recipe)
    return recipe


def _check(recipe: Recipe) -> None:
    writers: dict[str, str] = {}
    for policy in recipe.policies:
        for name in sorted(policy.writes):
            if name in writers:
                both = f"{writers[name]} and {type(policy).__name__}"
                raise ShoalError("bad-recipe", f"Two policies set {name}: {both}; keep one of them")
            writers[name] = type(policy).__name__
    _check_rounds(recipe)
    try:
        recipe.plan.plan()
    except ProtocolError as error:
        raise ShoalError("bad-recipe", f"[plan]: {error}") from error
    if not 1 <= recipe.plan.lease <= 30 * 86400:
        raise ShoalError("bad-recipe", f"[plan]: lease is {recipe.plan.lease}, expected 1 second to 30 days")


def _check_rounds(recipe: Recipe) -> None:
    """A recipe that could not make progress, or whose devices would wait for nothing, is refused."""
    aggregator = recipe.aggregator
    for policy in recipe.policies[1:]:
        if policy.waiting != "none":
            sentence = f"{policy.kind} makes devices wait: it must be the first policy, and the only one that does"
            raise ShoalError("bad-recipe", sentence)
    rounds = next((policy for policy in recipe.policies if policy.waiting == "rounds"), None)
    if aggregator.synchronous and rounds is None:
        sentence = f"{aggregator.kind} closes rounds: it needs a policy that holds them, cohort or ssp with bound = 0"
        raise ShoalError("bad-recipe", sentence)
    if rounds is not None and not aggregator.synchronous:
        sentence = f"{rounds.kind} lets devices wait for a round to end, but {aggregator.kind} closes none: use fedavg"
        raise ShoalError("bad-recipe", sentence)
    if isinstance(rounds, Cohort) and isinstance(aggregator, FedAvg) and rounds.room < aggregator.goal:
        sentence = f"cohort lets {rounds.room} devices into a round, fedavg waits for {aggregator.goal}"
        raise ShoalError("bad-recipe", sentence)
    _check_going_on(recipe)


def _check_going_on(recipe: Recipe) -> None:
    """Devices that train on while their updates travel heed no barrier, and would fill rounds several times over."""
    going = next((policy.kind for policy in recipe.policies if "commits" in policy.writes), None)
    if going is None and recipe.plan.commits > 1:
        going = f"commits = {recipe.plan.commits}"
    barriers = [policy.kind for policy in recipe.policies if policy.waiting != "none"]
    if recipe.aggregator.synchronous:
        barriers.append(recipe.aggregator.kind)
    if going is not None and barriers:
        sentence = f"{going} lets devices train on without waiting, but {barriers[0]} lets them wait: keep one of them"
        raise ShoalError("bad-recipe", sentence)


def _member(registry: Mapping[str, type], table: Mapping[str, Any], where: str) -> Any:
    kind = table.get("kind")
    if not isinstance(kind, str) or kind not in registry:
        raise ShoalError("bad-recipe", f"{where}: kind is {kind!r}, expected one of {', '.join(registry)}")
    return _build(registry[kind], {k: v for k, v in table.items() if k != "kind"}, f"{where} {kind}")


def _build(cls: type[Any], table: Mapping[str, Any], where: str) -> Any:
    hints = get_type_hints(cls)
    names = {a.name.rstrip("_"): a.name for a in fields(cls)}
    _known(table, set(names), where)
    values = {names[key]: _typed(hints[names[key]], value, f"{where}: {key}") for key, value in table.items()}
    try:
        return cls(**values)
    except (ValueError, TypeError) as error:
        raise ShoalError("bad-recipe", f"{where}: {error}") from error


def _typed(kind: Any, value: Any, where: str) -> Any:
    """TOML's types are kept apart: "4" is not 4, and true is not 1; a whole number is fine where any number is."""
    if kind is float and type(value) is int:
        return float(value)
    if get_origin(kind) is tuple and type(value) is list:
        return tuple(_typed(get_args(kind)[0], item, where) for item in value)
    if get_origin(kind) is dict and type(value) is dict:
        return {key: _typed(get_args(kind)[1], item, where) for key, item in value.items()}
    if type(value) is not kind:
        raise ShoalError("bad-recipe", f"{where} is {value!r}, expected {getattr(kind, '__name__', kind)}")
    return value


def _known(table: Mapping[str, Any], names: set[str], where: str) -> None:
    if unknown := sorted(table.keys() - names):
        raise ShoalError("bad-recipe", f"{where}: unknown key {unknown[0]!r}, expected {', '.join(sorted(names))}")


def _table(table: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = table.get(key, {})
    if not isinstance(value, dict):
        raise ShoalError("bad-recipe", f"{key} is {value!r}, expected a table [{key}]")
    return value


def _tables(table: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    value = table.get(key, [])
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise ShoalError("bad-recipe", f"{key} is {value!r}, expected tables [[{key}]]")
    return value


def _options(member: Any) -> dict[str, Any]:
    return {a.name.rstrip("_"): getattr(member, a.name) for a in fields(type(member))}


def _items(options: Mapping[str, Any]) -> list[str]:
    return [f"{key} = {_toml(value)}" for key, value in options.items()]


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_toml(k)} = {_toml(v)}" for k, v in value.items()) + " }" if value else "{}"
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    # A JSON string is a TOML string, but for DEL, and for the pairs of escapes that JSON makes of rare characters.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
