"""Which broker this coordinator has, and what it is told of the devices."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Iterable

from sqlalchemy.exc import SQLAlchemyError

from coordinator.broker.access import COORDINATOR
from coordinator.broker.driver import BrokerError, Driver
from coordinator.broker.embedded import EmbeddedBroker
from coordinator.broker.external import External
from coordinator.broker.mosquitto import Mosquitto, installed
from coordinator.errors import ShoalError
from coordinator.fleet.authority import TlsFiles
from coordinator.settings import Settings
from coordinator.store import credentials
from coordinator.store.database import Database

log = logging.getLogger(__name__)


def choose(settings: Settings, database: Database, tls: TlsFiles | None) -> Driver:
    """The broker that the settings name, not yet started."""
    kind = settings.broker
    if kind == "auto":
        kind = "mosquitto" if installed() else "embedded"
        log.info("broker kind=%s", kind)
    if kind == "external":
        return External(
            settings.broker_url,
            settings.broker_user,
            settings.broker_password,
            ca=tls.ca if tls else None,
            devices=lambda: [device for device, _ in _accounts(database)],
            accounts=settings.broker_accounts,
            probe=settings.broker_probe,
        )
    if kind == "mosquitto":
        folder = settings.home / "mosquitto"
        return Mosquitto(
            folder, lambda: _accounts(database), host=settings.host, port=settings.mqtt_port, tls=tls
        )
    password = secrets.token_urlsafe(32)
    return EmbeddedBroker(
        _authenticator(database, password), host=settings.host, port=settings.mqtt_port, tls=tls, password=password
    )


def admitting(driver: Driver) -> Callable[[str, str], None]:
    """What tells the broker a secret; the API's errors."""

    def admit(device: str, secret: str) -> None:
        try:
            driver.admit(device, secret)
        except BrokerError as error:
            raise ShoalError("broker-unusable", f"The broker could not be told of {device}: {error}") from error

    return admit


def _accounts(database: Database) -> Iterable[tuple[str, str]]:
    with database.read() as session:
        if lacking := credentials.unverified(session):
            # They get one as soon as they show their secret over HTTP, which an agent does when the broker refuses it.
            log.warning("devices-without-account count=%d devices=%s", len(lacking), ",".join(lacking[:10]))
        return credentials.accounts(session)


def _authenticator(database: Database, password: str) -> Callable[[str, str, str], bool]:
    def authenticate(username: str, secret: str, client_id: str) -> bool:
        if username == COORDINATOR:
            return secrets.compare_digest(secret, password)
        try:
            with database.read() as session:
                return credentials.secret_matches(session, username, secret)
        except SQLAlchemyError as error:
            log.error("authentication-failed device=%s error=%s", username, error)
            return False

    return authenticate
