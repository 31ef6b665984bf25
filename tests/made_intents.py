"""A made-up few-shot set: requests to a kitchen assistant, and texts that are none."""

from __future__ import annotations

import json
from pathlib import Path

from quantize.students.heads import Labelled

INTENTS = {
    "timer": [
        "set a timer for ten minutes",
        "start a timer of half an hour",
        "count down from five minutes",
        "set the timer to one hour",
        "wake me when ten minutes are over",
        "a timer for the eggs please",
    ],
    "music": [
        "play some jazz",
        "play the next song",
        "put on music by Bach",
        "turn the song louder",
        "stop the music",
        "skip this song please",
    ],
    "shopping": [
        "put milk on the shopping list",
        "add bread to my list",
        "what is on the shopping list",
        "take eggs off the list",
        "we need more flour on the list",
        "buy apples, add them to the list",
    ],
    "weather": [
        "will it rain tomorrow",
        "what is the weather like",
        "how cold will it be today",
        "is it sunny outside",
        "do I need an umbrella for the rain",
        "tell me the weather for sunday",
    ],
}
STRANGE = [
    "who wrote hamlet",
    "prove that there are infinitely many primes",
    "translate good night into french",
    "why is the sky blue",
    "how tall is mount everest",
    "my printer does not print",
    "write a poem about rivers",
]


def labelled(*, strange: bool = True) -> list[Labelled]:
    """The examples as the fit takes them."""
    found = [Labelled(text, label) for label, texts in INTENTS.items() for text in texts]
    return found + [Labelled(text, None) for text in STRANGE if strange]


def write_examples(path: Path, *, strange: bool = True) -> Path:
    """The examples as a file of `edge head fit`."""
    rows = [{"text": each.text, "label": each.label or "oos"} for each in labelled(strange=strange)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_set(path: Path) -> Path:
    """A file of `edge eval intents`: two of each label, and two strange texts, are for judging."""
    rows = {
        "train": [[text, label] for label, texts in INTENTS.items() for text in texts[:4]],
        "test": [[text, label] for label, texts in INTENTS.items() for text in texts[4:]],
        "oos_train": [[text, "oos"] for text in STRANGE[:5]],
        "oos_test": [[text, "oos"] for text in STRANGE[5:]],
    }
    path.write_text(json.dumps(rows))
    return path
