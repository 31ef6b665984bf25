"""How much memory a GGUF model will take, from its header alone, and whether that much may be taken.

The parts are those that llama.cpp allocates: the file is mapped, some tensors are copied in the order that a CPU
reads fastest, the KV cache is cleared at once, the graph's buffers are touched as far as they are used. What is in
memory before (the store's index, an encoder, a reader) is no longer free, so it is not counted here again.
`tests/bench/memory.py` compares the estimate with the peak. Knows nothing of llama.cpp's functions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from ..errors import NotEnoughMemoryError
from ..model_files.gguf_header import GgufHeader
from .profile import DEFAULT, Tuning
from .repacking import copied_tensors, decide_repacking

RESERVE = 1 << 30
"""Of the free memory a fifth stays free, but not more than this: for the app, and for what nobody foresees."""
_CELLS = 256  # llama.cpp rounds a context up to a multiple of this
_LEAST_CONTEXT, _LEAST_BATCH = 512, 64  # of what is proposed instead
_Q8_0 = 34 / 64  # beside half precision
_BLOCK = 32  # of Q8_0: the width of a head has to be a multiple
_LIBRARY = 20 << 20
_TOKEN = 360  # bytes of the vocabulary's tables for each token, with its share of the merges


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Bytes that a model will take, by what for."""

    weights: int
    """The file, mapped."""
    copies: int
    """Of tensors, as the CPU reads them fastest; their pages of the file are not needed any more, see `spare`."""
    cache: int
    """Keys and values."""
    compute: int
    """What the evaluation of a batch writes."""
    runtime: int
    """llama.cpp itself and the vocabulary."""
    adapter: int = 0
    spare: int = 0

    @property
    def peak(self) -> int:
        """Resident bytes at most, where memory is plenty."""
        return self.weights + self.copies + self.cache + self.compute + self.runtime + self.adapter

    @property
    def needed(self) -> int:
        """The same without pages of the file that the system can drop at no cost."""
        return self.peak - self.spare

    def parts(self) -> dict[str, int]:
        """What `needed` is made of."""
        return {
            "weights": self.weights + self.copies + self.adapter - self.spare,
            "context": self.cache,
            "evaluation": self.compute,
            "runtime": self.runtime,
        }


def estimate_memory(
    header: GgufHeader, context: int, tuning: Tuning = DEFAULT, *, adapter: int = 0, machine: str | None = None
) -> MemoryEstimate:
    """What a model with this header takes with a context of so many tokens; `adapter` is the size of its file.

    `machine` is the processor's family as `platform.machine` says it. A figure that the header does not state
    counts as nothing.
    """
    copied, spare = _copies(header, tuning, machine)
    return MemoryEstimate(
        weights=header.file_bytes,
        copies=copied,
        cache=_cache(header, context, tuning),
        compute=_compute(header, context, tuning),
        runtime=_LIBRARY + _TOKEN * header.vocabulary,
        adapter=adapter,
        spare=spare,
    )


def room(free: int) -> int:
    """Of so many free bytes, those that a model may take.

    >>> room(1000), room(16 << 30) >> 30
    (800, 15)
    """
    return max(0, free - min(free // 5, RESERVE))


def rounded(context: int) -> int:
    """The cells that llama.cpp makes for a context of so many tokens."""
    return -(-context // _CELLS) * _CELLS


def fit_tuning(
    name: str, header: GgufHeader, context: int, tuning: Tuning, free: int | None, *, adapter: int = 0
) -> Tuning:
    """The tuning with which a model fits: as it is, or with smaller batches, which cost only time; all decided.

    Raises `NotEnoughMemoryError`, with what would fit, where more is wanted than `room` gives; never where nobody
    knows what is free.
    """
    tuning = decide_repacking(tuning, header)
    if free is None:
        return tuning

    def fits(context: int, tuning: Tuning) -> bool:
        return estimate_memory(header, context, tuning, adapter=adapter).needed <= room(free)

    for batched in _batches(tuning):
        if fits(context, batched):
            return batched
    smallest = replace(tuning, batch=min(tuning.batch, _LEAST_BATCH))
    smaller = next(((at, each) for at, each in _smaller(header, context, smallest) if fits(at, each)), None)
    raise _refusal(name, estimate_memory(header, context, smallest, adapter=adapter), context, free, smaller)


def _batches(tuning: Tuning) -> Iterator[Tuning]:
    batch = tuning.batch
    yield tuning
    while batch > _LEAST_BATCH:
        batch = max(_LEAST_BATCH, batch // 2)
        yield replace(tuning, batch=batch)


def _smaller(header: GgufHeader, context: int, tuning: Tuning) -> Iterator[tuple[int, Tuning]]:
    """Smaller settings, those first that cost least: 8 bits for the cache, then half the context, and so on."""
    width = header.head_bytes // 4  # of a key and a value, where they are alike
    while True:
        if tuning.cache_type == "F16" and width and width % _BLOCK == 0 and tuning.flash_attention is not False:
            yield context, replace(tuning, cache_type="Q8_0")
        if context <= _LEAST_CONTEXT:
            return
        context = max(_LEAST_CONTEXT, context // 2)
        yield context, tuning


def _refusal(
    name: str, estimate: MemoryEstimate, context: int, free: int, smaller: tuple[int, Tuning] | None
) -> NotEnoughMemoryError:
    others = ", ".join(
        f"{size >> 20} MiB for {what}" for what, size in estimate.parts().items() if what != "context"
    )
    message = (
        f"{name} needs {estimate.needed >> 20} MiB of memory, {others} and {estimate.cache >> 20} MiB for a "
        f"context of {context} tokens, but {free >> 20} MiB are free and {room(free) >> 20} MiB may be taken"
    )
    if smaller is None:
        hint = "use a smaller model, or close other programs"
        return NotEnoughMemoryError(message, parts=estimate.parts(), room=room(free), hint=hint)
    length, kind = smaller[0], smaller[1].cache_type
    flags = [f"--context {length}"] * (length < context) + [f"--cache-type {kind.lower()}"] * (kind != "F16")
    return NotEnoughMemoryError(
        message,
        parts=estimate.parts(),
        room=room(free),
        context=length,
        cache_type=kind,
        hint=f"use {' and '.join(flags)}, or a smaller model",
    )


# --- the parts --------------------------------------------------------------------------------------


def _cache(header: GgufHeader, context: int, tuning: Tuning) -> int:
    return int(header.kv_bytes(rounded(context)) * (_Q8_0 if tuning.cache_type == "Q8_0" else 1.0))


def _copies(header: GgufHeader, tuning: Tuning, machine: str | None) -> tuple[int, int]:
    """Bytes of the tensors that are copied, and of those whose place in the file is not read any more."""
    if not decide_repacking(tuning, header, machine).repack:
        return 0, 0
    tied = not any(tensor.name == "output.weight" for tensor in header.tensors)
    copied = spare = 0
    for tensor in copied_tensors(header, machine):
        looked_up = tensor.name == "token_embd.weight"  # read row by row, so as it is; multiplied where it is tied
        copied += tensor.bytes * (tied or not looked_up)
        spare += tensor.bytes * (not looked_up)
    return copied, spare


def _compute(header: GgufHeader, context: int, tuning: Tuning) -> int:
    """What of the graph's buffers a full batch touches, and of the products' work space; fitted to measurements.

    llama.cpp reserves far more, for the logits of every token of a batch, but only the last token's are computed.
    """
    batch, cells = min(tuning.batch, context), rounded(context)
    width, feed, heads = header.n_embd or 0, _feed_forward(header), header.n_head or 0
    keys = max(header.n_head_kv, default=0) * header.head_bytes // 4  # numbers of all heads' keys, or values
    queries = heads * header.head_bytes // 4
    # The residual stream, keys and values, the gate; the feed-forward's input again in 8 bits; the mask.
    token = 4 * (2 * feed + 6 * width + 2 * queries + 2 * keys) + feed * 8 // 7 + 2 * cells
    if tuning.flash_attention is False:
        token += heads * cells * 4 * 4 // 3  # the scores, and what their transposition takes
    return batch * token + 4 * header.vocabulary


def _feed_forward(header: GgufHeader) -> int:
    """The widest inner layer that a token goes through; four times the model's width where none is stated."""

    def widest(name: str, default: int = 0) -> int:
        value = header.metadata.get(f"{header.architecture}.{name}")
        numbers = value if isinstance(value, tuple) else (value,)
        return max((number for number in numbers if isinstance(number, int)), default=default)

    experts = widest("expert_feed_forward_length") * widest("expert_used_count", 1)
    return max(widest("feed_forward_length"), experts) or 4 * (header.n_embd or 0)
