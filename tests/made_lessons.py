"""Made-up passages with questions, and an engine that only counts and renders, for tests of decoders."""

from __future__ import annotations

from quantize.training_data.example import Example

TOWNS = ("Arlen", "Bexhill", "Corvo", "Dunmore", "Elster", "Farrow", "Gorse", "Hollin")


def passage(at: int) -> str:
    return f"{TOWNS[at]} has a mill from {1700 + 11 * at}. The river at {TOWNS[at]} is the {TOWNS[-1 - at][:3]}ne."


def examples(count: int = 8) -> list[Example]:
    """Two questions for each of some passages."""
    found = []
    for at in range(count):
        text = passage(at)
        found.append(Example(f"From when is the mill of {TOWNS[at]}?", text, (str(1700 + 11 * at),)))
        found.append(Example(f"Which river is at {TOWNS[at]}?", text, (f"{TOWNS[-1 - at][:3]}ne",)))
    return found
