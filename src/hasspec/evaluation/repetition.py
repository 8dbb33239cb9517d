"""Repetition, which flatters acceptance: a loop is easy to draft."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def distinct_n(answers: Iterable[Sequence[int]], n: int) -> float | None:
    """Share of distinct n-grams of token ids within each answer, pooled over answers.

    Distinct n-grams of every answer summed, divided by all n-grams summed; None if no answer has
    n tokens. 1 means that no answer repeats any n-gram of its own.
    """
    distinct = total = 0
    for ids in answers:
        grams = [tuple(ids[start : start + n]) for start in range(len(ids) - n + 1)]
        distinct += len(set(grams))
        total += len(grams)
    return distinct / total if total else None
