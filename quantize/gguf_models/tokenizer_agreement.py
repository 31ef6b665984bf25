"""Whether llama.cpp reads texts as a `tokenizer.json` does: a model whose tokens differ is another, worse model.

Knows nothing of weights, nor of how either tokenizer was made.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from edge_sdk.errors import ConfigError, MissingExtraError
from edge_sdk.model_files.tokenizer import Tokenizer

from .native_vocabulary import NativeVocabulary

SAMPLES: Final = (
    "", " ", "  a", "a  b   c    d", "Hello, world!", " leading and trailing ", "\n", "\n\n \n\t\t\n x",
    "a\r\nb\rc", "It's we'll I'VE they'd O'Neill 'tis ''quoted''", "3 33 333 3333 3.14 1,000,000 0x1F 2e-5 ½ ² Ⅷ ٣",
    "def f(x):\n    return {'a': [1, 2]}  # done\n\tif x != None:\n\t\tpass",
    "snake_case camelCase a.b.c::d kebab-case",
    "naïve café Ünïcödé straße ñandú", "нещо на Български", "我想在apple工作1314151天～",
    "日本語のテキスト、カタカナ。",
    "한국어 문장", "العربية ١٢٣", "हिन्दी में", "កាន់តែពិសេសអាច", "🚀 (normal) 😶\u200d🌫️ ✅ 🦙🦙 👩🏽\u200d💻",
    "zero\u200bwidth no\u00a0break", "!!!???...---===***###@@@$$$%%%^^^&&&", "<html><b>x</b></html> <|no|> [INST]",
    "https://a.example/x?y=1&z=%20#q", "`````` \"\"\"\" '''''' ......!!!!!!??????", "x" * 40,
    "The quick brown fox\njumps over\n\n\nthe lazy dog.   ", "\u2028\u0085\u3000end",
)  # fmt: skip
_SAMPLED = 64  # tokens of the vocabulary in one text


def compare_tokenizers(tokenizer: Path, gguf: Path) -> float | None:
    """The share of texts made of the vocabulary that `tokenizer.json` and a GGUF file read alike.

    None without llama-cpp-python. Raises `ConfigError` where they differ on one of `SAMPLES` or on a special token.
    A share a little below one is no error: the vocabulary also spells what hardly occurs, and there the Unicode
    tables of the two programs differ.
    """
    theirs = Tokenizer.open(tokenizer)
    try:
        ours = NativeVocabulary(gguf)
    except MissingExtraError:
        return None
    with ours:
        special = [f"a {token}\nb" for token in sorted(theirs.special_spellings())]
        for text in (*SAMPLES, *special):
            expected, found = theirs.encode(text), ours.tokenize(text)
            if expected != found:
                pairs = zip(expected, found, strict=False)
                at = next((at for at, pair in enumerate(pairs) if pair[0] != pair[1]), 0)
                raise ConfigError(
                    f"llama.cpp reads {text[:40]!r} from token {at} on as {found[at : at + 4]}, "
                    f"{tokenizer.name} as {expected[at : at + 4]}",
                    hint="its pre-tokenizer may be another one: name it with --pre",
                )
        blocks = [range(start, min(start + _SAMPLED, ours.size)) for start in range(0, ours.size, _SAMPLED)]
        texts = [ours.bytes_of(block).decode("utf-8", "ignore") for block in blocks]
        return sum(theirs.encode(text) == ours.tokenize(text) for text in texts) / len(texts)
