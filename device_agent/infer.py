"""``shoal-agent infer``: what the deployed model makes of a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from . import offer
from .data import sample_file
from .data.source import Source
from .serving import Teller
from .settings import Settings
from .shelf import InUse, Shelf

SHOWN = 3  # classes of an answer that a person is shown


def ask(settings: Settings, path: Path) -> dict[str, Any]:
    """What the model is, and its ``answers``, one for each sample; NoModel, ModelError or DataError."""
    in_use = InUse(Shelf(settings.home), offer.backend(settings), settings.threads)
    source = settings.data or Source()
    teller = Teller(in_use, source.classes)
    about = teller.about()
    found = teller.answers(sample_file.read(path, in_use.model.predictor.card.input, source))
    told = ("version", "model", "run", "model_version", "width", "backend", "labels")
    return {**{name: about[name] for name in told}, "answers": found["answers"]}


def sentences(answer: dict[str, Any]) -> list[str]:
    """The answer for a person, a line for each sample."""
    first = f"{answer['version']} at width {answer['width']:g} on {answer['backend']}"
    return [first, *(f"  {_line(one, answer['labels'])}" for one in answer["answers"])]


def _line(one: dict[str, Any], labels: list[str] | None) -> str:
    chances = one["probabilities"]
    likeliest = sorted(range(len(chances)), key=lambda place: -chances[place])[:SHOWN]
    told = [f"{labels[place] if labels else f'class {place}'} {chances[place]:.1%}" for place in likeliest]
    return f"{', '.join(told)} ({one['milliseconds']:.2f} ms)"
