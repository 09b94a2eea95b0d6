"""Aggregation against the memory: ``total += factor·update`` by a C compiler's -O3 loop is the reference.

``accumulate``: an update at full width into a buffer's running sum. ``full``: all that is done with an update's bytes:
decode, look for elements that are not finite or not plausible, take the norm, accumulate. ``rss_slope``: bytes that the
process grows by per update absorbed.
"""

from __future__ import annotations

import ctypes
import math
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from coordinator.strategies import FedBuff, sums
from coordinator.strategies.base import Context, Contribution, DeviceView, Model
from protocol import coding, tensors
from protocol.messages import Plan
from protocol.subnetwork import Axis, Region
from protocol.weights import Array, Weights, extent, zeros_like

from .measure import Row, Unavailable, compare, one_core

NAME = "aggregation"
SIZES = {"1m": 1_000_000, "10m": 10_000_000}
UPDATES = 400
AXPY = """
void axpy(long n, float factor, const float *restrict x, float *restrict y) {
    for (long i = 0; i < n; i++) y[i] += factor * x[i];
}
"""


def run(progress: Callable[[str], None]) -> list[Row]:
    """Rows ``aggregation.accumulate_<size>`` and ``.full_<size>`` (ratio = the loop's time / ours), ``.rss_slope``."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder, one_core():
        axpy = _axpy(Path(folder))
        for name, size in SIZES.items():
            region, update = _drawn(size)
            total = zeros_like(update)
            body = tensors.encode(coding.encode(update, "float32", zeros_like(update))[0])

            def reference(total: Weights = total, update: Weights = update) -> None:
                axpy(total["w"], update["w"], 0.5)

            def accumulate(region: Region = region, total: Weights = total, update: Weights = update) -> None:
                sums.add(region, total, update, 0.5)

            def full(region: Region = region, total: Weights = total, body: bytes = body) -> None:
                difference = coding.decode(tensors.decode(body)[0], "float32", region.shapes)
                peak, _ = extent(difference, 1e6)
                if not math.isfinite(peak):
                    raise ValueError("the update is not finite")
                sums.add(region, total, difference, 0.5)

            for what, ours in (("accumulate", accumulate), ("full", full)):
                rows.append(row := compare(f"{NAME}.{what}_{name}", ours, reference))
                progress(f"{row.name}: {row.value:.2f} ms, axpy {row.reference:.2f} ms, ratio {row.ratio:.2f}")
        rows.append(row := Row(f"{NAME}.rss_slope", _slope(), "B/update"))
        progress(f"{row.name}: {row.value:.0f} bytes per update")
    return rows


def _drawn(size: int) -> tuple[Region, Weights]:
    values = np.random.default_rng(0).normal(0, 0.01, size).astype(np.float32)
    return Region({"w": (Axis(size, "hidden"),)}), {"w": values}


def _axpy(folder: Path) -> Callable[[Array, Array, float], None]:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise Unavailable("the reference is a C loop, and there is no C compiler: install gcc")
    (folder / "axpy.c").write_text(AXPY)
    options = ["-O3", "-march=native", "-ffp-contract=off", "-shared", "-fPIC"]
    subprocess.run([compiler, *options, "-o", folder / "axpy.so", folder / "axpy.c"], check=True)
    function = ctypes.CDLL(str(folder / "axpy.so")).axpy
    function.argtypes = (ctypes.c_long, ctypes.c_float, ctypes.c_void_p, ctypes.c_void_p)

    def call(total: Array, update: Array, factor: float) -> None:
        function(update.size, factor, update.ctypes.data, total.ctypes.data)

    return call


def _slope() -> float:
    """Bytes of memory per absorbed update of a million parameters, once the buffers are warm."""
    region, update = _drawn(SIZES["1m"])
    model = Model(zeros_like(update), region.layout, {})
    buffer, context = FedBuff(goal=100_000), Context(0.0, np.random.default_rng(0), 0, 0)
    plan = Plan(width=1.0, batch=32, steps=1, learning_rate=0.1, coding="float32")
    state = buffer.init(model)
    grown: list[int] = []
    for number in range(UPDATES):
        contribution = Contribution(
            *(DeviceView("pi", "", 1), f"a{number}/1", update, region, None, 0, 0, 1, 1, 1.0, plan)
        )
        state, _ = buffer.absorb(state, model, contribution, context)
        grown.append(_resident())
    return (grown[-1] - grown[UPDATES // 2]) / (UPDATES - UPDATES // 2)


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
