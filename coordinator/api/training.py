"""Runs: starting, steering and reading them; the models and recipes there are to start with."""

from __future__ import annotations

from typing import Any

from attrs import frozen
from sqlalchemy import select

from coordinator.api.endpoint import Endpoint
from coordinator.auth import admit, services
from coordinator.compiler.zoo import ZOO
from coordinator.errors import ShoalError
from coordinator.store import queries
from coordinator.store.models import Model
from coordinator.store.queries import CurvePoint, Page, RunDetail, RunRow
from coordinator.training import recipe as recipes

MAX_SEED = 2**31 - 1


@frozen(kw_only=True)
class RunQuery:
    """A minus in front of ``sort`` reverses it."""

    state: str = ""
    sort: str = "-created"
    page: int = 1
    size: int = 50


@frozen(kw_only=True)
class RunRequest:
    """``model`` is a name of the list of models or a specification as JSON text, ``recipe`` a name of the list of
    recipes or TOML text, ``dataset`` a test set (npz) on the coordinator's disk, ``target`` the test accuracy at which
    the run ends by itself, ``weights`` a safetensors file on the coordinator's disk to begin with; without it the seed
    draws them."""

    model: str
    recipe: str
    dataset: str = ""
    target: float | None = None
    seed: int = 0
    name: str | None = None
    weights: str | None = None


@frozen(kw_only=True)
class MetricsQuery:
    """Versions newer than ``after``."""

    after: int = -1


@frozen(kw_only=True)
class ModelRow:
    """``builtin`` models come with Shoal; the others have been trained here."""

    name: str
    spec_sha256: str | None
    builtin: bool
    created_at: float | None


@frozen(kw_only=True)
class RecipeText:
    name: str
    toml: str


def list_runs(query: RunQuery) -> Page[RunRow]:
    """Runs, sorted and in pages."""
    order = queries.Order.parse(query.sort, query.page, query.size)
    with services().database.read() as reading:
        return queries.runs(reading, order, services().clock(), query.state)


def start_run(body: RunRequest) -> RunDetail:
    """Start a run."""
    if not 0 <= body.seed <= MAX_SEED:
        raise ShoalError("bad-request", f"seed is {body.seed}, expected 0 to {MAX_SEED}")
    if body.target is not None and not 0 < body.target <= 1:
        raise ShoalError("bad-request", f"target is {body.target:g}, expected a test accuracy above 0, at most 1")
    run = services().commands.start_run(
        model=body.model,
        recipe=body.recipe,
        dataset=body.dataset,
        target=body.target,
        seed=body.seed,
        by=admit("operator").name,
        name=body.name,
        weights=body.weights or "",
    )
    return show_run(run)


def show_run(run: str) -> RunDetail:
    """One run in full."""
    with services().database.read() as reading:
        return queries.run(reading, run, services().clock())


def pause_run(run: str) -> RunDetail:
    """Offer no more work of this run until it is resumed."""
    return _operate(run, "pause")


def resume_run(run: str) -> RunDetail:
    """Take back a pause."""
    return _operate(run, "resume")


def stop_run(run: str) -> RunDetail:
    """End a run for good; its versions and its history stay."""
    return _operate(run, "stop")


def run_metrics(run: str, query: MetricsQuery) -> tuple[CurvePoint, ...]:
    """Accuracy and loss of every evaluated version, oldest first."""
    with services().database.read() as reading:
        return queries.curve(reading, run, query.after)


def list_models() -> tuple[ModelRow, ...]:
    """The models that come with Shoal, and those that were trained here."""
    with services().database.read() as reading:
        rows = reading.execute(
            select(Model.name, Model.spec_sha256, Model.created_at).order_by(Model.name, Model.created_at)
        ).all()
    own = (ModelRow(name=name, spec_sha256=sha, builtin=False, created_at=at) for name, sha, at in rows)
    return (*(ModelRow(name=name, spec_sha256=None, builtin=True, created_at=None) for name in sorted(ZOO)), *own)


def list_recipes() -> tuple[RecipeText, ...]:
    """The recipes that come with Shoal, as TOML."""
    return tuple(RecipeText(name=name, toml=text) for name, text in recipes.presets().items())


def show_recipe(recipe: str) -> RecipeText:
    """A recipe that comes with Shoal, with every default written out."""
    if recipe not in recipes.presets():
        raise ShoalError("not-found", f"There is no recipe {recipe[:80]!r}")
    return RecipeText(name=recipe, toml=recipes.load(recipe).to_toml())


def _operate(run: str, action: str) -> RunDetail:
    services().commands.operate(run, action, admit("operator").name)
    return show_run(run)


def _get(path: str, call: Any, answer: Any, query: type[Any] | None = None) -> Endpoint:
    return Endpoint(method="GET", path=path, call=call, access="viewer", answer=answer, query=query)


def _post(path: str, call: Any, body: type[Any] | None = None, status: int = 200) -> Endpoint:
    return Endpoint(
        method="POST", path=path, call=call, access="operator", answer=RunDetail, body=body, status=status
    )


ENDPOINTS = (
    _get("/runs", list_runs, Page[RunRow], RunQuery),
    _post("/runs", start_run, RunRequest, 201),
    _get("/runs/<run>", show_run, RunDetail),
    _post("/runs/<run>/pause", pause_run),
    _post("/runs/<run>/resume", resume_run),
    _post("/runs/<run>/stop", stop_run),
    _get("/runs/<run>/metrics", run_metrics, tuple[CurvePoint, ...], MetricsQuery),
    _get("/models", list_models, tuple[ModelRow, ...]),
    _get("/recipes", list_recipes, tuple[RecipeText, ...]),
    _get("/recipes/<recipe>", show_recipe, RecipeText),
)
