"""`edge serve`: the assistant for programs that speak to OpenAI's interface, on this machine unless asked."""

from __future__ import annotations

import logging
import os
import signal
import socket
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import click

from ..config import Settings
from ..edge import Edge
from ..engines.worker_process import can_start
from ..errors import ConfigError, EdgeError, MissingExtraError
from ..loading import choose_decoder
from ..route import Policy
from ..serving.guard import Guard, is_local
from .options import console, options, print_json

_KEY = "EDGE_SERVE_KEY"
_PARALLEL = 4  # answers at once, where the settings do not say
_CONNECTIONS = 512


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; others need a key.")
@click.option("--port", default=8017, show_default=True, type=click.IntRange(0, 65535), help="0: any that is free.")
@click.option("--name", "names", multiple=True, help="Another name by which this machine may be asked for.")
@click.option("--key-file", type=click.Path(path_type=Path), help=f"File with the key for clients; or {_KEY}.")
@click.option("--in-process", is_flag=True, help="Run the model in the server's own process.")
@click.option(
    "--when-unsure",
    type=click.Choice(["abstain", "local", "remote"]),
    help="What to do with a doubtful answer; default: ask a remote if there is one and --privacy lets it.",
)
@options(
    *("store", "bundle", "require_signature", "model", "adapter", "encoder", "reader", "context", "threads"),
    *("evidence_tokens", "cache_type", "parallel"),
    *("remote", "remote_model", "remote_key_file", "remote_prices", "budget", "privacy", "privacy_send"),
)
def serve_command(
    settings: Settings,
    host: str,
    port: int,
    names: tuple[str, ...],
    key_file: Path | None,
    in_process: bool,
    when_unsure: Any,
    as_json: bool,
) -> None:
    """Serve chat completions and embeddings over HTTP as OpenAI does, until it is interrupted.

    The model `edge` answers from the documents, with probability, citations and reasons beside the text; the
    language model's own name reaches that alone. The model runs in a process without keys and network, so that a
    crash costs only what it is answering. The last line of --json is printed once it listens.
    """
    if when_unsure == "remote" and settings.remote is None:
        raise ConfigError("there is no remote to ask", hint="give --remote, or another --when-unsure")
    guard = Guard.of(host, names, _key(key_file))
    settings = _for_serving(settings, in_process=in_process)
    try:
        import uvicorn

        from ..serving.answering import Answering
        from ..serving.app import make_app
        from ..serving.server import Server
    except ImportError as error:
        raise MissingExtraError("the server", "serve") from error
    policy = None if when_unsure is None else Policy(when_unsure)
    with _listen(host, port) as listening, Edge.open(settings=settings, policy=policy) as edge:
        answering = Answering(edge)
        app = make_app(answering, guard, parallel=settings.parallel)
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=10,
            limit_concurrency=_CONNECTIONS,
        )
        shown = f"[{host}]" if ":" in host else host
        url = f"http://{shown}:{listening.getsockname()[1]}/v1"
        if as_json:
            print_json({"url": url, "models": answering.models, "pid": os.getpid()})
        else:
            far = "" if is_local(host) else "; over HTTP others in the network can read along: put TLS before it"
            page = url.removesuffix("v1")
            console().print(f"a chat on {page}, the model `edge` on {url}; Ctrl-C ends it{far}")
        logging.getLogger("asyncio").setLevel(logging.ERROR)  # it warns of every client that has gone
        signal.signal(signal.SIGTERM, _interrupted)
        with suppress(KeyboardInterrupt):
            Server(config, app.end).run(sockets=[listening])


def _for_serving(settings: Settings, *, in_process: bool) -> Settings:
    """Several answers at once, and the model in a process of its own, wherever nobody has said otherwise."""
    parallel = settings.parallel if settings.sources["parallel"] != "default" else _PARALLEL
    if choose_decoder(settings).format != "gguf":
        parallel = 1  # onnxruntime has no batches of several answers
    isolated = settings.isolated if settings.sources["isolated"] != "default" else can_start()
    return replace(settings, parallel=parallel, isolated=isolated and not in_process)


def _key(file: Path | None) -> str | None:
    """The first line of the file, else of the environment; None for neither."""
    text = os.environ.get(_KEY, "")
    if file is not None:
        try:
            text = file.expanduser().read_text("utf-8").partition("\n")[0]
        except (OSError, ValueError) as error:
            raise ConfigError(f"{file} cannot be read: {error}", hint="name a text file with the key") from error
        if not text.strip():
            raise ConfigError(f"{file} is empty", hint="write the key into its first line")
    return text.strip() or None


def _listen(host: str, port: int) -> socket.socket:
    """A socket that listens, so that a port that is taken is known before a model is loaded."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=128)
    except OSError as error:
        said = error.strerror or str(error)
        raise EdgeError(
            f"{host}:{port} cannot be listened on: {said}", hint="use another --port or --host"
        ) from error


def _interrupted(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
