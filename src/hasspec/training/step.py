"""One forward of HASS training: align, compare with the target, weigh."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hasspec.draft import DraftHead
from hasspec.target import Target
from hasspec.training.alignment import Chains, align
from hasspec.training.batches import Batch
from hasspec.training.objectives import (
    Distillation,
    DistillationWeights,
    OutputLayer,
    feature_loss,
)
from hasspec.training.recipe import Alignment, Objective
from hasspec.training.recompute import recomputed
from hasspec.training.terms import TermSettings


@dataclass(frozen=True)
class StepSums:
    """Sums over predicted tokens, one entry an alignment step; divide by ``count_n`` last."""

    feature_n: Tensor
    ce_n: Tensor
    top_k_n: Tensor
    hit_n: Tensor
    count_n: Tensor
    terms_n: dict[str, Tensor]


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
) -> tuple[Tensor, StepSums]:
    """Loss of one batch (paper equations for both harmonized parts) and its sums.

    Args:
        feature_BTD: the target's features; inputs and regression targets alike.
        layer: output layer that the distributions are taken over.
        n_steps: alignment steps of this batch.
        noise_BTD: added to the *input* features only.

    Returns:
        Scalar loss: steps are summed with weights beta**(j-1), each a mean over its tokens.
    """

    def loss_of(drafted: Sequence[Tensor]) -> tuple[Tensor, StepSums]:
        return _compare(drafted, batch, feature_BTD, layer, objective, alignment.beta)

    inputs_BTD = feature_BTD if noise_BTD is None else feature_BTD + noise_BTD
    chains = Chains(head, target.embed, batch, inputs_BTD)
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
) -> tuple[Tensor, StepSums]:
    n_steps = len(drafted)
    drafted_nMD = batch.by_target(drafted)
    valid_nM = batch.valid_nM(n_steps)
    feature_MD = feature_BTD[batch.in_batch_M, batch.root_M + 1]
    count_n = valid_nM.sum(-1).clamp(min=1)

    weights = DistillationWeights(
        objective.ce,
        objective.top_k,
        objective.k,
        tuple(objective.terms.items()),
        TermSettings(objective.k, objective.p, objective.kl_share),
    )
    distilled_n, sums_nS = Distillation.apply(
        drafted_nMD.to(layer.weight_ND.dtype), feature_MD, valid_nM, layer, weights
    )
    wide_MD = feature_MD.to(distilled_n.dtype)
    feature_n = torch.stack(
        [
            feature_loss(drafted_nMD[j].to(wide_MD.dtype), wide_MD, valid_nM[j])
            for j in range(n_steps)
        ]
    )
    beta_n = beta ** torch.arange(n_steps, device=count_n.device)
    loss = (beta_n * (objective.feature * feature_n + distilled_n) / count_n).sum()
    ce_n, top_k_n, hit_n, *others = sums_nS.unbind(-1)
    terms_n = dict(zip(objective.terms, others, strict=True))
    return loss, StepSums(feature_n.detach(), ce_n, top_k_n, hit_n, valid_nM.sum(-1), terms_n)
