"""Where requests go and which key goes with them: addresses that must not be used, and keys, are checked here.

It knows nothing of requests. No error repeats what may be a secret.
"""

from __future__ import annotations

import ipaddress
import os
import re
from pathlib import Path
from urllib.parse import urlsplit

from ..config import Settings
from ..errors import ConfigError


def endpoint(url: str) -> str:
    """The full address for `url`; raises `ConfigError` for one that must not be used.

    >>> endpoint("http://127.0.0.1:8080")
    'http://127.0.0.1:8080/v1/chat/completions'
    >>> endpoint("https://host.example/api/v1/")
    'https://host.example/api/v1/chat/completions'
    >>> endpoint("https://host.example/v1beta/openai/chat/completions")
    'https://host.example/v1beta/openai/chat/completions'
    """
    try:
        parts = urlsplit(url.strip())
        host, port = (parts.hostname or "").lower(), parts.port
    except ValueError:
        raise ConfigError("the remote's URL cannot be read", hint="use https://HOST/v1") from None
    if "@" in parts.netloc or "%" in host or parts.query or parts.fragment:  # what may be a secret is not repeated
        raise ConfigError(
            f"the remote's URL (host {host!r}) holds more than scheme, host and path",
            hint="the key goes into EDGE_REMOTE_KEY or a key file",
        )
    address = _address(host)
    if parts.scheme not in ("http", "https") or not (
        address or re.fullmatch(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?", host)
    ):
        raise ConfigError(f"the remote's URL {url!r} has no usable scheme and host", hint="use https://HOST/v1")
    if parts.scheme == "http" and host != "localhost" and not (address and address.is_loopback):
        raise ConfigError(f"the remote {url!r} would be asked without encryption", hint="use https://")
    path = parts.path.rstrip("/")
    if re.search(r"[^\w.~/-]", path, re.ASCII):
        raise ConfigError(f"the remote's URL {url!r} has a path that cannot be used", hint="use https://HOST/v1")
    if not path.endswith("/chat/completions"):
        path += "/chat/completions" if path.endswith("/v1") else "/v1/chat/completions"
    name = f"[{host}]" if isinstance(address, ipaddress.IPv6Address) else host
    return f"{parts.scheme}://{name}{'' if port is None else f':{port}'}{path}"


def read_key(settings: Settings) -> str | None:
    """The key: the first line of a key file given as a flag, else `EDGE_REMOTE_KEY`, else of the key file.

    Raises `ConfigError`, without the key, for one that no header can carry.
    """
    path, flag = settings.remote_key_file, settings.sources.get("remote_key_file") == "flag"
    value = os.environ.get("EDGE_REMOTE_KEY", "").strip()
    source = "EDGE_REMOTE_KEY"
    if path and (flag or not value):
        value, source = _first_line(path), str(path)
    if not value:
        return None
    if not re.fullmatch(r"[!#-\[\]-~]{1,4096}", value):  # printable, no space, and JSON spells it as it is
        raise ConfigError(f"the key in {source} is not one word of plain characters")
    return value


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _first_line(path: Path) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            return file.readline(8192).strip()
    except OSError as error:
        raise ConfigError(f"the key file {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError:
        raise ConfigError(f"the key file {path} is not text") from None  # the decode error holds the bytes
