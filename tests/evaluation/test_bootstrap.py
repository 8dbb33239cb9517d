"""The vectorised bootstrap against a loop, and what may be claimed from it."""

from __future__ import annotations

import random

import pytest

from hasspec.evaluation import Interval, speedup_interval


def measured(n_prompts: int, speedup: float, spread: float) -> list[list[float]]:
    drawn = random.Random(7)
    plain_tokens = [drawn.randint(20, 256) for _ in range(n_prompts)]
    plain_seconds = [tokens / 30 for tokens in plain_tokens]
    head_seconds = [s / (speedup + drawn.uniform(-spread, spread)) for s in plain_seconds]
    return [plain_tokens, head_seconds, plain_tokens, plain_seconds]


def test_agrees_with_a_loop() -> None:
    head_tokens, head_seconds, plain_tokens, plain_seconds = sides = measured(30, 1.6, 0.6)
    drawn = random.Random(1)
    ratios = []
    for _ in range(4000):
        chosen = [drawn.randrange(30) for _ in range(30)]
        head = sum(head_tokens[i] for i in chosen) / sum(head_seconds[i] for i in chosen)
        plain = sum(plain_tokens[i] for i in chosen) / sum(plain_seconds[i] for i in chosen)
        ratios.append(head / plain)
    ratios.sort()
    interval = speedup_interval(*sides, seed=3)
    assert interval.median == pytest.approx(ratios[2000], abs=0.01)
    assert interval.low == pytest.approx(ratios[100], abs=0.02)
    assert interval.high == pytest.approx(ratios[3900], abs=0.02)
    assert interval.low < interval.median < interval.high


def test_is_paired() -> None:
    # Every prompt gains exactly twofold: whichever are drawn, the ratio is 2.
    interval = speedup_interval(*measured(12, 2.0, 0.0))
    assert (interval.low, interval.high) == pytest.approx((2.0, 2.0))


def test_seed_decides() -> None:
    sides = measured(20, 1.3, 0.5)
    assert speedup_interval(*sides, seed=1) == speedup_interval(*sides, seed=1)
    assert speedup_interval(*sides, seed=1) != speedup_interval(*sides, seed=2)


def test_claims() -> None:
    assert Interval(1.5, 1.2, 1.8, 80).claim == "1.50x [1.20, 1.80]"
    assert Interval(0.5, 0.4, 0.6, 80).claim == "0.50x [0.40, 0.60]"
    assert Interval(1.5, 0.9, 1.8, 80).claim == "no significant difference"
    assert Interval(1.5, 1.0, 1.8, 80).claim == "no significant difference"
    assert Interval(1.5, 1.2, 1.8, 4).claim == "too few prompts"


def test_needs_the_same_prompts_on_both_sides() -> None:
    with pytest.raises(ValueError, match="the same prompts on both sides"):
        speedup_interval([1], [1.0], [1, 2], [1.0, 2.0])
    with pytest.raises(ValueError, match="at least one"):
        speedup_interval([], [], [], [])
