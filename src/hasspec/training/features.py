"""Where the features of training batches come from."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from hasspec.target import Target
from hasspec.training.batches import Batch


class FeatureSource(Protocol):
    """Where a batch's features come from."""

    def features(self, batch: Batch) -> Tensor:
        """``[B, T, D]`` features of a batch, in the target's dtype, zero where padded."""
        ...


class ComputedFeatures:
    """Runs the target on every batch."""

    def __init__(self, target: Target):
        self._target = target

    def features(self, batch: Batch) -> Tensor:
        with torch.no_grad():
            if not batch.packed:
                # Padding is on the right and attention is causal: no true token sees it.
                return self._target.features(batch.token_BT)
            place_T = torch.arange(batch.token_BT.shape[1], device=batch.token_BT.device)
            sees_BTT = batch.sees_BQT(place_T.expand_as(batch.token_BT))
            return self._target.features(
                batch.token_BT, mask=sees_BTT[:, None], position_BT=batch.position_BT
            )
