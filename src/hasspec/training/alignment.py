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

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from hasspec.draft import DraftHead
from hasspec.training.attention import chain_attention, diluted_attention
from hasspec.training.batches import Batch


def align(chains: Chains, n_steps: int, *, detach: bool = True) -> list[Tensor]:
    """Run n alignment steps from every root.

    Args:
        chains: the chains of a batch.
        n_steps: alignment steps n; 1 is EAGLE's training.
        detach: stop the gradient between steps (the paper); False lets it through.

    Returns:
        ``[g^(1), .., g^(n)]``, each ``[B, R, D]``; entry (b, r) of step j drafts the feature at
        position ``root + j``. Chains that run past the sequence hold meaningless values there.
    """
    drafted, _, _ = unrolled(chains, n_steps, detach=detach)
    return drafted


def unrolled(
    chains: Chains, n_steps: int, *, detach: bool = True
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """What :func:`align` returns, with the keys and values of the target's rows (first) and of the
    rows of each later step.
    """
    rows, key, value = chains.first()
    keys, values = [key], [value]
    drafted = [chains.finish(rows, key, value, [], [])]
    for step in range(2, n_steps + 1):
        own_feature_BRD = drafted[-1].detach() if detach else drafted[-1]
        rows, key, value = chains.own(step, own_feature_BRD)
        keys.append(key)
        values.append(value)
        drafted.append(chains.finish(rows, keys[0], values[0], keys[1:], values[1:]))
    return drafted, keys, values


@dataclass(frozen=True)
class Rows:
    """The newest row of every chain: its input and its query."""

    row_BRD: Tensor
    query_BHRd: Tensor


@dataclass(frozen=True)
class Chains:
    """The alignment chains of one batch.

    Attributes:
        head: the draft head in training.
        embed: the target's embedding, token ids to vectors.
        batch: tokens and roots.
        feature_BTD: the target's features of these tokens.
        own_tokens: the tokens that drafted features would choose, ``[B, R, D]`` to ``[B, R]``;
            chains then go on with these, as decoding does. None: with the text's (the paper).
        reference_mask: attend as the paper's published code does in training, which is not what
            decoding does; for comparison only.
    """

    head: DraftHead
    embed: Callable[[Tensor], Tensor]
    batch: Batch
    feature_BTD: Tensor
    own_tokens: Callable[[Tensor], Tensor] | None = None
    reference_mask: bool = False

    def first(self) -> tuple[Rows, Tensor, Tensor]:
        """Rows of step 1, and keys and values of all the target's rows, ``[B, H, T, hd]``."""
        head = self.head
        next_token_BT = self.batch.token_BT.roll(-1, dims=1)
        row_BTD = head.rows(self.embed(next_token_BT), self.feature_BTD)
        query_BHTd, key, value = head.project(row_BTD, self.batch.position_BT)
        rows = Rows(
            torch.take_along_dim(row_BTD, self.batch.root_BR[:, :, None], dim=1),
            torch.take_along_dim(query_BHTd, self.batch.root_BR[:, None, :, None], dim=2),
        )
        repeated = (x.repeat_interleave(head.groups, dim=1) for x in (key, value))
        return rows, *repeated

    def own(self, step: int, own_feature_BRD: Tensor) -> tuple[Rows, Tensor, Tensor]:
        """Rows of a later step, with their keys and values, ``[B, Hkv, R, hd]``."""
        batch = self.batch
        if self.own_tokens is None:
            place_BR = (batch.root_BR + step).clamp(max=batch.token_BT.shape[1] - 1)
            token_BR = torch.take_along_dim(batch.token_BT, place_BR, dim=1)
        else:
            token_BR = self.own_tokens(own_feature_BRD)
        row_BRD = self.head.rows(self.embed(token_BR), own_feature_BRD)
        root_position_BR = torch.take_along_dim(batch.position_BT, batch.root_BR, dim=1)
        query, key, value = self.head.project(row_BRD, root_position_BR + step - 1)
        return Rows(row_BRD, query), key, value

    def finish(
        self,
        rows: Rows,
        key_BHTd: Tensor,
        value_BHTd: Tensor,
        own_keys: Sequence[Tensor],
        own_values: Sequence[Tensor],
    ) -> Tensor:
        """The drafted features of these rows, ``[B, R, D]``; own keys up to theirs included."""
        attention = diluted_attention if self.reference_mask else chain_attention
        attended = attention(
            rows.query_BHRd, key_BHTd, value_BHTd, self._sees_B1RT, own_keys, own_values
        )
        return self.head.finish(rows.row_BRD, attended)

    @cached_property
    def _sees_B1RT(self) -> Tensor:
        return self.batch.sees_BQT(self.batch.root_BR)[:, None]
