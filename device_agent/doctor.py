"""``shoal-agent doctor``: everything this device needs, tried one after the other, and what to do about it."""

from __future__ import annotations

import http.client
import os
import shutil
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

from attrs import frozen

from . import access, clock, identity, runtime, settings, speed
from .address import Address, parse, trust
from .conditions import obstacles
from .data.loading import load
from .errors import AgentError, DataError, HomeError, Refused, Unreachable, UsageError, printable
from .identity import Identity
from .settings import Settings
from .telemetry import Board, memory_available

TIMEOUT = 10.0  # seconds
ROOM = 32 << 20  # bytes of disk beside the cache
LEAST_MEMORY = 48 << 20  # bytes


@frozen
class Finding:
    """``state`` is ok, warning or bad; ``advice`` says what to do about it."""

    check: str
    state: str
    text: str
    advice: str = ""
    exit_code: int = 0


def examine(home: Path) -> Iterator[Finding]:
    """All findings; what cannot be tried because something before it is bad is left out."""
    try:
        chosen = settings.load(home)
    except AgentError as error:
        yield _bad("settings", error, "mend agent.toml or the environment")
        return
    yield Finding("settings", "ok", f"{chosen.home / 'agent.toml'} can be read")
    yield from (check(chosen) for check in (_home, _disk, _memory, _runtime, _data, _conditions))
    try:
        known = identity.load(chosen.home)
    except AgentError as error:
        yield _bad("identity", error, "run 'shoal-agent enrol'")
        return
    yield Finding("identity", "ok", f"this is {known.device} of {known.url}")
    yield from _network(chosen, known)


def exit_code(findings: list[Finding]) -> int:
    """That of the first bad finding."""
    return next((finding.exit_code for finding in findings if finding.state == "bad"), 0)


def _bad(check: str, error: AgentError, advice: str) -> Finding:
    return Finding(check, "bad", str(error), advice, error.exit_code)


def _home(chosen: Settings) -> Finding:
    probe = chosen.home / f".doctor.{os.getpid()}"
    try:
        probe.write_bytes(b"x" * 4096)
        probe.unlink()
    except OSError as error:
        found = HomeError(f"{chosen.home} cannot be written: {error.strerror}")
        return _bad("home", found, "make room, remount it writable, or run this as its owner")
    return Finding("home", "ok", f"{chosen.home} can be written")


def _disk(chosen: Settings) -> Finding:
    try:
        free = shutil.disk_usage(chosen.home).free
    except OSError as error:
        return _bad("disk", HomeError(f"{chosen.home}: {error.strerror}"), "check the file system")
    text = f"{free / 1e6:.0f} MB are free, the cache may take {chosen.cache_bytes / 1e6:.0f} MB"
    if free < ROOM:
        return _bad("disk", HomeError(text), "make room, or the agent cannot keep what it trained")
    if free < chosen.cache_bytes + ROOM:
        return Finding("disk", "warning", text, "make room or set cache_bytes to less")
    return Finding("disk", "ok", text)


def _memory(_: Settings) -> Finding:
    free = memory_available()
    if free is None:
        return Finding("memory", "ok", "the system does not say how much memory is free")
    text = f"{free / 1e6:.0f} MB are free"
    return Finding("memory", "ok", text) if free >= LEAST_MEMORY else Finding(
        "memory", "warning", text, "stop other programs; the agent needs about 60 MB"
    )


def _runtime(chosen: Settings) -> Finding:
    """By really training one step."""
    from .offer import backend

    try:
        name = backend(chosen)
        loss = speed.run(speed.step_of(name, threads=chosen.threads))
    except (AgentError, runtime.RuntimeUnavailable, runtime.ArtifactError) as error:
        found = error if isinstance(error, AgentError) else UsageError(str(error))
        return _bad("runtime", found, "install the extra shoal[agent], or shoal[litert] on a 64-bit system")
    if not 0 < loss < 100:
        wrong = UsageError(f"the runtime {name} computes a loss of {loss:g}, expected about 2.3")
        return _bad("runtime", wrong, "set backend to another one")
    return Finding("runtime", "ok", f"{name} trains; usable are {', '.join(runtime.backends())}")


def _data(chosen: Settings) -> Finding:
    if chosen.data is None:
        return _bad("data", DataError("no training data is set"), "set data in agent.toml")
    try:
        loaded = load(chosen.data)
    except DataError as error:
        return _bad("data", error, "mend the data or [data] in agent.toml")
    shape = "×".join(map(str, loaded.training.input))
    text = f"{len(loaded.training)} samples of shape {shape}, {loaded.training.classes} classes"
    if loaded.skipped:
        return Finding("data", "warning", f"{text}; {len(loaded.skipped)} files skipped", printable(loaded.skipped[0]))
    return Finding("data", "ok", text)


def _conditions(chosen: Settings) -> Finding:
    conditions, local = chosen.conditions, time.localtime()
    reading = Board(chosen.home, conditions.metered).read(0)
    unmet = obstacles(conditions, reading, local.tm_hour * 60 + local.tm_min)
    if unmet:
        return Finding("conditions", "warning", "; ".join(unmet.values()), "it trains again when this has passed")
    blind = [
        name
        for name, asked, seen in (
            ("temperature", conditions.temperature, reading.temperature),
            ("battery", conditions.battery, reading.battery),
            ("metered link", conditions.unmetered or None, reading.metered),
        )
        if asked is not None and seen is None
    ]
    if blind:
        text = f"this board cannot measure: {', '.join(blind)}"
        return Finding("conditions", "warning", text, "the condition counts as met; take it out of [conditions]")
    return Finding("conditions", "ok", "training may happen now")


# The way to the coordinator.


def _network(chosen: Settings, known: Identity) -> Iterator[Finding]:
    authority = chosen.home / known.authority if known.authority else None
    try:
        address = parse(chosen.url or known.url, authority)
    except AgentError as error:
        yield _bad("network", error, "mend url in agent.toml")
        return
    places = (("network", address.host, address.port), ("broker", known.broker_host, known.broker_port))
    found = [_reach(*place) for place in places]
    yield from found
    if found[0].state != "ok":
        return
    reply = list(_tls_and_clock(address))
    yield from reply
    if any(finding.state == "bad" for finding in reply):
        return
    if found[1].state == "ok" and known.broker_tls:
        yield _broker_tls(known, authority)
    yield _access(address, known)


def _reach(check: str, host: str, port: int) -> Finding:
    try:
        socket.create_connection((host, port), TIMEOUT).close()
    except OSError as error:
        text = f"{host}:{port} cannot be reached: {error.strerror or error}"
        advice = "check the name, the network, the firewall, and that the coordinator runs"
        return _bad(check, Unreachable(text), advice)
    return Finding(check, "ok", f"{host}:{port} answers")


def _tls_and_clock(address: Address) -> Iterator[Finding]:
    try:
        connection = address.connect(TIMEOUT)
        try:
            connection.request("GET", address.prefix + "/api/v1/authority")
            told = connection.getresponse().headers.get("Date")
        finally:
            connection.close()
    except ssl.SSLCertVerificationError as error:
        yield _bad("tls", Refused(f"{address.url}: {error.verify_message}"), _tls_advice(error))
        return
    except (OSError, http.client.HTTPException, HomeError) as error:
        yield _bad("tls", Unreachable(f"{address.url}: {error}"), "check that this is the coordinator's address")
        return
    yield Finding("tls", "ok", "its certificate is its authority's" if address.tls else "plain HTTP on this machine")
    yield _clock(told)


def _tls_advice(error: ssl.SSLCertVerificationError) -> str:
    now = time.strftime("%Y-%m-%d %H:%M", time.gmtime())
    if error.verify_code in (9, 10):  # not yet valid, expired
        return f"the clock says {now} UTC: if that is wrong, set it (timedatectl set-ntp true)"
    return "if the coordinator was set up anew, enrol again with a new token"


def _clock(told: str | None) -> Finding:
    off = clock.off(told, time.time())
    if off is None:
        return Finding("clock", "ok", "the coordinator does not say what time it is")
    if complaint := clock.complaint(off):
        return Finding("clock", "warning", complaint, clock.ADVICE)
    return Finding("clock", "ok", f"{abs(off):.0f} s from the coordinator's")


def _broker_tls(known: Identity, authority: Path | None) -> Finding:
    try:
        with (
            socket.create_connection((known.broker_host, known.broker_port), TIMEOUT) as plain,
            trust(authority).wrap_socket(plain, server_hostname=known.broker_host),
        ):
            return Finding("broker tls", "ok", "its certificate is the authority's")
    except (OSError, HomeError) as error:
        advice = _tls_advice(error) if isinstance(error, ssl.SSLCertVerificationError) else "check the broker"
        return _bad("broker tls", Refused(f"{known.broker_host}:{known.broker_port}: {error}"), advice)


def _access(address: Address, known: Identity) -> Finding:
    granted = access.granted(address, known.device, known.secret)
    if granted is None:
        return _bad("access", Unreachable(f"{address.url} gives no answer that makes sense"), "try again later")
    if not granted:
        revoked = Refused(f"the coordinator does not know {known.device} any more: it was revoked")
        return _bad("access", revoked, "enrol again, with a new token and another --home or after removing this one")
    return Finding("access", "ok", f"the coordinator knows {known.device}")
