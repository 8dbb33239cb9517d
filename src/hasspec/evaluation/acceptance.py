"""How many drafted tokens the target accepts: tau, conditional acceptance, survival.

Everything is counted as sums and divided last, so that counts of prompts, files and runs add up.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Protocol


class VerifiedRound(Protocol):
    """What is read of a :class:`hasspec.decoding.Round`."""

    @property
    def token_ids(self) -> list[int]: ...

    @property
    def accepted(self) -> int: ...

    @property
    def tree_depth(self) -> int: ...

    @property
    def is_prefill(self) -> bool: ...


@dataclass
class AcceptanceCounts:
    """Sums over verification rounds.

    A round verifies one tree with one target forward. It accepts ``a`` drafted tokens along one
    path and emits them and one token of the target's own, the bonus; then the answer's end (EOS,
    limit, stop string) may cut that to ``e <= a + 1`` tokens. Depth d of a round is *judged* if
    the d - 1 tokens before it were accepted, the tree is at least d deep, and the token at d was
    emitted (d <= e): what verification says behind the answer's end counts for nothing. A node
    without children in a deeper tree offers nothing at the next depth: judged, and rejected.

    Attributes:
        emitted: tokens emitted by rounds; the token of the prefill itself is not among them.
        forwards: target forwards after the prefill, that is, rounds.
        judged_D: rounds that judged depth d, at index d - 1.
        accepted_D: rounds whose token at depth d was accepted, and emitted, at index d - 1.
        decided: rounds of which every depth is known: a token was rejected, or the path reached
            the end of the tree, before the answer was cut.
        undecided_D: other rounds, which the cut left open, at index d - 1 for depths d <= e.
    """

    emitted: int = 0
    forwards: int = 0
    judged_D: list[int] = field(default_factory=list)
    accepted_D: list[int] = field(default_factory=list)
    decided: int = 0
    undecided_D: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, rounds: Iterable[VerifiedRound]) -> AcceptanceCounts:
        """Counts of some rounds; prefill rounds are passed over."""
        counts = cls()
        for verified in rounds:
            if not verified.is_prefill:
                counts._add_round(verified)
        return counts

    def _add_round(self, verified: VerifiedRound) -> None:
        emitted = len(verified.token_ids)
        depth = max(verified.tree_depth, len(self.judged_D))
        for per_depth in (self.judged_D, self.accepted_D, self.undecided_D):
            per_depth.extend([0] * (depth - len(per_depth)))
        self.emitted += emitted
        self.forwards += 1
        for index in range(min(emitted, verified.accepted)):
            self.accepted_D[index] += 1
        for index in range(min(emitted, verified.accepted + 1, verified.tree_depth)):
            self.judged_D[index] += 1
        if verified.accepted < emitted:
            self.decided += 1
        else:
            for index in range(emitted):
                self.undecided_D[index] += 1

    def __add__(self, other: AcceptanceCounts) -> AcceptanceCounts:
        return AcceptanceCounts(
            self.emitted + other.emitted,
            self.forwards + other.forwards,
            _added(self.judged_D, other.judged_D),
            _added(self.accepted_D, other.accepted_D),
            self.decided + other.decided,
            _added(self.undecided_D, other.undecided_D),
        )

    @property
    def tau(self) -> float | None:
        """Acceptance length: emitted tokens ÷ target forwards after the prefill.

        The bonus token counts, plain decoding has exactly 1, and the token that the prefill
        yields is in neither number. None without a forward.
        """
        return self.emitted / self.forwards if self.forwards else None

    @property
    def alpha(self) -> list[float | None]:
        """Conditional acceptance n-alpha: index d - 1 is P(accepted at depth d | judged there).

        EAGLE's and HASS's n-alpha (arXiv 2408.15766, section 4) is that of a chain; in a tree a
        node passes if *any* sibling is right. None where no round judged that depth.
        """
        return [
            accepted / judged if judged else None
            for accepted, judged in zip(self.accepted_D, self.judged_D, strict=True)
        ]

    @property
    def survival(self) -> list[float | None]:
        """Index d - 1 is the share of rounds that accepted at least d tokens.

        Of all rounds whose answer was not cut before depth d was known, those with a shallower
        tree included: 1 + the sum over depths is tau, but for cut rounds.
        """
        known_D = [self.decided + undecided for undecided in self.undecided_D]
        return [
            accepted / known if known else None
            for accepted, known in zip(self.accepted_D, known_D, strict=True)
        ]


def macro_tau(counts_P: Iterable[AcceptanceCounts]) -> float | None:
    """Unweighted mean of the prompts' own tau (the figure that the HASS evaluation script prints).

    Prompts answered by the prefill's token alone have no tau and are not in the mean; None if
    there is no other.
    """
    taus = [counts.tau for counts in counts_P if counts.tau is not None]
    return sum(taus) / len(taus) if taus else None


def _added(left_D: list[int], right_D: list[int]) -> list[int]:
    return [left + right for left, right in zip_longest(left_D, right_D, fillvalue=0)]
