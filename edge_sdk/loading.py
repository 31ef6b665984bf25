"""From settings to what `Edge` works with: an open store, a loaded encoder, a loaded language model.

Nothing is fetched here: a missing model is an error that names the command which fetches it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from .config import Settings, given_path
from .errors import BundleError, ConfigError, ModelError, ModelNotFoundError, NotEnoughMemoryError
from .prompt import Reading
from .records import GenerateOptions

if TYPE_CHECKING:
    from .bundle.cache import Bundle
    from .bundle.manifest import DecoderPart
    from .confidence.calibration import Calibrations
    from .encoders.embed import Encoder
    from .engines.engine import Engine
    from .engines.opening import Opening
    from .engines.prefix_cache import PrefixCache
    from .fallback.caller import Caller
    from .heads.classifier import IntentHead
    from .hub.models import InstalledModel
    from .privacy.gate import PrivacyPolicy
    from .readers.reader import Reader
    from .storage.store import Store


def open_store(settings: Settings) -> Store:
    """Open the store of the settings, making it when it does not exist."""
    from .storage.store import Store

    return Store.open(settings.store)


def existing_store(settings: Settings) -> Store:
    """Open the store of the settings, for whoever only reads or changes what is in it; raises `ConfigError`."""
    require_store(settings)
    return open_store(settings)


def require_store(settings: Settings) -> None:
    """Raise `ConfigError` where there is no store: a wrong path must not be made into an empty one."""
    try:
        there = settings.store.exists()
    except OSError:  # a folder above may not be entered: opening it says so
        there = True
    if not there:
        raise ConfigError(f"there is no store at {settings.store}", hint="run `edge add PATH` first")


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


def encoder_folder(settings: Settings) -> Path:
    """The folder that `load_encoder` would load from."""
    from .hub.models import resolve

    bundle = None if settings.outranks("encoder", "bundle") else load_bundle(settings)
    if bundle is not None and (shipped := bundle.directory("encoder")) is not None:
        return shipped
    return resolve(settings.encoder, settings).directory


def load_head(settings: Settings, name: str) -> IntentHead:
    """Load the head of a folder, or the one that the bundle has under this name; raises `ModelError`.

    One without an encoder of its own reads with that of the settings.
    """
    from .heads.classifier import IntentHead
    from .heads.head_file import is_head

    folder = given_path(name, "the head")
    if not is_head(folder):
        bundle = load_bundle(settings)
        shipped = None if bundle is None else bundle.directory(f"head:{name}")
        if shipped is None:
            held = f"the bundle {bundle.manifest.name} has none of this name" if bundle else "there is no bundle"
            raise ModelNotFoundError(f"{name} is not the folder of a head, and {held}", hint="see `edge head fit`")
        folder = shipped
    return IntentHead.open(folder, lambda: load_encoder(settings))


def load_reader(settings: Settings) -> Reader | None:
    """Load the reader of the settings, else the bundle's; None without one. Raises `ModelError`."""
    from .readers.reader import Reader

    bundle = None if settings.outranks("reader", "bundle") else load_bundle(settings)
    if bundle is not None and (shipped := bundle.directory("reader")) is not None:
        return Reader.open(shipped, name=f"{bundle.manifest.name}-reader", threads=settings.threads)
    if settings.reader is None or settings.reader == "none":
        return None
    return Reader.open(given_path(settings.reader, "the reader"), threads=settings.threads)


def load_engine(settings: Settings) -> tuple[Engine, Reading]:
    """Load the decoder of the settings, the bundle's, or the best one present; also how it reads documents best.

    The engine follows from the file: llama.cpp for GGUF, onnxruntime for ONNX. An adapter is used on the file that
    it was trained on, and may say itself how it reads best. Where memory cannot hold the model,
    `NotEnoughMemoryError` names settings or another model that it can hold.
    """
    try:
        return _open_engine(settings)
    except NotEnoughMemoryError as error:
        raise _with_another_model(error, settings) from None


def _with_another_model(error: NotEnoughMemoryError, settings: Settings) -> NotEnoughMemoryError:
    """The refusal with a model that is present and fits in its hint."""
    from .hub.models import list_models

    present = [row for row in list_models(settings) if row.role == "decoder" and row.state == "present"]
    fitting = [row for row in present if row.memory <= error.room and row.name != choose_decoder(settings).name]
    if not fitting:
        return error
    best = max(fitting, key=lambda row: row.memory)
    return NotEnoughMemoryError(
        error.message,
        parts=error.parts,
        room=error.room,
        context=error.context,
        cache_type=error.cache_type,
        hint=error.hint.replace("a smaller model", f"--model {best.name}"),
    )


def _open_engine(settings: Settings) -> tuple[Engine, Reading]:
    from .engines.opening import Opening

    model, adapter = choose_decoder(settings), choose_adapter(settings)
    reading = model.reading
    context, template = settings.context, None
    bundle, part = _bundled_decoder(settings)
    if bundle is not None and part is not None:
        reading = part.reading
        context = settings.context if settings.outranks("context", "bundle") else part.context
        template = next((path.read_text("utf-8") for path in bundle.paths("template")), None)
    if model.format == "gguf":
        from .engines.profile import Profile, find_profile
        from .model_files.gguf_adapter import read_adapter

        # What is in a bundle was calibrated as it is.
        tuned = find_profile(settings.home, model.path) if part is None else None
        profile = tuned or Profile(model.name, 0)
        if adapter is not None:
            profile, taught = replace(profile, file="", sha256=""), read_adapter(adapter)
            numbered = reading.numbered if taught.numbered is None else taught.numbered
            tokens = taught.prompt_tokens or reading.prompt_tokens
            reading = Reading(tokens, numbered, taught.evidence_tokens, taught.extractive)
        opening = Opening(
            Path(profile.file) if profile.file else model.path,
            name=model.name,
            context=context,
            threads=settings.threads or profile.threads,
            sha256=profile.sha256 or model.sha256,
            template=template,
            tuning=profile.tuning.as_wished(cache_type=settings.cache_type, repack=settings.repack),
            adapter=adapter,
            speculation=settings.speculation,
            sequences=settings.parallel,
        )
        known = adapter is None and (model.spec is not None or bool(profile.file))
        return _opened(opening, settings, known=known), _as_wished(reading, settings)
    if adapter is not None:
        raise ModelError(f"{model.name} is an ONNX model, which takes no adapter", hint="use --adapter none")
    opening = Opening(
        model.path, "onnx", name=model.name, context=context, threads=settings.threads, sha256=model.sha256
    )
    reading = replace(reading, extractive=False)  # onnxruntime cannot be held to given words
    return _opened(opening, settings, known=model.spec is not None), _as_wished(reading, settings)


def _opened(opening: Opening, settings: Settings, *, known: bool) -> Engine:
    """The engine: in a worker process if that is wanted, else in this one.

    Before it is opened here, a file that is not `known` to run is tried in a process of its own: any but those of
    the catalog and those that `edge tune` has measured.
    """
    if settings.isolated:
        from .engines.isolated import IsolatedEngine

        return IsolatedEngine(opening)
    if not known:
        from .engines.load_probe import probe

        probe(opening, settings.home)
    return opening.open(_prefix_cache(settings) if opening.form == "gguf" else None)


def _prefix_cache(settings: Settings) -> PrefixCache | None:
    from .engines.prefix_cache import PrefixCache
    from .engines.prefix_folder import FOLDER

    limit = settings.prefix_cache << 20
    return PrefixCache(settings.home / FOLDER, limit) if limit else None


def _as_wished(reading: Reading, settings: Settings) -> Reading:
    """How the model reads best, but for what the settings say of it."""
    wanted = settings.evidence_tokens if settings.outranks("evidence_tokens", "bundle") else None
    return reading if wanted is None else replace(reading, evidence_tokens=wanted)


def choose_decoder(settings: Settings) -> InstalledModel:
    """The decoder that the settings name, the bundle's, the one that the adapter is for, or the best one present.

    The best is the first by rank that fits into memory.
    """
    from .hub.models import InstalledModel, best_decoder, resolve
    from .model_files.gguf_adapter import read_adapter

    bundle, part = _bundled_decoder(settings)
    if bundle is not None and part is not None:
        entry = next(each for each in bundle.manifest.of("decoder") if each.path.endswith((".gguf", ".onnx")))
        path = bundle.folder / entry.path
        return InstalledModel(part.name, "decoder", part.format, path, path.parent, sha256=entry.sha256)
    wanted = settings.model
    if wanted is None and (adapter := choose_adapter(settings)) is not None:
        wanted = read_adapter(adapter).base
    if wanted is None:
        best = best_decoder(settings)
        if best is None:
            raise ModelNotFoundError("no language model is present", hint="run `edge pull smollm2-135m-instruct`")
        return best
    model = resolve(wanted, settings)
    if model.role != "decoder":
        raise ModelError(f"{model.name} is an {model.role}, not a decoder", hint="see `edge models`")
    return model


def choose_adapter(settings: Settings) -> Path | None:
    """The LoRA adapter that the settings name, else the one that comes with the bundle's decoder, else None.

    A bundle with several has its own choice under the name `default`. Raises `ModelNotFoundError`.
    """
    bundle, _ = _bundled_decoder(settings)
    roles = () if bundle is None else bundle.manifest.roles()
    shipped = {role.partition(":")[2]: role for role in roles if role.startswith("adapter:")}
    name = settings.adapter
    if name is None or (bundle is not None and not settings.outranks("adapter", "bundle")):
        name = next(iter(shipped)) if len(shipped) == 1 else "default" if "default" in shipped else "none"
    if name == "none":
        return None
    if bundle is not None and name in shipped:
        return bundle.paths(shipped[name])[0]
    path = given_path(name, "the adapter")
    if not path.is_file():
        known = f"; the bundle holds {', '.join(shipped)}" if shipped else ""
        raise ModelNotFoundError(
            f"there is no adapter {name}{known}", hint="name a .gguf file, or use --adapter none"
        )
    return path


def _bundled_decoder(settings: Settings) -> tuple[Bundle | None, DecoderPart | None]:
    """The bundle and its decoder, unless there is none or --model comes first."""
    bundle = None if settings.outranks("model", "bundle") else load_bundle(settings)
    return bundle, bundle.manifest.decoder if bundle is not None else None


def model_path(settings: Settings) -> Path:
    """The file that `load_engine` would open."""
    return choose_decoder(settings).path
