"""What an update must be before an aggregator sees it."""

from __future__ import annotations

from protocol import coding, tensors
from protocol.errors import ProtocolError
from protocol.messages import Lineage, Plan, Update
from protocol.subnetwork import Region
from protocol.weights import Weights, finite

MAX_ELEMENT = 1e6
"""No element of a sound difference is larger than this."""


class Refusal(Exception):
    """The update is not sound; the text says why."""


def difference_of(update: Update, body: bytes, version: int, plan: Plan, region: Region) -> Weights:
    """The difference that an update carries, over the region's shapes; Refusal if anything about it is wrong."""
    if update.commit != 1:
        raise Refusal(f"commit {update.commit} came, the plan asks for one")
    if update.lineage != Lineage(version=version, shape_epoch=0):
        against = f"version {update.lineage.version}, shape epoch {update.lineage.shape_epoch}"
        raise Refusal(f"the difference is against {against}; version {version}, shape epoch 0 was assigned")
    if update.coding != plan.coding:
        raise Refusal(f"the coding is {update.coding}, the plan asks for {plan.coding}")
    if not 0 < update.steps <= plan.steps or not 0 < update.samples <= plan.steps * plan.batch:
        asked = f"{plan.steps} steps of {plan.batch} samples"
        raise Refusal(f"{update.steps} steps and {update.samples} samples are reported, the plan asks for {asked}")
    try:
        difference = coding.decode(tensors.decode(body)[0], update.coding, region.shapes)
    except ProtocolError as error:
        raise Refusal(str(error)) from error
    if not finite(difference):
        raise Refusal("the difference has elements that are not finite")
    peak = max(max(abs(float(value.max())), abs(float(value.min()))) for value in difference.values())
    if peak > MAX_ELEMENT:
        raise Refusal(f"the difference has an element of size {peak:g}, at most {MAX_ELEMENT:g} is plausible")
    return difference
