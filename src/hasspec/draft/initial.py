"""Where training of a head begins."""

from __future__ import annotations

import torch

from hasspec.draft.config import DraftConfig
from hasspec.draft.head import DraftHead
from hasspec.target import Target


def new_head(target: Target, seed: int) -> DraftHead:
    """A head whose weights the seed decides.

    Small random weights, plus the identity from the incoming feature to the row: the head
    starts from "the next feature is like this one", which learns faster than from noise.
    """
    head = DraftHead(DraftConfig.from_target(target.config))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in head.parameters():
            if weight.dim() == 2:
                weight.normal_(0.0, 0.02, generator=generator)
        width = head.config.hidden_size
        head.fc.weight[:, width:] += torch.eye(width)
    return head.to(target.device)
