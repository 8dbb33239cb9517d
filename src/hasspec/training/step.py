"""One forward of HASS training: align, compare with the target, weigh."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hasspec.draft import DraftHead
from hasspec.target import Target
from hasspec.training.alignment import Chains, align
from hasspec.training.batches import Batch, Example
from hasspec.training.objectives import (
    Distillation,
    DistillationWeights,
    OutputLayer,
    feature_loss,
    hits,
)
from hasspec.training.recipe import Alignment, Objective
from hasspec.training.recompute import recomputed
from hasspec.training.terms import TermSettings

# Sums over predicted tokens by name, ``[n]`` each, an entry an alignment step; divide by "count"
# last. The names: "feature", "ce", "top_k", the recipe's further terms, "hit", "count".
Sums = dict[str, Tensor]


class TrainingStep(nn.Module):
    """A head with the loss of its training: the module whose gradients processes share.

    Args:
        head: the one trained part.
        target: frozen.
        alignment, objective: of the recipe.
    """

    def __init__(self, head: DraftHead, target: Target, alignment: Alignment, objective: Objective):
        super().__init__()
        self.head = head
        self._target, self._alignment, self._objective = target, alignment, objective

    def forward(
        self, batch: Batch, feature_BTD: Tensor, layer: OutputLayer, **options: Any
    ) -> tuple[Tensor, Sums]:
        """:func:`training_loss`."""
        return training_loss(
            self.head,
            self._target,
            batch,
            feature_BTD,
            layer,
            self._alignment,
            self._objective,
            **options,
        )


def training_loss(
    head: DraftHead,
    target: Target,
    batch: Batch,
    feature_BTD: Tensor,
    layer: OutputLayer,
    alignment: Alignment,
    objective: Objective,
    *,
    n_steps: int,
    noise_BTD: Tensor | None = None,
    of_all: Callable[[Tensor], Tensor] = lambda share_n: share_n,
) -> tuple[Tensor, Sums]:
    """Loss of one batch (paper equations for both harmonized parts) and its sums.

    Args:
        feature_BTD: the target's features; inputs and regression targets alike.
        layer: output layer that the distributions are taken over.
        n_steps: alignment steps of this batch.
        noise_BTD: added to the *input* features only.
        of_all: what the means of each step divide by (tokens or conversations, float ``[n]``),
            given this batch's; more than that where the batch is a part of a larger one. The
            losses of the parts then add up to the loss of the whole.

    Returns:
        Scalar loss: steps are summed with weights beta**(j-1), each a mean over its tokens or
        over conversations (``objective.mean``).
    """

    def loss_of(drafted: Sequence[Tensor]) -> tuple[Tensor, Sums]:
        return _compare(drafted, batch, feature_BTD, layer, objective, alignment.beta, of_all)

    inputs_BTD = feature_BTD if noise_BTD is None else feature_BTD + noise_BTD
    own_tokens = layer.tokens if alignment.tokens == "own" else None
    chains = Chains(head, target.embed, batch, inputs_BTD, own_tokens, alignment.reference_mask)
    if alignment.recompute and n_steps > 1:
        return recomputed(chains, n_steps, loss_of)
    return loss_of(align(chains, n_steps, detach=alignment.detach))


def _compare(
    drafted: Sequence[Tensor],
    batch: Batch,
    feature_BTD: Tensor,
    layer: OutputLayer,
    objective: Objective,
    beta: float,
    of_all: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Sums]:
    n_steps = len(drafted)
    drafted_nMD = batch.by_target(drafted)
    feature_MD = feature_BTD[batch.in_batch_M, batch.root_M + 1]
    narrow_nMD = drafted_nMD.to(layer.weight_ND.dtype)
    valid_nM = batch.valid_nM(n_steps)
    if objective.until_miss and n_steps > 1:
        valid_nM = _until_miss(valid_nM, hits(narrow_nMD, feature_MD, layer), batch)
    weight_nM = _shares(valid_nM, batch, objective.mean)
    weight_nM = weight_nM / of_all(weight_nM.sum(-1)).clamp(min=1)[:, None]

    weights = DistillationWeights(
        objective.ce,
        objective.top_k,
        objective.k,
        tuple(objective.terms.items()),
        TermSettings(objective.k, objective.p, objective.kl_share),
    )
    distilled_n, sums_nS = Distillation.apply(narrow_nMD, feature_MD, weight_nM, layer, weights)
    wide_MD = feature_MD.to(distilled_n.dtype)
    row_nM = torch.stack(
        [feature_loss(step_MD.to(wide_MD.dtype), wide_MD) for step_MD in drafted_nMD]
    )
    beta_n = beta ** torch.arange(n_steps, device=weight_nM.device)
    loss = (beta_n * (objective.feature * (row_nM * weight_nM).sum(-1) + distilled_n)).sum()
    ce_n, top_k_n, hit_n, *others = sums_nS.unbind(-1)
    return loss, {
        "feature": (row_nM.detach() * valid_nM).sum(-1),
        "ce": ce_n,
        "top_k": top_k_n,
        **dict(zip(objective.terms, others, strict=True)),
        "hit": hit_n,
        "count": valid_nM.sum(-1),
    }


def counted(examples: Sequence[Example], index_B: Sequence[int], n_steps: int, mean: str) -> Tensor:
    """What the means of each step divide by, float ``[n]``, known before any forward.

    Args:
        index_B: the examples of the whole batch.
        mean: over "token" or over conversations, "sequence".
    """
    offsets = [torch.from_numpy(examples[index].offset_R) for index in index_B]
    count_Bn = torch.tensor([[int((o >= step).sum()) for step in range(n_steps)] for o in offsets])
    if mean == "sequence":
        count_Bn = count_Bn.clamp(max=1)
    return count_Bn.sum(0).float()


def _shares(valid_nM: Tensor, batch: Batch, mean: str) -> Tensor:
    """What each row counts for in its step: 1, or its share of its conversation's tokens."""
    weight_nM = valid_nM.float()
    if mean == "sequence":
        tokens_nP = weight_nM.new_zeros(len(valid_nM), len(batch.places))
        tokens_nP.index_add_(1, batch.place_M, weight_nM)
        weight_nM = weight_nM / tokens_nP.clamp(min=1)[:, batch.place_M]
    return weight_nM


def _until_miss(valid_nM: Tensor, hit_nM: Tensor, batch: Batch) -> Tensor:
    """Of the valid rows, those whose chain has guessed right at all its earlier steps."""
    kept_nM = valid_nM.clone()
    for step in range(1, len(valid_nM)):
        kept_nM[step] &= batch.of_own_chain(kept_nM[step - 1] & hit_nM[step - 1])
    return kept_nM
