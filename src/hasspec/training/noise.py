"""Noise on the input features, the same for a conversation wherever in a batch it lies."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from hasspec.training.batches import Batch


def feature_noise(
    batch: Batch,
    feature_BTD: Tensor,
    half_width: float,
    seed: int,
    step: int,
    *,
    at_length: int | None = None,
) -> Tensor:
    """Uniform noise in ``[-half_width, half_width]``, zero where padded.

    Args:
        at_length: the length in tokens of a conversation that gets just that; others get noise in
            inverse proportion to theirs (512 in the paper's code). None: all get the same.

    Seed, optimiser step and conversation decide it: neither packing nor the device, nor which
    process has the conversation, changes what it is trained on.
    """
    noise_BTD = torch.zeros_like(feature_BTD)
    for place in batch.places:
        rng = np.random.default_rng([seed, step, place.index, 3])
        uniform_TD = rng.random((place.length, feature_BTD.shape[-1]), dtype=np.float32)
        here = noise_BTD[place.row, place.start : place.start + place.length]
        widest = half_width * at_length / place.length if at_length else half_width
        here.copy_(torch.from_numpy((2 * uniform_TD - 1) * widest))
    return noise_BTD
