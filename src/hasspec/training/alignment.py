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

from hasspec.draft import DraftHead
from hasspec.training.attention import chain_attention


def align(
    head: DraftHead,
    embed: Callable[[Tensor], Tensor],
    token_BT: Tensor,
    feature_BTD: Tensor,
    root_BR: Tensor,
    n_steps: int,
    *,
    detach: bool = True,
    attention: Callable[..., Tensor] = chain_attention,
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
        attention: :func:`chain_attention`, or its plain twin.

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
    target_key = target_key.repeat_interleave(head.groups, dim=1)
    target_value = target_value.repeat_interleave(head.groups, dim=1)
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
        attended = attention(
            query_BHRd, target_key, target_value, sees_target, own_keys, own_values
        )
        drafted.append(head.finish(row_BRD, attended))
    return drafted


def _take(row_BTD: Tensor, position_BR: Tensor) -> Tensor:
    return torch.take_along_dim(row_BTD, position_BR[:, :, None], dim=1)
