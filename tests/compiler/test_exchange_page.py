"""docs/exchange.md names every operator that is imported and every format."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from coordinator.compiler.export import FORMATS
from coordinator.compiler.onnx_import import HANDLERS

PAGE = (Path(__file__).parent.parent.parent / "docs" / "exchange.md").read_text(encoding="utf-8")
OPERATORS = {
    name for line in PAGE.splitlines() if line.startswith("| `") for name in re.findall(r"`(\w+)`", line.split("|")[1])
}


@pytest.mark.parametrize("operator", [*HANDLERS, "Softmax", "LogSoftmax"])
def test_every_operator_stands_in_the_table(operator):
    assert operator in OPERATORS


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_has_a_row(form):
    assert f"\n| `{form}` |" in PAGE
