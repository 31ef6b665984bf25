"""Vocabulary pruning: a GGUF file with only the tokens that a user's texts need, and a tokenizer that stays valid.

In small models the rows of the vocabulary are a fifth to a half of the bytes. Rows that stay are copied as they
are, so the logits of kept tokens do not change; a text of the kept tokens is read as before, and any other is
still read, in more pieces. Which tokens stay is for `token_choice` to say.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from edge_sdk.documents.parse import SUFFIXES, parse_file
from edge_sdk.errors import ConfigError, DocumentError, EngineError
from edge_sdk.prompt import Style, build_prompt

from .ggml import Bytes
from .gguf_format import U32, Field, NewTensor, Update, write_file
from .native_vocabulary import NativeVocabulary
from .tensors import GgufModel, read_fields
from .token_choice import choose_tokens
from .tokenizer_agreement import SAMPLES
from .tokenizer_json import ByteBpe

_PASSAGE = 1_000  # characters at least, where a text is cut at the end of a line
_TABLES: Final = frozenset({"token_embd.weight", "output.weight"})  # a row for each token
_DEFAULT_ID = 11  # what llama.cpp takes for the first and last token of a text where a file names none


@dataclass(frozen=True, slots=True)
class Reading:
    """How texts are read before and after: tokens, and the share of passages with the same pieces."""

    passages: int
    tokens_before: int
    tokens_after: int
    identical: float

    @property
    def growth(self) -> float:
        """Tokens added, as a share of those before."""
        return self.tokens_after / self.tokens_before - 1 if self.tokens_before else 0.0


@dataclass(frozen=True, slots=True)
class PrunedVocabulary:
    """What was written. `texts` is what was counted, `held_out` what was not; `skipped` could not be read."""

    path: Path
    tokens_before: int
    tokens_after: int
    bytes_before: int
    bytes_after: int
    texts: Reading
    held_out: Reading | None
    skipped: tuple[str, ...]


def prune_vocabulary(
    source: Path,
    out: Path,
    texts: Sequence[Path],
    *,
    size: int | None = None,
    coverage: float = 1.0,
    held_out: Sequence[Path] = (),
    progress: Update = lambda done, total, detail: None,
) -> PrunedVocabulary:
    """Write `source` as `out` without the tokens that `texts`, files or folders, do not need.

    Kept are all single bytes, all special tokens, what the chat template and the runtime's own prompts use, and of
    the tokens in the texts the most frequent ones that make up `coverage` of all, at most `size` tokens together.
    Whatever they are merged from is kept too. Raises `ConfigError` for a vocabulary that is no byte-level BPE or a
    size that cannot be met (with the smallest that can), `MissingExtraError`, `ModelError`, `DiskFullError`.
    Nothing is at `out` before every text has been read with the new file.
    """
    if not 0 < coverage <= 1:
        raise ConfigError(f"a coverage of {coverage} is not above 0 and at most 1")
    model = GgufModel(source)
    fields = read_fields(model)
    bpe = ByteBpe.from_fields(fields, source.name)
    _check_tables(model, len(bpe.tokens))
    skipped: list[str] = []
    passages, unseen = (list(_passages(paths, skipped)) for paths in (texts, held_out))
    if not passages:
        reason = skipped[0] if skipped else "the texts are empty"
        raise ConfigError(f"there is no text to count tokens in: {reason}", hint="name files with --text")
    with NativeVocabulary(source) as before:
        prompts = [*_prompts(), str(model.header.chat_template or "")]
        always = {token for text in prompts for token in before.tokenize(text)}
        counts: Counter[int] = Counter()
        for done, passage in enumerate(passages):
            progress(done, len(passages), "counting tokens")
            counts.update(before.tokenize(passage))
        kept = choose_tokens(
            bpe, counts, always | _special_ids(fields, len(bpe.tokens)), size=size, coverage=coverage
        )
        found: list[Reading] = []

        def check(written: Path) -> None:
            with NativeVocabulary(written) as after:
                _check_samples(before, after)
                found.extend(_compare(before, after, kept, each, progress) for each in (passages, unseen))

        tensors = [_new_tensor(model, name, kept) for name in model.tensors]
        header = write_file(out, prune_fields(fields, bpe, kept), tensors, check=check, progress=progress)
    return PrunedVocabulary(
        path=out,
        tokens_before=len(bpe.tokens),
        tokens_after=len(kept),
        bytes_before=model.header.file_bytes,
        bytes_after=header.file_bytes,
        texts=found[0],
        held_out=found[1] if unseen else None,
        skipped=tuple(skipped),
    )


# --- the new file ----------------------------------------------------------------------------------------


def prune_fields(fields: Mapping[str, Field], bpe: ByteBpe, kept: Sequence[int]) -> dict[str, Field]:
    """The metadata for a vocabulary of the tokens `kept`: lists shortened, ids renumbered, merges that apply."""
    number = {old: new for new, old in enumerate(kept)}
    left = {bpe.tokens[at] for at in kept}
    merges = [merge for merge in bpe.merges if left.issuperset((*(parts := merge.split(" ", 1)), "".join(parts)))]
    made: dict[str, Field] = {}
    for key, field in fields.items():
        value: Any = field.value
        if key == "tokenizer.ggml.merges":
            value = merges
        elif key == "tokenizer.ggml.suppress_tokens":
            value = [number[at] for at in value if at in number]
        elif key.startswith("tokenizer.ggml.") and isinstance(value, list) and len(value) == len(bpe.tokens):
            value = [value[at] for at in kept]
        elif key.startswith("tokenizer.ggml.") and key.endswith("_token_id"):
            value = number.get(value, value)  # a number beyond the vocabulary is how some files say "none"
        elif key == f"{fields['general.architecture'].value}.vocab_size":
            value = len(kept)
        made[key] = Field(field.kind, value)
    for name in ("bos", "eos"):
        made.setdefault(f"tokenizer.ggml.{name}_token_id", Field(U32, number.get(_DEFAULT_ID, _DEFAULT_ID)))
    return made


def _special_ids(fields: Mapping[str, Field], total: int) -> set[int]:
    keys = [key for key in fields if key.startswith("tokenizer.ggml.") and key.endswith("_token_id")]
    implied = {_DEFAULT_ID} if {"tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id"} - set(keys) else set()
    return {at for at in {fields[key].value for key in keys} | implied if at < total}


def _check_tables(model: GgufModel, total: int) -> None:
    for name, tensor in model.tensors.items():
        if name in _TABLES and (len(tensor.shape) != 2 or tensor.shape[1] != total):
            raise ConfigError(
                f"{name} in {model.path.name} is {tensor.shape}, not a row for each of {total} tokens"
            )
        if name not in _TABLES and not name.startswith("blk.") and total in tensor.shape:
            raise ConfigError(f"{name} in {model.path.name} depends on the vocabulary in a way that is not known")


def _new_tensor(model: GgufModel, name: str, kept: Sequence[int]) -> NewTensor:
    tensor = model.tensors[name]
    if name not in _TABLES:
        return NewTensor(name, tensor.type, tensor.shape, lambda: iter([model.raw(name)]))
    return NewTensor(name, tensor.type, (tensor.shape[0], len(kept)), partial(_rows, model, name, np.array(kept)))


def _rows(model: GgufModel, name: str, kept: np.ndarray[Any, np.dtype[np.int64]]) -> Iterator[Bytes]:
    raw = model.raw(name)
    for start in range(0, len(kept), 4_096):
        yield raw[kept[start : start + 4_096]]


# --- texts ----------------------------------------------------------------------------------------------


def _prompts() -> Iterator[str]:
    """What the runtime itself says to a model, in each of its styles."""
    styles: tuple[tuple[Style, bool], ...] = (("full", True), ("full", False), ("brief", False))
    for style, numbered in styles:
        yield build_prompt(
            "",
            (),
            render=lambda messages: "\n".join(f"{each.role}\n{each.content}" for each in messages),
            count=len,
            budget=1 << 20,
            limit=1 << 20,
            style=style,
            numbered=numbered,
        ).text


def _passages(paths: Sequence[Path], skipped: list[str]) -> Iterator[str]:
    """The texts of files and folders, cut at ends of lines; what cannot be read goes to `skipped`."""
    for path in paths:
        inside = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
        for file in inside if path.is_dir() else [path]:
            try:
                lines = parse_file(file).text.splitlines(keepends=True)
            except DocumentError as error:
                skipped.append(str(error))
                continue
            passage = ""
            for line in lines:
                passage += line
                if len(passage) >= _PASSAGE:
                    yield passage
                    passage = ""
            if passage:
                yield passage


def _check_samples(before: NativeVocabulary, after: NativeVocabulary) -> None:
    for text in SAMPLES:
        if (spelled := after.bytes_of(after.tokenize(text))) != before.bytes_of(before.tokenize(text)):
            raise EngineError(
                f"the pruned vocabulary spells {text[:40]!r} as {spelled[:60]!r}", hint="please report it"
            )


def _compare(
    before: NativeVocabulary,
    after: NativeVocabulary,
    kept: Sequence[int],
    passages: Sequence[str],
    progress: Update,
) -> Reading:
    old, new, same = 0, 0, 0
    for done, passage in enumerate(passages):
        progress(done, len(passages), "reading the texts again")
        first, second = before.tokenize(passage), after.tokenize(passage)
        same += first == [kept[at] for at in second]
        old, new = old + len(first), new + len(second)
        if before.bytes_of(first) != after.bytes_of(second):
            raise EngineError(f"the pruned vocabulary misspells {passage[:40]!r}", hint="please report it")
    return Reading(len(passages), old, new, same / len(passages) if passages else 1.0)
