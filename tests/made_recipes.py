"""What a whole recipe needs, made up: documents about lighthouses, a teacher behind HTTP, tiny models."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bert_models import random_weights, write_bert
from loopback import DONE, Exchange, delta, event, head
from made_readers import write_word_pieces

_NAMES = (
    "Norrin Aldra Bexley Corvo Dunmar Esker Farrow Gilden Harrow Istria Jorvik Kestel Lorne Marsk Nairn Orsay "
    "Pellan Quay Rossal Stroma Tarn Ullin Varna Wexal"
).split()
_BUILDERS = "Ada Holm,Bruno Keel,Clara Voss,Dietmar Lund,Edith Moor,Frans Tolk".split(",")
_STONES = "red granite,white limestone,grey basalt,black slate".split(",")


def facts(number: int) -> list[tuple[str, str]]:
    """Questions about lighthouse `number` with their answers."""
    name, year = _NAMES[number % len(_NAMES)], 1800 + 7 * number
    builder, stone = _BUILDERS[number % len(_BUILDERS)], _STONES[number % len(_STONES)]
    return [
        (f"Who built the lighthouse of {name}?", builder),
        (f"In which year was the lighthouse of {name} finished?", str(year)),
        (f"Of what stone is the tower of {name}?", stone),
        (f"How tall is the lighthouse of {name}?", f"{20 + number} metres"),
    ]


def passage(number: int) -> str:
    """The text that answers them, long enough to be asked four questions."""
    (_, builder), (_, year), (_, stone), (_, height) = facts(number)
    name = _NAMES[number % len(_NAMES)]
    return (
        f"The lighthouse of {name} was built by {builder}. The tower of {name} is made of {stone}, was finished "
        f"in {year} and is {height} tall. At {name}, {_WEATHER[number % len(_WEATHER)]}. The keeper of {name} "
        f"lights its lamp every evening, and ships that pass {name} look out for it. A garden lies behind the "
        f"walls of {name}, and the harbour of {name} has room for {number + 2} boats."
    )


_WEATHER = (
    "storms come from the north",
    "fog lies over the bay in autumn",
    "summers are dry and winters mild",
    "snow seldom stays for a week",
    "the sea is full of rocks",
)


def write_documents(folder: Path, count: int) -> None:
    """One file a lighthouse."""
    folder.mkdir(parents=True)
    for number in range(count):
        (folder / f"{_NAMES[number]}.md").write_text(f"# {_NAMES[number]}\n\n{passage(number)}\n", encoding="utf-8")


def teach(exchange: Exchange) -> None:
    """An OpenAI-compatible server that knows lighthouses: questions about a text, or the answer to one from it."""
    body = exchange.request.json
    text = reply(body["messages"][-1]["content"])
    usage = event({"choices": [], "usage": {"prompt_tokens": 50, "completion_tokens": 10}})
    exchange.send(head() + delta(text) + delta(finish="stop") + usage + DONE)


def reply(asked: str) -> str:
    """What the teacher says to the last message."""
    known = dict(pair for number in range(len(_NAMES)) for pair in facts(number))
    if found := re.search(r"Write (\d+) question", asked):
        pairs = [(question, answer) for question, answer in known.items() if _about(question, asked)]
        return "\n".join(f"Q: {question} A: {answer}" for question, answer in pairs[: int(found[1])])
    question = asked.rpartition("Question: ")[2].strip()
    answer = known.get(question, "")
    passages = re.split(r"\n\n(?=\[\d+\])", asked.rpartition("\n\nQuestion: ")[0])
    for number, text in enumerate(passages, 1):
        if answer and answer in text and _about(question, text):
            return f"[{number}] {answer}" if len(passages) > 1 else answer
    return "not in the text"


def _about(question: str, text: str) -> bool:
    name = next(name for name in _NAMES if f" {name}" in question)
    return f" {name} " in text


def write_bert_folder(folder: Path) -> Path:
    """A BERT of 16 dimensions in float32 with a tokenizer that knows the words of the documents."""
    words = sorted({word.lower() for number in range(24) for word in re.findall(r"[A-Za-z]+", passage(number))})
    size = write_word_pieces(folder / "tokenizer.json", tuple(words))
    tokenizer = (folder / "tokenizer.json").read_bytes()
    write_bert(folder, random_weights(hidden=16, heads=2, inner=32, layers=1, words=size, positions=256), "plain")
    (folder / "tokenizer.json").write_bytes(tokenizer)
    return folder


def write_intents(path: Path) -> Path:
    """Requests of two kinds, and some of none."""
    rows = [(f"turn on the lamp of {name}", "light") for name in _NAMES[:6]]
    rows += [(f"when does the boat to {name} leave", "boat") for name in _NAMES[:6]]
    rows += [(f"how is the soup in {name}", "oos") for name in _NAMES[:6]]
    path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows))
    return path


def toml(values: Mapping[str, Any], path: tuple[str, ...] = ()) -> str:
    """Tables of texts, numbers, lists and tables as TOML."""
    lines = [f"[{'.'.join(path)}]"] if path else []
    lines += [f"{name} = {json.dumps(value)}" for name, value in values.items() if not isinstance(value, Mapping)]
    tables = [toml(value, (*path, name)) for name, value in values.items() if isinstance(value, Mapping)]
    return "\n".join([*lines, *tables]) + "\n"


def merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The values with the changes, table by table; None takes a key away."""

    def pairs() -> Iterator[tuple[str, Any]]:
        for name in dict.fromkeys([*values, *changes]):
            change = changes.get(name, values.get(name))
            if isinstance(change, Mapping) and isinstance(values.get(name), Mapping):
                change = merged(values[name], change)
            if change is not None:
                yield name, change

    return dict(pairs())
