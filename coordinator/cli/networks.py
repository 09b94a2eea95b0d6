"""``shoal model compile``, ``inspect``, ``profile`` and ``bench``: what a model costs."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
import numpy as np
from attrs import asdict

from coordinator.cli import trial
from coordinator.cli.output import facts, json_option, print_json, table
from coordinator.compiler.compile import MAX_BATCH, Signature, compile_model
from coordinator.compiler.contents import contents
from coordinator.compiler.cost import flops, forward_flops
from coordinator.compiler.profile import profile as timings
from coordinator.compiler.shapes import initial_weights, layout, made_axis
from coordinator.compiler.signatures import SIGNATURES, CompileError
from coordinator.compiler.spec import ModelSpec
from coordinator.compiler.targets import TARGETS
from coordinator.compiler.zoo import ZOO
from coordinator.errors import ShoalError
from coordinator.training.runs import read_spec
from device_agent.runtime import NUMPY, backends
from protocol.subnetwork import WIDTHS, Region, nested

Command = TypeVar("Command", bound=Callable[..., Any])
_MOST = 1 << 29  # bytes of a file that is inspected


def read_model(name: str, missing: str | None = "bad-model") -> ModelSpec | None:
    """A model of the zoo or of a JSON file. Where it is neither, None, or ShoalError with the code ``missing``."""
    if name in ZOO:
        return ZOO[name]
    path = Path(name)
    if path.suffix != ".json":
        if missing is None:
            return None
        raise ShoalError(missing, f"{name!r} is no model: name one of {', '.join(ZOO)}, or a JSON file")
    try:
        return read_spec(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise ShoalError("bad-model", f"{path} cannot be read: {error}") from error


def _spec(name: str) -> ModelSpec:
    spec = read_model(name)
    assert spec is not None
    return spec


def _width(command: Command) -> Command:
    width = click.FloatRange(0, 1, min_open=True)
    return click.option("--width", type=width, default=1.0, show_default=True, help="Share of the channels.")(command)


def _batch(command: Command) -> Command:
    return click.option(
        "--batch", type=click.IntRange(1, MAX_BATCH), default=32, show_default=True, help="A power of two."
    )(command)


def _signature(command: Command) -> Command:
    return click.option("--signature", type=click.Choice(list(SIGNATURES)), default="train", show_default=True)(command)


def _cut(command: Command) -> Command:
    return click.option("--cut", help="Layer behind which front, front_backward and back_train are split.")(command)


@click.command("compile")
@click.argument("model", metavar="SPEC")
@_width
@_batch
@_signature
@_cut
@click.option("--target", type=click.Choice(list(TARGETS)), default="litert", help="Runtime to be fast on.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Default: <model>-<signature>.tflite.")
@json_option
def compile_command(
    model: str,
    width: float,
    batch: int,
    signature: Signature,
    cut: str | None,
    target: str,
    output: Path | None,
    as_json: bool,
) -> None:
    """Compile one artifact; its manifest is written beside it, as .json.

    \b
    Example:
      shoal model compile cnn --width 0.5 --batch 16 -o cnn.tflite
    """
    spec = _spec(model)
    started = time.perf_counter()
    try:
        artifact = compile_model(
            spec, nested(layout(spec), width), batch, signature, cut=cut, target=target
        )
    except ValueError as error:
        raise ShoalError("bad-model", f"{spec.name} cannot be compiled: {error}") from error
    seconds = time.perf_counter() - started
    output = output or Path(f"{spec.name}-{signature}.tflite")
    manifest = artifact.manifest.to_json()
    try:
        output.write_bytes(artifact.for_backend(target))
        output.with_suffix(".json").write_text(json.dumps(manifest, indent=1) + "\n")
    except OSError as error:
        raise ShoalError("bad-request", f"{output} cannot be written: {error.strerror}") from error
    found = {
        "file": str(output),
        "sha256": artifact.sha256,
        "bytes": len(artifact.for_backend(target)),
        "milliseconds": 1e3 * seconds,
        **{name: manifest[name] for name in ("signature", "batch", "parameters", "flops", "activation_bytes")},
    }
    print_json({**found, "manifest": manifest}) if as_json else facts(found.items())


@click.command
@click.argument("model", metavar="SPEC|FILE.tflite")
@_batch
@json_option
def inspect(model: str, batch: int, as_json: bool) -> None:
    """Show a model's layers and what every width of it costs, or what a tflite file holds.

    \b
    Example:
      shoal model inspect resnet8
    """
    if Path(model).suffix == ".tflite":
        _show_file(_file(Path(model)), as_json)
        return
    spec = _spec(model)
    found = {"name": spec.name, "input": list(spec.input), "classes": spec.classes, "sha256": spec.sha256}
    layers, widths = _layers(spec), _widths(spec, batch)
    if as_json:
        print_json({**found, "batch": batch, "layers": layers, "widths": widths})
        return
    facts(found.items())
    for rows in (layers, widths):
        click.echo()
        table([name.replace("_", " ") for name in rows[0]], [list(row.values()) for row in rows])


def _layers(spec: ModelSpec) -> list[dict[str, Any]]:
    axes, forward = layout(spec), forward_flops(spec, nested(layout(spec), 1))
    rows: list[dict[str, Any]] = []
    for index, layer in enumerate(spec.layers):
        own = [axes[f"{layer.name}.{name}"] for name in layer.tensors()]
        made = made_axis(spec, index)
        groups = dict.fromkeys(part.group for part in made.runs_over() if part.group)
        rows.append(
            {
                "layer": layer.name or layer.kind,
                "kind": layer.kind,
                "reads": [_name(spec, source) for source in spec.sources[index]],
                "shape": list(spec.shapes[index]),
                "groups": list(groups),
                "parameters": sum(int(np.prod([axis.size for axis in tensor])) for tensor in own),
                "forward_flops": forward[index],
            }
        )
    return rows


def _name(spec: ModelSpec, source: int) -> str:
    return "input" if source < 0 else spec.layers[source].name or spec.layers[source].kind


def _widths(spec: ModelSpec, batch: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for width in WIDTHS:
        subnetwork = nested(layout(spec), width)
        row: dict[str, Any] = {
            "width": width,
            "parameters": Region(layout(spec), subnetwork).parameters,
            "training_flops": flops(spec, subnetwork),
        }
        try:
            artifact = compile_model(spec, subnetwork, batch)
            row |= {"activation_bytes": artifact.manifest.activation_bytes, "artifact_bytes": len(artifact.content)}
        except CompileError as error:
            if width == 1:
                raise ShoalError("bad-model", f"{spec.name} cannot be compiled: {error}") from error
            row |= {"activation_bytes": None, "artifact_bytes": None}
        rows.append(row)
    return rows


def _file(path: Path) -> bytes:
    try:
        if path.stat().st_size > _MOST:
            raise ShoalError("bad-model", f"{path} has {path.stat().st_size} bytes, expected at most {_MOST}")
        return path.read_bytes()
    except OSError as error:
        raise ShoalError("bad-model", f"{path} cannot be read: {error.strerror}") from error


def _show_file(content: bytes, as_json: bool) -> None:
    try:
        found = contents(content)
    except ValueError as error:
        raise ShoalError("bad-model", str(error)) from error
    if as_json:
        print_json(asdict(found))
        return
    facts([("signature", found.signatures), ("bytes", found.size), ("constants", f"{found.constants} bytes")])
    click.echo()
    rows = [("in", *tensor) for tensor in found.inputs] + [("out", *tensor) for tensor in found.outputs]
    table(("", "name", "type", "shape"), rows)
    click.echo()
    table(("operator", "count"), sorted(Counter(found.operators).items(), key=lambda row: -row[1]))


@click.command
@click.argument("model", metavar="SPEC")
@_width
@_batch
@_signature
@_cut
@click.option("--runtime", type=click.Choice([name for name in TARGETS if name != NUMPY]), help="Default: the best.")
@click.option("--limit", type=click.IntRange(0), default=20, show_default=True, help="Most expensive rows; 0: all.")
@json_option
def profile(
    model: str,
    width: float,
    batch: int,
    signature: Signature,
    cut: str | None,
    runtime: str | None,
    limit: int,
    as_json: bool,
) -> None:
    """Show where a step's time goes: every kind of operator, timed alone on one thread.

    \b
    Example:
      shoal model profile dscnn --limit 10
    """
    spec = _spec(model)
    name = runtime or next((found for found in backends() if found != NUMPY), "litert")
    subnetwork = nested(layout(spec), width)
    try:
        rows = timings(spec, trial.interpreters(name), subnetwork, batch, signature, cut=cut, target=name)
    except ValueError as error:
        raise ShoalError("bad-model", f"{spec.name} cannot be compiled: {error}") from error
    total = sum(row.total for row in rows)
    shown = rows[: limit or None]
    if as_json:
        listed = [{**asdict(row), "total": row.total, "share": row.total / total} for row in shown]
        print_json({"model": spec.name, "runtime": name, "seconds": total, "operators": listed})
        return
    table(
        ("operator", "count", "ms", "share", "reads", "writes"),
        [
            [r.operator, r.count, 1e3 * r.total, f"{r.total / total:.1%}", _sizes(r.reads), _sizes(r.writes)]
            for r in shown
        ],
    )
    click.echo(f"\n{sum(row.count for row in rows)} operators, {1e3 * total:.2f} ms one by one on {name}")


def _sizes(shapes: tuple[tuple[int, ...], ...]) -> str:
    return " ".join("×".join(map(str, shape)) or "1" for shape in shapes)


@click.command
@click.argument("model", metavar="SPEC")
@_width
@_batch
@click.option("--seconds", type=click.FloatRange(0.1), default=2.0, show_default=True, help="For each runtime.")
@json_option
def bench(model: str, width: float, batch: int, seconds: float, as_json: bool) -> None:
    """Time a training step on every runtime that is installed here, on one thread.

    \b
    Example:
      shoal model bench cnn1d --batch 16
    """
    spec = _spec(model)
    weights = initial_weights(spec, np.random.default_rng(0))
    subnetwork = nested(layout(spec), width)
    try:
        rows = [asdict(trial.pace(spec, subnetwork, weights, batch, name, seconds)) for name in backends()]
    except (ValueError, RuntimeError) as error:
        raise ShoalError("bad-model", f"{spec.name} cannot be timed: {error}") from error
    if as_json:
        print_json({"model": spec.name, "width": width, "batch": batch, "runtimes": rows})
        return
    table(("runtime", "median ms", "least ms", "compile ms"), [list(row.values()) for row in rows])
