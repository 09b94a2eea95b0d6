"""Networks exported by PyTorch: the imported ones put out the same."""

from __future__ import annotations

import io
import warnings

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

from coordinator.compiler.export import export
from coordinator.compiler.onnx_import import import_onnx
from coordinator.compiler.spec import ModelSpecError

from .onnx_graphs import ours, reference
from .test_export import RUNTIMES, as_trained, run, trained
from .test_numerics import drawn, models

EXAMPLES = 60


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.main = nn.Sequential(
            *(nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
            *(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16)),
        )
        self.short = nn.Conv2d(8, 16, 1, stride=2)
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = self.stem(x)
        return self.head(torch.relu(self.main(x) + self.short(x)).mean((2, 3)))


class Joined(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.other = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 5, padding=2)
        self.norm, self.head = nn.GroupNorm(2, 8), nn.Linear(8 * 5 * 7, 4)

    def forward(self, x):
        x = self.norm(torch.cat([self.one(x), torch.tanh(self.other(x))], 1))
        return self.head(nn.functional.leaky_relu(x, 0.1).view(x.size(0), -1))


class Recurrent(nn.Module):
    def __init__(self, kind, all_steps=False):
        super().__init__()
        self.cell, self.head, self.all_steps = kind(9, 12, batch_first=True), nn.Linear(12, 6), all_steps

    def forward(self, x):
        y, _ = self.cell(x)
        return self.head(y.mean(1) if self.all_steps else y[:, -1])


def networks():
    mobile = (
        *(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU6()),
        *(nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8), nn.SiLU()),
        *(nn.Conv2d(8, 12, 1), nn.GELU(approximate="tanh"), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 4)),
    )
    cnn = (
        *(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 6, 5), nn.BatchNorm2d(6)),
        *(nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(150, 10)),
    )
    signals = (nn.Conv1d(9, 16, 5, padding="same"), nn.Tanh(), nn.MaxPool1d(2), nn.Flatten(), nn.Linear(512, 6))
    mlp = (nn.Linear(20, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 16), nn.LayerNorm(16), nn.Sigmoid())
    decoder = (nn.InstanceNorm2d(4, affine=True), nn.ConvTranspose2d(4, 3, 4, stride=2, padding=1), nn.ReLU())
    return {
        "mlp": (nn.Sequential(*mlp, nn.Linear(16, 3)), (20,)),
        "cnn": (nn.Sequential(*cnn), (1, 28, 28)),
        "cnn1d": (nn.Sequential(*signals), (9, 64)),
        "residual": (Residual(), (3, 32, 32)),
        "depthwise": (nn.Sequential(*mobile), (3, 33, 32)),
        "concat and group norm": (Joined(), (3, 5, 7)),
        "transposed": (nn.Sequential(nn.Conv2d(2, 4, 1), *decoder, nn.Flatten(), nn.Linear(768, 2)), (2, 8, 8)),
        "lstm": (Recurrent(nn.LSTM), (20, 9)),
        "gru": (Recurrent(nn.GRU), (20, 9)),
        "gru, all steps": (Recurrent(nn.GRU, all_steps=True), (20, 9)),
    }


@pytest.mark.parametrize("any_batch", [False, True])
@pytest.mark.parametrize("name", networks())
def test_what_pytorch_exports_puts_out_the_same(name, any_batch):
    torch.manual_seed(0)
    network, shape = networks()[name]
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
            nn.init.normal_(layer.bias)
    x, file = torch.randn(2, *shape), io.BytesIO()
    axes = {"input_names": ["x"], "dynamic_axes": {"x": {0: "batch"}}} if any_batch else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, about itself
        torch.onnx.export(network.eval(), x, file, dynamo=False, opset_version=17, **axes)
    spec, weights = import_onnx(file.getvalue())
    given = x.numpy()
    if not isinstance(network, Recurrent) and x.ndim > 2:
        given = np.moveaxis(given, 1, -1)
    expected = network(x).detach().numpy()
    np.testing.assert_allclose(ours(spec, weights, given), expected, rtol=0, atol=2e-6 * max(1, np.abs(expected).max()))


@drawn(EXAMPLES)
@given(models(), st.sampled_from([1, 0.5]))
def test_drawn_models_go_out_and_come_back(spec, width):
    """As a LiteRT file, as an ONNX file and as what is imported of that: the numbers of the artifact."""
    weights, subnetwork, statistics, x = trained(spec, width)
    try:
        file = export(spec, weights, subnetwork, "tflite", statistics=statistics)
    except ModelSpecError as error:
        assume("to be folded into it" not in str(error))
        raise
    expected = as_trained(spec, weights, subnetwork, statistics, x)
    content = export(spec, weights, subnetwork, "onnx", statistics=statistics)
    found = [reference(content, x), ours(*import_onnx(content), x), *(run(file, x, runtime) for runtime in RUNTIMES)]
    for logits in found:
        np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4 * max(1, np.abs(expected).max()))
