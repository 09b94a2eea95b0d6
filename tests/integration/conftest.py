from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.integration.fleet import Fleet, Server


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    """A running coordinator without devices."""
    with ExitStack() as closing:
        server = Server(tmp_path / "home")
        closing.callback(server.kill)
        server.start()
        yield Fleet(server, closing)
