"""The draft head (EAGLE-1/2 shape; HASS changes its training, nothing at inference).

    z_t = W_fc [e_t ; h_t]
    a_t = z_t + W_o Attn(W_q z_t, W_k z_s, W_v z_s ; s <= t)
    g_t = a_t + MLP(RMSNorm(a_t))

``e_t`` embeds the token *after* position t, ``h_t`` is the target's feature at t where the
target has run and the draft's own previous output elsewhere. There is no norm before the
attention, none after the layer, and no output layer of its own: ``g_t`` imitates the target's
feature at t + 1 and goes through the target's ``lm_head``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import (
    LlamaMLP,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
    apply_rotary_pos_emb,
)

from hasspec.draft.config import DraftConfig
from hasspec.target.cache import SequenceCache
from hasspec.target.masks import causal_mask


class DraftAttention(nn.Module):
    """Projections of the head's attention; who attends to what is the caller's business."""

    def __init__(self, config: DraftConfig):
        super().__init__()
        width, bias = config.hidden_size, config.qkv_bias
        self.head_dim = config.head_dim
        self.q_proj = nn.Linear(width, config.num_attention_heads * config.head_dim, bias=bias)
        self.k_proj = nn.Linear(width, config.num_key_value_heads * config.head_dim, bias=bias)
        self.v_proj = nn.Linear(width, config.num_key_value_heads * config.head_dim, bias=bias)
        self.o_proj = nn.Linear(config.num_attention_heads * config.head_dim, width, bias=False)

    def split(self, projected_BTE: Tensor) -> Tensor:
        """``[B, T, H * hd]`` to ``[B, H, T, hd]``."""
        return projected_BTE.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)


class DraftLayer(nn.Module):
    """The one decoder layer of the head."""

    def __init__(self, config: DraftConfig, llama: LlamaConfig):
        super().__init__()
        self.self_attn = DraftAttention(config)
        self.mlp = LlamaMLP(llama)
        self.post_attention_layernorm = LlamaRMSNorm(llama.hidden_size, eps=llama.rms_norm_eps)


class DraftHead(nn.Module):
    """Draft head; its embedding and output layer are the target's.

    Attributes:
        config: its shape.
        draft_vocab_N: int64 ids of the tokens worth drafting (the frequent ones), or None for
            all. Decoding drafts from these only; verification is not affected.
        metadata: provenance written beside the weights (target, recipe, metrics).
    """

    def __init__(self, config: DraftConfig):
        super().__init__()
        self.config = config
        llama = config.to_llama()
        self.fc = nn.Linear(2 * config.hidden_size, config.hidden_size, bias=config.fc_bias)
        self.layers = nn.ModuleList([DraftLayer(config, llama)])
        self.rotary = LlamaRotaryEmbedding(llama)
        self.draft_vocab_N: Tensor | None = None
        self.metadata: dict[str, Any] = {}

    @property
    def groups(self) -> int:
        """Query heads that share one key/value head."""
        return self.config.num_attention_heads // self.config.num_key_value_heads

    def rows(self, embed_BTD: Tensor, feature_BTD: Tensor) -> Tensor:
        """``z = W_fc [e ; h]``, embedding first: ``[B, T, D]``."""
        return self.fc(torch.cat([embed_BTD, feature_BTD], dim=-1))

    def project(self, row_BTD: Tensor, position_BT: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries ``[B, H, T, hd]``, keys and values ``[B, Hkv, T, hd]``, RoPE applied."""
        attention = self.layers[0].self_attn
        query = attention.split(attention.q_proj(row_BTD))
        key = attention.split(attention.k_proj(row_BTD))
        value = attention.split(attention.v_proj(row_BTD))
        query, key = apply_rotary_pos_emb(query, key, *self.rotary(row_BTD, position_BT))
        return query, key, value

    def finish(self, row_BTD: Tensor, attended_BHTd: Tensor) -> Tensor:
        """Output projection, residuals and MLP: the drafted feature ``g``, ``[B, T, D]``."""
        layer = self.layers[0]
        merged_BTE = attended_BHTd.transpose(1, 2).flatten(2)
        residual_BTD = row_BTD + layer.self_attn.o_proj(merged_BTE)
        return residual_BTD + layer.mlp(layer.post_attention_layernorm(residual_BTD))

    def forward(
        self,
        embed_BTD: Tensor,
        feature_BTD: Tensor,
        position_BT: Tensor,
        *,
        cache: SequenceCache | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """One decoding step over T rows.

        Args:
            embed_BTD: embeddings of the tokens one ahead of the features.
            feature_BTD: the target's features, or the draft's own earlier outputs.
            position_BT: int64 RoPE positions (of the features).
            cache: one-layer cache that these rows are appended to; None for no past.
            mask: bool ``[1, 1, T, S]``, True where a row sees another; None for all of the cache
                and the rows before.

        Returns:
            ``g``, ``[B, T, D]``: the draft of the feature at position + 1.
        """
        row_BTD = self.rows(embed_BTD, feature_BTD)
        query, key, value = self.project(row_BTD, position_BT)
        n_tokens = query.shape[2]
        n_past = 0
        if cache is not None:
            n_past = cache.length
            key, value = cache.update(key, value, 0)
        if mask is None and n_tokens > 1:
            mask = causal_mask(n_tokens, n_past, query.device)
        attended = functional.scaled_dot_product_attention(
            query,
            key.repeat_interleave(self.groups, dim=1),
            value.repeat_interleave(self.groups, dim=1),
            attn_mask=mask,
        )
        return self.finish(row_BTD, attended)
