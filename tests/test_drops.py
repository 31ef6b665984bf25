"""Every candidate is accounted for, and the report is plain Markdown whatever people wrote."""

from __future__ import annotations

import json

from quantize.training_data.drops import SAMPLES, Drops


def test_counts_add_up_and_the_first_samples_are_kept() -> None:
    drops = Drops()
    drops.keep(3)
    for number in range(10):
        drops.drop("too long", f"question {number}\nof two lines")
    drops.drop("twice", "again")
    assert (drops.seen, drops.kept, drops.dropped) == (14, 3, 11)
    facts = json.loads(json.dumps(drops.to_dict()))
    assert facts["dropped"]["too long"] == {
        "count": 10,
        "samples": [f"question {number} of two lines" for number in range(SAMPLES)],
    }


def test_the_table_shows_the_commonest_reason_first_with_its_share() -> None:
    drops = Drops()
    drops.keep()
    drops.drop("rare", "a")
    drops.drop("common", "b")
    drops.drop("common", "c|d <b> [x](y)")
    lines = drops.markdown().splitlines()
    assert lines[3:6] == ["| common | 2 | 50.0 % |", "| rare | 1 | 25.0 % |", "| **kept** | **1** | 25.0 % |"]
    assert r"c\|d \<b\> \[x\](y)" in drops.markdown()


def test_an_empty_account_and_a_long_sample_are_shown() -> None:
    assert Drops().markdown().splitlines()[-1] == "| **kept** | **0** |  |"
    drops = Drops()
    drops.drop("long", "x" * 5000)
    assert drops.reasons["long"].samples[0].endswith("x…") and len(drops.reasons["long"].samples[0]) == 160
