"""Who may ask: checked before anything of a request is read but its head.

A web page that the user visits can send requests to this machine, and by a name that it has pointed here (DNS
rebinding) even read the replies. So the name that was asked for must be one of ours, no foreign page may ask, a
body must be JSON (a page must ask before it may send that), and who listens beyond this machine needs a key.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from ..errors import ConfigError, RequestError

LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
MOST_BYTES = 2 << 20
"""Of a body."""
_OPEN = frozenset({"/health", "/", "/page.css", "/page.js"})  # paths that tell nothing worth a key
_LEAST_KEY = 16  # characters


def is_local(host: str) -> bool:
    """Whether only this machine can reach it.

    >>> is_local("127.0.0.1"), is_local("localhost"), is_local("::1"), is_local("0.0.0.0"), is_local("pi.lan")
    (True, True, True, False, False)
    """
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@dataclass(frozen=True, slots=True)
class Guard:
    """What a request must be to be read. `hosts` are names by which this server may be asked for."""

    hosts: frozenset[str]
    key: str | None = None

    @classmethod
    def of(cls, host: str, names: Iterable[str] = (), key: str | None = None) -> Guard:
        """For a server on `host`. Raises `ConfigError` where other machines can reach it and there is no key."""
        if key is not None and len(key) < _LEAST_KEY:
            raise ConfigError(f"the key has {len(key)} characters", hint=f"use {_LEAST_KEY} or more")
        if key is not None and not (key.isascii() and key.isprintable() and " " not in key):
            raise ConfigError("the key has characters that a header cannot carry", hint="use letters and digits")
        if key is None and not is_local(host):
            raise ConfigError(
                f"{host} can be reached from other machines, and there is no key",
                hint="set EDGE_SERVE_KEY or --key-file, or listen on 127.0.0.1",
            )
        return cls(LOCAL_NAMES | {host.casefold()} | {name.casefold() for name in names}, key)

    def check(self, method: str, path: str, headers: Mapping[str, str]) -> None:
        """Raise `RequestError` for a request that is not to be read; header names are in lower case."""
        name = _host(headers.get("host", ""))
        if name not in self.hosts and not (self.key is not None and _is_address(name)):
            raise RequestError(f"this is not {name!r}", status=421, hint="ask by its address, or serve with --name")
        origin = headers.get("origin")
        if origin is not None and _origin(origin) not in self.hosts:
            raise RequestError("pages of other origins may not ask", status=403)
        if self.key is not None and path not in _OPEN and not self._knows_key(headers.get("authorization", "")):
            raise RequestError("the key is missing or wrong", status=401, hint="send Authorization: Bearer KEY")
        if method != "POST":
            return
        kind = headers.get("content-type", "").partition(";")[0].strip().casefold()
        if kind != "application/json":
            raise RequestError(f"the body is {kind or 'of no type'!r}", status=415, hint="send application/json")
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > MOST_BYTES:
            raise RequestError(f"the body has {length} bytes", status=413, hint=f"send at most {MOST_BYTES}")

    def _knows_key(self, said: str) -> bool:
        scheme, _, key = said.partition(" ")
        known = hmac.compare_digest(key.strip().encode(), (self.key or "").encode())
        return scheme.casefold() == "bearer" and known


def _is_address(name: str) -> bool:
    """Whether it is a number, which nobody can point elsewhere as a name."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _host(value: str) -> str:
    """The name without the port.

    >>> _host("LOCALHOST:8080"), _host("[::1]:80"), _host("pi.lan."), _host("a:b:c")
    ('localhost', '::1', 'pi.lan', '')
    """
    try:
        return (urlsplit(f"//{value}").hostname or "").rstrip(".") if value.count(":") < 2 or "[" in value else ""
    except ValueError:
        return ""


def _origin(value: str) -> str:
    try:
        return (urlsplit(value).hostname or "").rstrip(".")
    except ValueError:
        return ""
