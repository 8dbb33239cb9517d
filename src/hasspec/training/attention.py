"""Attention of alignment rows: the target's rows up to the root, and the row's own chain.

Row r of step j sees the target's rows that the causal mask shows it and the j - 1 rows that its own
chain drafted. The first part is the same masked product at every step; the second is a handful of
dot products a row. Concatenating them into one product would need a mask as wide as ``T + j R``
that is empty but for a diagonal; here the two softmaxes are joined by their log-sum-exp instead.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional


def chain_attention(
    query_BHRd: Tensor,
    key_BHTd: Tensor,
    value_BHTd: Tensor,
    sees_B1RT: Tensor,
    own_keys: Sequence[Tensor],
    own_values: Sequence[Tensor],
) -> Tensor:
    """Attention of each root's newest row to the target's rows and to its own draft rows.

    Args:
        query_BHRd: queries, one a root.
        key_BHTd, value_BHTd: the target's rows, repeated for grouped heads.
        sees_B1RT: bool, True where a root sees a target row; every root sees one at least.
        own_keys, own_values: the draft rows of the earlier steps and of this one, each
            ``[B, Hkv, R, hd]``; root r sees only entry r of each.

    Returns:
        ``[B, H, R, hd]``. Equal to :func:`concatenated_attention`, which is used where PyTorch
        offers no forward with log-sum-exp whose backward can be given another one.
    """
    if not own_keys:
        return functional.scaled_dot_product_attention(
            query_BHRd, key_BHTd, value_BHTd, attn_mask=sees_B1RT
        )
    if query_BHRd.device.type != "cpu":
        return concatenated_attention(
            query_BHRd, key_BHTd, value_BHTd, sees_B1RT, own_keys, own_values
        )
    bias_B1RT = torch.zeros(sees_B1RT.shape, dtype=query_BHRd.dtype)
    bias_B1RT.masked_fill_(~sees_B1RT, -math.inf)
    dtype = query_BHRd.dtype
    return _JoinedAttention.apply(
        query_BHRd,
        key_BHTd.to(dtype),
        value_BHTd.to(dtype),
        bias_B1RT,
        torch.stack(tuple(own_keys)).to(dtype),
        torch.stack(tuple(own_values)).to(dtype),
    )


def concatenated_attention(
    query_BHRd: Tensor,
    key_BHTd: Tensor,
    value_BHTd: Tensor,
    sees_B1RT: Tensor,
    own_keys: Sequence[Tensor],
    own_values: Sequence[Tensor],
) -> Tensor:
    """The plain twin of :func:`chain_attention`: one softmax over all keys side by side."""
    batch, n_heads, n_roots, _ = query_BHRd.shape
    own = torch.eye(n_roots, dtype=torch.bool, device=query_BHRd.device)
    own_B1RR = own.expand(batch, 1, n_roots, n_roots)

    def repeated(own_BHRd: Tensor) -> Tensor:
        return own_BHRd.repeat_interleave(n_heads // own_BHRd.shape[1], dim=1)

    return functional.scaled_dot_product_attention(
        query_BHRd,
        torch.cat([key_BHTd, *map(repeated, own_keys)], dim=2),
        torch.cat([value_BHTd, *map(repeated, own_values)], dim=2),
        attn_mask=torch.cat([sees_B1RT, *[own_B1RR] * len(own_keys)], dim=-1),
    )


def diluted_attention(
    query_BHRd: Tensor,
    key_BHTd: Tensor,
    value_BHTd: Tensor,
    sees_B1RT: Tensor,
    own_keys: Sequence[Tensor],
    own_values: Sequence[Tensor],
) -> Tensor:
    """Attention as the paper's published code masks it in training; for comparison only.

    There the logits of hidden keys (later ones, padding) are multiplied by 0 and enter the softmax,
    so each takes the weight e^0 from the keys that are seen; decoding hides them altogether. Of a
    row of T keys that sees t of them, T - t are hidden; here they are one key with the logit
    log(T - t) and the value 0.
    """
    n_keys = key_BHTd.shape[2]
    n_seen_B1R = sees_B1RT.sum(-1) + len(own_keys)
    hidden_B1R1 = (n_keys - n_seen_B1R).clamp(min=0).to(query_BHRd.dtype).log()[..., None]
    own = torch.eye(query_BHRd.shape[2], dtype=torch.bool, device=query_BHRd.device)
    own_B1RR = own.expand(len(query_BHRd), 1, *own.shape)
    sees = torch.cat([sees_B1RT, *[own_B1RR] * len(own_keys)], dim=-1)
    bias = torch.zeros(sees.shape, dtype=query_BHRd.dtype, device=query_BHRd.device)
    groups = query_BHRd.shape[1] // own_keys[0].shape[1] if own_keys else 1
    nothing = key_BHTd.new_zeros(*key_BHTd.shape[:2], 1, key_BHTd.shape[3])

    def beside(of_target: Tensor, own_rows: Sequence[Tensor]) -> Tensor:
        repeated = [row.repeat_interleave(groups, dim=1) for row in own_rows]
        return torch.cat([of_target, *repeated, nothing], dim=2).to(query_BHRd.dtype)

    return functional.scaled_dot_product_attention(
        query_BHRd,
        beside(key_BHTd, own_keys),
        beside(value_BHTd, own_values),
        attn_mask=torch.cat([bias.masked_fill(~sees, -math.inf), hidden_B1R1], dim=-1),
    )


class _JoinedAttention(torch.autograd.Function):
    """Flash attention to the target's rows joined with the own rows (CPU).

    The backward of flash attention rebuilds its probabilities as ``exp(score - lse)`` and takes
    ``sum(out * grad_out)`` for the softmax's own term. Given the joined ``out`` and ``lse`` it
    returns the gradients of the joined softmax for its share of the keys.
    """

    @staticmethod
    def forward(ctx, query, key, value, bias, own_key_S, own_value_S):  # noqa: ANN001, ANN205
        flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        out, lse = flash(query, key, value, attn_mask=bias)
        wide = lse.dtype
        score_S = _own_scores(query, own_key_S).to(wide)
        joined_lse = torch.logsumexp(torch.cat([lse[None], score_S]), dim=0)
        prob_S = (score_S - joined_lse).exp()
        out = out * (lse - joined_lse).exp()[..., None]
        n_kv = own_value_S.shape[2]
        grouped = out.unflatten(1, (n_kv, -1))
        for prob, own_value in zip(prob_S, own_value_S, strict=True):
            grouped += prob.unflatten(1, (n_kv, -1))[..., None] * own_value[:, :, None]
        out = grouped.flatten(1, 2).to(query.dtype)
        ctx.save_for_backward(
            query, key, value, bias, own_key_S, own_value_S, out, joined_lse, prob_S
        )
        return out

    @staticmethod
    def backward(ctx, grad_out):  # noqa: ANN001, ANN205
        query, key, value, bias, own_key_S, own_value_S, out, lse, prob_S = ctx.saved_tensors
        flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        grad_out = grad_out.to(out.dtype).contiguous()
        grad_query, grad_key, grad_value = flash(
            grad_out, query, key, value, out, lse, 0.0, False, attn_mask=bias
        )
        n_kv = own_key_S.shape[2]
        through = (grad_out * out).sum(-1)
        scale = 1 / math.sqrt(query.shape[-1])
        grouped_query = query.unflatten(1, (n_kv, -1))
        grouped_grad = grad_out.unflatten(1, (n_kv, -1))
        grad_own_key_S = torch.empty_like(own_key_S)
        grad_own_value_S = torch.empty_like(own_value_S)
        for s, prob in enumerate(prob_S):
            grad_prob = _own_scores(grad_out, own_value_S[s : s + 1], scale=1.0)[0]
            grad_score = (scale * prob * (grad_prob - through)).unflatten(1, (n_kv, -1))[..., None]
            grouped_prob = prob.unflatten(1, (n_kv, -1))[..., None]
            grad_own_key_S[s] = (grad_score * grouped_query).sum(2)
            grad_own_value_S[s] = (grouped_prob * grouped_grad).sum(2)
            own = grad_score * own_key_S[s][:, :, None]
            grad_query = grad_query + own.flatten(1, 2).to(grad_query.dtype)
        return grad_query, grad_key, grad_value, None, grad_own_key_S, grad_own_value_S


def _own_scores(query_BHRd: Tensor, own_key_S: Tensor, scale: float | None = None) -> Tensor:
    """``[S, B, H, R]`` products of each row with the entry of its own in each of S sets of keys."""
    scale = 1 / math.sqrt(query_BHRd.shape[-1]) if scale is None else scale
    n_kv = own_key_S.shape[2]
    grouped = query_BHRd.unflatten(1, (n_kv, -1))
    return torch.stack(
        [(grouped * key[:, :, None]).sum(-1).flatten(1, 2) * scale for key in own_key_S]
    )
