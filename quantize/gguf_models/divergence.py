"""How far a language model is from another with the same vocabulary: KL divergence, agreement, perplexity.

Both models read the same windows of a text side by side, so no file of logits is ever written. As in llama.cpp's
perplexity tool only the second half of each window counts, where every token has enough before it; its figures and
these agree. Knows nothing of what made the models differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from threading import Event as Flag

import numpy as np
from numpy.typing import NDArray

from edge_sdk.engines.engine import file_fingerprint
from edge_sdk.errors import ConfigError, EngineError

from ..collection import Update
from ..metrics import bootstrap
from .journal import Journal
from .window_logits import Floats, LogitModel, Tokens, check_same_vocabulary, open_models

Doubles = NDArray[np.float64]

CONTEXT = 512
"""Tokens of a window unless another number is given; llama.cpp's own default."""
_BLOCK = 1 << 17  # logits that are worked on at once: they stay in the processor's cache


@dataclass(frozen=True, slots=True)
class TokenFigures:
    """What was measured at each scored token; arrays of one length, in nats.

    `kld` is the KL divergence of the candidate's distribution from the reference's, `logprob_a` and `logprob_b` are
    of the token that really comes next, `agree` says whether both have the same most likely token (of equally
    likely ones the first counts).
    """

    kld: Floats
    logprob_a: Floats
    logprob_b: Floats
    agree: NDArray[np.bool_]

    @classmethod
    def joined(cls, parts: Sequence[TokenFigures]) -> TokenFigures:
        """Several as one."""
        return cls(
            np.concatenate([part.kld for part in parts]),
            np.concatenate([part.logprob_a for part in parts]),
            np.concatenate([part.logprob_b for part in parts]),
            np.concatenate([part.agree for part in parts]),
        )


@dataclass(frozen=True, slots=True)
class Divergence:
    """How far model B, the candidate, is from model A, the reference, over the scored positions of some windows.

    KL divergences KL(A || B) in nats a token. Standard errors (`_se`) of perplexities take tokens as independent,
    as llama.cpp does; that of the mean divergence and the 95 % intervals take windows as independent, and are None
    for fewer than two. Changes are of the probability of the token that really comes next, B's less A's.
    """

    windows: int
    positions: int
    kld_mean: float
    kld_mean_se: float | None
    kld_mean_interval: tuple[float, float] | None
    kld_median: float
    kld_p90: float
    kld_p95: float
    kld_p99: float
    kld_p99_9: float
    kld_max: float
    top1_agreement: float
    top1_agreement_interval: tuple[float, float] | None
    ppl_a: float
    ppl_a_se: float
    ppl_b: float
    ppl_b_se: float
    probability_change_mean: float
    probability_change_rms: float
    bytes_a: int
    bytes_b: int


def measure_divergence(
    reference: Path,
    candidate: Path,
    text: str | Sequence[int],
    *,
    context: int = CONTEXT,
    warmup: int | None = None,
    windows: int | None = None,
    threads: int | None = None,
    out: Path | None = None,
    progress: Update = lambda done, total, detail: None,
    cancel: Flag | None = None,
) -> Divergence:
    """Compare two GGUF files on a text, or on its tokens, in windows of `context` tokens.

    The first `warmup` positions of a window are read but not scored, half of it unless given; the last has nothing
    after it. `windows` takes the first so many. With `out`, a JSON-lines file, each window is kept as it is
    measured, and the next run with the same files and text goes on from there. `cancel` ends with the windows
    measured so far, and with `KeyboardInterrupt` where there is none. Raises `ConfigError` for different
    vocabularies, too short a text, or an `out` of other files.
    """
    first = first_scored(context, warmup)
    with open_models(reference, candidate, context=context, threads=threads) as (model_a, model_b):
        check_same_vocabulary(model_a.texts(), model_b.texts(), candidate.name)
        rows = model_a.windows(text, context)
        journal = Journal.open(out, lambda: _facts(reference, candidate, rows, first))
        rows = rows[:windows]
        found: list[TokenFigures] = []
        for number, row in enumerate(rows):
            progress(number, len(rows), f"mean KL divergence {_mean(found):.4f}" if found else "")
            figures = _kept(journal, number)
            if figures is None:
                try:
                    figures = _compare_window(model_a, model_b, row, first, cancel)
                except KeyboardInterrupt:
                    if found and cancel is not None and cancel.is_set():
                        break
                    raise
                journal.append(number, _written(figures))
            found.append(figures)
    progress(len(found), len(rows), "")
    return summarise(found, bytes_a=reference.stat().st_size, bytes_b=candidate.stat().st_size)


def summarise(windows: Sequence[TokenFigures], *, bytes_a: int = 0, bytes_b: int = 0) -> Divergence:
    """The figures of one window or more as one; sums are of double precision."""
    every = TokenFigures.joined(windows)
    kld = every.kld.astype(np.float64)
    with np.errstate(invalid="ignore"):  # between a finite divergence and an infinite one lies none
        median, p90, p95, p99, p99_9 = np.percentile(kld, [50, 90, 95, 99, 99.9]).tolist()
    means = [float(window.kld.mean(dtype=np.float64)) for window in windows]
    finite = len(means) > 1 and bool(np.isfinite(means).all())
    changes = np.exp(every.logprob_b.astype(np.float64)) - np.exp(every.logprob_a.astype(np.float64))
    (ppl_a, ppl_a_se), (ppl_b, ppl_b_se) = _perplexity(every.logprob_a), _perplexity(every.logprob_b)
    return Divergence(
        windows=len(windows),
        positions=len(kld),
        kld_mean=float(kld.mean()),
        kld_mean_se=float(np.std(means, ddof=1) / len(means) ** 0.5) if finite else None,
        kld_mean_interval=_interval(means) if finite else None,
        kld_median=median,
        kld_p90=p90,
        kld_p95=p95,
        kld_p99=p99,
        kld_p99_9=p99_9,
        kld_max=float(kld.max()),
        top1_agreement=float(every.agree.mean()),
        top1_agreement_interval=_interval([float(window.agree.mean()) for window in windows]),
        ppl_a=ppl_a,
        ppl_a_se=ppl_a_se,
        ppl_b=ppl_b,
        ppl_b_se=ppl_b_se,
        probability_change_mean=float(changes.mean()),
        probability_change_rms=float(np.sqrt(np.square(changes).mean())),
        bytes_a=bytes_a,
        bytes_b=bytes_b,
    )


# --- the arithmetic -------------------------------------------------------------------------------------


def compare_logits(a: Floats, b: Floats, following: Tokens) -> TokenFigures:
    """Compare the logits of two models at some positions, both [positions, vocabulary].

    `following` are the tokens that really come next. A logit of minus infinity rules a token out; raises
    `EngineError` for rows that hold another value that is no number, or nothing but minus infinity.

    >>> figures = compare_logits(np.float32([[0, 0]]), np.float32([[0, np.log(3)]]), np.int32([0]))
    >>> round(float(figures.kld[0]), 4), round(float(np.exp(figures.logprob_b[0])), 4)
    (0.1438, 0.25)
    """
    kld, logprob_a, logprob_b = kl_divergence(a, b, following)
    with np.errstate(over="ignore"):  # what is beyond single precision is infinite there
        return TokenFigures(
            kld.astype(np.float32),
            logprob_a.astype(np.float32),
            logprob_b.astype(np.float32),
            a.argmax(axis=1) == b.argmax(axis=1),
        )


def kl_divergence(
    a: NDArray[np.floating], b: NDArray[np.floating], following: Tokens
) -> tuple[Doubles, Doubles, Doubles]:
    """KL(softmax(a) || softmax(b)) of each row, and the log-probabilities of the `following` tokens, in nats.

    Worked out in double precision. Infinite where `b` rules out what `a` does not. Raises as `compare_logits` does.

    >>> kl_divergence(np.float32([[1, 2]]), np.float32([[11, 12]]), np.int32([1]))[0].tolist()
    [0.0]
    """
    kld, logprob_a, logprob_b = (np.empty(len(a)) for _ in range(3))
    step = max(1, _BLOCK // a.shape[1])
    for start in range(0, len(a), step):
        rows = slice(start, start + step)
        kld[rows], logprob_a[rows], logprob_b[rows] = _kl_block(
            a[rows].astype(np.float64), b[rows].astype(np.float64), following[rows]
        )
    return kld, logprob_a, logprob_b


def _kl_block(a: Doubles, b: Doubles, following: Tokens) -> tuple[Doubles, Doubles, Doubles]:
    highest_a, highest_b = a.max(axis=1, keepdims=True), b.max(axis=1, keepdims=True)
    if not (np.isfinite(highest_a).all() and np.isfinite(highest_b).all()):
        raise EngineError("a model gives logits that are no numbers", hint="its file may be damaged")
    a -= highest_a
    b -= highest_b
    weights, at = np.exp(a), np.arange(len(a))
    sum_a, sum_b = weights.sum(axis=1), np.exp(b).sum(axis=1)
    logprob_a, logprob_b = a[at, following] - np.log(sum_a), b[at, following] - np.log(sum_b)
    with np.errstate(invalid="ignore"):  # infinity less infinity, of a token that both rule out
        a -= b
        weighted = np.einsum("ij,ij->i", weights, a)
    if not np.isfinite(weighted).all():  # what has no weight does not count, however far apart the logits are
        weighted = np.multiply(weights, a, where=weights > 0, out=np.zeros_like(a)).sum(axis=1)
    kld = weighted / sum_a + np.log(sum_b) - np.log(sum_a)
    return np.maximum(kld, 0.0), logprob_a, logprob_b


def _perplexity(logprobs: Floats) -> tuple[float, float]:
    """The perplexity and its standard error, by llama.cpp's formula: tokens as independent, errors as small."""
    values = logprobs.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        perplexity = np.exp(-values.mean())
        error = perplexity * values.std() / max(1, len(values) - 1) ** 0.5
    return float(perplexity), float(error)


def _interval(values: Sequence[float]) -> tuple[float, float] | None:
    if len(values) < 2:
        return None
    interval = bootstrap(values)
    return interval.low, interval.high


def _mean(found: Sequence[TokenFigures]) -> float:
    return sum(float(window.kld.mean(dtype=np.float64)) for window in found) / len(found)


# --- windows --------------------------------------------------------------------------------------------


def first_scored(context: int, warmup: int | None) -> int:
    """The first scored position of a window. Raises `ConfigError` where `warmup` leaves none.

    >>> first_scored(512, None)
    256
    """
    first = context // 2 if warmup is None else warmup
    if not 0 <= first < context - 1:
        raise ConfigError(f"a warm-up of {first} tokens leaves nothing to score in windows of {context}")
    return first


def _compare_window(
    model_a: LogitModel, model_b: LogitModel, window: Tokens, first: int, cancel: Flag | None
) -> TokenFigures:
    pairs = zip(model_a.logits(window, first, cancel), model_b.logits(window, first, cancel), strict=True)
    return TokenFigures.joined([compare_logits(a, b, following) for (a, following), (b, _) in pairs])


# --- what is kept ---------------------------------------------------------------------------------------


def _facts(reference: Path, candidate: Path, rows: Tokens, first: int) -> dict[str, object]:
    """What a kept window belongs to."""
    return {
        "reference": file_fingerprint(reference),
        "candidate": file_fingerprint(candidate),
        "text": sha256(rows.tobytes()).hexdigest(),
        "context": rows.shape[1],
        "warmup": first,
    }


def _written(figures: TokenFigures) -> dict[str, object]:
    """JSON values from which the very same numbers are read: nine digits tell single-precision numbers apart."""

    def digits(values: Floats) -> list[float]:
        return [float(f"{value:.9g}") for value in values.tolist()]

    return {
        "kld": digits(figures.kld),
        "logprob_a": digits(figures.logprob_a),
        "logprob_b": digits(figures.logprob_b),
        "agree": figures.agree.astype(int).tolist(),
    }


def _kept(journal: Journal, number: int) -> TokenFigures | None:
    row = journal.rows.get(number)
    if row is None:
        return None
    try:
        kld, logprob_a, logprob_b = (
            np.array(row[name], np.float32).reshape(-1) for name in ("kld", "logprob_a", "logprob_b")
        )
        agree = np.array(row["agree"], np.bool_).reshape(-1)
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{journal.path} has no figures of window {number}", hint="name another file") from error
    return TokenFigures(kld, logprob_a, logprob_b, agree)
