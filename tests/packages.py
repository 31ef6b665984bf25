"""Small made-up packages, model files and a file server, for tests of pulling."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import random
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

from loopback import Behaviour, Exchange, head

from edge_sdk.hub.catalog import FileSpec, parse_source


def content(size: int, seed: int = 0) -> bytes:
    """Bytes that do not compress."""
    return random.Random(seed).randbytes(size)


def file_spec(data: bytes, *sources: str, name: str = "model.gguf", archive_bytes: int | None = None) -> FileSpec:
    """What the catalog would say of `data`."""
    digest = hashlib.sha256(data).hexdigest()
    return FileSpec(name, len(data), digest, tuple(map(parse_source, sources)), archive_bytes or len(data))


def catalog_entry(name: str, files: Mapping[str, bytes], sources: Mapping[str, list[str]], **more: object) -> str:
    """One model of a user's catalog; `sources` by file name, `more` other keys."""
    keys = {"role": "decoder", "format": "gguf", "licence": "MIT", "description": "made up", "upstream": "none",
            "memory": 1, "context": 64, "rank": 99} | more  # fmt: skip
    lines = ["[[model]]", f'name = "{name}"', *(f"{key} = {json.dumps(value)}" for key, value in keys.items())]
    for file, data in files.items():
        digest = hashlib.sha256(data).hexdigest()
        lines += ["[[model.file]]", f'name = "{file}"', f"bytes = {len(data)}", f'sha256 = "{digest}"']
        lines += [f"sources = {json.dumps(sources[file])}"]
    return "\n".join(lines) + "\n"


# --- packages ---------------------------------------------------------------------------------------


def make_wheel(folder: Path, package: str, version: str, members: Mapping[str, bytes]) -> Path:
    """A wheel that pip accepts, holding `members` under their names as given."""
    stem = f"{package.replace('-', '_')}-{version}"
    info = f"{stem}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n".encode()
    tags = b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    path = folder / f"{stem}-py3-none-any.whl"
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        for name, data in members.items():
            wheel.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)
        wheel.writestr(f"{info}/METADATA", metadata)
        wheel.writestr(f"{info}/WHEEL", tags)
        wheel.writestr(f"{info}/RECORD", "")
    return path


def make_tgz(path: Path, members: Mapping[str, bytes | tarfile.TarInfo]) -> Path:
    """A gzipped tar as npm packs it; a `TarInfo` instead of bytes is put in as it is."""
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        for name, data in members.items():
            if isinstance(data, tarfile.TarInfo):
                archive.addfile(data)
            else:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return path


# --- servers ----------------------------------------------------------------------------------------


def serve_file(data: bytes, *, etag: str = '"one"', cut: int | None = None, ranges: bool = True) -> Behaviour:
    """Serve `data`, from the asked offset where the tag still holds; hang up after `cut` bytes of the body."""

    def behave(exchange: Exchange) -> None:
        asked = exchange.request.headers.get("range", "")
        held = exchange.request.headers.get("if-range", etag) == etag
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and held and ranges else 0
        if start >= len(data):
            exchange.send(head(416, "text/plain", Content_Length="0"))
            return
        facts = {"Content_Length": str(len(data) - start), "ETag": etag}
        if start:
            facts["Content_Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        body = data[start:] if cut is None else data[start : start + cut]
        exchange.send(head(206 if start else 200, "application/octet-stream", **facts) + body)

    return behave


def serve_index(wheels: Path) -> Behaviour:
    """A package index over the wheels of a folder."""

    def behave(exchange: Exchange) -> None:
        place, _, name = exchange.request.path.strip("/").rpartition("/")
        if place == "simple":
            found = [wheel.name for wheel in wheels.glob(f"{name.replace('-', '_')}-*.whl")]
            links = "".join(f'<a href="/files/{wheel}">{wheel}</a>' for wheel in found)
            exchange.send(head(200, "text/html") + f"<!DOCTYPE html><html><body>{links}</body></html>".encode())
        elif (wheels / name).is_file():
            data = (wheels / name).read_bytes()
            exchange.send(head(200, "application/octet-stream", Content_Length=str(len(data))) + data)
        else:
            exchange.send(head(404, "text/plain", Content_Length="0"))

    return behave


def serve_npm(name: str, version: str, tarball: Path, url: str) -> Behaviour:
    """An npm registry with one package in one version."""
    data = tarball.read_bytes()
    integrity = "sha512-" + base64.b64encode(hashlib.sha512(data).digest()).decode()
    entry = {"name": name, "version": version, "dist": {"tarball": f"{url}/{name}.tgz", "integrity": integrity}}
    document = json.dumps({"name": name, "dist-tags": {"latest": version}, "versions": {version: entry}})

    def behave(exchange: Exchange) -> None:
        body = data if exchange.request.path.endswith(".tgz") else document.encode()
        exchange.send(head(200, "application/json", Content_Length=str(len(body))) + body)

    return behave


def zeros_tgz(path: Path, first: int, name: str, data: bytes) -> Path:
    """A tar whose first member is `first` zero bytes, then `name`: small packed, large unpacked."""
    with gzip.open(path, "wb", compresslevel=1) as packed, tarfile.open(fileobj=packed, mode="w|") as archive:
        filler = tarfile.TarInfo("package/filler")
        filler.size = first
        archive.addfile(filler, _Zeros(first))
        info = tarfile.TarInfo(name)
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
    return path


class _Zeros(io.RawIOBase):
    def __init__(self, size: int) -> None:
        self._left = size

    def read(self, size: int = -1) -> bytes:
        size = self._left if size < 0 else min(size, self._left)
        self._left -= size
        return bytes(size)
