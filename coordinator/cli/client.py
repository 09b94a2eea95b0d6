"""Talking to the coordinator's API, with a clear sentence for everything that can go wrong."""

from __future__ import annotations

import functools
import json
import os
import ssl
from collections.abc import Callable
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlencode
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

    ``url`` of the pages and the API, ``ca`` the path of the authority's certificate (None without TLS).
    """

    url: str
    ca: str | None

    @classmethod
    def find(cls, home: Path) -> Address | None:
        """None if no coordinator has left a readable one."""
        try:
            found = json.loads((home / "coordinator.json").read_text())
            return cls(str(found["url"]), found["ca"])
        except (OSError, ValueError, KeyError, TypeError):
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

    def post(self, *path: str, body: Any = None) -> Any:
        data = json.dumps(body).encode() if body is not None else b""
        request = Request(self._address(path), data, {"Content-Type": "application/json"})  # noqa: S310
        return self._ask(request)

    def _address(self, path: tuple[str, ...]) -> str:
        return f"{self.url}/api/v1/" + "/".join(quote(part, safe="") for part in path)

    def _ask(self, request: Request) -> Any:
        request.add_header("Authorization", f"Bearer {self.token}")
        try:
            with self._opener.open(request, timeout=TIMEOUT) as response:
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


def connect(home: Path | None, url: str | None) -> Client:
    """A client for the coordinator of a home folder, or for the one at ``url``."""
    place = settings.load({"home": home}).home
    found = Address.find(place)
    if url is None and found is None:
        raise NoCoordinator(f"No coordinator runs in {place}. Start it with: shoal serve")
    if url is not None and not url.startswith(("http://", "https://")):
        raise click.BadParameter(f"{url!r} is no http:// or https:// address", param_hint="--url")
    return Client(url or (found.url if found else ""), _token(place), found.ca if found else None)


def _token(home: Path) -> str:
    if token := os.environ.get("SHOAL_API_TOKEN"):
        return token.strip()
    try:
        return (home / "api.token").read_text().strip()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise Refused(f"{home / 'api.token'} cannot be read ({reason}), and SHOAL_API_TOKEN is not set") from error


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
    @functools.wraps(command)
    def connected(*args: Any, home: Path | None, url: str | None, **options: Any) -> Any:
        return command(connect(home, url), *args, **options)

    return connected
