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
    """What the model is, and its ``results``, one for each sample; NoModel, ModelError or DataError."""
    in_use = InUse(Shelf(settings.home), offer.backend(settings), settings.threads)
    source = settings.data or Source()
    teller = Teller(in_use, source.classes)
    about = teller.about()
    results = teller.answers(sample_file.read(path, in_use.predictor.card.input, source))
    told = ("version", "model", "run", "model_version", "width", "backend", "answers")
    return {**{name: about[name] for name in told}, "results": results}


def sentences(answer: dict[str, Any]) -> list[str]:
    """The answer for a person, a line for each sample."""
    first = f"{answer['version']} at width {answer['width']:g} on {answer['backend']}"
    return [first, *(f"  {_result(result)}" for result in answer["results"])]


def _result(result: dict[str, Any]) -> str:
    scores, taken = result["scores"], f"({result['milliseconds']:.2f} ms)"
    if "class" not in result:
        return f"{' '.join(f'{score:.4g}' for score in scores)} {taken}"
    likeliest = sorted(range(len(scores)), key=lambda place: -scores[place])[:SHOWN]
    name = result["label"] or f"class {result['class']}"
    others = ", ".join(f"{place}: {scores[place]:.1%}" for place in likeliest[1:])
    return f"{name} {scores[result['class']]:.1%}" + (f", then {others}" if others else "") + f" {taken}"
