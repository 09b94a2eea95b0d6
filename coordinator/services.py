"""What the HTTP side needs: reading the store, and handing commands to the one thread that writes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol, TypeVar

from attrs import frozen
from sqlalchemy.orm import Session

from coordinator.settings import Settings
from coordinator.store.blobs import Blobs

T = TypeVar("T")


class Store(Protocol):
    def read(self) -> AbstractContextManager[Session]:
        """A session for queries; nothing is committed."""


class Commands(Protocol):
    """What the steward does on request. Every call waits until its effect is durable."""

    def write(self, change: Callable[[Session], T]) -> T:
        """Run ``change`` in the writer's next transaction and return its result, or raise what it raised."""

    def start_run(
        self,
        *,
        model: str,
        recipe: str,
        dataset: str,
        target: float | None,
        seed: int,
        by: str,
        name: str | None = None,
        weights: str = "",
    ) -> str:
        """Start a run. ``model`` is a zoo name or the spec's JSON, ``recipe`` a preset's name or TOML, ``dataset`` the
        path of the coordinator's test set (npz), ``weights`` that of a safetensors file to begin with. Returns the
        run's id; ShoalError if something does not fit."""

    def operate(self, run: str, action: str, by: str) -> None:
        """``pause``, ``resume`` or ``stop`` a run; ShoalError not-found or conflict."""

    def command(self, device: str, kind: str, *, life: float, by: str) -> str:
        """Tell a device to do something once, within ``life`` seconds; the command's id. ShoalError bad-request,
        not-found or conflict."""

    def disconnect(self, device: str) -> None:
        """End a device's live sessions and close its open assignments (it was revoked)."""


@frozen
class Services:
    settings: Settings
    database: Store
    commands: Commands
    blobs: Blobs
    clock: Callable[[], float]
    """Seconds since 1970."""
    admit: Callable[[str, str], object] = lambda _device, _secret: None
    """Tell the broker a device's secret once it is durable; one that asks the device table need not be told.
    ShoalError broker-unusable."""
