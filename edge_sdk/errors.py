"""The error tree: every failure that a user can cause or meet is one `EdgeError`.

`str(error)` is one line that says what happened, with the value, and what to do next. This module knows
nothing of where an error is raised or shown.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


class EdgeError(Exception):
    """A failure with a one-line message and, where one exists, the next step.

    >>> str(EdgeError("model 'x' is not in the catalog", hint="run `edge models`"))
    "model 'x' is not in the catalog; run `edge models`"
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        self.message = " ".join(message.split())
        self.hint = " ".join(hint.split())
        super().__init__(self.message)

    def __str__(self) -> str:
        return f"{self.message}; {self.hint}" if self.hint else self.message


class ConfigError(EdgeError):
    """A setting has a value that cannot be used."""


class MissingExtraError(EdgeError):
    """A feature needs a package that this install does not have; the hint is the pip command."""

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(f"{feature} needs an extra package", hint=f"run `pip install 'edge-sdk[{extra}]'`")


class OfflineError(EdgeError):
    """Something asked for the network while `EDGE_OFFLINE=1`."""


class RequestError(EdgeError):
    """A request to the server is not one that it serves; `status` is what HTTP calls it."""

    def __init__(self, message: str, *, status: int = 400, hint: str = "") -> None:
        self.status = status
        super().__init__(message, hint=hint)


# --- models -----------------------------------------------------------------------------------------


class ModelError(EdgeError):
    """A model cannot be found, fetched, checked or loaded."""


class ModelNotFoundError(ModelError):
    """The name is neither in the catalog nor a file."""


class ModelDamagedError(ModelError):
    """A model file fails its size, hash or structure check; native code never saw it."""


class DownloadError(ModelError):
    """Every source of a model failed; what was fetched is kept for resuming."""


class DiskFullError(EdgeError):
    """There is not enough space for what is to be written."""


class BundleError(EdgeError):
    """A bundle cannot be made, or is not what its manifest says; native code never saw its files."""


class SignatureError(BundleError):
    """A bundle's signature is not that of its manifest, or not by a key that is trusted."""


# --- engines ----------------------------------------------------------------------------------------


class EngineError(EdgeError):
    """Loading or running a model failed inside the engine."""


class ContextOverflowError(EngineError):
    """The prompt and the answer do not fit the context; nothing was cut."""

    def __init__(self, prompt_tokens: int, max_tokens: int, context: int) -> None:
        self.prompt_tokens, self.max_tokens, self.context = prompt_tokens, max_tokens, context
        super().__init__(
            f"{prompt_tokens} prompt tokens and {max_tokens} for the answer do not fit a context of {context}",
            hint="shorten the prompt, lower --max-tokens or raise --context",
        )


class EngineCrashedError(EngineError):
    """The process that runs a model has ended, and with it the request: nothing else is lost."""

    def __init__(self, model: str, ending: str, when: str, *, hint: str = "") -> None:
        self.model, self.ending = model, ending  # how it ended: the name of a signal first, where it was one
        if not hint and ending.startswith("SIGKILL"):
            hint = "ask again, or use a smaller model: mostly the system ends a process for lack of memory"
        super().__init__(f"the process of {model} ended {when} ({ending})", hint=hint or "ask again")


class NotEnoughMemoryError(EngineError):
    """A model would need more memory than it may take; it was not loaded.

    `parts` names what needs how many bytes, `room` is how many may be taken of those that are free. `context` and
    `cache_type` are smaller settings that fit, None where none does.
    """

    def __init__(
        self,
        message: str,
        *,
        parts: Mapping[str, int] | None = None,
        room: int = 0,
        context: int | None = None,
        cache_type: str | None = None,
        hint: str = "",
    ) -> None:
        self.parts, self.room = dict(parts or {}), room
        self.context, self.cache_type = context, cache_type
        super().__init__(message, hint=hint)


class GrammarError(EngineError):
    """A JSON schema or grammar cannot be compiled, or the engine cannot honour one."""


class TemplateError(EngineError):
    """A chat template is missing, fails or exceeds its limits."""


# --- store and documents ----------------------------------------------------------------------------


class StoreError(EdgeError):
    """The store cannot be opened, read or written."""


class StoreBusyError(StoreError):
    """Another process holds the write lock for longer than the time allowed."""


class StoreFullError(StoreError, DiskFullError):
    """The disk is full; the open transaction was rolled back and what was acknowledged is intact."""


class StoreDamagedError(StoreError):
    """The file is not a store or fails its integrity check."""


class EncoderMismatchError(StoreError):
    """The store's vectors were made by another encoder."""


class DocumentError(EdgeError):
    """A document cannot be read, is too large, or holds no text."""


# --- confidence -------------------------------------------------------------------------------------


class CalibrationError(EdgeError):
    """Calibration data, a calibration or its certificate cannot be used."""


# --- remote -----------------------------------------------------------------------------------------


class RemoteError(EdgeError):
    """A remote model could not be asked, or its reply cannot be used."""


class RemoteUnreachableError(RemoteError):
    """No connection: nothing was sent, so nothing was billed."""


class RemoteTimeoutError(RemoteError):
    """The absolute deadline passed, or a limit on silence before it."""


class RemoteRejectedError(RemoteError):
    """The server answered with an error status."""

    def __init__(self, message: str, *, status: int, retry_after: float | None = None, hint: str = "") -> None:
        self.status, self.retry_after = status, retry_after
        super().__init__(message, hint=hint)


class RemoteProtocolError(RemoteError):
    """The reply is not what an OpenAI-compatible server sends, or it ended early."""


class RemotePausedError(RemoteError):
    """The remote failed again and again, or asked for a pause: it was left alone, nothing was sent."""

    def __init__(self, message: str, *, seconds: float, hint: str = "") -> None:
        self.seconds = seconds  # until it is asked again
        super().__init__(message, hint=hint)


class BudgetError(RemoteError):
    """A call could cost more than the budget has left, or cannot be written down: nothing was sent."""


# --- privacy ----------------------------------------------------------------------------------------


class PrivacyError(EdgeError):
    """What was to leave the device could not be checked, so it stays."""
