"""Running compiled artifacts with LiteRT or tflite-runtime.

Weights stay inside the interpreter between steps: what a step puts out is what the next one starts from.
Tensors are addressed by number, because signature runners crash on some aarch64 builds and views of tensors
forbid invoking. Bytes are checked for the file identifier only; LiteRT verifies the rest, tflite-runtime 2.14
crashes on a corrupt file, so artifacts are compared with their sha256 before they come here. XNNPACK stays
on: without it LiteRT multiplies matrices thirty times slower. Importing this module is cheap; the runtime
itself is loaded when the first object is made.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from protocol.weights import Array, Weights

MODULES: dict[str, str] = {"litert": "ai_edge_litert.interpreter", "tflite": "tflite_runtime.interpreter"}
"""Backend to module, the preferred one first."""
_PACKAGES = {"litert": "ai-edge-litert", "tflite": "'tflite-runtime==2.14.*' 'numpy<2'"}
_IDENTIFIER = b"TFL3"
_SMALLEST = 32  # bytes; nothing shorter is a model


class RuntimeUnavailable(RuntimeError):
    """No runtime can be used. The text says which package to install."""


class ArtifactError(ValueError):
    """The bytes are not an artifact of the kind that was expected."""


def backends() -> list[str]:
    """The runtimes that are installed, the preferred one first; nothing is imported to find out."""
    return [name for name, module in MODULES.items() if importlib.util.find_spec(module.partition(".")[0])]


@frozen
class StepResult:
    """One training step: Σ sw·loss, Σ sw·[correct] and, per tensor, the squared gradient of the mean."""

    loss_sum: float
    correct: float
    squared_gradient: Array


@frozen
class _Slot:
    """A tensor of the interpreter."""

    index: int
    shape: tuple[int, ...]
    dtype: Any


class _Interpreter(Protocol):
    def allocate_tensors(self) -> None: ...
    def invoke(self) -> None: ...
    def set_tensor(self, index: int, value: NDArray[Any]) -> None: ...
    def get_tensor(self, index: int) -> NDArray[Any]: ...
    def get_input_details(self) -> list[dict[str, Any]]: ...
    def get_output_details(self) -> list[dict[str, Any]]: ...


class _Loaded:
    """An allocated interpreter whose weights are inputs named ``w/<tensor>``."""

    _INPUTS: tuple[str, ...] = ()
    _OUTPUTS: tuple[str, ...] = ()

    def __init__(self, artifact: bytes, backend: str | None = None, threads: int = 1) -> None:
        self._interpreter = _interpreter(artifact, backend, threads)
        self._inputs = _slots(self._interpreter.get_input_details())
        self._outputs = _slots(self._interpreter.get_output_details())
        missing = [n for n in self._INPUTS if n not in self._inputs] + [
            n for n in self._OUTPUTS if n not in self._outputs
        ]
        if missing:
            raise ArtifactError(f"the artifact is not one for {type(self).__name__}: it has no tensor {missing[0]!r}")
        self._weights = {name[2:]: slot for name, slot in self._inputs.items() if name.startswith("w/")}
        self._loaded = False
        self.batch: int = self._inputs["x"].shape[0]
        self.input_shape: tuple[int, ...] = self._inputs["x"].shape[1:]
        self.shapes: dict[str, tuple[int, ...]] = {name: slot.shape for name, slot in self._weights.items()}

    def load(self, weights: Mapping[str, Array]) -> None:
        """Take the weights to work with; ValueError unless names and shapes are those of :attr:`shapes`."""
        if weights.keys() != self.shapes.keys():
            odd = ", ".join(sorted(weights.keys() ^ self.shapes.keys())[:3])
            raise ValueError(f"the weights differ from the artifact's: {odd} stand on one side only")
        for name, shape in self.shapes.items():
            if weights[name].shape != shape:
                raise ValueError(f"tensor {name!r} has shape {weights[name].shape}, expected {shape}")
        for name, slot in self._weights.items():
            self._interpreter.set_tensor(slot.index, np.ascontiguousarray(weights[name], np.float32))
        self._loaded = True

    def _set(self, name: str, value: NDArray[Any]) -> None:
        slot = self._inputs[name]
        array = np.ascontiguousarray(value, slot.dtype)
        if array.shape != slot.shape:
            raise ValueError(f"{name} has shape {array.shape}, expected {slot.shape}")
        self._interpreter.set_tensor(slot.index, array)

    def _get(self, name: str) -> NDArray[Any]:
        return self._interpreter.get_tensor(self._outputs[name].index)

    def _require_weights(self) -> None:
        if not self._loaded:
            raise RuntimeError("no weights loaded: call load() first")


class TrainStep(_Loaded):
    """A ``train`` artifact with the weights it trains.

    ``batch`` rows of ``input_shape`` make a step; ``shapes`` are those of the weights. One interpreter per
    object: use an object from one thread at a time. Raises RuntimeUnavailable without a runtime,
    ArtifactError on bad bytes.
    """

    _INPUTS = ("x", "y", "sample_weight", "learning_rate")
    _OUTPUTS = ("loss_sum", "correct", "squared_gradient")

    def __init__(self, artifact: bytes, backend: str | None = None, threads: int = 1) -> None:
        super().__init__(artifact, backend, threads)
        missing = [name for name in self._weights if f"new/{name}" not in self._outputs]
        if missing:
            raise ArtifactError(f"the artifact does not put out the new value of tensor {missing[0]!r}")
        self._feedback = [(self._outputs[f"new/{name}"].index, slot.index) for name, slot in self._weights.items()]

    def step(self, x: NDArray[Any], y: NDArray[Any], sample_weight: NDArray[Any], learning_rate: float) -> StepResult:
        """One step of SGD on x[B, *input], labels y[B] and weights [B] ≥ 0, 0 marking a padded row.

        Labels must lie in 0 … classes-1; that is not checked.
        """
        self._require_weights()
        self._set("x", x)
        self._set("y", y)
        self._set("sample_weight", sample_weight)
        self._set("learning_rate", np.full(1, learning_rate, np.float32))
        interpreter = self._interpreter
        interpreter.invoke()
        for new, old in self._feedback:
            interpreter.set_tensor(old, interpreter.get_tensor(new))
        return StepResult(
            float(self._get("loss_sum")[0]), float(self._get("correct")[0]), self._get("squared_gradient")
        )

    def weights(self) -> Weights:
        """Copies of the weights as they are now."""
        self._require_weights()
        return {name: self._interpreter.get_tensor(slot.index) for name, slot in self._weights.items()}


class Inference(_Loaded):
    """An ``infer`` artifact. One interpreter per object: use an object from one thread at a time."""

    _INPUTS = ("x",)
    _OUTPUTS = ("logits", "features")

    def __call__(self, x: NDArray[Any]) -> tuple[Array, Array]:
        """Logits [n, classes] and features [n, F] of 1 … batch rows x[n, *input]."""
        self._require_weights()
        count = len(x)
        if not 1 <= count <= self.batch or x.shape[1:] != self.input_shape:
            raise ValueError(f"x has shape {x.shape}, expected 1 to {self.batch} rows of {self.input_shape}")
        if count < self.batch:
            padded = np.zeros((self.batch, *self.input_shape), np.float32)
            padded[:count] = x
            x = padded
        self._set("x", x)
        self._interpreter.invoke()
        return self._get("logits")[:count], self._get("features")[:count]


def _slots(details: list[dict[str, Any]]) -> dict[str, _Slot]:
    return {d["name"]: _Slot(d["index"], tuple(int(n) for n in d["shape"]), d["dtype"]) for d in details}


def _interpreter(artifact: bytes, backend: str | None, threads: int) -> _Interpreter:
    """An allocated interpreter of the backend, or of the first one that works."""
    if len(artifact) < _SMALLEST or artifact[4:8] != _IDENTIFIER:
        raise ArtifactError(f"these {len(artifact)} bytes are not a LiteRT model: identifier TFL3 is missing")
    if backend is not None and backend not in MODULES:
        raise RuntimeUnavailable(f"unknown backend {backend!r}, expected one of {', '.join(MODULES)}")
    reasons: list[str] = []
    for name in [backend] if backend else backends():
        try:
            return _build(MODULES[name], artifact, threads)
        except (ImportError, AttributeError) as error:
            # tflite-runtime 2.14 under numpy 2 imports, and fails with AttributeError when it is used.
            reasons.append(f"{name}: {error}")
    wanted = _PACKAGES[backend] if backend else " or ".join(_PACKAGES.values())
    because = f" ({'; '.join(reasons)})" if reasons else ""
    raise RuntimeUnavailable(f"no LiteRT runtime can be used{because}: install {wanted}")


def _build(module: str, artifact: bytes, threads: int) -> _Interpreter:
    build = importlib.import_module(module).Interpreter
    try:
        interpreter: _Interpreter = build(model_content=artifact, num_threads=threads)
        interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        raise ArtifactError(f"the runtime cannot load the artifact: {error}") from error
    return interpreter
