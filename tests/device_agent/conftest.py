"""What several tests of the agent as a process begin with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.device_agent.device import Device


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    """A device in a folder of its own; its process does not outlive the test."""
    device = Device(tmp_path)
    yield device
    device.kill()
