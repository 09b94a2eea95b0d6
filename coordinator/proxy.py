"""A reverse proxy in front of the pages: whose word about who asked, and how, is taken."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any, Final

Network = IPv4Network | IPv6Network
Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

_TOLD: Final = ("HTTP_X_FORWARDED_FOR", "HTTP_X_FORWARDED_PROTO", "HTTP_X_FORWARDED_HOST")
_HOST: Final = re.compile(r"[A-Za-z0-9._-]{1,253}(:\d{1,5})?|\[[0-9A-Fa-f:.]{2,45}\](:\d{1,5})?")


def networks(text: str) -> tuple[Network, ...]:
    """Addresses and networks, separated by commas; ValueError for what is none."""
    return tuple(ip_network(one.strip()) for one in text.split(",") if one.strip())


class Forwarded:
    """Takes X-Forwarded-For, -Proto and -Host from the proxies of ``trusted``; from others they mean nothing, or
    anybody could pretend to be somewhere else."""

    def __init__(self, application: Application, trusted: tuple[Network, ...]) -> None:
        self._application = application
        self._trusted = trusted

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        told = [str(environ.pop(name, "")) for name in _TOLD]
        if self._trusts(_address(environ.get("REMOTE_ADDR", ""))):
            self._take(environ, *told)
        return self._application(environ, start_response)

    def _take(self, environ: dict[str, Any], addresses: str, schemes: str, hosts: str) -> None:
        """Every proxy appends to the right: the first from there that is none of ours is who asked."""
        for text in reversed(addresses.split(",")):
            if (address := _address(text.strip())) is None:
                break
            environ["REMOTE_ADDR"] = str(address)
            if not self._trusts(address):
                break
        if (scheme := schemes.rpartition(",")[2].strip().lower()) in ("http", "https"):
            environ["wsgi.url_scheme"] = scheme
        if _HOST.fullmatch(host := hosts.rpartition(",")[2].strip()):
            environ["HTTP_HOST"] = host

    def _trusts(self, address: IPv4Address | IPv6Address | None) -> bool:
        return address is not None and any(address in network for network in self._trusted)


def _address(text: Any) -> IPv4Address | IPv6Address | None:
    try:
        address = ip_address(str(text))
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
