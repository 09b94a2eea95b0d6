"""ONNX's operators that treat every number alike, or every channel: curves, sums and affine steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import numpy as np

from . import curves, kinds
from .curves import PROBES, Curve, Line
from .onnx_movement import Attributes, Handler, Read
from .onnx_trace import Trace, Value

Function = Callable[[Curve], Curve]


def curved(value: Value, function: Function) -> Value:
    """The value after one function more."""
    with np.errstate(all="ignore"):
        if value.curve is None:
            return attrs.evolve(value, curve=function(PROBES), prefix=None)
        if _is_layer(value) or isinstance(curves.recognised(value.curve), Line):
            prefix: tuple[Value, Curve] | None = (value, function(PROBES))
        else:
            prefix = value.prefix and (value.prefix[0], function(value.prefix[1]))
        return attrs.evolve(value, curve=function(value.curve), prefix=prefix)


def _unary(function: Function) -> Handler:
    return lambda trace, attributes, reads: [curved(reads[0], function)]


def _leaky(trace: Trace, attributes: Attributes, reads: list[Any]) -> list[Read]:
    slope = attributes.get("alpha", 0.01)
    if len(reads) > 1:  # PRelu
        if not isinstance(reads[1], np.ndarray) or reads[1].size != 1:
            trace.refuse("has a slope per channel; expected one for all")
        slope = float(np.ravel(reads[1])[0])
    return [curved(reads[0], lambda x: np.where(x > 0, x, slope * x))]


def _clip(trace: Trace, attributes: Attributes, reads: list[Any]) -> list[Read]:
    bounds = [attributes.get("min"), attributes.get("max")]
    for place, bound in enumerate(reads[1:3]):
        bounds[place] = bound if bound is None else float(np.ravel(bound)[0])
    low, high = bounds
    return [curved(reads[0], lambda x: np.clip(x, -np.inf if low is None else low, np.inf if high is None else high))]


def _gelu(trace: Trace, attributes: Attributes, reads: list[Any]) -> list[Read]:
    exact = attributes.get("approximate", "none") == "none"
    return [curved(reads[0], lambda x: curves.gelu(x, exact))]


def _binary(function: Callable[[Any, Any], Any], affine: Callable[[Any], tuple[Any, Any]] | None = None) -> Handler:
    """``affine`` gives factor and offset by which a constant on the right acts."""

    def handle(trace: Trace, attributes: Attributes, reads: list[Any]) -> list[Read]:
        one, other = reads
        if isinstance(one, Value) and isinstance(other, Value):
            return [_joined(trace, one, other, function)]
        value, constant = (one, other) if isinstance(one, Value) else (other, one)
        if constant.size == 1:
            number = float(np.ravel(constant)[0])
            right = isinstance(one, Value)
            return [curved(value, lambda x: function(x, number) if right else function(number, x))]
        commutes = function in (np.add, np.multiply)
        if affine is None or not (isinstance(one, Value) or commutes):
            trace.refuse("takes a constant of several numbers; expected one number")
        constant = _per_sample(trace, value, constant)
        factor, offset = affine(constant)
        return [trace.affine(value, np.asarray(factor), np.asarray(offset))]

    return handle


def _per_sample(trace: Trace, value: Value, constant: Any) -> Any:
    """The constant without the batch's axis."""
    rank = value.positions.ndim + 1
    full = constant.reshape((1,) * (rank - constant.ndim) + constant.shape) if constant.ndim < rank else constant
    if full.ndim != rank or full.shape[value.batch] != 1:
        trace.refuse(f"a constant of shape {constant.shape} does not fit values of {value.positions.shape}")
    return full.squeeze(value.batch)


def _joined(trace: Trace, one: Value, other: Value, function: Callable[[Any, Any], Any]) -> Value:
    """Two functions of the same numbers, or the sum of two layers."""
    together = _of_the_same(one, other, function)
    if together is not None:
        return together
    if function is not np.add:
        trace.refuse("joins the outputs of two layers; expected Add or Concat for that")
    one, other = trace.settled(one), trace.settled(other)
    if one.shape != other.shape and one.positions.shape == other.positions.shape:
        arranged = trace.flat if one.positions.ndim == 1 else trace.image
        one, other = arranged(one), arranged(other)
    alike = one.shape == other.shape and one.batch == other.batch
    if not alike or not np.array_equal(one.positions, other.positions):
        trace.refuse(f"adds values of {one.positions.shape} and {other.positions.shape} that are laid out unlike")
    number, shape = trace.add(kinds.Add(("one", "other")), one, other)
    return attrs.evolve(one, source=number, shape=shape)


def _is_layer(value: Value) -> bool:
    """True if the value is what some layer makes, and no part of a longer formula."""
    if value.curve is None:
        return True
    ways = [value.curve] if value.prefix is None else [value.curve, value.prefix[1]]
    return any(isinstance(curves.recognised(curve), kinds.Layer) for curve in ways)


def _of_the_same(one: Value, other: Value, function: Callable[[Any, Any], Any]) -> Value | None:
    if one.source != other.source or one.batch != other.batch or not np.array_equal(one.positions, other.positions):
        return None
    if function is np.add and _is_layer(one) and _is_layer(other):
        return None
    prefixes = [value.prefix[0] for value in (one, other) if value.prefix is not None] + [one, other]
    prefix: tuple[Value, Curve] | None = None
    with np.errstate(all="ignore"):
        for base in prefixes:
            first, second = one.curve_from(base), other.curve_from(base)
            if base.curve is not None and first is not None and second is not None:
                prefix = base, function(first, second)
                break
        curve = function(PROBES if one.curve is None else one.curve, PROBES if other.curve is None else other.curve)
    return attrs.evolve(one, curve=curve, prefix=prefix)


def _batch_norm(trace: Trace, attributes: Attributes, reads: list[Any]) -> list[Read]:
    value, scale, shift, mean, variance = reads
    if value.batch != 0 or value.positions.shape[0] != len(scale):
        trace.refuse("expected the channels on axis 1")
    factor = scale.astype(np.float64) / np.sqrt(variance.astype(np.float64) + attributes.get("epsilon", 1e-5))
    shape = (-1, *(1,) * (value.positions.ndim - 1))
    return [trace.affine(value, factor.reshape(shape), (shift - mean * factor).reshape(shape))]


NUMBERS: dict[str, Handler] = {
    "Relu": _unary(lambda x: np.maximum(x, 0)),
    "Sigmoid": _unary(curves.sigmoid),
    "Tanh": _unary(np.tanh),
    "Erf": _unary(curves.erf),
    "Neg": _unary(np.negative),
    "LeakyRelu": _leaky,
    "PRelu": _leaky,
    "Clip": _clip,
    "Gelu": _gelu,
    "Add": _binary(np.add, lambda c: (1.0, c)),
    "Sub": _binary(np.subtract, lambda c: (1.0, -c)),
    "Mul": _binary(np.multiply, lambda c: (c, 0.0)),
    "Div": _binary(np.divide, lambda c: (1.0 / c, 0.0)),
    "Pow": _binary(np.power),
    "Max": _binary(np.maximum),
    "Min": _binary(np.minimum),
    "BatchNormalization": _batch_norm,
}
