"""A made-up fleet's past, as rows: what history is tested on when small, and measured on when large."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, Final

from attrs import define, field
from sqlalchemy import insert
from sqlalchemy.orm import Session

from coordinator.store import models
from coordinator.store.copying import continue_sequences
from coordinator.store.database import Database

START: Final = 1_700_000_000.0
"""Tuesday, 14 November 2023, 22:13:20 UTC, in seconds since 1970."""
GROUPS: Final = {"zero2": 3.6, "pi3": 3.0, "pi4": 1.67, "pi5": 1.0}
"""How many times as long a group's boards take."""
RUNS: Final = {"digits-1": "whale-fl", "digits-2": "fedbuff", "har-1": "fedasmu"}
SPAN: Final = 5.0
"""Seconds between two updates of the fleet at ten devices; more devices deliver more often."""
BATCH: Final = 2000

Rows = dict[Any, list[dict[str, Any]]]


@define
class Fleet:
    """``devices`` boards that deliver ``updates`` updates to three runs, always the same for the same ``seed``."""

    devices: int = 12
    updates: int = 400
    seed: int = 0
    beats: int = 30
    """Heartbeats kept per device, ten minutes apart."""
    _chance: random.Random = field(init=False)
    _version: dict[str, int] = field(init=False, factory=lambda: dict.fromkeys(RUNS, 0))
    _waiting: dict[str, list[dict[str, Any]]] = field(init=False, factory=lambda: defaultdict(list))
    _width: dict[tuple[str, str], float] = field(init=False, factory=dict)

    def write(self, database: Database) -> None:
        """Fill an empty database of the newest revision, in one transaction."""
        self._chance = random.Random(self.seed)
        with database.write() as session:
            self._people(session)
            for start in range(0, self.updates, BATCH):
                self._insert(session, self._work(start, min(BATCH, self.updates - start)))
            for number in range(self.devices):
                self._insert(session, self._life(number))
            self._insert(session, self._rollout())
            continue_sequences(session.connection())

    @property
    def end(self) -> float:
        """When the last update came, in seconds since 1970."""
        return self._at(self.updates)

    def device(self, number: int) -> tuple[str, str]:
        """Id and group."""
        group = list(GROUPS)[number % len(GROUPS)]
        return f"{group}-{number // len(GROUPS) + 1:03d}", group

    @staticmethod
    def _warmth(device: str, at: float) -> float:
        """Bigger boards are hotter, and by day everybody is."""
        return round(45 + 10 * list(GROUPS).index(device.partition("-")[0]) + 10 * (at % 86_400) / 86_400, 1)

    @staticmethod
    def _labels(number: int) -> list[int] | None:
        """Every device lacks some classes; every seventh does not tell."""
        samples = 300 + 10 * number
        return [samples // 4 * ((number + label) % 3) for label in range(6)] if number % 7 else None

    def _at(self, update: int) -> float:
        return START + 600 + round(update * SPAN * 10 / self.devices, 3)

    def _insert(self, session: Session, rows: Rows) -> None:
        for table, values in rows.items():
            if values:
                session.execute(insert(table), values)

    def _people(self, session: Session) -> None:
        tables = (models.Model, models.Run, models.ModelVersion, models.Metric, models.Device)
        rows: Rows = {table: [] for table in tables}
        rows[models.Model].append(
            {"id": 1, "name": "mlp", "spec_sha256": "a" * 64, "spec": {"layers": []}, "created_at": START}
        )
        for place, (run, recipe) in enumerate(RUNS.items()):
            ended = {"state": "finished", "reason": "reached 0.9", "ended_at": self.end} if place == 1 else {}
            known = {"state": "running", "reason": "", "ended_at": None, **ended}
            rows[models.Run].append(
                {"id": run, "model_id": 1, "recipe": f'name = "{recipe}"\n', "recipe_name": recipe, "seed": place,
                 "target": 0.9 if place == 1 else None, "dataset": "test.npz", "simulated": False, "version": 0,
                 "created_by": "ada", "created_at": START + 60 * place, **known}
            )  # fmt: skip
            self._versioned(rows, run, START + 60 * place, [])
        for number in range(self.devices):
            name, group = self.device(number)
            rows[models.Device].append(
                {"id": name, "name": name, "group": group, "capability": {"cores": 4, "memory": 512 << 20},
                 "enrolled_at": START, "status": "idle", "status_at": START, "last_seen_at": self.end,
                 "samples": 300 + 10 * number, "labels": self._labels(number), "agent": "0.1.0", "runtime": "tflite"}
            )  # fmt: skip
        self._insert(session, rows)

    def _rollout(self) -> Rows:
        """Agent 0.2.0 reached everybody, all but every fifth, which went back to 0.1.0."""
        rows: Rows = {table: [] for table in (models.Release, models.Rollout, models.Execution)}
        for number, version in enumerate(("0.1.0", "0.2.0"), 1):
            rows[models.Release].append(
                {"id": number, "kind": "agent", "version": version, "number": number, "manifest": "{}",
                 "sha256": f"{number:064x}", "signature": "0" * 128, "created_by": "ada", "created_at": START + number}
            )  # fmt: skip
        rows[models.Rollout].append(
            {"id": 1, "release_id": 2, "state": "completed", "reason": "", "rules": {}, "target": {"every": True},
             "wave": 1, "wave_at": START + 700, "created_by": "ada", "created_at": START + 60,
             "state_at": START + 900, "ended_at": START + 900}
        )  # fmt: skip
        for number in range(self.devices):
            bad, accepted = number % 5 == 4, START + 70 + number
            rows[models.Execution].append(
                {"id": f"{number:016x}", "rollout_id": 1, "device_id": self.device(number)[0], "kind": "agent",
                 "release_id": 2, "before_id": 1, "wave": int(number > 0), "place": max(0, number - 1),
                 "state": "rolled-back" if bad else "succeeded", "text": "no connection in 180 s" if bad else "",
                 "accepted_at": accepted, "state_at": accepted + (240 if bad else 60), "facts": {"seconds": 60.0}}
            )  # fmt: skip
        return rows

    def _work(self, first: int, count: int) -> Rows:
        """Assignments and what came of them."""
        rows: Rows = {models.Assignment: [], models.Update: [], models.ModelVersion: [], models.Metric: []}
        rows[models.Event] = []
        self._waiting.clear()  # what waits was inserted with the batch before
        for number in range(first, first + count):
            device, group = self.device(self._chance.randrange(self.devices))
            run = self._chance.choices(list(RUNS), [5, 3, 2])[0]
            at, slow = self._at(number), GROUPS[group]
            train = round(self._chance.uniform(4, 6) * slow, 3)
            width, explanation = self._decide(run, device, group)
            version = self._version[run]
            assignment = {
                "id": f"{run}/{number}", "run_id": run, "device_id": device, "kind": "train", "width": width,
                "version": max(0, version - self._chance.randrange(3)), "plan": {"batch": 16, "steps": 20},
                "explanation": explanation, "state": "closed", "reason": "", "artifact_sha256": "b" * 64,
                "weights_sha256": "c" * 64, "bytes_down": int(40_000 * width) + 9_000,
                "temperature": self._warmth(device, at), "load": 0.5 + number % 3,
                "offered_at": at - train - 2, "taken_at": at - train - 1, "expires_at": at + 900, "closed_at": at,
            }  # fmt: skip
            rows[models.Assignment].append(assignment)
            if self._chance.random() < 0.03:
                assignment.update(state="expired", reason="the lease ran out")
                continue
            self._deliver(rows, number, assignment, at, train)
        return rows

    def _deliver(self, rows: Rows, number: int, assignment: dict[str, Any], at: float, train: float) -> None:
        run, outcome, reason = assignment["run_id"], "stored", ""
        staleness: int | None = self._version[run] - assignment["version"]
        luck = self._chance.random()
        if luck < 0.02:
            outcome, reason, staleness = "refused", "not finite: layer 2 holds NaN", None
        elif luck < 0.05:
            outcome, reason = "stale", f"{staleness} versions behind, at most 0 are taken"
        held_out = number % 4 == 0  # a quarter of the devices keep samples for themselves
        row = {
            "id": number + 1, "assignment_id": assignment["id"], "commit": 1, "run_id": run,
            "device_id": assignment["device_id"], "base_version": assignment["version"], "staleness": staleness,
            "applied_version": None, "weight": None, "width": assignment["width"], "samples": 320, "steps": 20,
            "loss": round(2 / (1 + 0.05 * self._version[run]) + self._chance.random() / 10, 4),
            "accuracy": round(min(0.99, 0.3 + 0.01 * self._version[run]), 4), "norm": round(self._chance.random(), 4),
            "holdout_samples": 40 + number % 7 if held_out else None,
            "holdout_loss": round(2 / (1 + 0.04 * assignment["version"]), 4) if held_out else None,
            "holdout_accuracy": round(min(0.98, 0.28 + 0.01 * assignment["version"]), 4) if held_out else None,
            "bytes_up": int(40_000 * assignment["width"]), "bytes_down": assignment["bytes_down"],
            "seconds_download": round(self._chance.uniform(0.2, 0.6), 3), "seconds_train": train,
            "seconds_upload": round(self._chance.uniform(0.3, 0.9), 3),
            "seconds_total": round(at - assignment["offered_at"], 6), "outcome": outcome, "reason": reason,
            "sha256": f"{number:064x}", "segment": 1 + number // 1000, "offset": 0, "at": at,
        }  # fmt: skip
        rows[models.Update].append(row)
        if outcome == "refused":
            event = {"at": at, "kind": "update-refused", "run_id": run, "device_id": assignment["device_id"]}
            rows[models.Event].append({**event, "text": f"{assignment['id']}: {reason}"})
        elif outcome == "stored":
            waiting = self._waiting[run]
            waiting.append(row)
            if len(waiting) == 4:
                self._version[run] += 1
                self._versioned(rows, run, at, waiting)
                waiting.clear()

    def _versioned(self, rows: Rows, run: str, at: float, merged: list[dict[str, Any]]) -> None:
        version = self._version[run]
        for row in merged:
            row.update(outcome="applied", applied_version=version, weight=round(1 / (1 + row["staleness"]), 6))
        rows[models.ModelVersion].append(
            {"run_id": run, "version": version, "sha256": f"{version:064x}", "step_norm": round(1 / (1 + version), 6),
             "updates": len(merged), "at": at}
        )  # fmt: skip
        if version % 2 == 0:
            accuracy = round(0.95 - 0.85 / (1 + 0.1 * version), 6)
            for name, value in (("accuracy", accuracy), ("loss", round(2.3 - 2 * accuracy, 6))):
                rows[models.Metric].append({"run_id": run, "version": version, "name": name, "value": value, "at": at})

    def _decide(self, run: str, device: str, group: str) -> tuple[float, dict[str, Any]]:
        """Whale-fl moves one level at a time, the others are fixed."""
        if RUNS[run] != "whale-fl":
            width = {"zero2": 0.25, "pi3": 0.5}.get(group, 1.0) if RUNS[run] == "fedasmu" else 1.0
            return width, {"heterofl" if RUNS[run] == "fedasmu" else "fixed": {"group": group, "width": width}}
        widths = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
        share = round(self._chance.uniform(0.0, 1.0) / GROUPS[group] ** 0.5, 4)
        old = widths.index(self._width.get((run, device), 1 / 16))
        level = min(old + 1, 4) if share > (old + 1) / 5 else max(old - 1, 0) if share < old / 5 else old
        self._width[run, device] = widths[level]
        told = {"width": widths[level], "samples": 320, "fisher": round(share / 10, 6), "reference": 6.0, "scale": 2.0}
        return widths[level], {
            "whale_fl": {**told, "share": share, "utility": 2 * share, "seconds": 5 * GROUPS[group]}
        }

    def _life(self, number: int) -> Rows:
        """One device's heartbeats and changes of status."""
        device, _ = self.device(number)
        rows: Rows = {models.Telemetry: [], models.Telemetry1h: [], models.StatusChange: []}
        for beat in range(self.beats):
            temperature = round(50 + 10 * (number % 4) + self._chance.uniform(-5, 5), 1)
            measured = {"device_id": device, "at": START + 600 * beat, "uptime": 600.0 * beat, "load": 0.5 + beat % 3,
                        "temperature": temperature, "memory": 512 << 20}  # fmt: skip
            free = (300 << 20, (8 << 30) - (beat << 20), 40_000)
            names = ("memory_free", "disk_free", "spool")
            rows[models.Telemetry].append({**measured, **dict(zip(names, free, strict=True))})
            if beat % 6 == 0:
                worst = dict(zip((f"{names[0]}_min", f"{names[1]}_min", f"{names[2]}_max"), free, strict=True))
                hour = {"at": START - START % 3600 + 600 * beat, "beats": 360, "temperature_max": temperature + 3}
                rows[models.Telemetry1h].append({**measured, **hour, **worst})
        rows[models.StatusChange] = list(self._statuses(device))
        return rows

    def _statuses(self, device: str) -> Iterator[dict[str, Any]]:
        at, old = START, "new"
        while at < min(self.end, START + 40 * 600):
            for status, seconds in (("idle", 30), ("training", 400), ("late", 90), ("offline", 200)):
                if status in ("late", "offline") and self._chance.random() < 0.5:
                    continue
                yield {"device_id": device, "old": old, "new": status, "reason": f"was {old}", "at": at}
                old, at = status, round(at + self._chance.uniform(0.5, 1.5) * seconds, 3)
