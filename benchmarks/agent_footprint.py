"""What the agent costs a board: disk, memory, start. Installed by pip into an empty environment, enrolled over TLS,
training at full width on batches of 32.

Memory is the peak (VmHWM) of the agent's process after some assignments whose updates travel as int8, with 256 samples
of random data. Rows without a suffix are those of tflite-runtime, ``.litert`` those of ai-edge-litert. The references
are the bars; MiB throughout.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import numpy as np
from attrs import frozen
from sqlalchemy import func, select

from coordinator.app import Coordinator
from coordinator.compiler.zoo import ZOO
from coordinator.fleet import tokens
from coordinator.settings import Settings
from coordinator.store.models import Update

from .measure import Row, Unavailable, spread

NAME = "agent_footprint"
PROJECT: Final = Path(__file__).parent.parent
MODELS: Final = ("mlp", "cnn")
SAMPLES: Final = 256
ASSIGNMENTS: Final = 10
IMPORTS: Final = 11
PATIENCE: Final = 120.0
BARS: Final = {
    "installed_mb": 110.0,
    "rss_mlp_mb": 64.0,
    "rss_cnn_mb": 115.0,
    "rss_cnn_mb.litert": 95.0,
    "import_s": 0.4,
    "processes": 1.0,
}
RECIPE: Final = """
name = "footprint"
[plan]
batch = 32
steps = 20
learning_rate = 0.01
coding = "int8"
[aggregator]
kind = "fedbuff"
goal = 2
[[policy]]
kind = "fixed"
"""
IMPORTING: Final = (
    "import time; started = time.perf_counter(); import device_agent.cli, device_agent.agent; "
    "print(time.perf_counter() - started)"
)


@frozen
class Installed:
    """An environment that holds the agent and nothing else."""

    folder: Path
    backend: str

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    @property
    def agent(self) -> Path:
        return self.folder / "bin" / "shoal-agent"


@frozen
class Peak:
    """MiB of memory, and how many processes the agent is."""

    memory: float
    processes: int


def run(progress: Callable[[str], None]) -> list[Row]:
    """Rows ``agent_footprint.<what>``; ratio = bar / value."""
    rows: list[Row] = []

    def add(name: str, value: float, unit: str, spread: float | None = None) -> None:
        bar = BARS.get(name)
        row = Row(f"{NAME}.{name}", value, unit, bar, bar / value if bar else None, spread)
        rows.append(row)
        progress(f"{row.name}: {value:.4g} {unit}" + (f", bar {bar:g}" if bar else ""))

    with tempfile.TemporaryDirectory(prefix="shoal-footprint-") as folder:
        wheel = _wheel(Path(folder))
        plain = _install(Path(folder) / "plain", wheel, "agent")
        add("installed_mb", _size(plain) / 2**20, "MiB")
        seconds = [_import_time(plain) for _ in range(IMPORTS)]
        add("import_s", statistics.median(seconds), "s", spread(seconds))
        faster = plain if plain.backend == "litert" else _install(Path(folder) / "faster", wheel, "agent,litert")
        processes = 0
        for where in dict.fromkeys((plain, faster)):
            suffix = "" if where.backend == "tflite" else ".litert"
            for model in MODELS:
                peak = _train(where, model, Path(folder))
                processes = max(processes, peak.processes)
                add(f"rss_{model}_mb{suffix}", peak.memory, "MiB")
        add("processes", processes, "")
    return rows


def _wheel(folder: Path) -> Path:
    _call(sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", str(folder), str(PROJECT))
    return next(folder.glob("*.whl"))


def _install(folder: Path, wheel: Path, extras: str) -> Installed:
    _call(sys.executable, "-m", "venv", str(folder))
    constraints = ("-c", str(PROJECT / "constraints.txt"))
    _call(str(folder / "bin" / "python"), "-m", "pip", "install", *constraints, f"{wheel}[{extras}]")
    found = _call(str(folder / "bin" / "python"), "-c", "from device_agent import runtime; print(*runtime.backends())")
    return Installed(folder, found.split()[0])


def _call(*command: str) -> str:
    """Output of a command; Unavailable with its last words if it fails."""
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1"}
    done = subprocess.run(command, cwd=tempfile.gettempdir(), env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise Unavailable(f"{' '.join(command[:4])} … failed: {last}")
    return done.stdout


def _size(where: Installed) -> int:
    """Bytes of the installed packages, without those that came with the empty environment."""
    (packages,) = where.folder.glob("lib/python*/site-packages")
    foreign = ("pip", "setuptools", "pkg_resources", "_distutils_hack", "distutils-precedence")
    kept = [path for path in packages.iterdir() if not path.name.startswith(foreign)]
    files = [file for path in kept for file in ([path] if path.is_file() else path.rglob("*"))]
    return sum(file.stat().st_size for file in files if file.is_file() and not file.is_symlink())


def _import_time(where: Installed) -> float:
    return float(_call(str(where.python), "-c", IMPORTING))


def _train(where: Installed, model: str, folder: Path) -> Peak:
    """The agent's peak after it has delivered some updates to a coordinator of its own."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        home, data = Path(place), Path(place) / "data.npz"
        _random_data(data, model)
        settings = Settings(home=home / "coordinator", port=0, mqtt_port=0, tls="on")
        with Coordinator(settings) as coordinator:
            seal = coordinator.fingerprint
            token = coordinator.steward.write(
                lambda session: tokens.create(session, time.time(), by="benchmark", fingerprint=seal)
            )
            coordinator.steward.start_run(model=model, recipe=RECIPE, dataset="", target=None, seed=0, by="benchmark")
            options = ("--url", coordinator.url, "--token", token, "--data", str(data))
            _call(str(where.agent), "enrol", *options, "--home", str(home / "agent"))
            with _running(where, home / "agent") as process:
                _wait(coordinator, process, home / "agent" / "agent.log")
                return _peak(process.pid)


@contextmanager
def _running(where: Installed, home: Path) -> Iterator[subprocess.Popen[bytes]]:
    # As a service starts it: nothing of this process's environment that would change its threads.
    kept = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    with open(home / "agent.log", "wb") as log:
        command = [str(where.agent), "run", "--home", str(home)]
        environment = {**kept, "SHOAL_AGENT_BACKEND": where.backend}
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _wait(coordinator: Coordinator, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        with coordinator.database.read() as session:
            done = session.scalar(select(func.count()).select_from(Update).where(Update.outcome == "applied"))
        if (done or 0) >= ASSIGNMENTS:
            return
        if process.poll() is not None or time.monotonic() > deadline:
            last = (log.read_text().strip().splitlines() or ["it said nothing"])[-1]
            raise Unavailable(f"the agent delivered {done} of {ASSIGNMENTS} updates: {last}")
        time.sleep(0.1)


def _peak(pid: int) -> Peak:
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return Peak(int(status["VmHWM"].split()[0]) / 1024, 1 + _children(pid))


def _children(pid: int) -> int:
    found = [child for path in Path(f"/proc/{pid}/task").glob("*/children") for child in path.read_text().split()]
    return len(found) + sum(_children(int(child)) for child in found)


def _random_data(path: Path, model: str) -> None:
    spec, rng = ZOO[model], np.random.default_rng(0)
    x = rng.standard_normal((SAMPLES, *spec.input)).astype(np.float32)
    y = rng.integers(0, spec.classes, SAMPLES).astype(np.int32)
    np.savez(path, x=x, y=y, classes=np.int32(spec.classes))
