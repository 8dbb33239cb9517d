"""Next-token choice for many rows at once, each with its own temperature and noise."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

# Beyond this many candidates top-p sorts the whole vocabulary.
_TOP_P_CANDIDATES = 1024


def uniform_noise(count: int, *key: object) -> list[float]:
    """``count`` numbers in [0, 1) that depend on ``key`` alone, not on any global state."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return torch.rand(count, generator=generator).tolist()


def sample(logit_BV: Tensor, temperature_B: Tensor, top_p_B: Tensor, uniform_B: Tensor) -> Tensor:
    """One token a row by inverting the cumulative distribution at ``uniform_B``.

    A row's token depends on its own logits and its own uniform number only, so a conversation
    comes out the same in any batch, up to the rounding of the logits.

    Args:
        logit_BV: logits, any float dtype.
        temperature_B: float32, above 0.
        top_p_B: float32 in (0, 1]; the smallest set of tokens that holds this mass is kept.
        uniform_B: float32 in [0, 1).

    Returns:
        int64 ``[B]`` token ids.
    """
    probability_BV = torch.softmax(logit_BV.float() / temperature_B[:, None], dim=-1)
    if bool((top_p_B < 1).any()):
        probability_BV = _nucleus(probability_BV, top_p_B)
    cumulative_BV = probability_BV.cumsum(-1)
    threshold_B1 = uniform_B[:, None] * cumulative_BV[:, -1:]
    # right=True skips tokens of probability 0; uniform < 1 keeps the threshold below the total.
    return torch.searchsorted(cumulative_BV, threshold_B1, right=True)[:, 0].clamp_(
        max=logit_BV.shape[-1] - 1
    )


def _nucleus(probability_BV: Tensor, top_p_B: Tensor) -> Tensor:
    n_candidates = min(_TOP_P_CANDIDATES, probability_BV.shape[-1])
    value_BK, index_BK = probability_BV.topk(n_candidates, dim=-1)
    short_B = (value_BK.sum(-1) < top_p_B) & (top_p_B < 1)
    if bool(short_B.any()):
        value_BK, index_BK = probability_BV.sort(dim=-1, descending=True)
    before_BK = value_BK.cumsum(-1) - value_BK
    value_BK = value_BK.masked_fill(before_BK >= top_p_B[:, None], 0.0)
    nucleus_BV = torch.zeros_like(probability_BV).scatter_(-1, index_BK, value_BK)
    return torch.where((top_p_B < 1)[:, None], nucleus_BV, probability_BV)
