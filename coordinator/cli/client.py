"""Talking to the coordinator's API, with a clear sentence for everything that can go wrong."""

from __future__ import annotations

import functools
import json
import os
import re
import ssl
from collections.abc import Callable
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlencode, urlsplit
from urllib.request import HTTPRedirectHandler, HTTPSHandler, ProxyHandler, Request, build_opener

import click
from attrs import frozen

from coordinator import settings

TIMEOUT: Final = 60.0
"""Seconds; compiling a run's artifacts takes a while on a small machine."""

Command = TypeVar("Command", bound=Callable[..., Any])


@frozen
class Address:
    """Where the running coordinator is: ``coordinator.json`` in its home folder, there while it runs.

    ``url`` of the pages and the API, ``ca`` the path of the authority's certificate (None without TLS), ``database``
    the URL of the database (None where it is not told).
    """

    url: str
    ca: str | None
    database: str | None = None

    @classmethod
    def find(cls, home: Path) -> Address | None:
        """None if no coordinator has left a readable one."""
        try:
            found = json.loads((home / "coordinator.json").read_text())
            return cls(str(found["url"]), found["ca"], found.get("database"))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None


class Refused(click.ClickException):
    """The coordinator said no."""

    exit_code = 1


class NoCoordinator(click.ClickException):
    """Nobody is there to say anything."""

    exit_code = 3


class _NoRedirect(HTTPRedirectHandler):
    """A redirect would carry the token to wherever it points."""

    def redirect_request(self, *_: Any) -> None:
        return None


class Client:
    """The API at ``url`` with a bearer ``token``; ``ca`` is a certificate to trust beside the system's."""

    def __init__(self, url: str, token: str, ca: str | None = None) -> None:
        self.url = url.rstrip("/")
        self.token = token
        context = ssl.create_default_context()
        if ca is not None:
            try:
                context.load_verify_locations(ca)
            except (OSError, ssl.SSLError) as error:
                raise Refused(f"The authority's certificate {ca} cannot be read: {error}") from error
        self._opener = build_opener(ProxyHandler({}), HTTPSHandler(context=context), _NoRedirect())

    def get(self, *path: str, **query: Any) -> Any:
        """The JSON at a path, e.g. ``get("devices", "pico")``; query values that are None are left out."""
        given = {name: value for name, value in query.items() if value is not None}
        return self._ask(Request(self._address(path) + (f"?{urlencode(given)}" if given else "")))  # noqa: S310

    def post(self, *path: str, body: Any = None, seconds: float = TIMEOUT) -> Any:
        """The answer to a request that may take so many ``seconds``."""
        data = json.dumps(body).encode() if body is not None else b""
        request = Request(self._address(path), data, {"Content-Type": "application/json"})  # noqa: S310
        return self._ask(request, seconds)

    def _address(self, path: tuple[str, ...]) -> str:
        return f"{self.url}/api/v1/" + "/".join(quote(part, safe="") for part in path)

    def _ask(self, request: Request, seconds: float = TIMEOUT) -> Any:
        request.add_header("Authorization", f"Bearer {self.token}")
        try:
            with self._opener.open(request, timeout=seconds) as response:
                return self._read(response)
        except HTTPError as error:
            raise Refused(self._refusal(error)) from error
        except URLError as error:
            reason = error.reason
            if isinstance(reason, ssl.SSLError):
                raise NoCoordinator(f"{self.url} cannot be trusted: {reason}") from error
            raise NoCoordinator(
                f"No coordinator answers at {self.url}: {reason}. Start it with: shoal serve"
            ) from error
        except (OSError, HTTPException) as error:
            raise NoCoordinator(f"The coordinator at {self.url} broke off: {error or type(error).__name__}") from error

    def _read(self, response: HTTPResponse) -> Any:
        try:
            return json.load(response)
        except ValueError as error:
            raise Refused(f"What answers at {self.url} is not a coordinator") from error

    def _refusal(self, error: HTTPError) -> str:
        try:
            problem = json.load(error)
            said = f"{problem['title']}: {problem['detail']}"
        except (ValueError, KeyError, TypeError, OSError):
            return f"What answers at {self.url} is not a coordinator: it said {error.code} {error.reason}"
        if error.code == 401:
            return f"{said}. The token comes from SHOAL_API_TOKEN or from api.token in the home folder"
        return said


def connect(home: Path | None, url: str | None = None, ca: Path | None = None) -> Client:
    """A client for the coordinator of a home folder, or for the one at ``url``, with ``ca`` as its authority.

    What lies in the home folder, its token and its authority, is for the coordinator of that folder only: another
    address is never shown the token.
    """
    place = settings.load({"home": home}).home
    found = Address.find(place)
    if url is not None and (found is None or _origin(url) != _origin(found.url)):
        return Client(_safe(url), _given_token(url), str(ca) if ca else None)
    if found is None:
        raise NoCoordinator(f"No coordinator runs in {place}. Start it with: shoal serve")
    return Client(found.url, _token(place), str(ca) if ca else found.ca)


def _origin(url: str) -> tuple[str, str, int]:
    """Scheme, host and port; where a token is sent is decided by these."""
    try:
        parts = urlsplit(url)
        scheme, host, port = parts.scheme, parts.hostname or "", parts.port
    except ValueError as error:  # a port that is none, brackets that do not close
        raise click.BadParameter(f"{url!r} is no address: {error}", param_hint="--url") from error
    if scheme not in ("http", "https") or not host:
        raise click.BadParameter(f"{url!r} is no http:// or https:// address", param_hint="--url")
    return scheme, host, port or (443 if scheme == "https" else 80)


def _safe(url: str) -> str:
    scheme, host, _ = _origin(url)
    loopback = host in ("localhost", "::1") or re.fullmatch(r"127(\.\d{1,3}){3}", host)
    if scheme == "http" and not loopback:
        raise Refused(f"{url} would carry the token in the clear: plain http is for this machine only, use https://")
    return url


def _given_token(url: str) -> str:
    token = _from_environment()
    if token is None:
        raise Refused(
            f"{url} is not the coordinator of this home folder, so api.token is not sent there: set SHOAL_API_TOKEN "
            "to a token that `shoal api-token create` made there"
        )
    return token


def _token(home: Path) -> str:
    if token := _from_environment():
        return token
    try:
        return (home / "api.token").read_text().strip()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise Refused(f"{home / 'api.token'} cannot be read ({reason}), and SHOAL_API_TOKEN is not set") from error


def _from_environment() -> str | None:
    token = os.environ.get("SHOAL_API_TOKEN", "").strip()
    if not re.fullmatch(r"[!-~]*", token):
        raise Refused("SHOAL_API_TOKEN is no token: expected printable characters without spaces")
    return token or None


def home_option(command: Command) -> Command:
    """``--home``: the folder with settings, database and secrets."""
    return click.option(
        "--home",
        type=click.Path(path_type=Path, file_okay=False),
        help="The coordinator's folder (or SHOAL_HOME; normally ~/.local/share/shoal).",
    )(command)


def operates(command: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a command that talks to the coordinator: it gets a ``client`` first."""

    @home_option
    @click.option("--url", help="The coordinator's address, if it is not the one that runs here.")
    @click.option(
        "--ca",
        type=click.Path(path_type=Path, dir_okay=False),
        envvar="SHOAL_CA",
        help="Certificate of the coordinator's own authority (or SHOAL_CA), for one with a --url.",
    )
    @functools.wraps(command)
    def connected(*args: Any, home: Path | None, url: str | None, ca: Path | None, **options: Any) -> Any:
        client = connect(home, url, ca)
        try:
            return command(client, *args, **options)
        except UnicodeError:  # the terminal's, not the answer's
            raise
        except (LookupError, TypeError, AttributeError, ValueError, OverflowError) as error:
            # Commands pick from JSON that another program made, perhaps of another version.
            raise Refused(
                f"{client.url} gave an answer that this version of shoal does not understand "
                f"({type(error).__name__}: {error}); --json shows it as it is"
            ) from error

    return connected
