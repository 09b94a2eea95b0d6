"""Who appears in these tests: three boards, three operators, and Eve, who is nobody."""

from __future__ import annotations

from base64 import b64encode
from threading import Lock

from attrs import field, frozen
from sqlalchemy.orm import Session

from coordinator.errors import ShoalError
from coordinator.store import commands
from coordinator.store.database import Database
from coordinator.store.models import Assignment, Device, Event, Model, Run, Update
from coordinator.training import recipe as recipes
from protocol.messages import Capability, EnrolmentRequest

START = 1_700_000_000.0
HEARTBEAT = 10.0
BOARDS = ("pico", "tre", "cinque")
OPERATORS = {"ada": "admin", "olga": "operator", "vic": "viewer"}

CAPABILITY = Capability(
    machine="aarch64", system="Linux", python="3.11.2", runtimes=("tflite",), memory=512 << 20, cores=4
)


class Clock:
    """Stands still until a test moves it."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> float:
        return self.now

    def later(self, seconds: float) -> float:
        self.now += seconds
        return self.now


@frozen
class DirectCommands:
    """One write after the other, every run as one row: what the steward promises, without an engine."""

    database: Database
    clock: Clock
    turn: Lock = field(factory=Lock)
    given: list[str] = field(factory=list)
    """The weights' file of every run."""

    def write(self, change):
        with self.turn, self.database.write() as session:
            return change(session)

    def start_run(self, *, model, recipe, dataset, target, seed, by, name=None, weights=""):
        if "=" not in recipe and recipe not in recipes.presets():
            raise ShoalError("bad-recipe", f"There is no recipe {recipe!r}")
        cookbook = recipes.load(recipe)
        run = name or "run-1"
        self.given.append(weights)

        def change(session: Session) -> str:
            add_run(session, run, self.clock(), recipe=cookbook.name, dataset=dataset, target=target, seed=seed, by=by)
            return run

        return self.write(change)

    def operate(self, run, action, by):
        def change(session: Session) -> None:
            row = session.get(Run, run)
            if row is None:
                raise ShoalError("not-found", f"There is no run {run!r}")
            if row.state in ("stopped", "finished"):
                raise ShoalError("conflict", f"Run {run} has ended")
            row.state = {"pause": "paused", "resume": "running", "stop": "stopped"}[action]
            row.reason = f"{action} by {by}"

        self.write(change)

    def command(self, device, kind, *, life, by):
        return self.write(lambda session: commands.issue(session, device, kind, self.clock(), life=life, by=by).id)

    def disconnect(self, device):
        def change(session: Session) -> None:
            for row in session.query(Assignment).filter_by(device_id=device):
                row.state, row.reason = "cancelled", "the device was revoked"

        self.write(change)


def secret_of(board: str) -> str:
    return f"{board}-keeps-a-secret-of-many-characters"


def request_of(board: str, token: str, **changes) -> EnrolmentRequest:
    values = {"token": token, "secret": secret_of(board), "name": board, "capability": CAPABILITY}
    return EnrolmentRequest(**{**values, **changes})


def basic(board: str, secret: str | None = None) -> dict[str, str]:
    pair = f"{board}:{secret_of(board) if secret is None else secret}"
    return {"Authorization": "Basic " + b64encode(pair.encode()).decode()}


def add_device(session: Session, name: str, now: float = START, **values) -> Device:
    known = {"group": "", "capability": {}, "enrolled_at": now, "status": "new", "status_at": now}
    device = Device(id=name, name=name, **{**known, **values})
    session.add(device)
    session.flush()
    return device


def add_run(
    session: Session, run: str, now: float, *, recipe="fedbuff", dataset="test.npz", target=None, seed=0, by="ada"
) -> None:
    model = Model(name="mlp", spec_sha256=f"{run:0<64}"[:64], spec={"layers": []}, created_at=now)
    session.add(model)
    session.flush()
    session.add(
        Run(
            id=run,
            model_id=model.id,
            recipe='name = "fedbuff"\n',
            recipe_name=recipe,
            seed=seed,
            target=target,
            dataset=dataset,
            created_by=by,
            created_at=now,
        )
    )
    session.flush()
    session.add(Event(at=now, kind="run-started", run_id=run, text=f"{by} started {run}"))
    session.flush()


def add_assignment(
    session: Session,
    id: str,
    device: str,
    now: float,
    *,
    run="run-1",
    state="taken",
    artifact="a" * 64,
    weights="b" * 64,
) -> None:
    session.add(
        Assignment(
            id=id,
            run_id=run,
            device_id=device,
            kind="train",
            version=3,
            width=0.5,
            plan={"steps": 20},
            explanation={},
            state=state,
            artifact_sha256=artifact,
            weights_sha256=weights,
            bytes_down=1000,
            offered_at=now,
            expires_at=now + 900,
        )
    )
    session.flush()


def add_update(session: Session, assignment: str, device: str, now: float, *, run="run-1", **values) -> None:
    known = {
        "commit": 1,
        "base_version": 3,
        "applied_version": 4,
        "staleness": 0,
        "width": 0.5,
        "weight": 1.0,
        "samples": 320,
        "steps": 20,
        "loss": 0.5,
        "accuracy": 0.75,
        "norm": 1.0,
        "bytes_up": 9000,
        "bytes_down": 1000,
        "seconds_download": 0.1,
        "seconds_train": 2.0,
        "seconds_upload": 0.2,
        "outcome": "applied",
        "reason": "",
        "sha256": "c" * 64,
        "segment": 0,
        "offset": 0,
    }
    session.add(
        Update(assignment_id=assignment, device_id=device, run_id=run, at=now, **{**known, **values})
    )
    session.flush()
