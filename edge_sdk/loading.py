"""From settings to what `Edge` works with: an open store, a loaded encoder, a loaded language model.

The only place that chooses between the engines. Nothing is fetched here: a missing model is an error that
names the command which fetches it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .config import Settings
from .errors import BundleError, ModelError, ModelNotFoundError
from .prompt import Reading
from .records import GenerateOptions

if TYPE_CHECKING:
    from .bundle.cache import Bundle
    from .bundle.manifest import DecoderPart
    from .confidence.calibration import Calibrations
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


def load_bundle(settings: Settings) -> Bundle | None:
    """The bundle of the settings, every file of it checked; None without one. Raises `BundleError`."""
    from .bundle.cache import open_bundle

    if settings.bundle is None:
        return None
    return open_bundle(settings.bundle, settings.home, require_signature=settings.require_signature)


def load_calibrations(settings: Settings) -> Calibrations:
    """The user's own calibrations, and behind them those of the bundle."""
    from .confidence.calibration import Calibrations

    bundle = load_bundle(settings)
    shipped = bundle.directory("calibration") if bundle is not None else None
    return Calibrations(settings.home / "calibrations", shipped)


def load_sampling(settings: Settings) -> GenerateOptions:
    """How the bundle's decoder writes best; greedily for any other."""
    bundle, part = _bundled_decoder(settings)
    return part.sampling.options() if bundle is not None and part is not None else GenerateOptions()


def load_encoder(settings: Settings) -> Encoder:
    """Load the encoder of the settings, or the bundle's. Raises `ModelError` with the command that fetches it."""
    from .encoders.encoders import open_encoder
    from .hub.models import resolve

    bundle = None if settings.outranks("encoder", "bundle") else load_bundle(settings)
    if bundle is not None and (part := bundle.manifest.encoder) is not None:
        encoder = open_encoder(bundle.paths("encoder")[0].parent, name=part.name)
        if (encoder.fingerprint, encoder.dimension) != (part.fingerprint, part.dimension):
            raise BundleError(
                f"the encoder {part.name} has the fingerprint {encoder.fingerprint}, not {part.fingerprint}",
                hint="build the bundle again with this version of edge-sdk",
            )
        return encoder
    model = resolve(settings.encoder, settings)
    if model.role != "encoder":
        raise ModelError(f"{model.name} is a {model.role}, not an encoder", hint="see `edge models`")
    return open_encoder(model.directory, name=model.name)


def load_engine(settings: Settings) -> tuple[Engine, Reading]:
    """Load the decoder of the settings, the bundle's, or the best one present; also how it reads documents best.

    The engine follows from the file: llama.cpp for GGUF, onnxruntime for ONNX.
    """
    model = choose_decoder(settings)
    reading = Reading(model.prompt_tokens or Reading().prompt_tokens, model.cites)
    context, template = settings.context, None
    bundle, part = _bundled_decoder(settings)
    if bundle is not None and part is not None:
        reading = part.reading
        context = settings.context if settings.outranks("context", "bundle") else part.context
        template = next((path.read_text("utf-8") for path in bundle.paths("template")), None)
    if model.format == "gguf":
        from .engines.engine_gguf import GgufEngine
        from .engines.profile import Profile, find_profile

        # What is in a bundle was calibrated as it is.
        tuned = find_profile(settings.home, model.path) if part is None else None
        profile = tuned or Profile(model.name, 0)
        return (
            GgufEngine.open(
                Path(profile.file) if profile.file else model.path,
                name=model.name,
                context=context,
                threads=settings.threads or profile.threads,
                sha256=profile.sha256 or model.sha256,
                template=template,
                tuning=profile.tuning,
            ),
            reading,
        )
    from .engines.engine_onnx import OnnxEngine

    return (
        OnnxEngine.open(
            model.directory, name=model.name, context=context, threads=settings.threads, sha256=model.sha256
        ),
        reading,
    )


def choose_decoder(settings: Settings) -> InstalledModel:
    """The decoder that the settings name, the bundle's, or the best one that is present and fits into memory."""
    from .hub.models import InstalledModel, best_decoder, resolve

    bundle, part = _bundled_decoder(settings)
    if bundle is not None and part is not None:
        entry = next(each for each in bundle.manifest.of("decoder") if each.path.endswith((".gguf", ".onnx")))
        path = bundle.folder / entry.path
        return InstalledModel(part.name, "decoder", part.format, path, path.parent, sha256=entry.sha256)
    if settings.model is None:
        best = best_decoder(settings)
        if best is None:
            raise ModelNotFoundError("no language model is present", hint="run `edge pull smollm2-135m-instruct`")
        return best
    model = resolve(settings.model, settings)
    if model.role != "decoder":
        raise ModelError(f"{model.name} is an {model.role}, not a decoder", hint="see `edge models`")
    return model


def _bundled_decoder(settings: Settings) -> tuple[Bundle | None, DecoderPart | None]:
    """The bundle and its decoder, unless there is none or --model comes first."""
    bundle = None if settings.outranks("model", "bundle") else load_bundle(settings)
    return bundle, bundle.manifest.decoder if bundle is not None else None


def model_path(settings: Settings) -> Path:
    """The file that `load_engine` would open."""
    return choose_decoder(settings).path
