"""The list of updates as one SELECT that people can read, change and ask themselves (see store.console)."""

from __future__ import annotations

from typing import Final

from coordinator.store.queries.flags import STATEMENT
from coordinator.store.queries.history import SORTS, UpdateFilter
from coordinator.store.queries.page import Order

_NAMES: Final = {"run": "run_id", "assignment": "assignment_id", "commit": "commit_number"}
"""Where the view calls a column of the list by another name."""
_SHOWN: Final = (
    "id, at_utc, run_id, device, outcome, reason, width, base_version, applied_version, staleness, weight, "
    "samples, steps, loss, accuracy, norm, bytes_up, bytes_down, seconds_download, seconds_train, seconds_upload"
)


def statement(wanted: UpdateFilter, order: Order) -> str:
    """SQL over ``v_update_ledger`` that gives the page's updates in the page's order."""
    conditions = []
    if wanted.run:
        conditions.append(f"run_id = {_text(wanted.run)}")
    if wanted.device:
        conditions.append(f"(device_id = {_text(wanted.device)} OR device = {_text(wanted.device)})")
    if wanted.outcome:
        conditions.append(f"outcome = {_text(wanted.outcome)}")
    if wanted.width is not None:
        conditions.append(f"width = {wanted.width!r}")
    if wanted.since is not None:
        conditions.append(f"at_s >= {wanted.since!r}")
    if wanted.until is not None:
        conditions.append(f"at_s <= {wanted.until!r}")
    if wanted.flagged:
        conditions.append(f'id IN (SELECT id FROM "update" WHERE {STATEMENT})')  # noqa: S608 - no word of the reader's
    where = "\nWHERE " + "\n  AND ".join(conditions) if conditions else ""
    offset = f" OFFSET {order.offset}" if order.offset else ""
    return f"SELECT {_SHOWN}\nFROM v_update_ledger{where}\nORDER BY {_order(order)}\nLIMIT {order.size}{offset}"


def _order(order: Order) -> str:
    order.by(SORTS, SORTS["id"])  # a column that does not exist is refused
    name = _NAMES.get(order.sort, order.sort)
    direction = "DESC" if order.descending else "ASC"
    column = "lower(device)" if name == "device" else name
    return f"id {direction}" if name == "id" else f"{column} {direction} NULLS LAST, id {direction}"


def _text(value: str) -> str:
    quoted = value.replace("\0", "").replace("'", "''")
    return f"'{quoted}'"
