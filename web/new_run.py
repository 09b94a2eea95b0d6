"""Starting a run from a form, fresh or as another run's clone."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Final

from attrs import asdict, evolve, frozen
from flask import Blueprint, redirect, render_template, url_for
from werkzeug.wrappers import Response

from coordinator import auth
from coordinator.compiler.zoo import ZOO
from coordinator.errors import ShoalError
from coordinator.services import Services
from coordinator.store import queries
from coordinator.training import recipe as recipes
from coordinator.training.runs import read_spec
from coordinator.training.stopping import Stop
from web import address
from web.forms import Form

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

MAX_SEED: Final = 2**31 - 1
OWN: Final = "own"
"""The choice of a model or recipe whose text stands in the form."""
USUAL: Final = "whale-fl"
_FIELDS: Final = {"bad-recipe": "recipe", "bad-model": "model", "bad-dataset": "dataset"}
_NUMBER: Final = re.compile(r"-\d+$")


def install(blueprint: Blueprint, services: Services) -> None:
    page = NewRun(services)
    guard = auth.require("operator")
    blueprint.add_url_rule("/runs/new", "new_run", guard(page.show))
    blueprint.add_url_rule("/runs/new", "start_run", guard(page.start), methods=["POST"])


@frozen
class NewRun:
    services: Services

    def show(self) -> Response | str:
        """The form: empty, with another preset's text, or as the run ``from`` was started."""
        with self.services.database.read() as session:
            source = address.text("from")
            given = self._clone(session, source) if source else _fresh(address.choice("recipe", _presets()))
            return self._page(session, Form(given), source)

    def start(self) -> Response | tuple[str, int]:
        form = Form.sent()
        wanted = _read(form)
        if not form.wrong:
            try:
                who = auth.admit("operator")
                run = self.services.commands.start_run(**wanted, by=who.name)
                return redirect(url_for("web.run", id=run), 303)
            except ShoalError as error:
                form.refuse(_field(error, wanted), error.detail)
        with self.services.database.read() as session:
            return self._page(session, form, ""), 400

    def _page(self, session: Session, form: Form, source: str) -> str:
        return render_template(
            "new_run.html", form=form, source=source, presets=_presets(), own=OWN, zoo=sorted(ZOO),
            known=queries.models(session), groups=queries.groups(session), statuses=queries.status_counts(session),
        )  # fmt: skip

    def _clone(self, session: Session, id: str) -> dict[str, str]:
        run = queries.run(session, id, self.services.clock())
        spec = queries.model_of(session, id)
        try:
            cookbook = recipes.parse(run.recipe_text)
            text, stop = evolve(cookbook, stop=Stop()).to_toml(), cookbook.stop
        except ShoalError:  # an older Shoal wrote it; the form says what is wrong when it is sent
            text, stop = run.recipe_text, Stop()
        named = [name for name, one in ZOO.items() if one.sha256 == spec.sha256]
        weights = str(self.services.blobs.path(run.initial_sha256)) if run.initial_sha256 else ""
        target = run.row.target or stop.target
        return {
            "name": _NUMBER.sub("", id), "preset": OWN, "recipe": text,
            "model": named[0] if named else OWN, "spec": "" if named else json.dumps(spec.spec, indent=1),
            "dataset": run.dataset, "weights": weights, "seed": str(run.seed),
            **{name: f"{value:g}" for name, value in asdict(stop).items() if value},
            **({"target": f"{target:g}"} if target else {}),
        }  # fmt: skip


def _presets() -> tuple[str, ...]:
    return tuple(sorted(recipes.presets(), key=lambda name: name != USUAL))


def _fresh(preset: str) -> dict[str, str]:
    return {"preset": preset, "recipe": recipes.presets()[preset], "seed": "0", "model": address.text("model")}


def _read(form: Form) -> dict[str, Any]:
    """The arguments of a run's start; what is wrong stands in the form then."""
    model = form.text("spec", 200_000) if form["model"] == OWN else form.text("model")
    target = form.number("target", 0, 1)
    dataset = form.text("dataset", 1000)
    wanted = {
        "model": model, "recipe": _recipe(form, None if dataset else target), "dataset": dataset,
        "target": target if dataset else None, "seed": form.whole("seed", 0, MAX_SEED),
        "name": form.text("name", 30) or None, "weights": form.text("weights", 1000),
    }  # fmt: skip
    try:
        read_spec(model)
    except ShoalError as error:
        form.refuse("spec" if form["model"] == OWN else "model", error.detail if model else "A run needs a model")
    return wanted


def _recipe(form: Form, target: float | None) -> str:
    """The text of the recipe, with the form's stop rules where these are given. Without a test set the target is the
    recipe's: the devices' hold-outs say when it is reached."""
    text = form.text("recipe", 50_000)
    rules = {
        "target": target,
        "patience": form.whole("patience", 1, 1_000_000) or None,
        "deadline": form.number("deadline", 0, 1e9),
        "bytes": form.whole("bytes", 1, 1 << 60) or None,
    }
    try:
        cookbook = recipes.parse(text)
    except ShoalError as error:
        form.refuse("recipe", error.detail)
        return text
    given: dict[str, Any] = {name: value for name, value in rules.items() if value is not None}
    return evolve(cookbook, stop=evolve(cookbook.stop, **given)).to_toml() if given else text


def _field(error: ShoalError, wanted: dict[str, Any]) -> str:
    """The field that an error is about."""
    if wanted["weights"] and wanted["weights"] in error.detail:
        return "weights"
    return _FIELDS.get(error.code, "")
