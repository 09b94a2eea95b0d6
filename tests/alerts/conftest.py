from __future__ import annotations

from tests.coordinator.conftest import backend, clock, database, home

__all__ = ["backend", "clock", "database", "home"]
