"""Do two greedy answers to one prompt say the same?"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hasspec.decoding import Generation
    from hasspec.evaluation import Rescorer
    from hasspec.target import Target


class Judge:
    """Checks that an answer with the head is the one without.

    In float32 the tokens must be the same. In a lower precision a difference is re-scored: every
    token of both must be the target's argmax or a near-tie.
    """

    def __init__(self, target: Target):
        self._target = target
        self._rescorer: Rescorer | None = None
        self.wrong = False

    def verdict(self, plain: Generation, drafted: Generation) -> str:
        """One line on a pair of answers."""
        from hasspec.evaluation import FlipCounts, Rescorer

        if plain.token_ids == drafted.token_ids:
            return f"[green]same {len(plain.token_ids)} tokens[/]"
        pairs = zip(plain.token_ids, drafted.token_ids, strict=False)
        place = next((i for i, (a, b) in enumerate(pairs, start=1) if a != b), 0)
        if str(self._target.dtype) == "torch.float32":
            self.wrong = True
            return f"[red]ERROR: the answers differ from token {place} on[/]"
        self._rescorer = self._rescorer or Rescorer(self._target)
        flips = [
            FlipCounts.of(self._rescorer.gaps(answer.prompt_ids, answer.token_ids))
            for answer in (plain, drafted)
        ]
        if any(counts.beyond for counts in flips):
            self.wrong = True
            return f"[red]ERROR: token {place} is not the target's, nor a near-tie[/]"
        largest = max(counts.largest for counts in flips)
        return (
            f"[yellow]from token {place} on another continuation[/]: a near-tie of the target "
            f"that rounding decides (every token within {largest:.2f} logits of the largest)"
        )
