"""Is every emitted token the target's own? Teacher-forced re-scoring of greedy answers.

In float32 a head must not change one token, and comparing ids says it all. In bfloat16 a forward
over many tokens rounds differently from a forward over one, so plain decoding at another batch
size changes tokens too; there each emitted token must be the target's argmax, or so near it in
logits that rounding decides.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hasspec.target import Target
from hasspec.target.model import parse_dtype

# Logits; bfloat16 has 8 significant bits, so values of 16 to 32 are 0.125 apart, and the rounding
# of every layer comes on top.
NEAR_TIE = 0.5


class Rescorer:
    """Scores given answers with the target's weights, in one forward each.

    Args:
        target: greedy answers of this target are scored.
        dtype: arithmetic of the scoring, on the target's own (rounded) weights. ``"same"`` for
            the target's dtype, which shares its rounding; ``"float32"`` is the better judge and
            costs a second copy of the weights if the target has another dtype.
    """

    def __init__(self, target: Target, dtype: str = "float32"):
        wanted = target.dtype if dtype == "same" else parse_dtype(dtype)
        if wanted == target.dtype:
            self._target = target
        else:
            model = copy.deepcopy(target.model).to(wanted)
            self._target = Target.from_model(model, target.tokenizer, name=target.name)

    @torch.inference_mode()
    def gaps(self, prompt_ids: Sequence[int], token_ids: Sequence[int]) -> Tensor:
        """For each answer token, the largest logit at its place minus its own: float32 ``[T]``.

        0 says that the token is the argmax.
        """
        device = self._target.device
        ids_BT = torch.tensor([[*prompt_ids, *token_ids[:-1]]], device=device)
        feature_TD = self._target.features(ids_BT)[0, len(prompt_ids) - 1 :]
        logit_TV = self._target.logits(feature_TD).float()
        answer_T1 = torch.tensor(token_ids, device=device)[:, None]
        return (logit_TV.amax(dim=-1) - logit_TV.gather(1, answer_T1)[:, 0]).cpu()


@dataclass
class FlipCounts:
    """Emitted tokens against the re-scoring's argmax.

    Attributes:
        tokens: tokens scored.
        flips: tokens that are not the argmax.
        beyond: flips whose logit misses the largest by more than the near-tie margin: errors.
        largest: the largest miss, in logits.
    """

    tokens: int = 0
    flips: int = 0
    beyond: int = 0
    largest: float = 0.0

    @classmethod
    def of(cls, gap_T: Tensor, near_tie: float = NEAR_TIE) -> FlipCounts:
        """Counts of one answer's gaps (:meth:`Rescorer.gaps`)."""
        return cls(
            gap_T.numel(),
            int((gap_T > 0).sum()),
            int((gap_T > near_tie).sum()),
            float(gap_T.max()) if gap_T.numel() else 0.0,
        )

    def __add__(self, other: FlipCounts) -> FlipCounts:
        return FlipCounts(
            self.tokens + other.tokens,
            self.flips + other.flips,
            self.beyond + other.beyond,
            max(self.largest, other.largest),
        )

    @property
    def per_1000(self) -> float | None:
        """Flips per 1000 tokens; None if none was scored."""
        return 1000 * self.flips / self.tokens if self.tokens else None
