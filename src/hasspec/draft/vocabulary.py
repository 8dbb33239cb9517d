"""The target's output layer as the draft uses it: all of it, or the frequent tokens' rows."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from hasspec.target import Target


class DraftVocabulary:
    """Output layer of drafting.

    On a small target the ``lm_head`` is most of a draft step, and text that the target writes
    uses few of its tokens. Restricting the draft to those never touches correctness: the other
    tokens are simply not drafted, and verification reads the full vocabulary.

    Args:
        target: whose output layer is used.
        token_id_N: int64 ids of the tokens to draft from; None for all.
    """

    def __init__(self, target: Target, token_id_N: Tensor | None = None):
        self.token_id_N = None if token_id_N is None else token_id_N.to(target.device)
        weight, bias = target.head_weight, target.head_bias
        if self.token_id_N is not None:
            weight = weight.index_select(0, self.token_id_N)
            bias = None if bias is None else bias.index_select(0, self.token_id_N)
        self._weight, self._bias = weight, bias

    def __len__(self) -> int:
        return self._weight.shape[0]

    def logits(self, feature: Tensor) -> Tensor:
        """Logits of the N drafted tokens for features ``[..., D]``: ``[..., N]``."""
        return functional.linear(feature, self._weight, self._bias)

    def token_ids(self, index: Tensor) -> Tensor:
        """Token ids of indices into the N drafted tokens, same shape."""
        return index if self.token_id_N is None else self.token_id_N[index]
