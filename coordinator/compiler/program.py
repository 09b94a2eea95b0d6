"""The op list of a graph as JSON: what the NumPy runtime of devices interprets.

``{"shoal": 1, "signature", "tensors": [[name, dtype, shape], …], "inputs": [number, …], "outputs": […],
"constants": {number: base64 of little-endian content}, "operations": [[operator, reads, writes, fields], …]}``.
"""

from __future__ import annotations

import base64
import json
from typing import Any

from numpy.typing import NDArray

from .flatbuffer import Writer

FORMAT = 1


def program(graph: Writer) -> bytes:
    """The graph, in execution order; equal graphs give equal bytes."""
    names = {tensor.index: name for named in (graph.inputs, graph.outputs) for name, tensor in named.items()}
    value = {
        "shoal": FORMAT,
        "signature": graph.signature,
        "tensors": [[names.get(t.index, ""), t.dtype, list(t.shape)] for t in graph.tensors],
        "inputs": [tensor.index for tensor in graph.inputs.values()],
        "outputs": [tensor.index for tensor in graph.outputs.values()],
        "constants": {str(index): _encoded(content) for index, content in graph.constants.items()},
        "operations": [[o.operator, o.reads, o.writes, o.fields] for o in graph.operations],
    }
    return json.dumps(value, separators=(",", ":")).encode()


def _encoded(content: NDArray[Any]) -> str:
    return base64.b64encode(content.astype(content.dtype.newbyteorder("<")).tobytes()).decode()
