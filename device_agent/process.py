"""The agent as a process: alone in its home, ended by signals, started anew or made to forget by an order;
without a spool it waits for one."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable

from . import memory, rotation
from .address import parse
from .agent import Agent
from .commands import Recent
from .errors import Refused, SpoolError, Unreachable
from .home import Home
from .identity import Identity, forget
from .outage import Outage
from .service import Notifier
from .settings import Settings

log = logging.getLogger(__name__)


def run(settings: Settings, identity: Identity) -> None:
    """Be the agent until SIGTERM or SIGINT, or until it was told to forget who it is."""
    memory.be_frugal()
    if settings.conditions.nice:
        os.setpriority(os.PRIO_PROCESS, 0, settings.conditions.nice)
    recent, notifier = Recent(), Notifier()
    logging.getLogger().addHandler(recent)
    with Home(settings.home):
        try:
            again = _work(settings, identity, recent, notifier)
        except SpoolError as error:
            outage = Outage(settings, identity, str(error), notifier)
            _end_by_signal(outage.stop)
            again = outage.wait()
    if again:
        os.execve(sys.executable, sys.orig_argv, {**os.environ, **notifier.taken})  # noqa: S606  # this very program


def _work(settings: Settings, identity: Identity, recent: Recent, notifier: Notifier) -> bool:
    """Whether it was told to begin anew."""
    agent = Agent(settings, _settled(settings, identity), recent, notifier)
    _end_by_signal(agent.stop)
    agent.run()
    if agent.orders.forgotten:
        forget(settings.home)
        log.info("decommissioned: enrol this device again to use it")
    return agent.restart


def _end_by_signal(stop: Callable[[], None]) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop())


def _settled(settings: Settings, identity: Identity) -> Identity:
    """The identity once a rotation that was cut short is over."""
    if not rotation.unfinished(settings.home):
        return identity
    authority = settings.home / identity.authority if identity.authority else None
    try:
        return rotation.rotate(settings.home, identity, parse(settings.url or identity.url, authority))
    except (Unreachable, Refused) as error:
        log.warning("rotation-unfinished cause=%s", error)
        return identity
