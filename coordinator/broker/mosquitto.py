"""Mosquitto as a child of the coordinator: configured by it, watched, and started again when it ends.

Nothing of it is kept: its accounts are written anew from the device table before every start, so a broker that was
killed, or whose files were lost, comes back knowing exactly the devices that may come in.
"""

from __future__ import annotations

import getpass
import logging
import os
import secrets
import shutil
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from coordinator.broker.access import COORDINATOR
from coordinator.broker.driver import BrokerError, Door
from coordinator.broker.listening import check, free_port, reachable, server_context
from coordinator.broker.security import CONTROL, Control, document

if TYPE_CHECKING:
    from coordinator.fleet.authority import TlsFiles

log = logging.getLogger(__name__)

Accounts = Callable[[], Iterable[tuple[str, str]]]
"""The devices that may come in, as (id, verifier)."""

MAX_PACKET: Final = 256 << 10
_START: Final = 10.0  # seconds until it must listen
_FIRST_WAIT, _LONGEST_WAIT = 0.2, 10.0  # seconds before it is started again
_SETTLED: Final = 30.0  # seconds after which an end counts as the first one again
_FAREWELL: Final = 5.0  # seconds to end by itself
_PLUGIN: Final = "mosquitto_dynamic_security.so"

_LEASH: Final = """
import ctypes, os, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 15)  # PR_SET_PDEATHSIG, SIGTERM: the broker does not outlive the coordinator
    if os.getppid() != int(sys.argv[1]):
        sys.exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""


def program() -> Path | None:
    """Where Mosquitto is installed; Debian puts it where ordinary users' PATH does not look."""
    found = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")
    return Path(found) if found else None


def plugin(mosquitto: Path) -> Path | None:
    """The dynamic security plugin that comes with it."""
    prefix = mosquitto.resolve().parent.parent
    folders = [prefix / "lib", *sorted(prefix.glob("lib/*-linux-*")), prefix / "lib64", Path("/usr/lib")]
    return next((folder / _PLUGIN for folder in folders if (folder / _PLUGIN).exists()), None)


def installed() -> bool:
    """Whether there is all that this driver needs."""
    found = program()
    return found is not None and plugin(found) is not None


class Mosquitto:
    """A broker on one address. Its files lie in ``folder``, for the coordinator's user alone."""

    def __init__(
        self, folder: Path, accounts: Accounts, *, host: str = "127.0.0.1", port: int = 0, tls: TlsFiles | None = None
    ) -> None:
        """`port` 0 takes a free one, and keeps it. With `tls`, nothing but TLS 1.2 and newer is spoken."""
        self._folder = folder
        self._accounts = accounts
        self._host = host
        self._port = port
        self._tls = tls
        self._passwords = {COORDINATOR: secrets.token_urlsafe(32), CONTROL: secrets.token_urlsafe(32)}
        self._process: subprocess.Popen[str] | None = None
        self._control: Control | None = None
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._listening = threading.Event()
        self._said: deque[str] = deque(maxlen=5)

    @property
    def pid(self) -> int | None:
        """The child's, None while there is none."""
        return self._process.pid if self._process and self._process.poll() is None else None

    @property
    def port(self) -> int:
        """The port listened on; the one asked for before the first start."""
        return self._port

    @property
    def door(self) -> Door:
        return self._door(COORDINATOR)

    def start(self) -> None:
        if self._thread is not None:
            raise BrokerError("The broker is already running.")
        if not installed():
            raise BrokerError("Mosquitto or its plugin is not installed: apt-get install mosquitto.")
        if self._tls is not None:
            server_context(self._tls)  # Mosquitto listens for a moment before it looks at them
        self._port = self._port or free_port(self._host)
        check(self._host, self._port, patience=1.0)  # one whose coordinator was killed is about to end
        self._stopping.clear()
        self._listening.clear()
        self._thread = threading.Thread(target=self._keep_up, name="mosquitto", daemon=True)
        self._thread.start()
        try:
            self._await()
            self._control = Control(self._door(CONTROL))
            self._control.open()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        if self._thread is None:
            return
        self._stopping.set()
        if self._control is not None:
            self._control.close()
            self._control = None
        self._end()
        self._thread.join()
        self._thread = None

    def admit(self, device: str, secret: str) -> None:
        if self._control is None:
            raise BrokerError("The broker is not running.")
        self._control.admit(device, secret)

    def shut_out(self, device: str) -> None:
        try:
            if self._control is None:
                raise BrokerError("The broker is not running.")
            self._control.remove(device)
        except BrokerError as error:
            # Who may come in is written anew at every start: better everybody reconnects than one stays in.
            log.error("broker-restarted reason=%s", error)
            self._end()

    def __enter__(self) -> Mosquitto:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _door(self, user: str) -> Door:
        host = "127.0.0.1" if self._host in ("0.0.0.0", "127.0.0.1") else self._host  # noqa: S104
        return Door(host, self._port, user, self._passwords[user], self._tls.ca if self._tls else None)

    def _await(self) -> None:
        """Until the child listens; BrokerError with its own words if it ends, or takes too long."""
        deadline = time.monotonic() + _START
        while not self._listening.wait(0.02):
            if self._thread is None or not self._thread.is_alive() or time.monotonic() > deadline:
                words = "; ".join(self._said) or "it said nothing"
                raise BrokerError(f"Mosquitto does not start: {words}.")

    # Everything below runs in the thread that watches the child, except _end. The child dies with this thread.

    def _keep_up(self) -> None:
        wait = _FIRST_WAIT
        while not self._stopping.is_set():
            begun = time.monotonic()
            try:
                self._live()
            except Exception as error:  # the disk is full, or the database is away
                self._said.append(str(error))
                log.error("broker-not-started cause=%s", error)
            if self._stopping.is_set() or not self._listening.is_set():
                return  # it has never listened: whoever starts it is told why
            wait = _FIRST_WAIT if time.monotonic() - begun > _SETTLED else wait
            log.error("broker-ended again_in=%.1f said=%s", wait, "; ".join(self._said))
            self._stopping.wait(wait)
            wait = min(2 * wait, _LONGEST_WAIT)

    def _live(self) -> None:
        """One child from its start to its end."""
        self._said.clear()
        settings = self._write()
        mosquitto = str(program())
        leash = [sys.executable, "-I", "-S", "-c", _LEASH, str(os.getpid())]
        with subprocess.Popen(
            [*leash, mosquitto, "-c", str(settings)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        ) as process:
            self._process = process
            if self._stopping.is_set():
                self._end()
            threading.Thread(target=self._look, args=(process,), name="mosquitto-look", daemon=True).start()
            assert process.stderr is not None
            for line in process.stderr:
                self._said.append(line.strip())
                log.info("mosquitto %s", line.strip())

    def _look(self, process: subprocess.Popen[str]) -> None:
        while process.poll() is None and not self._stopping.is_set():
            if reachable(self.door.host, self._port):
                self._listening.set()
                return
            time.sleep(0.02)

    def _end(self) -> None:
        process = self._process
        if process is None or process.poll() is not None:
            return
        process.terminate()
        try:
            process.wait(_FAREWELL)
        except subprocess.TimeoutExpired:
            process.kill()

    def _write(self) -> Path:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        accounts, settings = self._folder / "accounts.json", self._folder / "mosquitto.conf"
        told = document(self._accounts(), self._passwords[COORDINATOR], self._passwords[CONTROL])
        for path, text in ((accounts, told), (settings, self._settings(accounts))):
            path.touch(0o600)
            path.write_text(text)
        return settings

    def _settings(self, accounts: Path) -> str:
        mosquitto = program()
        lines: list[tuple[str, Any]] = [
            ("user", getpass.getuser()),
            ("allow_anonymous", "false"),
            ("plugin", plugin(mosquitto) if mosquitto else None),
            ("plugin_opt_config_file", accounts),
            ("persistence", "false"),
            ("set_tcp_nodelay", "true"),
            ("max_inflight_messages", 200),
            ("max_queued_messages", 20_000),
            ("max_queued_bytes", 64 << 20),
            ("max_packet_size", MAX_PACKET),
            ("max_keepalive", 600),
            ("connection_messages", "false"),
            ("log_dest", "stderr"),
            ("log_type", "error"),
            ("log_type", "warning"),
            ("log_timestamp", "false"),
            ("listener", f"{self._port} {self._host}"),
            ("max_qos", 1),
        ]
        if self._tls is not None:
            lines += [("certfile", self._tls.certificate), ("keyfile", self._tls.key), ("tls_version", "tlsv1.2")]
        return "".join(f"{name} {value}\n" for name, value in lines)

