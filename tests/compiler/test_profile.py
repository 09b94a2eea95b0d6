"""Profiles: every operator of a graph is there, once per kind and shape."""

from __future__ import annotations

from ai_edge_litert.interpreter import Interpreter

from coordinator.compiler.profile import profile
from coordinator.compiler.spec import Conv2D, Dense, Flatten, ModelSpec, Relu

SPEC = ModelSpec("m", (4, 4, 1), 3, (Conv2D(2, (3, 3)), Relu(), Flatten(), Dense(4), Relu(), Dense(3)))


def test_every_operator_is_timed():
    found = profile(SPEC, lambda content: Interpreter(model_content=content), batch=4, runs=4)
    assert [timing.total for timing in found] == sorted((timing.total for timing in found), reverse=True)
    assert all(timing.seconds > 0 and timing.count > 0 for timing in found)
    products = {timing.reads for timing in found if timing.operator == "BATCH_MATMUL"}
    assert ((4, 32), (32, 4)) in products
    assert len({(t.operator, t.reads, t.writes) for t in found}) > 20
