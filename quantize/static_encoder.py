"""`edge distill static`: a static encoder from any encoder, on the CPU and in numpy.

The encoder is asked once for every token of its vocabulary (model2vec, https://github.com/MinishLab/model2vec);
tokens weigh by frequency (SIF, Arora, Liang and Ma, ICLR 2017); the user's own documents, where they are given,
pull the sums of token vectors towards the encoder's vectors of whole passages. Principal components shorten all.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_sdk.documents.chunk import chunk_document, embedding_text
from edge_sdk.documents.parse import SUFFIXES, parse_file
from edge_sdk.encoders.embed import Encoder
from edge_sdk.encoders.encoders import open_encoder
from edge_sdk.encoders.static_encoder import DESCRIPTION_FILE, FORMAT, LARGEST_SCALE, STATIC_FILE, WordTokens
from edge_sdk.errors import ConfigError, DocumentError, EngineError
from edge_sdk.hub.partial import OUT, storage_errors
from edge_sdk.model_files.tokenizer import Tokenizer
from edge_sdk.storage.vectors import quantize_rows

Update = Callable[[float, float | None, str], None]
Floats = NDArray[np.float32]

DIMENSION = 256
"""Or the encoder's own, where that is less. Costs .002 of nDCG@10 beside 384; 128 costs .01 to .02."""
RIDGE = 0.2  # of the mean square length of a passage's row
RARITY = 3e-4  # the `a` of a / (a + p)
PRIOR = 10_000  # words of ordinary English that count beside those of the documents
SWEEPS = 5
"""Over the passages, when fitting: the table is then within two hundredths of the exact one, and ranks no worse."""
MAX_TOKENS = 256
_SLICE = 128  # texts between two reports of progress
_BLOCK = 512  # passages whose equations are solved together


def distil_static(
    source: Path,
    out: Path,
    *,
    name: str,
    dimension: int | None = None,
    texts: Sequence[Path] = (),
    passages: Sequence[str] = (),
    progress: Update = lambda done, total, detail: None,
) -> dict[str, object]:
    """Make the folder `out` from the encoder of the folder `source`; the JSON document of the command.

    `texts` are files, or folders that are searched for the formats that `edge add` reads: best the documents that
    will be searched, for then the loss is smallest. What cannot be read is in `skipped`. `passages` are fitted
    beside them, as they are. Nothing is at `out` before everything is done.

    Raises `ConfigError` when `out` exists or the dimension is above the encoder's, what `open_encoder` raises, and
    `ModelError` or `DiskFullError` when the folder cannot be written.
    """
    if out.exists():
        raise ConfigError(f"{out} exists already", hint="give a folder that is not there yet")
    teacher, tokenizer = open_encoder(source, max_tokens=MAX_TOKENS), Tokenizer.open(source / "tokenizer.json")
    dimension = min(DIMENSION, teacher.dimension) if dimension is None else dimension
    if not 1 <= dimension <= teacher.dimension:
        raise ConfigError(f"dimension {dimension} is not from 1 to the {teacher.dimension} of {name}")
    skipped: list[str] = []
    passages = list(dict.fromkeys([*passages, *_passages(texts, skipped)]))
    spellings = [tokenizer.spelling(token) or "" for token in range(tokenizer.size)]
    special = tokenizer.special_spellings()
    shown = ["" if spelling in special else text_of_token(spelling) for spelling in spellings]

    asked = [text for text in shown if text] + passages
    vectors = _encode(teacher, asked, progress)
    known = np.array([bool(text) for text in shown])
    targets = vectors[known.sum() :]
    table = np.zeros((len(shown), teacher.dimension), np.float32)
    table[known] = vectors[: known.sum()] - vectors[: known.sum()].mean(axis=0)

    words = WordTokens(tokenizer, MAX_TOKENS)
    tokens = [words.ids(text) for text in passages]
    frequencies = token_frequencies(tokens, spellings)
    weights = (RARITY / (RARITY + frequencies)).astype(np.float32) * known
    if passages:
        table = refine(table, weights, tokens, targets - targets.mean(axis=0), progress=progress)
    table = shorten(table * weights[:, None], frequencies, dimension)
    description = {"name": f"{name} static", "dimension": dimension, "source": teacher.fingerprint}
    description |= {"passages": len(passages), "format": FORMAT}
    _write(out, table, source / "tokenizer.json", description)
    return description | {"tokens": len(table), "bytes": _size(out), "skipped": skipped}


def text_of_token(spelling: str) -> str:
    """What to show the encoder for a token: a piece within a word looks like a word.

    Feeding ids instead gains at most .003 of nDCG@10 after `refine`, and needs a way around its tokenizer.

    >>> text_of_token("##ing"), text_of_token("▁tea"), text_of_token("#")
    ('ing', 'tea', '#')
    """
    return spelling.removeprefix("##").removeprefix("▁").strip()


def token_frequencies(tokens: Sequence[NDArray[np.int32]], spellings: Sequence[str]) -> NDArray[np.float64]:
    """How often each token occurs: counted in the documents, mixed with Zipf's law for what they do not hold.

    Vocabularies list words by frequency, so a word's place among the words is its rank; single signs, and what
    stands before all words, count as the most frequent word.
    """
    words = np.array([len(text_of_token(spelling)) > 1 and spelling[0] not in "[<" for spelling in spellings], bool)
    zipf = 1 / (np.maximum(np.cumsum(words), 1) + 2.7)  # Mandelbrot's shift
    counts = np.bincount(np.concatenate([*tokens, np.zeros(0, np.int32)]), minlength=len(spellings))
    share = PRIOR / (PRIOR + counts.sum())
    return np.asarray((1 - share) * counts / max(counts.sum(), 1) + share * zipf / max(zipf[words].sum(), 1))


def refine(
    table: Floats,
    weights: Floats,
    tokens: Sequence[NDArray[np.int32]],
    targets: Floats,
    *,
    progress: Update = lambda done, total, detail: None,
) -> Floats:
    """The table [tokens, d] changed least so that weighted means of its rows come close to `targets` [texts, d].

    Ridge regression from the table, scaled to fit, in its dual form (Saunders, Gammerman and Vovk, ICML 1998):
    one unknown row for each text. Blocks of texts are solved in turn, several times (block Gauss-Seidel), so memory
    does not grow with the square of the texts.
    """
    filled = np.array([bool(weights[ids].any()) for ids in tokens], bool)
    texts = [ids for ids, some in zip(tokens, filled, strict=True) if some]
    targets = targets[filled]
    blocks = [slice(start, start + _BLOCK) for start in range(0, len(texts), _BLOCK)]
    energy = products = squares = 0.0
    for block in blocks:
        rows, columns = _mean_rows(texts[block], weights)
        means = rows @ table[columns]
        energy += float((rows * rows).sum())
        products += float((means * targets[block]).sum())
        squares += float((means * means).sum())
    table = table * np.float32(products / max(squares, 1e-12))
    ridge = np.float32(RIDGE * energy / max(len(texts), 1))
    duals = np.zeros_like(targets)
    sweeps = SWEEPS if len(blocks) > 1 else 1
    for step in range(sweeps * len(blocks)):
        progress(step, sweeps * len(blocks), "fitting passages")
        block = blocks[step % len(blocks)]
        rows, columns = _mean_rows(texts[block], weights)
        gram = rows @ rows.T + ridge * np.eye(len(rows), dtype=np.float32)
        missing = targets[block] - rows @ table[columns] - ridge * duals[block]
        change = np.linalg.solve(gram, missing)
        duals[block] += change
        table[columns] += rows.T @ change
    return table


def _mean_rows(texts: Sequence[NDArray[np.int32]], weights: Floats) -> tuple[Floats, NDArray[np.int32]]:
    """A matrix [texts, columns] that takes weighted means of the table's rows `columns`."""
    columns, places = np.unique(np.concatenate(texts), return_inverse=True)
    numbers = np.repeat(np.arange(len(texts)), [len(ids) for ids in texts])
    cells = np.bincount(numbers * len(columns) + places, minlength=len(texts) * len(columns))
    rows = cells.reshape(len(texts), len(columns)).astype(np.float32) * weights[columns]
    return rows / rows.sum(axis=1, keepdims=True), columns


def shorten(table: Floats, frequencies: NDArray[np.float64], dimension: int) -> Floats:
    """Keep the principal components of the rows, each counted as often as its token occurs.

    The first component stays: taking it away, as model2vec and SIF do, changed nDCG@10 by .004 at most.
    """
    if not table.any():
        raise EngineError("the encoder gives every token the same vector", hint="its file may be damaged")
    counted = table * np.sqrt(frequencies, dtype=np.float32)[:, None]
    _, axes = np.linalg.eigh((counted.T @ counted).astype(np.float64))
    shortened = table @ axes[:, ::-1][:, :dimension].astype(np.float32)
    return np.asarray(shortened / np.abs(shortened).max())


def _encode(teacher: Encoder, texts: Sequence[str], progress: Update) -> Floats:
    vectors = np.empty((len(texts), teacher.dimension), np.float32)
    for start in range(0, len(texts), _SLICE):
        progress(start, len(texts), "asking the encoder")
        vectors[start : start + _SLICE] = teacher.encode(texts[start : start + _SLICE])
    return vectors


def _passages(paths: Sequence[Path], skipped: list[str]) -> Iterator[str]:
    """The texts of passages as `edge add` would embed them; what cannot be read goes to `skipped`."""
    for path in paths:
        inside = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
        for file in inside if path.is_dir() else [path]:
            try:
                document = parse_file(file)
            except DocumentError as error:
                skipped.append(str(error))
                continue
            yield from (embedding_text(chunk.heading, chunk.text) for chunk in chunk_document(document))


def _write(out: Path, table: Floats, tokenizer: Path, description: dict[str, object]) -> None:
    """All files in a folder beside `out`, which then gets its name."""
    codes, scales = quantize_rows(table)
    assert scales.max() <= LARGEST_SCALE
    with storage_errors(out, instead=OUT):
        out.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        try:
            np.savez(part / STATIC_FILE, codes=codes, scales=scales)
            shutil.copyfile(tokenizer, part / "tokenizer.json")
            (part / DESCRIPTION_FILE).write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")
            part.chmod(0o755)  # a temporary folder is its owner's alone
            part.rename(out)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())
