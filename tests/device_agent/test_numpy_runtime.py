"""Programs: what runs, and what is refused before anything runs."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from coordinator.compiler.compile import compile_model
from coordinator.compiler.spec import Dense, ModelSpec
from coordinator.compiler.zoo import ZOO
from device_agent.numpy_runtime import KERNELS, Interpreter, ProgramError

SPEC = ModelSpec("m", (2,), 2, (Dense(2),))
PROGRAM = compile_model(SPEC, batch=2, signature="infer").program


def changed(**members):
    return json.dumps(json.loads(PROGRAM) | members).encode()


def test_inference_by_hand():
    interpreter = Interpreter(PROGRAM)
    interpreter.allocate_tensors()
    numbers = {detail["name"]: detail["index"] for detail in interpreter.get_input_details()}
    interpreter.set_tensor(numbers["x"], [[1, 2], [3, 4]])
    interpreter.set_tensor(numbers["w/dense1.weight"], [[1, 0], [0, 2]])
    interpreter.set_tensor(numbers["w/dense1.bias"], [0, 1])
    interpreter.invoke()
    logits = {detail["name"]: detail["index"] for detail in interpreter.get_output_details()}["logits"]
    np.testing.assert_equal(interpreter.get_tensor(logits), [[1, 5], [3, 9]])


def test_every_operator_of_the_zoo_has_a_kernel():
    for spec in ZOO.values():
        for signature in ("train", "evaluate"):
            program = json.loads(compile_model(spec, batch=2, signature=signature).program)
            assert {operation[0] for operation in program["operations"]} <= KERNELS.keys()


def test_what_is_not_needed_any_more_is_forgotten():
    interpreter = Interpreter(compile_model(ZOO["mlp"], batch=2).program)
    interpreter.invoke()
    kept = {detail["index"] for detail in interpreter.get_input_details() + interpreter.get_output_details()}
    assert interpreter._values.keys() <= kept | {
        int(index) for index in json.loads(compile_model(ZOO["mlp"], batch=2).program)["constants"]
    }


def test_it_needs_numpy_only():
    code = (
        "import sys; from device_agent.numpy_runtime import Interpreter; "
        "sys.exit(any(name in sys.modules for name in ('tflite_runtime', 'ai_edge_litert', 'torch', 'coordinator')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "are not a program"),
        (b"{}", "are not a program: KeyError"),
        (b"[" * 100_000, "are not a program: RecursionError"),
        (changed(shoal=2), "has format 2, this runtime reads 1"),
        (changed(operations=[["SYSTEM", [], [], {}]]), "uses 'SYSTEM', which this runtime does not know"),
        (changed(operations=[["ADD", [0, 99], [1], {}]]), "reads a tensor that nothing has made before it"),
        (changed(operations=[["ADD", [0, 1], [99], {}]]), "are not a program|reads a tensor"),
        (changed(operations=[]), "an output is made by no operation"),
        (changed(tensors=[["x", "float32", [1 << 40]]]), "tensor 'x' has the shape"),
        (changed(tensors=[["x", "float32", [-1]]]), "tensor 'x' has the shape"),
        (changed(tensors=[["x", "object", [1]]]), "are not a program"),
        (changed(constants={"0": "%%%"}), "are not a program"),
    ],
)
def test_what_is_no_program_is_refused(content, sentence):
    with pytest.raises(ProgramError, match=sentence):
        Interpreter(content)
