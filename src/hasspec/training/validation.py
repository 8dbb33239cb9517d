"""How far the head's guesses hold on text it was not trained on.

Training equals decoding, so the alignment steps from every root *are* the chains that the engine
would draft there. On text that the target wrote greedily, a chain is accepted for as long as its
tokens are the text's: counting those gives the n-alpha of greedy chain decoding, from every root
at once and without a target forward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from hasspec.draft import DraftHead, DraftVocabulary
from hasspec.target import Target
from hasspec.training.alignment import Chains, align
from hasspec.training.batches import Batch, Example, collate
from hasspec.training.features import ComputedFeatures

_CONVERSATIONS_A_FORWARD = 8

T = TypeVar("T")


@dataclass(frozen=True)
class ChainAcceptance:
    """Joint hits of chains, as sums over roots, to be divided last.

    Attributes:
        judged_n: roots whose first j - 1 guesses were right and whose j-th lies in the answer.
        accepted_n: those of them whose j-th guess was right too.
    """

    judged_n: Tensor
    accepted_n: Tensor

    @property
    def alpha(self) -> list[float | None]:
        """Conditional acceptance n-alpha of a chain; None where nothing was judged."""
        return [
            accepted / judged if judged else None
            for accepted, judged in zip(
                self.accepted_n.tolist(), self.judged_n.tolist(), strict=True
            )
        ]

    @property
    def chain_tau(self) -> float:
        """1 + the expected accepted length of a chain of this depth, from any root."""
        length, survival = 1.0, 1.0
        for alpha in self.alpha:
            survival *= alpha or 0.0
            length += survival
        return length

    @property
    def record(self) -> dict[str, Any]:
        """For a log."""
        return {"alpha": self.alpha, "chain_tau": self.chain_tau}


def set_aside(items: Sequence[T], n: int, seed: int) -> tuple[list[T], list[T]]:
    """Split off ``n`` items chosen by the seed: (the others in their order, the chosen).

    Raises:
        ValueError: nothing would be left to train on.
    """
    if n >= len(items):
        raise ValueError(
            f"validation.conversations = {n} leaves nothing of {len(items)} conversations to train "
            "on; set aside fewer, or give more data"
        )
    chosen = set(np.random.default_rng([seed, 2]).choice(len(items), n, replace=False).tolist())
    return (
        [item for index, item in enumerate(items) if index not in chosen],
        [items[index] for index in sorted(chosen)],
    )


class Validation:
    """Fixed held-out conversations; their features are computed once and kept.

    Args:
        target: whose text they are.
        examples: the conversations, none of which is trained on.
        depth: length of the chains.
    """

    def __init__(self, target: Target, examples: Sequence[Example], depth: int):
        self._target, self._depth = target, depth
        usable = sorted(
            (example for example in examples if len(example.root_R)),
            key=lambda example: len(example.token_T),
        )
        if not usable:
            raise ValueError(
                "none of the conversations set aside for validation has an answer of three tokens "
                "or more; set aside more of them"
            )
        source = ComputedFeatures(target)
        self._batches: list[tuple[Batch, Tensor, Tensor]] = []
        for start in range(0, len(usable), _CONVERSATIONS_A_FORWARD):
            some = usable[start : start + _CONVERSATIONS_A_FORWARD]
            batch = collate(some, range(len(some)), target.device)
            left_M = torch.from_numpy(np.concatenate([_left(e) for e in some])).to(target.device)
            self._batches.append((batch, source.features(batch), left_M))

    def measure(
        self,
        head: DraftHead,
        draft_vocab_N: Tensor | None,
        autocast: Callable[[], torch.autocast],
    ) -> ChainAcceptance:
        """Draft a greedy chain from every root and count how far it is the target's text.

        Args:
            draft_vocab_N: token ids that are drafted from; None for all.
            autocast: precision of the head's forward, as in training.
        """
        judged_n = torch.zeros(self._depth, dtype=torch.long)
        accepted_n = torch.zeros(self._depth, dtype=torch.long)
        with torch.no_grad(), autocast():
            for batch, feature_BTD, left_M in self._batches:
                alive_M = torch.ones_like(left_M, dtype=torch.bool)
                guesses = self._guesses(head, draft_vocab_N, batch, feature_BTD)
                for step, guess_M in enumerate(guesses):
                    # Step j = step + 1 from root r guesses the token at r + j + 1.
                    position_M = batch.root_M + step + 2
                    judged_M = alive_M & (left_M >= step)
                    text_M = batch.token_BT[
                        batch.in_batch_M, position_M.clamp(max=batch.token_BT.shape[1] - 1)
                    ]
                    alive_M = judged_M & (guess_M == text_M)
                    judged_n[step] += judged_M.sum().cpu()
                    accepted_n[step] += alive_M.sum().cpu()
        return ChainAcceptance(judged_n, accepted_n)

    def _guesses(
        self, head: DraftHead, draft_vocab_N: Tensor | None, batch: Batch, feature_BTD: Tensor
    ) -> Iterator[Tensor]:
        # Chains go on with the text's own tokens: as long as a guess was right, so does decoding.
        chains = Chains(head, self._target.embed, batch, feature_BTD)
        drafted = align(chains, self._depth)
        vocabulary = DraftVocabulary(self._target, draft_vocab_N)
        for drafted_BRD in drafted:
            drafted_MD = drafted_BRD[batch.in_batch_M, batch.in_root_M].to(self._target.dtype)
            yield vocabulary.token_ids(vocabulary.logits(drafted_MD).max(dim=-1).indices)


def _left(example: Example) -> np.ndarray:
    """How many roots of the same span follow each root of an example."""
    ends = np.append(np.flatnonzero(example.offset_R == 0)[1:], len(example.offset_R))
    span_R = np.cumsum(example.offset_R == 0) - 1
    return ends[span_R] - 1 - np.arange(len(example.offset_R))
