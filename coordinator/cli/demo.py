"""``shoal demo``: the whole system on one machine, on real data, with real agents."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.live import Live

from coordinator.app import Coordinator
from coordinator.cli.run import text_of
from coordinator.compiler.spec import ModelSpec
from coordinator.demo import data, fleet, report
from coordinator.demo.fleet import TIERS, Agent
from coordinator.errors import ShoalError
from coordinator.fleet import tokens
from coordinator.settings import Settings
from coordinator.training import initial
from coordinator.training import recipe as recipes
from coordinator.training.runs import read_spec

console = Console(stderr=True, width=None if sys.stderr.isatty() else 120)


@click.command(epilog="Example:  shoal demo --recipe whale-fl --devices 8 --target 0.93 --exit --json out.json")
@click.option("--devices", type=click.IntRange(1, 64), default=8, show_default=True, help="Number of agents.")
@click.option(
    "--target", type=click.FloatRange(0.01, 1), default=0.93, show_default=True, help="Accuracy to reach."
)
@click.option("--minutes", type=click.FloatRange(0.1), default=10, show_default=True, help="Give up after this long.")
@click.option("--recipe", default="fedbuff-heterofl", show_default=True, help="A recipe's name, or a TOML file.")
@click.option("--data", "data_file", type=click.Path(path_type=Path), help="Samples x, y in npz (default: digits).")
@click.option("--model", default=None, help="A model of the zoo or a JSON file (default: made to fit the data).")
@click.option("--weights", type=click.Path(path_type=Path), help="Begin with these (safetensors; default: drawn).")
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True)
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Port of the pages (default: any free one).")
@click.option("--home", type=click.Path(path_type=Path), help="Keep everything here (default: a temporary folder).")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the summary to this file.")
@click.option("--exit", "leave", is_flag=True, help="End at the target even with a terminal.")
def demo(**options: Any) -> None:
    """Train a model on a small fleet of real agents in four speed tiers, and watch it.

    The agents run on this machine; slower boards are imitated by pacing: each agent stretches its own measured step
    time. Ends at the target without a terminal; with one it goes on serving until Ctrl-C.
    Exit codes: 0 target reached, 1 not reached or failed, 2 usage.
    """
    logging.basicConfig(level="ERROR", format="%(levelname)s %(name)s %(message)s", stream=sys.stderr)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup leaves it
        signal.signal(signal.SIGHUP, signal.default_int_handler)
    try:
        reached = _demo(**options)
    except ShoalError as error:
        raise click.ClickException(f"{error.entry.title}. {error.detail}") from error
    except KeyboardInterrupt:
        with suppress(OSError):  # the terminal may be gone
            console.print("Stopped.")
        reached = False
    sys.exit(0 if reached else 1)


def _demo(
    *,
    devices: int,
    target: float,
    minutes: float,
    recipe: str,
    data_file: Path | None,
    model: str | None,
    weights: Path | None,
    seed: int,
    port: int,
    home: Path | None,
    json_file: Path | None,
    leave: bool,
) -> bool:
    started = time.time()
    _check_writable(json_file)
    rng = np.random.default_rng(seed)
    samples = data.from_file(data_file) if data_file else data.handwritten_digits()
    network = text_of(model) if model else _model(samples)
    fastest = fleet.pace(_fitting(network, weights, samples, data_file), devices)
    test, control, train = data.split(samples, rng)
    hands = data.deal(train, devices, rng)
    cookbook = recipes.load(text_of(recipe)).to_toml()
    with _folder(home) as folder, Coordinator(_settings(folder, port)) as coordinator:
        url = coordinator.login_url()
        console.print(f"Shoal is at [bold]{coordinator.url}[/]  log in once with {url}", soft_wrap=True)
        agents = fleet.muster(folder, devices, fastest)
        paths = _deal_out(folder / "data", test, control, agents, hands)
        run = coordinator.steward.start_run(
            model=network,
            recipe=cookbook,
            dataset=str(folder / "data" / "test.npz"),
            target=target,
            seed=seed,
            by="demo",
            name="digits" if data_file is None else data_file.stem,
            weights=str(weights or ""),
        )
        try:
            _send_out(coordinator, agents, paths)
            final = _watch(coordinator, run, agents, started, minutes)
            _conclude(final, json_file)
            if not leave and sys.stdout.isatty():
                console.print(f"Serving on at {coordinator.url} until Ctrl-C.")
                _serve_on()
        finally:
            _end(agents)
        return final.reached


def _fitting(network: str, weights: Path | None, samples: data.Samples, file: Path | None) -> ModelSpec:
    """The model, which samples and weights fit: looked at before anything is started."""
    spec, named = read_spec(network), file or "The digits"
    if samples.x.shape[1:] != spec.input:
        shape = samples.x.shape[1:]
        detail = f"{named}: samples have the shape {shape}, model {spec.name} takes {spec.input}"
        raise ShoalError("bad-dataset", detail)
    if samples.classes > spec.classes:
        raise ShoalError(
            "bad-dataset",
            f"{named}: there is a label {samples.classes - 1}, model {spec.name} knows 0 to {spec.classes - 1}",
        )
    if weights is not None:
        initial.read_file(weights, spec)
    return spec


def _deal_out(
    folder: Path, test: data.Samples, control: data.Samples, agents: list[Agent], hands: list[data.Samples]
) -> list[Path]:
    """Write everybody's samples; the files of the agents."""
    folder.mkdir(exist_ok=True)
    test.save(folder / "test.npz", control)
    paths = [folder / f"{agent.name}.npz" for agent in agents]
    for path, hand in zip(paths, hands, strict=True):
        hand.save(path)
    return paths


def _check_writable(file: Path | None) -> None:
    """Before minutes are spent on what cannot be written down."""
    if file is None:
        return
    there = file.exists()
    if (there and not file.is_file()) or not os.access(file if there else file.absolute().parent, os.W_OK):
        raise ShoalError("home-unusable", f"{file} cannot be written: name a file in a folder that is there")


def _settings(folder: Path, port: int) -> Settings:
    # Heartbeats are quicker than in the field, so that the table lives.
    return Settings(home=folder, port=port, mqtt_port=0, broker="embedded", heartbeat=1.0)


@contextmanager
def _folder(home: Path | None) -> Iterator[Path]:
    if home is not None:
        try:
            home.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ShoalError("home-unusable", f"The home folder {home} cannot be written: {error.strerror}") from error
        if (home / "shoal.db").exists():
            raise ShoalError("home-unusable", f"{home} holds an earlier demo: name another folder, or remove it")
        yield home.resolve()
        return
    folder = Path(tempfile.mkdtemp(prefix="shoal-demo-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _model(samples: data.Samples) -> str:
    """A network for the data: convolutions for images, one hidden layer otherwise."""
    shape, classes = list(samples.x.shape[1:]), samples.classes
    layers: list[Any] = [{"dense": {"units": 256}}, "relu", {"dense": {"units": classes}}]
    if len(shape) == 3:
        layers = [*_block(16), *_block(32), "flatten", {"dense": {"units": 64}}, "relu", {"dense": {"units": classes}}]
    elif len(shape) == 2:
        raise ShoalError(
            "bad-dataset",
            f"Samples of shape {shape} fit no built-in model: for images add a channel axis, x[..., None], "
            "for signals name --model",
        )
    elif len(shape) != 1:
        raise ShoalError("bad-dataset", f"Samples of shape {shape} fit no built-in model: name --model")
    return json.dumps({"name": "demo", "input": shape, "classes": classes, "layers": layers})


def _block(filters: int) -> list[Any]:
    return [{"conv2d": {"filters": filters, "kernel": [3, 3]}}, "relu", {"max_pool": {"size": [2, 2]}}]


def _send_out(coordinator: Coordinator, agents: list[Agent], paths: list[Path]) -> None:
    """Enrol everybody, then let them train."""
    made = {
        tier.group: coordinator.steward.write(
            lambda session, tier=tier: tokens.create(  # type: ignore[misc]
                session,
                time.time(),
                group=tier.group,
                uses=len(agents),
                ttl=3600,
                by="demo",
                fingerprint=coordinator.fingerprint,
            )
        )
        for tier in TIERS
    }
    with console.status("Enrolling devices …") as status:
        fleet.enrol(agents, coordinator.url, made, paths, status.update)
    for agent in agents:
        agent.run()


def _watch(coordinator: Coordinator, run: str, agents: list[Agent], started: float, minutes: float) -> report.Report:
    """Show the run until it ends or time is up; returns the last report."""
    deadline = time.monotonic() + 60 * minutes
    shown = 0.0
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while True:
            with coordinator.database.read() as session:
                now = report.read(session, run, started, time.time())
            if console.is_terminal:
                live.update(report.screen(now, coordinator.url), refresh=True)
            elif time.monotonic() - shown >= 5:
                shown = time.monotonic()
                console.print(_line(now))
            if now.reached or time.monotonic() > deadline:
                return now
            _check(agents)
            time.sleep(0.25)


def _line(now: report.Report) -> str:
    accuracy = "–" if now.accuracy is None else f"{now.accuracy:.3f}"
    return f"{now.seconds:5.0f} s  version {now.versions:4d}  accuracy {accuracy}  updates {sum(now.updates.values())}"


def _check(agents: list[Agent]) -> None:
    for agent in agents:
        if agent.process is not None and agent.process.poll() is not None:
            last = agent.log.read_text(errors="replace").strip().splitlines()[-1:] or ["no word from it"]
            raise ShoalError("internal", f"Agent {agent.name} ended with code {agent.process.returncode}: {last[0]}")


def _conclude(final: report.Report, json_file: Path | None) -> None:
    console.print(report.table(final))
    accuracy = "none" if final.accuracy is None else f"{final.accuracy:.4f}"
    verdict = f"reached {final.target:g} on the control set" if final.reached else f"did not reach {final.target:g}"
    console.print(f"The fleet {verdict}: accuracy {accuracy} on the test set after {report.spent(final)}.")
    if json_file is not None:
        try:
            json_file.write_text(json.dumps(final.to_json(), indent=2) + "\n")
        except OSError as error:
            raise ShoalError("home-unusable", f"{json_file} cannot be written: {error.strerror}") from error


def _serve_on() -> None:
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        console.print("Stopping …")


def _end(agents: list[Agent]) -> None:
    for agent in agents:
        agent.stop()
    for agent in agents:
        agent.wait()
