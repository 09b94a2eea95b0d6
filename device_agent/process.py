"""The agent as a process: alone in its home, ended by signals, started anew or made to forget by an order."""

from __future__ import annotations

import logging
import os
import signal
import sys

from . import memory, rotation
from .address import parse
from .agent import Agent
from .commands import Recent
from .errors import Refused, Unreachable
from .home import Home
from .identity import Identity, forget
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
        agent = Agent(settings, _settled(settings, identity), recent, notifier)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: agent.stop())
        agent.run()
        if agent.orders.forgotten:
            forget(settings.home)
            log.info("decommissioned: enrol this device again to use it")
    if agent.restart:
        os.execve(sys.executable, sys.orig_argv, {**os.environ, **notifier.taken})  # noqa: S606  # this very program


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
