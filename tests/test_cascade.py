"""The cascade's arithmetic: who answers at a threshold, what that is worth, and that it is not fitted to itself."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.errors import CalibrationError, ConfigError
from quantize.recipes.cascade import SURE, Beliefs, Tier, beliefs, cascade_curve, evaluate_cascade


def made_tiers(n: int = 400, seed: int = 0) -> tuple[list[Tier], list[float]]:
    """A reader that is right on 60 % and knows it roughly, a decoder that is right on others, a remote at 90 %."""
    random = np.random.default_rng(seed)
    hard = random.random(n)
    reader = (hard + random.normal(0, 0.1, n) < 0.6).astype(float)
    decoder = (hard + random.normal(0, 0.3, n) < 0.6).astype(float)
    remote = (random.random(n) < 0.9).astype(float)
    return [
        Tier("reader", reader.tolist(), {"score": (-hard).tolist()}, texts("r", reader), [5.0] * n),
        Tier(
            "decoder",
            decoder.tolist(),
            {"logprob": (decoder + random.normal(0, 1, n)).tolist()},
            texts("d", decoder),
            [900.0] * n,
        ),
    ], remote.tolist()


def texts(name: str, right: Iterable[float]) -> list[str]:
    """Right answers are the same, wrong ones are everybody's own."""
    return [f"right{at}" if good else f"wrong{name}{at}" for at, good in enumerate(right)]


def test_the_ends_of_the_curve_are_no_remote_and_only_the_remote() -> None:
    tiers, remote = made_tiers()
    curve = cascade_curve(tiers, beliefs(tiers), remote)
    assert curve[0].remote_share == 0 and curve[-1].remote_share == 1
    assert curve[-1].quality == pytest.approx(np.mean(remote))
    shares = [point.remote_share for point in curve]
    assert shares == sorted(shares)
    for point in curve:
        assert sum(point.served) == pytest.approx(1) and point.served[-1] == point.remote_share


def test_a_cascade_beats_each_of_its_tiers() -> None:
    tiers, remote = made_tiers()
    report = evaluate_cascade(tiers, remote)
    assert report["few_leaving"]["ratio"] > max(report["alone"].values()) - 0.01
    assert report["few_leaving"]["remote_share"] <= 0.3
    low, high = report["few_leaving"]["interval"]
    assert low < report["few_leaving"]["ratio"] < high
    assert report["enough"]["ratio"] >= 0.97
    assert all(tier["auroc"] > 0.6 and tier["ece"] < 0.15 for tier in report["tiers"])


def test_scores_that_know_nothing_gain_nothing() -> None:
    """The sabotage twin: beliefs that were fitted to the questions themselves would find a way."""
    random = np.random.default_rng(1)
    right = (random.random(300) < 0.5).astype(float).tolist()
    noise = {f"signal {n}": random.normal(size=300).tolist() for n in range(5)}
    report = evaluate_cascade([Tier("guess", right, noise)], [1.0] * 300)
    few = report["few_leaving"]
    assert few["quality"] < 0.5 + few["remote_share"] * 0.5 + 0.06
    assert abs(report["tiers"][0]["auroc"] - 0.5) < 0.1


def test_agreement_of_two_tiers_is_evidence() -> None:
    random = np.random.default_rng(2)
    right = [(random.random(500) < share).astype(float) for share in (0.6, 0.6)]
    said = [texts(name, column) for name, column in zip("ab", right, strict=True)]
    blind = {"nothing": random.normal(size=500).tolist()}
    tiers = [Tier(name, column.tolist(), blind, text) for name, column, text in zip("ab", right, said, strict=True)]
    found = beliefs(tiers)
    known = np.array(found.at_once[1])
    agree = np.array([one == other for one, other in zip(*said, strict=True)])
    assert known[agree].mean() > 0.9 > 0.6 > known[~agree].mean()


def test_a_sure_tier_spares_the_next_one() -> None:
    tiers = [Tier("fast", [1, 0], {}, milliseconds=[1, 1]), Tier("slow", [1, 1], {}, milliseconds=[100, 100])]
    sure = Beliefs(((SURE, 0.1), (0.5, 0.5)), ((0.1, 0.1), (0.5, 0.5)))
    first = cascade_curve(tiers, sure, [1, 1])[0]
    assert first.served == (0.5, 0.5, 0.0) and first.quality == 1.0
    assert first.milliseconds == pytest.approx((1 + 101) / 2)


def test_at_the_end_the_likeliest_answer_is_served() -> None:
    tiers = [Tier("a", [1, 0], {}), Tier("b", [0, 1], {})]
    found = Beliefs(((0.6, 0.6), (0.5, 0.5)), ((0.8, 0.3), (0.5, 0.5)))
    assert cascade_curve(tiers, found, [0, 0])[0].quality == 1.0


@given(st.lists(st.tuples(*[st.floats(0, 1)] * 5), min_size=1, max_size=30))
def test_no_curve_leaves_its_bounds(rows: list[tuple[float, ...]]) -> None:
    one, two, first, second, far = zip(*rows, strict=True)
    tiers = [Tier("a", one, {}), Tier("b", two, {})]
    curve = cascade_curve(tiers, Beliefs((first, second), (second, first)), far)
    best = sum(max(values[0], values[1], values[4]) for values in rows) / len(rows)
    assert all(-1e-9 <= point.quality <= best + 1e-9 for point in curve)
    assert curve[-1].remote_share == 1 and curve[0].remote_share == 0


def test_what_cannot_be_judged_is_said() -> None:
    tiers, remote = made_tiers()
    with pytest.raises(CalibrationError, match="x has 0 right or wrong answers"):
        evaluate_cascade([Tier("x", [1.0] * 400, {"s": [0.0] * 400})], remote)
    with pytest.raises(ConfigError, match="the s of x has 3 entries for 400 questions"):
        evaluate_cascade([tiers[0], Tier("x", [1.0] * 400, {"s": [0.0] * 3})], remote)
    with pytest.raises(ConfigError, match="needs a local model"):
        evaluate_cascade([], remote)
