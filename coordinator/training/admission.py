"""What an update must be before an aggregator sees it."""

from __future__ import annotations

import math

from coordinator.training.work import Sent, Work
from protocol import coding, tensors
from protocol.errors import ProtocolError
from protocol.messages import Update
from protocol.subnetwork import Region
from protocol.weights import Weights, extent

MAX_ELEMENT = 1e6
"""No element of a sound difference is larger than this."""


class Refusal(Exception):
    """The update is not sound; the text says why."""


def difference_of(update: Update, body: bytes, work: Work, region: Region, shape_epoch: int) -> tuple[Weights, float]:
    """The difference that an update carries, over the region's shapes, and its norm; Refusal if anything about it is
    wrong."""
    _check_lineage(update, work, shape_epoch)
    _check_amount(update, work)
    try:
        difference = coding.decode(tensors.decode(body)[0], update.coding, region.shapes)
    except ProtocolError as error:
        raise Refusal(str(error)) from error
    peak, length = extent(difference, MAX_ELEMENT)
    if not math.isfinite(peak):
        raise Refusal("the difference has elements that are not finite")
    if peak > MAX_ELEMENT:
        raise Refusal(f"the difference has an element of size {peak:g}, at most {MAX_ELEMENT:g} is plausible")
    return difference, length


def _check_lineage(update: Update, work: Work, shape_epoch: int) -> None:
    if update.commit != work.commits + 1 or update.commit > work.plan.commits:
        asked = f"{work.plan.commits}, of which {work.commits} have come" if work.plan.commits > 1 else "one"
        raise Refusal(f"commit {update.commit} came, the plan asks for {asked}")
    lineage = update.lineage
    if (lineage.version, lineage.shape_epoch) != (work.version, shape_epoch):
        against = f"version {lineage.version}, shape epoch {lineage.shape_epoch}"
        wanted = f"version {work.version}, shape epoch {shape_epoch}"
        raise Refusal(f"the difference is against {against}; {wanted} was assigned")
    newest = lineage.version
    for merge in lineage.merges:
        if work.sent.get(merge.version) != Sent(merge.merge, merge.keep) or merge.version <= newest:
            how = f"merged with {merge.merge:g} and {merge.keep:g}"
            raise Refusal(f"version {merge.version} {how} is no fresh model that was sent for version {newest}")
        newest = merge.version


def _check_amount(update: Update, work: Work) -> None:
    plan = work.plan
    if update.coding != plan.coding:
        raise Refusal(f"the coding is {update.coding}, the plan asks for {plan.coding}")
    # A device that cannot deliver for a while commits later: at the most all that the plan asks for in one.
    most = work.most_steps * (plan.commits - work.commits)
    if not 0 < update.steps <= most or not 0 < update.samples <= update.steps * plan.batch:
        asked = f"{most} steps of {plan.batch} samples"
        raise Refusal(f"{update.steps} steps and {update.samples} samples are reported, the plan asks for {asked}")
