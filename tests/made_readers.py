"""Makes small readers for tests: a WordPiece tokenizer over given words, random weights, exported folders."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from onnx_files import model, node, tensor, value
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from edge_sdk.readers.description import Description

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def write_word_pieces(path: Path, words: tuple[str, ...] = ()) -> int:
    """A tokenizer as BERT has it: `words`, every printable ASCII letter alone and as a continuation; its size."""
    letters = [chr(code) for code in range(33, 127)]
    tokens = [*SPECIAL, *dict.fromkeys([*words, *letters, *(f"##{letter}" for letter in letters)])]
    native = Tokenizer(models.WordPiece({token: at for at, token in enumerate(tokens)}, unk_token="[UNK]"))
    native.normalizer = normalizers.BertNormalizer()
    native.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    native.decoder = decoders.WordPiece()
    native.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    path.parent.mkdir(parents=True, exist_ok=True)
    native.save(str(path))
    return len(tokens)


def write_reader(
    directory: Path,
    words: Mapping[str, tuple[float, float, float]],
    *,
    description: Description | None = None,
    output: str = "scores",
    columns: int = 3,
) -> None:
    """A reader that gives every token the scores of its spelling, whatever stands around it; others -5 and -5."""
    directory.mkdir(parents=True, exist_ok=True)
    size = write_word_pieces(directory / "tokenizer.json", tuple(words))
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    table = np.full((size, 3), -5.0, np.float32)
    for word, scores in words.items():
        table[tokenizer.token_to_id(word)] = scores
    inputs = [value(name, "int64", ["batch", "tokens"]) for name in ("input_ids", "token_type_ids")]
    outputs = [value(output, "float32", ["batch", "tokens", columns])]
    nodes = [node("Gather", ["table", "input_ids"], output)]
    table = np.ascontiguousarray(table[:, :columns])
    (directory / "model.onnx").write_bytes(model(nodes, [tensor("table", table)], inputs, outputs))
    (description or Description()).write(directory)
