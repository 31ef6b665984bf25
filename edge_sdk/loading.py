"""From settings to what `Edge` works with: an open store, a loaded encoder, a loaded language model.

The only place that chooses between the engines. Nothing is fetched here: a missing model is an error that
names the command which fetches it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .config import Settings
from .errors import ModelError, ModelNotFoundError
from .prompt import Reading

if TYPE_CHECKING:
    from .encoders.embed import Encoder
    from .engines.engine import Engine
    from .fallback.caller import Caller
    from .hub.models import InstalledModel
    from .privacy.gate import PrivacyPolicy
    from .storage.store import Store


def open_store(settings: Settings) -> Store:
    """Open the store of the settings, making it when it does not exist."""
    from .storage.store import Store

    return Store.open(settings.store)


def load_policy(settings: Settings) -> PrivacyPolicy:
    """What the settings allow to leave; raises `ConfigError` for a mode that does not exist."""
    from .privacy.gate import PrivacyPolicy

    return PrivacyPolicy(settings.privacy, settings.privacy_send, settings.privacy_level)  # type: ignore[arg-type]


def load_caller(settings: Settings, store: Store) -> Caller | None:
    """The guarded way to the remote of the settings, ledger and breaker in `store`; None when there is none."""
    from .fallback.budget import Budget, Prices
    from .fallback.caller import Caller
    from .fallback.remote import remote_from_settings

    remote = remote_from_settings(settings)
    if remote is None:
        return None
    prices = Prices.parse(settings.remote_prices) if settings.remote_prices else None
    return Caller(remote, store.database, Budget.parse(settings.budget or ""), prices)


def load_encoder(settings: Settings) -> Encoder:
    """Load the encoder of the settings. Raises `ModelError` with the command that fetches it."""
    from .encoders.encoders import open_encoder
    from .hub.models import resolve

    model = resolve(settings.encoder, settings)
    if model.role != "encoder":
        raise ModelError(f"{model.name} is a {model.role}, not an encoder", hint="see `edge models`")
    return open_encoder(model.directory, name=model.name)


def load_engine(settings: Settings) -> tuple[Engine, Reading]:
    """Load the decoder of the settings, or the best one present; also how it reads documents best.

    The engine follows from the file: llama.cpp for GGUF, onnxruntime for ONNX.
    """
    model = choose_decoder(settings)
    reading = Reading(model.prompt_tokens or Reading().prompt_tokens, model.cites)
    if model.format == "gguf":
        from .engines.engine_gguf import GgufEngine

        return (
            GgufEngine.open(
                model.path, name=model.name, context=settings.context, threads=settings.threads, sha256=model.sha256
            ),
            reading,
        )
    from .engines.engine_onnx import OnnxEngine

    return (
        OnnxEngine.open(
            model.directory,
            name=model.name,
            context=settings.context,
            threads=settings.threads,
            sha256=model.sha256,
        ),
        reading,
    )


def choose_decoder(settings: Settings) -> InstalledModel:
    """The decoder that the settings name, else the best one that is present and fits into memory."""
    from .hub.models import best_decoder, resolve

    if settings.model is None:
        best = best_decoder(settings)
        if best is None:
            raise ModelNotFoundError("no language model is present", hint="run `edge pull smollm2-135m-instruct`")
        return best
    model = resolve(settings.model, settings)
    if model.role != "decoder":
        raise ModelError(f"{model.name} is an {model.role}, not a decoder", hint="see `edge models`")
    return model


def model_path(settings: Settings) -> Path:
    """The file that `load_engine` would open."""
    return choose_decoder(settings).path
