"""The optimisers of a head."""

from __future__ import annotations

from torch import nn, optim

from hasspec.training.recipe import Optimisation


def optimisers_of(head: nn.Module, optimisation: Optimisation) -> list[optim.Optimizer]:
    """AdamW over everything; or Muon over the matrices and AdamW over the rest.

    Muon (K. Jordan et al., 2024) orthogonalises the momentum of a matrix. Its step is scaled to
    the size of AdamW's (arXiv 2502.16982, section 2.2), so one learning rate serves both.
    """
    settings = {"lr": optimisation.lr, "weight_decay": optimisation.weight_decay}
    if optimisation.optimiser == "adamw":
        return [optim.AdamW(head.parameters(), betas=optimisation.betas, **settings)]
    matrices = [weight for weight in head.parameters() if weight.dim() == 2]
    others = [weight for weight in head.parameters() if weight.dim() != 2]
    return [
        optim.Muon(matrices, momentum=0.95, adjust_lr_fn="match_rms_adamw", **settings),
        optim.AdamW(others, betas=optimisation.betas, **settings),
    ]
