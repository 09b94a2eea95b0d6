"""Arrow arrays are made of buffers: they hold what the rows held, and nothing that need not be loaded is."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator import export
from coordinator.errors import ShoalError
from coordinator.export import Column, Sheet

arrow = pytest.importorskip("pyarrow")

VALUES = {
    "text": st.text("aé€🐟\0 ", max_size=5),
    "integer": st.integers(-(1 << 63), (1 << 63) - 1),
    "number": st.floats(allow_nan=False) | st.integers(-1000, 1000),
    "boolean": st.booleans(),
}
COLUMNS = st.sampled_from(sorted(VALUES)).flatmap(
    lambda kind: st.tuples(st.just(kind), st.lists(st.none() | VALUES[kind], max_size=20))
)


def read(kind, values):
    sheet = Sheet((Column("x", kind),), [[value] for value in values])
    with arrow.ipc.open_stream(b"".join(export.check("arrow").write(sheet))) as stream:
        return stream.read_all().column("x").to_pylist()


@given(COLUMNS)
def test_what_is_written_is_what_was_there(column):
    kind, values = column
    assert read(kind, values) == values


def test_times_are_moments_in_utc():
    assert [moment and moment.timestamp() for moment in read("time", [0.0, None, 1_700_000_000.25])] == [
        0.0, None, 1_700_000_000.25
    ]  # fmt: skip


@pytest.mark.parametrize(("kind", "values"), [("integer", [1, "2"]), ("integer", [1, 2.5]), ("text", ["a", 1])])
def test_a_column_of_mixed_values_is_refused(kind, values):
    with pytest.raises(ShoalError, match="Column x does not hold the same kind of value in every row"):
        read(kind, values)


def test_pandas_is_not_loaded_to_write_a_file():
    code = (
        "import sys; from coordinator import export; from coordinator.export import Column, Sheet;"
        " list(export.check('parquet').write(Sheet((Column('x', 'text'),), [['a']]))); print('pandas' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
