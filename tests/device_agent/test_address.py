"""Whose certificates are believed, also by a board that has lost the time."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest

from coordinator.fleet.authority import TlsFiles, establish
from device_agent.address import trust

FUTURE = datetime(2150, 1, 1, tzinfo=UTC)
NOW = datetime.now(UTC)
PAST = datetime(2001, 1, 1, tzinfo=UTC)


@contextmanager
def served(files: TlsFiles) -> Iterator[int]:
    """A port with one TLS server for one connection."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.certificate, files.key)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with suppress(OSError), context.wrap_socket(connection, server_side=True) as encrypted:
                encrypted.recv(1)

        thread = threading.Thread(target=answer)
        thread.start()
        yield listener.getsockname()[1]
        thread.join()


def shake_hands(files: TlsFiles, context: ssl.SSLContext, name: str = "localhost") -> None:
    with served(files) as port, socket.create_connection(("127.0.0.1", port)) as raw:
        context.wrap_socket(raw, server_hostname=name).close()


def test_a_board_whose_clock_stands_before_the_authority_was_made_gets_in(tmp_path: Path) -> None:
    """To it, all certificates are of the future: here they really are."""
    files = establish(tmp_path, now=FUTURE)
    shake_hands(files, trust(files.ca))
    shake_hands(files, trust(files.ca, now=lambda: 0.0))


def test_it_still_believes_no_other_authority_and_no_other_name(tmp_path: Path) -> None:
    mine, other = establish(tmp_path / "mine", now=FUTURE), establish(tmp_path / "other", now=FUTURE)
    with pytest.raises(ssl.SSLCertVerificationError, match=r"self-signed|issuer"):
        shake_hands(other, trust(mine.ca))
    with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
        shake_hands(mine, trust(mine.ca), "elsewhere.example")


def test_a_board_that_knows_the_time_refuses_what_has_expired(tmp_path: Path) -> None:
    files = establish(tmp_path, now=PAST)
    with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
        shake_hands(files, trust(files.ca))


def test_one_with_the_right_time_checks_dates(tmp_path: Path) -> None:
    files = establish(tmp_path, now=NOW)
    shake_hands(files, trust(files.ca))
    assert not trust(files.ca).verify_flags & 0x200000
    assert trust(files.ca, now=lambda: 0.0).verify_flags & 0x200000
