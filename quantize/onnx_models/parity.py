"""How close a model is to the one that it was made from: vectors of encoders, next-token distributions of decoders.

Both run as the runtime runs them. Knows nothing of how either was made.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_sdk.engines.engine_onnx import CachedDecoder
from edge_sdk.errors import ConfigError, DocumentError, EngineError
from edge_sdk.model_files.onnx_session import OnnxSession, find_model
from edge_sdk.model_files.tokenizer import Tokenizer
from edge_sdk.model_files.transformers_config import DecoderConfig

Floats = NDArray[np.float32]

MAX_TEXTS = 200
MAX_DECODER_TOKENS, ALL_DECODER_TOKENS = 64, 384
"""Of one text and of all: context enough to tell decoders apart, and soon read one by one."""
_PASSAGE = 6  # sentences of a made-up passage
_SENTENCES = (
    "The pump stops by itself when the water in the tank falls below the lower mark.",
    "Before you open the case, pull the plug and wait two minutes for the capacitors to discharge.",
    "A warranty claim must reach us within thirty days of the delivery of the goods.",
    "Copper conducts heat about twenty times better than stainless steel does.",
    "Why does the left indicator keep blinking after the battery was replaced?",
    "The city council voted on Tuesday to extend the tram line to the harbour.",
    "def area(radius): return 3.14159 * radius ** 2  # in square metres",
    "Patients over sixty-five should start with half of the usual dose.",
    "In 1843 the first railway tunnel of the valley was opened to passenger trains.",
    "How many days of leave may be carried over into the next year?",
    "Whisk the eggs with the sugar until pale, then fold in the sifted flour.",
    "The function returns an empty list when no record matches the filter.",
    "Interest is calculated daily and added to the balance at the end of each quarter.",
    "Bees find their way by the position of the sun, even behind thin clouds.",
    "Error 0x17: the sensor did not answer within 250 ms; check the cable at port B.",
    "She had written three novels before anyone outside her village knew her name.",
    "Tighten the four bolts crosswise to 45 Nm, and check them again after 500 km.",
    "The tenant bears the cost of minor repairs up to a limit of one hundred euros a year.",
    "What is the boiling point of water at an altitude of three thousand metres?",
    "Glaciers shape valleys with broad floors and steep sides, unlike rivers.",
    "To restore the factory settings hold both keys for ten seconds while switching on.",
    "The enzyme loses its activity above sixty degrees and does not regain it.",
    "Orders placed after noon are shipped on the following working day.",
    "Which clause of the contract limits the liability of the carrier?",
)


@dataclass(frozen=True, slots=True)
class EncoderParity:
    """Cosines between the vectors of two encoders for the same texts."""

    texts: int
    cosine_mean: float
    cosine_min: float


@dataclass(frozen=True, slots=True)
class DecoderParity:
    """Two decoders after the same tokens: the largest difference of a logit, divergence in nats, agreement."""

    tokens: int
    max_difference: float
    kld_mean: float
    top1_agreement: float


def made_up_texts() -> list[str]:
    """Sentences of many kinds, and passages of six of them: what there is when the user gives no text."""
    count = len(_SENTENCES)
    starts = range(0, count, _PASSAGE // 2)
    passages = [" ".join(_SENTENCES[(start + at) % count] for at in range(_PASSAGE)) for start in starts]
    return [*_SENTENCES, *passages]


def read_texts(path: Path) -> list[str]:
    """The first 200 lines of a text file that are not empty. Raises `DocumentError`."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DocumentError(f"{path} cannot be read as text: {error}") from error
    texts = [line.strip() for line in lines if line.strip()][:MAX_TEXTS]
    if not texts:
        raise DocumentError(f"{path} holds no text", hint="give one text a line")
    return texts


def compare_vectors(reference: Floats, candidate: Floats) -> EncoderParity:
    """Compare vectors [texts, dimension] of length 1; a text without any token (zeros in both) counts as equal.

    >>> compare_vectors(np.eye(2, dtype=np.float32), np.array([[1, 0], [0.6, 0.8]], np.float32)).cosine_min
    0.8
    """
    if reference.shape != candidate.shape:
        raise ConfigError(f"vectors of {reference.shape[1:]} and {candidate.shape[1:]} cannot be compared")
    cosines = (reference.astype(np.float64) * candidate).sum(axis=1)
    cosines[~reference.any(axis=1) & ~candidate.any(axis=1)] = 1.0
    return EncoderParity(len(cosines), round(float(cosines.mean()), 6), round(float(cosines.min()), 6))


def compare_logits(reference: Iterable[Floats], candidate: Iterable[Floats]) -> DecoderParity:
    """Compare rows of logits [vocabulary], one a token, as they come: nothing is kept.

    The divergence is Kullback and Leibler's, from the reference.

    >>> rows = [np.log(np.array(row, np.float32)) for row in ([0.5, 0.25, 0.25], [0.25, 0.5, 0.25])]
    >>> compare_logits(rows[:1], rows[1:])
    DecoderParity(tokens=1, max_difference=0.693147, kld_mean=0.173287, top1_agreement=0.0)
    """
    tokens = agreed = 0
    largest = divergence = 0.0
    for ours, theirs in zip(reference, candidate, strict=True):
        if ours.shape != theirs.shape:
            raise ConfigError(f"vocabularies of {ours.size} and {theirs.size} tokens cannot be compared")
        if not (np.isfinite(ours).all() and np.isfinite(theirs).all()):
            raise EngineError("a decoder gave logits that are not finite", hint="its file may be damaged")
        tokens += 1
        agreed += int(ours.argmax() == theirs.argmax())
        largest = max(largest, float(np.abs(ours - theirs).max()))
        log_p, log_q = _log_softmax(ours), _log_softmax(theirs)
        divergence += max(0.0, float(np.exp(log_p) @ (log_p - log_q)))
    if not tokens:
        raise ConfigError("there is no token to compare models on", hint="give a text")
    return DecoderParity(tokens, round(largest, 6), round(divergence / tokens, 6), round(agreed / tokens, 6))


class DecoderFolder:
    """The decoder of a folder, read token by token or in runs, as the engine does it."""

    def __init__(self, directory: Path, *, threads: int) -> None:
        """Load it; raises what `OnnxEngine.open` raises."""
        self._decoder = CachedDecoder(
            directory.name,
            OnnxSession.open(find_model(directory), threads=threads),
            DecoderConfig.read(directory),
        )

    def logits(self, texts: Iterable[Sequence[int]]) -> Iterator[Floats]:
        """The logits behind every token of every text; each text begins with nothing before it."""
        for tokens in texts:
            self._decoder.keep_prefix([])
            for token in tokens:
                yield self._decoder.feed([token])

    def prefill(self, tokens: Sequence[int]) -> None:
        """Read a text as a prompt is read."""
        self._decoder.keep_prefix([])
        for part in self._decoder.parts(tokens):
            self._decoder.feed(part)

    def decode(self, tokens: Sequence[int]) -> None:
        """Read on, one token after the other, as while an answer is written."""
        for token in tokens:
            self._decoder.feed([token])


def decoder_tokens(directory: Path, texts: Sequence[str] | None = None) -> list[list[int]]:
    """The first tokens of each text, by default of the made-up passages; texts without any are left out."""
    tokenizer = Tokenizer.open(directory / "tokenizer.json")
    found: list[list[int]] = []
    room = ALL_DECODER_TOKENS
    for text in texts or made_up_texts()[len(_SENTENCES) :]:
        tokens = tokenizer.encode(text[: 16 * MAX_DECODER_TOKENS])[: min(room, MAX_DECODER_TOKENS)]
        found += [tokens] if tokens else []
        room -= len(tokens)
    return found


def _log_softmax(logits: Floats) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max()
    return np.asarray(shifted - np.log(np.exp(shifted).sum()))
