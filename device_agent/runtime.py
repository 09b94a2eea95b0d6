"""Running compiled artifacts with LiteRT, tflite-runtime or, where there is neither, NumPy.

Weights stay inside the interpreter between steps: what a step puts out is what the next one starts from.
Tensors are addressed by number, because signature runners crash on some aarch64 builds and views of tensors
forbid invoking. Bytes are checked for the file identifier only; LiteRT verifies the rest, tflite-runtime 2.14
crashes on a corrupt file, so artifacts are compared with their sha256 before they come here. XNNPACK stays
on: without it LiteRT multiplies matrices thirty times slower. Importing this module is cheap; the runtime
itself is loaded when the first object is made.

The NumPy runtime reads the program the compiler writes beside a model file (JSON), the others the model file.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from protocol.weights import Array, Weights

MODULES: dict[str, str] = {
    "litert": "ai_edge_litert.interpreter",
    "tflite": "tflite_runtime.interpreter",
    "numpy": "device_agent.numpy_runtime",
}
"""Backend to module, the preferred one first."""
NUMPY = "numpy"
_PACKAGES = {"litert": "ai-edge-litert", "tflite": "'tflite-runtime==2.14.*' 'numpy<2'", "numpy": "numpy"}
_IDENTIFIER = b"TFL3"
_SMALLEST = 32  # bytes; nothing shorter is a model


class RuntimeUnavailable(RuntimeError):
    """No runtime can be used. The text says which package to install."""


class ArtifactError(ValueError):
    """The bytes are not an artifact of the kind that was expected."""


def backends() -> list[str]:
    """The runtimes that can be used, the preferred one first, NumPy last; nothing is imported to find out.

    tflite-runtime 2.14 was built against NumPy 1: under NumPy 2 it imports, and fails when it is used.
    """
    there = [name for name, module in MODULES.items() if importlib.util.find_spec(module.partition(".")[0])]
    return [name for name in there if name != "tflite" or int(np.__version__.partition(".")[0]) < 2]


@frozen
class StepResult:
    """One training step: Σ sw·loss, Σ sw·[correct] (0 where nothing is right or wrong) and, per tensor, the squared
    gradient of the mean. ``found`` holds ``statistic/<norm>.mean`` and ``.variance`` of batch norms, and
    ``cut_gradient`` of the second half of a split model.
    """

    loss_sum: float
    correct: float
    squared_gradient: Array
    found: Weights


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
    def tensor(self, index: int) -> Callable[[], NDArray[Any]]: ...
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
        self._source = "cut" if "cut" in self._inputs else "x"
        if self._source not in self._inputs:
            raise ArtifactError(f"the artifact is not one for {type(self).__name__}: it has no tensor 'x'")
        self._weights = {name[2:]: slot for name, slot in self._inputs.items() if name.startswith("w/")}
        self._loaded = False
        self.batch: int = self._inputs[self._source].shape[0]
        self.input_shape: tuple[int, ...] = self._inputs[self._source].shape[1:]
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
    """A ``train`` or ``back_train`` artifact with the weights it trains and their momentum.

    ``batch`` rows of ``input_shape`` make a step; ``shapes`` are those of the weights. ``options`` names what a step
    takes besides: the values of plain SGD's extensions, a class mask, uniform random numbers for dropout. One
    interpreter per object: use an object from one thread at a time. Raises RuntimeUnavailable without a runtime,
    ArtifactError on bad bytes.
    """

    _INPUTS = ("y", "sample_weight", "learning_rate")
    _OUTPUTS = ("loss_sum", "squared_gradient")

    def __init__(self, artifact: bytes, backend: str | None = None, threads: int = 1) -> None:
        super().__init__(artifact, backend, threads)
        missing = [name for name in self._weights if f"new/{name}" not in self._outputs]
        if missing:
            raise ArtifactError(f"the artifact does not put out the new value of tensor {missing[0]!r}")
        momentum = [name for name in self._inputs if name.startswith("momentum/")]
        self._speeds = {name.partition("/")[2]: self._inputs[name] for name in momentum}
        self._feedback = [(self._outputs[f"new/{name}"].index, slot.index) for name, slot in self._weights.items()]
        self._feedback += [
            (self._outputs[f"new_momentum/{name}"].index, slot.index) for name, slot in self._speeds.items()
        ]
        states = ("w/", "momentum/", "anchor/")
        known = (self._source, *self._INPUTS)
        self.options: dict[str, tuple[int, ...]] = {
            name: slot.shape for name, slot in self._inputs.items() if name not in known and not name.startswith(states)
        }
        """Shape of every further input of a step; those of shape [1] take a number."""
        self.remembers = bool(self._speeds)
        """Whether it has momentum."""

    def load(
        self,
        weights: Mapping[str, Array],
        anchor: Mapping[str, Array] | None = None,
        momentum: Mapping[str, Array] | None = None,
    ) -> None:
        """Take the weights to work with and their ``momentum``, by default zero.

        ``anchor`` is what a proximal term pulls towards, by default the weights themselves. ValueError unless names
        and shapes are those of :attr:`shapes`.
        """
        super().load(weights)
        for name in self._weights:
            if f"anchor/{name}" in self._inputs:
                self._set(f"anchor/{name}", (anchor or weights)[name])
        for name, slot in self._speeds.items():
            speed = np.zeros(slot.shape, np.float32) if momentum is None else momentum[name]
            self._interpreter.set_tensor(slot.index, np.ascontiguousarray(speed, np.float32))

    def step(
        self,
        x: NDArray[Any],
        y: NDArray[Any],
        sample_weight: NDArray[Any],
        learning_rate: float,
        options: Mapping[str, float | NDArray[Any]] | None = None,
    ) -> StepResult:
        """One step on x[B, *input], labels y[B] or targets y[B, outputs] and weights [B] ≥ 0, 0 marking a padded row.

        ``options`` holds a value for each of :attr:`options`. Labels must lie in 0 … classes-1; that is not checked.
        """
        self._run(x, y, sample_weight, learning_rate, options or {})
        interpreter = self._interpreter
        for new, old in self._feedback:
            # A view, gone before the next invoke, which it would forbid: one copy instead of two.
            interpreter.set_tensor(old, interpreter.tensor(new)())
        correct = float(self._get("correct")[0]) if "correct" in self._outputs else 0.0
        return StepResult(float(self._get("loss_sum")[0]), correct, self._get("squared_gradient"), self._found())

    def loss(
        self,
        x: NDArray[Any],
        y: NDArray[Any],
        sample_weight: NDArray[Any],
        options: Mapping[str, float | NDArray[Any]] | None = None,
    ) -> float:
        """Σ sw·loss of a batch; weights and momentum stay as they are."""
        self._run(x, y, sample_weight, 0.0, options or {})
        return float(self._get("loss_sum")[0])

    def _run(
        self,
        x: NDArray[Any],
        y: NDArray[Any],
        sample_weight: NDArray[Any],
        learning_rate: float,
        given: Mapping[str, float | NDArray[Any]],
    ) -> None:
        self._require_weights()
        if given.keys() != self.options.keys():
            odd = ", ".join(sorted(given.keys() ^ self.options.keys())[:3])
            raise ValueError(f"the options differ from the artifact's: {odd} stand on one side only")
        self._set(self._source, x)
        self._set("y", y)
        self._set("sample_weight", sample_weight)
        self._set("learning_rate", np.full(1, learning_rate, np.float32))
        for name, value in given.items():
            self._set(name, np.broadcast_to(np.asarray(value), self.options[name]))
        self._interpreter.invoke()

    def weights(self) -> Weights:
        """Copies of the weights as they are now."""
        self._require_weights()
        return {name: self._interpreter.get_tensor(slot.index) for name, slot in self._weights.items()}

    def states(self) -> Iterator[Array]:
        """Weights, then momentum: copies, one tensor at a time, in the order of :attr:`shapes`."""
        self._require_weights()
        for slot in (*self._weights.values(), *(self._speeds[name] for name in self._weights if self._speeds)):
            yield self._interpreter.get_tensor(slot.index)

    def change(self, new: Callable[[str, Array], Array]) -> None:
        """Replace every weight by ``new(name, weight)``, one tensor at a time."""
        self._require_weights()
        for name, slot in self._weights.items():
            value = new(name, self._interpreter.get_tensor(slot.index))
            self._interpreter.set_tensor(slot.index, np.ascontiguousarray(value, np.float32))

    def _found(self) -> Weights:
        names = [name for name in self._outputs if name.startswith("statistic/") or name == "cut_gradient"]
        return {name: self._get(name) for name in names}


class Inference(_Loaded):
    """An ``infer`` artifact. One interpreter per object: use an object from one thread at a time.

    A model with batch norm needs its statistics beside the weights: see :attr:`statistics`.
    """

    _INPUTS = ("x",)
    _OUTPUTS = ("logits", "features")

    def __init__(self, artifact: bytes, backend: str | None = None, threads: int = 1) -> None:
        super().__init__(artifact, backend, threads)
        names = [name for name in self._inputs if name.startswith("statistic/")]
        self.statistics: dict[str, tuple[int, ...]] = {name: self._inputs[name].shape for name in names}
        """Shapes of the batch norms' means and variances, by the names :attr:`StepResult.found` gives them."""

    def load(self, weights: Mapping[str, Array], statistics: Mapping[str, Array] | None = None) -> None:
        """Take the weights and, for batch norm, the ``statistics`` over the data; ValueError if they do not fit."""
        given = statistics or {}
        missing = sorted(self.statistics.keys() - given.keys())
        if missing:
            raise ValueError(f"the model normalises by statistics of its data: {missing[0]!r} is missing")
        super().load(weights)
        for name in self.statistics:
            self._set(name, given[name])

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


class Session(_Loaded):
    """An artifact of any signature: everything that goes in and comes out by name."""

    def run(self, inputs: Mapping[str, float | NDArray[Any]]) -> dict[str, Array]:
        """All outputs for ``inputs``, which are all that the artifact takes but the weights that were loaded."""
        self._require_weights()
        wanted = {name for name in self._inputs if not name.startswith("w/")}
        if inputs.keys() != wanted:
            odd = ", ".join(sorted(inputs.keys() ^ wanted)[:3])
            raise ValueError(f"the inputs differ from the artifact's: {odd} stand on one side only")
        for name, value in inputs.items():
            self._set(name, np.full(1, value) if np.ndim(value) == 0 else np.asarray(value))
        self._interpreter.invoke()
        return {name: self._get(name) for name in self._outputs}


def _slots(details: list[dict[str, Any]]) -> dict[str, _Slot]:
    return {d["name"]: _Slot(d["index"], tuple(int(n) for n in d["shape"]), d["dtype"]) for d in details}


def _interpreter(artifact: bytes, backend: str | None, threads: int) -> _Interpreter:
    """An allocated interpreter of the backend, or of the first one that works and reads such bytes."""
    if backend is not None and backend not in MODULES:
        raise RuntimeUnavailable(f"unknown backend {backend!r}, expected one of {', '.join(MODULES)}")
    is_program = artifact[:1] == b"{"
    if not is_program and (len(artifact) < _SMALLEST or artifact[4:8] != _IDENTIFIER):
        raise ArtifactError(f"these {len(artifact)} bytes are not a LiteRT model: identifier TFL3 is missing")
    if backend is not None and is_program != (backend == NUMPY):
        form = "a program, which only the backend numpy runs" if is_program else "a model file, numpy runs programs"
        raise ArtifactError(f"these {len(artifact)} bytes are {form}")
    reasons: list[str] = []
    for name in [backend] if backend else [name for name in backends() if is_program == (name == NUMPY)]:
        try:
            return _build(MODULES[name], artifact, threads)
        except (ImportError, AttributeError) as error:
            # tflite-runtime 2.14 under numpy 2 imports, and fails with AttributeError when it is used.
            reasons.append(f"{name}: {error}")
    wanted = _PACKAGES[backend] if backend else " or ".join(p for name, p in _PACKAGES.items() if name != NUMPY)
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
