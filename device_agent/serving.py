"""The deployed model at work in the agent: how it comes in, and what is told to those who ask it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from attrs import frozen
from numpy.typing import NDArray

from .data import unlabelled
from .duty import Duty
from .inference import Prediction
from .model_kind import Model
from .settings import Settings
from .shelf import InUse, Shelf

if TYPE_CHECKING:
    from .endpoint import Endpoint

log = logging.getLogger(__name__)


class Serving:
    """``kind`` is how models come in, the endpoint how they are asked; there is none without a port."""

    def __init__(self, settings: Settings, duty: Duty) -> None:
        in_use = InUse(Shelf(settings.home), duty.backend, settings.threads)
        self.kind = Model(in_use, lambda: duty.loaded)
        self._teller = Teller(in_use, settings.data.classes if settings.data else None)
        self._where = settings.serve
        self._endpoint: Endpoint | None = None

    def open(self) -> None:
        """Listen where ``[serve]`` says. A port that is taken is logged, and the agent goes on without."""
        if self._where.port is None:
            return
        from .endpoint import Endpoint  # an HTTP server costs memory

        try:
            self._endpoint = Endpoint(self._where.host, self._where.port, self._teller)
        except (OSError, OverflowError) as error:
            log.warning("serving-not host=%s port=%d cause=%r", self._where.host, self._where.port, str(error))
            return
        log.info("serving host=%s port=%d", self._where.host, self._endpoint.port)
        self._endpoint.open()

    def close(self) -> None:
        if self._endpoint is not None:
            self._endpoint.close()


@frozen
class Teller:
    """What is answered. ``labels`` name the classes in the order of the model's class numbers."""

    in_use: InUse
    labels: tuple[str, ...] | None = None

    def about(self) -> dict[str, Any]:
        """The model in use and how it does; NoModel or ModelError."""
        model = self.in_use.model
        predictor, tally, card = model.predictor, model.tally, model.predictor.card
        return {
            "version": predictor.manifest.version,
            "model": card.model,
            "input": list(card.input),
            "classes": card.classes,
            "labels": self._names(card.classes),
            "width": predictor.width,
            "run": card.run,
            "model_version": card.version,
            "backend": predictor.backend,
            "answered": tally.answered,
            "failed": tally.failed,
            "milliseconds": tally.milliseconds,
        }

    def answers(self, x: NDArray[Any]) -> dict[str, Any]:
        """To one sample or several, all by one model; DataError if they are not samples of its."""
        model = self.in_use.model
        rows = unlabelled.shaped(x, model.predictor.card.input)
        found = [self._told(model(row)) for row in rows]
        return {"version": model.predictor.manifest.version, "answers": found}

    def _told(self, found: Prediction) -> dict[str, Any]:
        """A prediction as JSON tells it."""
        names = self._names(len(found.probabilities))
        return {
            "class": found.label,
            "label": names[found.label] if names else None,
            "probabilities": [float(f"{one:.6g}") for one in found.probabilities],
            "milliseconds": round(found.milliseconds, 3),
        }

    def _names(self, classes: int) -> list[str] | None:
        """The labels, if they are those of a model with so many classes."""
        return list(self.labels) if self.labels is not None and len(self.labels) == classes else None
