"""The views that history is asked through. Their names and columns stay what they are; migrations make them.

Beside every moment ``x`` stand ``x_utc``, its text in UTC to the second, and ``x_s``, seconds since 1970: both read the
same on every database.
"""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import JSON, BigInteger, Column, Float, Integer, MetaData, Table, Text
from sqlalchemy.types import TypeEngine

from coordinator.store.models import Instant

metadata = MetaData()

_KINDS: Final[dict[str, Any]] = {
    "text": Text, "int": Integer, "big": BigInteger, "float": Float, "json": JSON, "at": Instant
}  # fmt: skip


def _view(name: str, columns: str) -> Table:
    """``columns`` are words: a kind with a colon, then the names of columns of that kind."""
    made: list[Column[Any]] = []
    kind: type[TypeEngine[Any]] = Text
    for word in columns.split():
        if word.endswith(":"):
            kind = _KINDS[word[:-1]]
            continue
        made.append(Column(word, kind))
        if kind is Instant:
            made += [Column(f"{word}_utc", Text), Column(f"{word}_s", Float)]
    return Table(name, metadata, *made)


update_ledger = _view(
    "v_update_ledger",
    """big: id text: run_id recipe device_id device device_group assignment_id int: commit_number at: at text: day
    int: base_version applied_version staleness float: width weight int: samples steps float: loss accuracy norm
    big: bytes_up bytes_down float: seconds_download seconds_train seconds_upload seconds_total
    text: outcome reason sha256""",
)
run_summary = _view(
    "v_run_summary",
    """text: run_id model recipe state reason int: seed float: target int: version text: created_by at: created ended
    int: devices updates applied big: bytes_up bytes_down float: seconds_train best_accuracy last_accuracy""",
)
run_metric = _view("v_run_metric", "text: run_id int: version text: name float: value at: at float: seconds")
run_progress = _view(
    "v_run_progress",
    """text: run_id int: version at: at float: seconds accuracy loss step_norm int: merged
    big: updates applied bytes_up bytes_down""",
)
local_accuracy = _view(
    "v_local_accuracy", "text: run_id int: version devices big: samples float: accuracy loss"
)
device_contribution = _view(
    "v_device_contribution",
    """text: run_id device_id device device_group int: updates applied stored stale refused expired big: samples
    float: weight share width staleness loss big: bytes_up bytes_down float: seconds_train seconds_link
    at: first last""",
)
device_labels = _view(
    "v_device_labels", "text: device_id device device_group int: class big: samples float: share"
)
device_availability = _view(
    "v_device_availability",
    """big: id text: device_id device device_group status reason at: at text: day at: until float: seconds
    int: available""",
)
width_decisions = _view(
    "v_width_decisions",
    """text: assignment_id run_id recipe device_id device device_group at: offered int: version
    float: width previous_width text: policy float: samples fisher seconds reference utility scale share text: warm_up
    float: temperature load text: state reason big: bytes_down float: seconds_open json: explanation""",
)
bytes_by_day = _view(
    "v_bytes_by_day",
    """text: day run_id device_id device device_group int: updates big: bytes_up bytes_down""",
)
device_hours = _view(
    "v_device_hours",
    """text: device_id device device_group at: at text: day int: beats float: uptime load temperature temperature_max
    big: memory memory_free_min disk_free_min spool_max""",
)
rollout_outcomes = _view(
    "v_rollout_outcomes",
    """text: execution_id big: rollout_id text: rollout_state big: back_of text: kind version int: number
    text: device_id device device_group int: wave place text: state text int: attempts text: before
    at: begun accepted at float: seconds json: facts""",
)
