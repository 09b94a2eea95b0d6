"""Seeds on the cores of this machine: a process for each, as many at a time as there are cores."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Final

from attrs import define, field, frozen

from coordinator.errors import ShoalError
from coordinator.simulator import gathering, result
from coordinator.simulator.experiment import Experiment, prepare
from coordinator.simulator.rehearsal import open_rehearsal
from coordinator.simulator.world import World

SINGLE: Final = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


@frozen
class Report:
    """How far a seed is. ``share`` of the way to its end; ``state`` is going, done, interrupted or failed (then
    ``text`` says why)."""

    seed: int
    state: str
    share: float = 0.0
    seconds: float = 0.0
    version: int = 0
    updates: int = 0
    accuracy: float | None = None
    text: str = ""


Told = Callable[[Report], None]


def finished(folder: Path, seeds: Sequence[int]) -> list[int]:
    """Those of the seeds whose results are there."""
    return [seed for seed in seeds if (folder / f"seed-{seed}.json").exists()]


def simulate(experiment: Experiment, seed: int, folder: Path, told: Told) -> str:
    """One seed in this process, from where it was; returns the state it ended in. Ctrl-C and SIGTERM make a checkpoint
    and end it."""
    stop = [False]

    def halt(_number: int, _frame: Any) -> None:
        stop[0] = True

    before = {number: signal.signal(number, halt) for number in (signal.SIGINT, signal.SIGTERM)}
    home = folder / f"seed-{seed}"
    try:
        rehearsal = open_rehearsal(prepare(experiment), seed, home)
        try:
            outcome = rehearsal.run(lambda world: _tell(told, report(seed, world), stop), lambda: stop[0])
        finally:
            rehearsal.close()
        if outcome.result is None:
            return "interrupted"
        result.write(folder / f"seed-{seed}.json", outcome.result)
        return "done"
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _tell(told: Told, said: Report, stop: list[bool]) -> None:
    try:
        told(said)
    except BrokenPipeError:  # nobody listens any more: keep what there is
        stop[0] = True


def report(seed: int, world: World) -> Report:
    """How far a world is on its way."""
    until = world.until
    accuracy = world.curve[-1].accuracy if world.curve else None
    share = max(
        world.gone / until.seconds,
        world.version / until.versions,
        world.updates / until.updates,
        (accuracy or 0.0) / until.accuracy,
    )
    return Report(seed, "going", min(share, 1.0), world.gone, world.version, world.updates, accuracy)


@define
class Crew:
    """Simulates seeds in processes of their own."""

    experiment: Experiment
    folder: Path
    cores: int
    _running: dict[int, tuple[BaseProcess, Connection]] = field(factory=dict)

    def run(self, seeds: Sequence[int], told: Told) -> bool:
        """True if all are done. KeyboardInterrupt lets every process make its checkpoint first; ShoalError if one
        fails."""
        waiting = [seed for seed in seeds if seed not in finished(self.folder, seeds)]
        states: list[str] = []
        try:
            while waiting or self._running:
                while waiting and len(self._running) < self.cores:
                    self._begin(waiting.pop(0))
                states += self._listen(told)
        except KeyboardInterrupt:
            waiting.clear()
            self._end(told)
            return False
        except BaseException:
            self._end(told)
            raise
        return all(state == "done" for state in states)

    def run_here(self, seeds: Sequence[int], told: Told) -> bool:
        """One after the other in this process; False when Ctrl-C has ended one."""
        for seed in seeds:
            if seed in finished(self.folder, seeds):
                continue
            state = simulate(self.experiment, seed, self.folder, told)
            told(Report(seed, state, 1.0 if state == "done" else 0.0))
            if state != "done":
                return False
            clear(self.folder, seed)
        return True

    def _begin(self, seed: int) -> None:
        context = multiprocessing.get_context("spawn")
        mine, theirs = context.Pipe(duplex=False)
        os.environ.update({name: os.environ.get(name, one) for name, one in SINGLE.items()})
        arguments = (json.dumps(self.experiment.to_json()), seed, str(self.folder), theirs)
        process = context.Process(target=_work, args=arguments, name=f"seed-{seed}", daemon=True)
        process.start()
        theirs.close()
        self._running[seed] = process, mine

    def _listen(self, told: Told) -> list[str]:
        """Take what processes say; the states of those that have ended."""
        ended = []
        ready = wait([pipe for _, pipe in self._running.values()], timeout=0.5)
        for seed, (process, pipe) in list(self._running.items()):
            if pipe not in ready:
                continue
            try:
                said = Report(**json.loads(pipe.recv_bytes()))
            except EOFError:
                process.join()
                del self._running[seed]
                raise ShoalError("internal", f"Seed {seed} ended with code {process.exitcode} and no word") from None
            told(said)
            if said.state == "failed":
                raise ShoalError("internal", f"Seed {seed}: {said.text}")
            if said.state != "going":
                process.join()
                del self._running[seed]
                if said.state == "done":
                    clear(self.folder, seed)
                ended.append(said.state)
        return ended

    def _end(self, told: Told) -> None:
        """Ask all to stop, and wait for their checkpoints."""
        for process, _ in self._running.values():
            process.terminate()
        for seed, (process, pipe) in self._running.items():
            process.join(60)
            pipe.close()
            told(Report(seed, "interrupted"))
        self._running.clear()


def clear(folder: Path, seed: int) -> None:
    """What the seed wrote goes to where all of them are; its own folder is not needed any more."""
    gathering.gather(folder, seed)
    shutil.rmtree(folder / f"seed-{seed}", ignore_errors=True)


def _work(experiment: str, seed: int, folder: str, pipe: Connection) -> None:
    """The process of one seed."""
    with pipe, suppress(BrokenPipeError):
        work(experiment, seed, folder, lambda said: pipe.send_bytes(said.encode()))


def work(experiment: str, seed: int, folder: str, say: Callable[[str], None]) -> None:
    """Simulate a seed of an experiment (JSON), wherever this process is; ``say`` hears reports (JSON), last of all the
    one of how it ended."""

    def told(said: Report) -> None:
        say(json.dumps({name: getattr(said, name) for name in Report.__annotations__}))

    try:
        state = simulate(Experiment(**json.loads(experiment)), seed, Path(folder), told)
        last = Report(seed, state, 1.0 if state == "done" else 0.0)
    except ShoalError as error:
        last = Report(seed, "failed", text=error.detail)
    except Exception as error:  # the parent says it to whoever looks
        last = Report(seed, "failed", text=f"{type(error).__name__}: {error}")
    told(last)
