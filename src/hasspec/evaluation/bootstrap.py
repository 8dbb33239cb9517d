"""Interval of a speedup by the paired bootstrap over prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# A percentile interval over fewer prompts is far too narrow to claim anything from.
FEWEST_PROMPTS = 5


@dataclass(frozen=True)
class Interval:
    """Median and 95 % percentile interval of a ratio, over so many prompts."""

    median: float
    low: float
    high: float
    prompts: int

    @property
    def differs_from_one(self) -> bool:
        """Whether a difference may be claimed."""
        return self.prompts >= FEWEST_PROMPTS and not self.low <= 1.0 <= self.high

    @property
    def claim(self) -> str:
        """The speedup with its interval, or why none may be claimed."""
        if self.differs_from_one:
            return f"{self.median:.2f}x [{self.low:.2f}, {self.high:.2f}]"
        if self.prompts < FEWEST_PROMPTS:
            return "too few prompts"
        return "no significant difference"


def ratio_interval(
    numerator_P: Sequence[float],
    denominator_P: Sequence[float],
    *,
    seed: int = 0,
    resamples: int = 10_000,
) -> Interval:
    """A ratio of totals over prompts, such as tau: prompts are drawn with replacement.

    Draws in which the denominators are all 0 count for nothing.
    """
    measured_2P = np.array([numerator_P, denominator_P], dtype=np.float64)
    n_prompts = measured_2P.shape[1]
    drawn_RP = np.random.default_rng(seed).integers(n_prompts, size=(resamples, n_prompts))
    numerator_R, denominator_R = measured_2P[:, drawn_RP].sum(axis=2)
    drawn = denominator_R > 0
    low, median, high = np.quantile(numerator_R[drawn] / denominator_R[drawn], [0.025, 0.5, 0.975])
    return Interval(float(median), float(low), float(high), n_prompts)


def speedup_interval(
    head_tokens_P: Sequence[int],
    head_seconds_P: Sequence[float],
    plain_tokens_P: Sequence[int],
    plain_seconds_P: Sequence[float],
    *,
    seed: int = 0,
    resamples: int = 10_000,
) -> Interval:
    """Speedup = (head tokens ÷ head seconds) ÷ (plain tokens ÷ plain seconds), totals each.

    Prompts are drawn with replacement, the same ones for both sides (paired), and the ratio of
    the totals is taken anew each time.

    Args:
        head_tokens_P, head_seconds_P: new tokens and wall seconds of each prompt with the head.
        plain_tokens_P, plain_seconds_P: the same prompts, decoded plainly.
        seed: of the draws; the same seed gives the same interval.
        resamples: draws of P prompts.

    Raises:
        ValueError: no prompts, or lengths that differ.
    """
    sides = (head_tokens_P, head_seconds_P, plain_tokens_P, plain_seconds_P)
    n_prompts = len(head_tokens_P)
    if not n_prompts or any(len(side) != n_prompts for side in sides):
        raise ValueError(
            f"a paired bootstrap needs the same prompts on both sides, at least one; "
            f"got {[len(side) for side in sides]}"
        )
    measured_4P = np.array(sides, dtype=np.float64)
    drawn_RP = np.random.default_rng(seed).integers(n_prompts, size=(resamples, n_prompts))
    head_tokens, head_seconds, plain_tokens, plain_seconds = measured_4P[:, drawn_RP].sum(axis=2)
    ratio_R = (head_tokens / head_seconds) / (plain_tokens / plain_seconds)
    low, median, high = np.quantile(ratio_R, [0.025, 0.5, 0.975])
    return Interval(float(median), float(low), float(high), n_prompts)
