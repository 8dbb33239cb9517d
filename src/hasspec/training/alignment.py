"""Harmonized context alignment: the head trains on its own features, as it will decode.

Arithmetic of arXiv 2408.15766, section 3.2, in chain-root form. A *root* r is the last position
whose true feature is known; step j extends every root's chain by one token:

    step j of root r:  position r + j - 1, token x_{r+j}, feature g^(j-1) of the same root,
                       sees the target's rows at s <= r and its own j - 1 earlier draft rows,
                       predicts f_{r+j} and the distribution of x_{r+j+1}.

That is exactly a j-step draft decode from r with a key/value cache, so training equals decoding
for every root and step; the tests hold it against such a decode.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from hasspec.draft import DraftHead


def align(
    head: DraftHead,
    embed: Callable[[Tensor], Tensor],
    token_BT: Tensor,
    feature_BTD: Tensor,
    root_BR: Tensor,
    n_steps: int,
    *,
    detach: bool = True,
) -> list[Tensor]:
    """Run n alignment steps from every root.

    Args:
        head: the draft head in training.
        embed: the target's embedding, token ids to vectors.
        token_BT: int64 token ids, right-padded.
        feature_BTD: the target's features of these tokens.
        root_BR: int64 positions of the roots, ascending; padding repeats any valid position.
        n_steps: alignment steps n; 1 is EAGLE's training.
        detach: stop the gradient between steps (the paper); False lets it through.

    Returns:
        ``[g^(1), .., g^(n)]``, each ``[B, R, D]``; entry (b, r) of step j drafts the feature at
        position ``root + j``. Chains that run past the sequence hold meaningless values there.
    """
    last = token_BT.shape[1] - 1
    position_BT = torch.arange(last + 1, device=token_BT.device).expand_as(token_BT)
    next_token_BT = token_BT.roll(-1, dims=1)
    target_row_BTD = head.rows(embed(next_token_BT), feature_BTD)
    query_BHTd, target_key, target_value = head.project(target_row_BTD, position_BT)

    row_BRD = _take(target_row_BTD, root_BR)
    query_BHRd = torch.take_along_dim(query_BHTd, root_BR[:, None, :, None], dim=2)
    sees_target = position_BT[:, None, None, :] <= root_BR[:, None, :, None]
    own_keys: list[Tensor] = []
    own_values: list[Tensor] = []
    drafted: list[Tensor] = []
    for step in range(1, n_steps + 1):
        if step > 1:
            own_feature_BRD = drafted[-1].detach() if detach else drafted[-1]
            token_BR = torch.take_along_dim(token_BT, (root_BR + step).clamp(max=last), dim=1)
            row_BRD = head.rows(embed(token_BR), own_feature_BRD)
            query_BHRd, key, value = head.project(row_BRD, root_BR + step - 1)
            own_keys.append(key)
            own_values.append(value)
        attended = attend(
            query_BHRd, target_key, target_value, sees_target, own_keys, own_values, head.groups
        )
        drafted.append(head.finish(row_BRD, attended))
    return drafted


def attend(
    query_BHRd: Tensor,
    target_key: Tensor,
    target_value: Tensor,
    sees_target_B1RT: Tensor,
    own_keys: list[Tensor],
    own_values: list[Tensor],
    groups: int,
) -> Tensor:
    """Attention of each root's newest row to the target's rows and to its own draft rows.

    Args:
        query_BHRd: queries, one a root.
        target_key, target_value: ``[B, Hkv, T, hd]``.
        sees_target_B1RT: bool, True where a root sees a target row.
        own_keys, own_values: the draft rows of the earlier steps and of this one, each
            ``[B, Hkv, R, hd]``; root r sees only entry r of each.
        groups: query heads that share one key/value head.

    Returns:
        ``[B, H, R, hd]``.
    """
    batch, _, n_roots, _ = query_BHRd.shape
    own = torch.eye(n_roots, dtype=torch.bool, device=query_BHRd.device)
    own_B1RR = own.expand(batch, 1, n_roots, n_roots)
    mask = torch.cat([sees_target_B1RT, *[own_B1RR] * len(own_keys)], dim=-1)
    return functional.scaled_dot_product_attention(
        query_BHRd,
        torch.cat([target_key, *own_keys], dim=2).repeat_interleave(groups, dim=1),
        torch.cat([target_value, *own_values], dim=2).repeat_interleave(groups, dim=1),
        attn_mask=mask,
    )


def _take(row_BTD: Tensor, position_BR: Tensor) -> Tensor:
    return torch.take_along_dim(row_BTD, position_BR[:, :, None], dim=1)
