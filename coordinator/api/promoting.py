"""From a run's version to a release."""

from __future__ import annotations

from attrs import frozen

from coordinator.api.endpoint import Endpoint
from coordinator.auth import admit, services
from coordinator.fleet import model_release, promotion
from coordinator.fleet.model_release import Limits
from coordinator.fleet.promotion import Promoted


@frozen(kw_only=True)
class PromotionRequest:
    """``version`` is a number, newest, or best: the most accurate whose weights are kept. ``name`` is what the release
    is called, by default made of run and number. ``widths``: by default every one the model is any good at.

    A device does not take the model if more than ``accuracy_drop`` (0 to 1) less of its own hold-out is right than with
    the one before, if one sample takes it more than ``milliseconds``, or if it needs more than ``memory`` bytes.
    ``unsigned``: answer with the manifest, to be signed elsewhere.
    """

    version: str = model_release.NEWEST
    name: str = ""
    notes: str = ""
    widths: tuple[float, ...] = ()
    accuracy_drop: float | None = None
    milliseconds: float | None = None
    memory: int | None = None
    unsigned: bool = False


def promote_model(run: str, body: PromotionRequest) -> Promoted:
    """Release a version of a run for devices to use."""
    return promotion.promote(
        services(),
        run,
        body.version,
        by=admit("operator").name,
        name=body.name,
        notes=body.notes,
        widths=body.widths,
        limits=Limits(body.accuracy_drop, body.milliseconds, body.memory),
        unsigned=body.unsigned,
    )


ENDPOINTS = (
    Endpoint(
        method="POST",
        path="/runs/<run>/promote",
        call=promote_model,
        access="operator",
        body=PromotionRequest,
        answer=Promoted,
        status=201,
    ),
)
