"""Attention masks, and the form in which a model reads them."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel


def causal_mask(n_tokens: int, n_past: int, device: torch.device) -> Tensor:
    """Bool ``[1, 1, n_tokens, n_past + n_tokens]``: each token sees the past and itself."""
    query_T = torch.arange(n_past, n_past + n_tokens, device=device)
    key_S = torch.arange(n_past + n_tokens, device=device)
    return (key_S <= query_T[:, None])[None, None]


def attention_mask_for(model: PreTrainedModel, mask_BTS: Tensor, dtype: torch.dtype) -> Tensor:
    """The mask in the form that the model's attention reads: eager ones add it to the scores."""
    if model.config._attn_implementation == "sdpa":
        return mask_BTS
    return torch.zeros(mask_BTS.shape, dtype=dtype, device=mask_BTS.device).masked_fill_(
        ~mask_BTS, torch.finfo(dtype).min
    )
