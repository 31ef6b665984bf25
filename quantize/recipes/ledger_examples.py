"""What was paid for once becomes training data: accepted answers of the remote, with the passage that holds them.

Only answers of which nothing was redacted before they were asked for, and only where the user's documents hold
them: an answer without evidence teaches to invent. Knows nothing of recipes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from edge_sdk.errors import ConfigError
from edge_sdk.fallback.agreement import holding_passage
from edge_sdk.fallback.learned import LearnedAnswers
from edge_sdk.retrieval.fulltext import match_expression
from edge_sdk.storage.store import Store

from ..training_data.drops import Drops
from ..training_data.example import Example
from ..training_data.locate import locate

SOURCE = "ledger"
"""Of these examples, so that they can be told: they hold what a user asked, and are never packed."""
_LOOKED_AT = 20  # passages that the full-text index finds for question and answer


def ledger_examples(path: Path, drops: Drops | None = None) -> Iterator[Example]:
    """The accepted answers of a store, newest last, each with its passage; `drops` gets the account of the others.

    Passages are found by words alone, so no encoder is needed. The answer is in the passage's own words where it
    stands there. Raises `ConfigError` where there is no store, `StoreError` where it cannot be read.
    """
    if not path.is_file():
        raise ConfigError(f"there is no store at {path}", hint="give the one with the learned answers")
    drops = Drops() if drops is None else drops
    with Store.open(path) as store:
        learned = LearnedAnswers(store.database)
        rows = learned.distillation_set()
        for _ in range(len(learned.answers("accepted")) - len(rows)):
            drops.drop("redacted before it was sent", "")
        for row in rows:
            question, answer = str(row["question"]), str(row["answer"])
            found = [id for id, _ in store.search_text(match_expression(f"{question} {answer}"), _LOOKED_AT)]
            texts = [passage.text for passage in store.passages(found)]
            held = holding_passage(question, answer, texts)
            if held is None:
                drops.drop("no passage holds the answer", f"{question} {answer}")
                continue
            place = locate(answer, texts[held])
            drops.keep()
            yield Example(question, texts[held], (texts[held][slice(*place)] if place else answer,), SOURCE)
