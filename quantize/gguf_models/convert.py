"""A Hugging Face folder to a GGUF file and back, in numpy: no torch, no transformers, no checkout of llama.cpp.

Names, order of rows and metadata are those of llama.cpp's own converter. What is written is read again, and its
tokenizer is compared with the folder's before it gets its name. Knows nothing of quantization below 8 bits.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from edge_sdk.errors import ConfigError, ModelDamagedError, ModelNotFoundError
from edge_sdk.hub.partial import OUT, disk_full, storage_errors
from edge_sdk.model_files.transformers_config import DecoderConfig

from .families import ROPE_FACTORS, Decoder, NamedTensor
from .ggml import Bytes, dequantize_rows, quantize_rows, row_bytes
from .gguf_format import BOOL, STRING, U32, Field, NewTensor, Update, write_file
from .safetensors_files import SINGLE, Floats, Weights, open_weights, parse_json, to_bf16, write_safetensors
from .tensors import GgufModel, read_fields
from .tokenizer_agreement import compare_tokenizers
from .tokenizer_json import TOKENIZER, ByteBpe, read_tokenizer, special_fields, tokenizer_json

TYPES: Final[Mapping[str, int]] = {"F32": 0, "F16": 1, "Q8_0": 7, "BF16": 32}
"""What a model can be converted to, with llama.cpp's number for a file that is mostly so."""
_SLICE = 1 << 24  # weights that are floats at once
_WORDS: Final = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}  # GGUF's names to transformers'


@dataclass(frozen=True, slots=True)
class Converted:
    """What was written. `agreement` is the share of texts made of the vocabulary that llama.cpp reads as
    `tokenizer.json` does, None where llama-cpp-python is not there to be asked."""

    path: Path
    architecture: str
    type: str
    bytes: int
    parameters: int
    vocabulary: int
    pre_tokenizer: str
    agreement: float | None


def convert(
    folder: Path,
    out: Path,
    *,
    type: str = "F16",
    pre: str | None = None,
    progress: Update = lambda done, total, detail: None,
) -> Converted:
    """Write the model of a Hugging Face folder as the GGUF file `out`.

    `type` is that of the matrices, vectors stay F32; `Q8_0` needs llama-cpp-python, and where its blocks do not
    fill a row the matrix is F16. `pre` names a pre-tokenizer that is not recognised. Nothing is at `out` before
    the file has been read again and its tokenizer agrees with the folder's on awkward texts. Raises `ConfigError`
    for what is not supported, `ModelError` for files that are damaged or missing, and `DiskFullError` before
    anything is written.
    """
    if type not in TYPES:
        raise ConfigError(f"a model cannot be converted to {type!r}", hint=f"take one of {', '.join(TYPES)}")
    if out.is_dir():
        raise ConfigError(f"{out} is a folder", hint="name the .gguf file to write")
    config = _read_object(folder / "config.json")
    decoder, weights = Decoder.from_config(config), open_weights(folder)
    names = list(decoder.tensors())
    _check_tensors(names, weights, decoder)
    bpe = read_tokenizer(folder, decoder.vocabulary, pre)  # now that this number has been checked
    tensors = [_new_tensor(weights, each, type) for each in names]
    if (factors := decoder.rope_factors()) is not None:
        tensors.append(NewTensor(ROPE_FACTORS, "F32", factors.shape, lambda: iter([factors])))
    fields = {
        "general.architecture": Field(STRING, decoder.family),
        "general.type": Field(STRING, "model"),
        "general.name": Field(STRING, folder.resolve().name),
        **decoder.fields(),
        "general.file_type": Field(U32, TYPES[type]),
        "general.quantization_version": Field(U32, 2),
        **bpe.fields(),
        **_special_fields(folder, config, bpe),
    }
    agreement: list[float | None] = []
    header = write_file(
        out,
        fields,
        tensors,
        check=lambda written: agreement.append(compare_tokenizers(folder / TOKENIZER, written)),
        progress=progress,
    )
    return Converted(
        path=out,
        architecture=decoder.family,
        type=type,
        bytes=header.file_bytes,
        parameters=sum(int(np.prod(each.shape)) for each in names),
        vocabulary=decoder.vocabulary,
        pre_tokenizer=bpe.pre,
        agreement=agreement[0],
    )


def _check_tensors(names: list[NamedTensor], weights: Weights, decoder: Decoder) -> None:
    """Every tensor is there in its shape, and none that the model would lack."""
    expected = {each.huggingface: each.shape for each in names}
    for name, shape in expected.items():
        found = weights.shapes.get(name)
        if found is None:
            tied = "set tie_word_embeddings in config.json if the output shares the embeddings"
            hint = tied if name == "lm_head.weight" else "save the whole model, adapters merged"
            raise ModelDamagedError(f"the weights lack {name}", hint=hint)
        if found != shape:
            raise ModelDamagedError(f"{name} has the shape {found}, config.json makes it {shape}")
    more = [name for name in weights.shapes.keys() - expected.keys() if not name.endswith("rotary_emb.inv_freq")]
    if more and not (decoder.tied and more == ["lm_head.weight"]):
        raise ConfigError(f"the weights hold {min(more)}, which llama.cpp's {decoder.family} does not have")


def _new_tensor(weights: Weights, each: NamedTensor, type: str) -> NewTensor:
    kind = "F32" if len(each.shape) == 1 else type if row_bytes(type, each.shape[-1]) else "F16"
    return NewTensor(each.gguf, kind, each.shape[::-1], partial(_parts, weights, each, kind))


def _parts(weights: Weights, each: NamedTensor, kind: str) -> Iterator[Bytes]:
    vector = len(each.shape) == 1  # read as one row, so that what turns rows must turn columns
    order = each.order()
    for values in weights.floats(each.huggingface, None if vector else order):
        rows = values[:, order] if vector and order is not None else values
        yield _encode(rows, kind, each.huggingface)


def _encode(rows: Floats, kind: str, name: str) -> Bytes:
    if kind == "Q8_0":
        return quantize_rows(rows, kind)
    with np.errstate(over="ignore"):
        made = to_bf16(rows) if kind == "BF16" else rows.astype({"F32": "<f4", "F16": "<f2"}[kind])
    if kind == "F16" and not np.isfinite(made).all():
        largest = np.abs(rows).max()
        raise ConfigError(f"{name} holds {largest:.3g}, more than F16 can", hint="convert to BF16 or F32")
    return np.ascontiguousarray(made).view(np.uint8)


def _special_fields(folder: Path, config: Mapping[str, Any], bpe: ByteBpe) -> dict[str, Field]:
    """Special tokens and chat template: from `tokenizer_config.json`, else from `config.json`, as llama.cpp's
    converter does. Further end tokens, of which generation may know, are named too."""
    words, said = _read_object(folder / "tokenizer_config.json", optional=True), DecoderConfig.read(folder)
    at = {token: number for number, token in enumerate(bpe.tokens)}
    ids: dict[str, int | None] = {}
    for name, key in _WORDS.items():
        token, number = words.get(f"{key}_token"), config.get(f"{key}_token_id")
        token = token.get("content") if isinstance(token, dict) else token
        number = number[0] if isinstance(number, list) and number else number
        ids[name] = at.get(token) if isinstance(token, str) else number if isinstance(number, int) else None
        if isinstance(token, str) and ids[name] is None:
            raise ModelDamagedError(f"{folder}: the {key}_token {token!r} is not in the vocabulary")
    ends = sorted(said.end_ids - {ids["eos"]})
    if ids["eos"] is None:
        raise ModelDamagedError(f"{folder} does not say which token ends a text", hint="set its eos_token")
    ids |= dict(zip(("eot", "eom"), ends, strict=False))
    for name, number in ids.items():
        if number is not None and not 0 <= number < len(bpe.tokens):
            raise ModelDamagedError(f"{folder}: the {name} token {number} is not one of {len(bpe.tokens)}")
    begin, first = None if ids["bos"] is None else bpe.tokens[ids["bos"]], _first_token(folder)
    adds = first is not None if words.get("add_bos_token") is None else words["add_bos_token"] is True
    if adds and (begin is None or first not in (None, begin)):
        raise ModelDamagedError(f"{folder}: texts begin with {first or 'a token'!r}, which is not its bos_token")
    fields = special_fields(ids, adds)
    return fields | ({"tokenizer.chat_template": Field(STRING, said.template)} if said.template else {})


def _first_token(folder: Path) -> str | None:
    """The token that the tokenizer's template puts before every text."""
    content = parse_json((folder / TOKENIZER).read_bytes(), folder / TOKENIZER).get("post_processor") or {}
    for processor in content.get("processors") or [content]:
        if processor.get("type") == "TemplateProcessing" and processor["single"]:
            found: str | None = processor["single"][0].get("SpecialToken", {}).get("id")
            return found
    return None


# --- and back ------------------------------------------------------------------------------------------


def to_huggingface(
    gguf: Path, folder: Path, *, type: str = "F32", progress: Update = lambda done, total, detail: None
) -> Path:
    """Write the model of a GGUF file, de-quantized, as a new Hugging Face folder, to be trained or converted again.

    `type` is F32 or BF16. The tokenizer is rebuilt from the file's own tokens and merges, and reads text as
    llama.cpp does. Raises `ConfigError` for a file of another family or a folder that exists, `ModelDamagedError`,
    and `DiskFullError` before anything is written.
    """
    if type not in ("F32", "BF16"):
        raise ConfigError(f"weights cannot be written as {type!r}", hint="take F32 or BF16")
    if folder.exists():
        raise ConfigError(f"{folder} exists already", hint="give a folder that is not there yet")
    model = GgufModel(gguf)
    fields, shapes = read_fields(model), {name: tensor.shape for name, tensor in model.tensors.items()}
    decoder, bpe = Decoder.from_fields(fields, shapes, gguf.name), ByteBpe.from_fields(fields, gguf.name)
    if ROPE_FACTORS in model.tensors:
        decoder = decoder.with_rope_factors(model.floats(ROPE_FACTORS).reshape(-1))
    names = list(decoder.tensors())
    for each in names:
        if shapes.get(each.gguf) != each.shape[::-1]:
            raise ModelDamagedError(f"{gguf.name}: {each.gguf} is {shapes.get(each.gguf)}, not {each.shape[::-1]}")
    if more := shapes.keys() - {each.gguf for each in names} - {ROPE_FACTORS}:
        raise ConfigError(f"{gguf.name} holds {min(more)}, which models of {decoder.family} do not have")

    total, done = sum(int(np.prod(each.shape)) for each in names), 0

    def pieces(each: NamedTensor) -> Iterator[Floats]:
        nonlocal done
        for rows in _rows(model, each):
            progress(done, total, each.huggingface)
            done += rows.size
            yield rows

    with _new_folder(folder, total * (4 if type == "F32" else 2)) as made:
        tensors = [(each.huggingface, each.shape, partial(pieces, each)) for each in names]
        write_safetensors(made / SINGLE, tensors, type)
        for name, document in _documents(model, fields, decoder, bpe, type).items():
            text = json.dumps(document, ensure_ascii=False, indent=1)
            (made / name).write_text(text + "\n", encoding="utf-8")
        compare_tokenizers(made / TOKENIZER, gguf)
    progress(total, total, folder.name)
    return folder


def _rows(model: GgufModel, each: NamedTensor) -> Iterator[Floats]:
    """A tensor's rows in Hugging Face's order, some at a time."""
    tensor, raw, order = model.tensors[each.gguf], model.raw(each.gguf), each.order(back=True)
    if len(each.shape) == 1:
        values = model.floats(each.gguf).reshape(-1)
        yield values if order is None else values[order]
        return
    step = max(_SLICE // each.shape[1], 1)
    for start in range(0, each.shape[0], step):
        part = raw[start : start + step] if order is None else raw[order[start : start + step]]
        yield dequantize_rows(part, tensor.type, each.shape[1])


def _documents(
    model: GgufModel, fields: Mapping[str, Field], decoder: Decoder, bpe: ByteBpe, type: str
) -> dict[str, dict[str, object]]:
    """The JSON files beside the weights."""
    found = {name: fields[key] for name in _WORDS if (key := f"tokenizer.ggml.{name}_token_id") in fields}
    ids = {_WORDS[name]: field.value for name, field in found.items() if field.value < len(bpe.tokens)}
    begins = "bos" in ids and fields.get("tokenizer.ggml.add_bos_token", Field(BOOL, False)).value
    words: dict[str, object] = {f"{name}_token": bpe.tokens[at] for name, at in ids.items()}
    words |= {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": begins,
        "model_max_length": decoder.context,
        "clean_up_tokenization_spaces": False,
    }
    if model.header.chat_template:
        words["chat_template"] = model.header.chat_template
    known: dict[str, object] = {f"{name}_token_id": at for name, at in ids.items() if name != "unk"}
    further = [fields[key].value for name in ("eot", "eom") if (key := f"tokenizer.ggml.{name}_token_id") in fields]
    ends = list(dict.fromkeys(([ids["eos"]] if "eos" in ids else []) + further))
    dtype = {"F32": "float32", "BF16": "bfloat16"}[type]
    return {
        "config.json": decoder.config() | known | {"torch_dtype": dtype},
        "generation_config.json": known | ({"eos_token_id": ends} if len(ends) > 1 else {}),
        "tokenizer_config.json": words,
        TOKENIZER: tokenizer_json(bpe, ids["bos"] if begins else None),
    }


@contextmanager
def _new_folder(folder: Path, expected: int) -> Iterator[Path]:
    """A folder beside `folder` that gets its name when the block ends well, and vanishes otherwise."""
    with storage_errors(folder, instead=OUT):
        folder.absolute().parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder.absolute().parent).free
        if free < expected:
            need = f"{folder.name} takes {expected / 1e6:,.0f} MB"
            raise disk_full(f"{folder.absolute().parent} has {free / 1e6:,.0f} MB free, {need}", instead=OUT)
        made = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.absolute().parent))
        try:
            yield made
            made.chmod(0o755)  # a temporary folder is its owner's alone
            made.rename(folder)
        except BaseException:
            shutil.rmtree(made, ignore_errors=True)
            raise


def _read_object(path: Path, *, optional: bool = False) -> dict[str, Any]:
    if not path.is_file():
        if optional:
            return {}
        raise ModelNotFoundError(f"there is no file {path}", hint="name the folder of a Hugging Face model")
    content = parse_json(path.read_bytes(), path)
    if not isinstance(content, dict):
        raise ModelDamagedError(f"{path} is not a JSON object", hint="save the model again")
    return content
