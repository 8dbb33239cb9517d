"""Recomputed alignment against one backward through all steps."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from hasspec.draft import DraftConfig, DraftHead
from hasspec.target import Target
from hasspec.training import load_recipe
from hasspec.training.batches import Batch, collate, example_of
from hasspec.training.objectives import OutputLayer
from hasspec.training.step import Sums, training_loss


def setting(
    target: Target, dtype: torch.dtype, *, packed: bool = False, **shape: object
) -> tuple[DraftHead, Batch, Tensor]:
    torch.manual_seed(0)
    head = DraftHead(DraftConfig.from_target(target.config, **shape)).to(dtype)
    with torch.no_grad():
        for weight in head.parameters():
            weight.normal_(0.0, 0.2)
    rng = np.random.default_rng(0)
    examples = [
        example_of(
            SimpleNamespace(token_ids=rng.integers(3, 100, size=n).tolist(), answer_spans=spans), 64
        )
        for n, spans in ((25, [(4, 25)]), (31, [(3, 12), (18, 29)]), (6, [(2, 6)]))
    ]
    batch = collate(examples, [0, 1, 2], "cpu", packed=packed)
    feature_BTD = torch.zeros(*batch.token_BT.shape, target.hidden_size, dtype=dtype)
    for place in batch.places:
        generator = torch.Generator().manual_seed(place.index)
        feature_TD = torch.randn(place.length, target.hidden_size, generator=generator, dtype=dtype)
        feature_BTD[place.row, place.start : place.start + place.length] = feature_TD
    return head, batch, feature_BTD


def gradients(
    head: DraftHead,
    target: Target,
    batch: Batch,
    feature_BTD: Tensor,
    *,
    recompute: bool,
    n_steps: int,
    autocast: bool = False,
    tokens: str = "text",
) -> tuple[Tensor, Sums, list[Tensor]]:
    recipe = load_recipe(
        None,
        [
            f"alignment.recompute={str(recompute).lower()}",
            f"alignment.tokens={tokens}",
            "alignment.beta=0.7",
            "objective.top_k=0.4",
            "objective.k=5",
        ],
    )
    layer = OutputLayer(target.head_weight.to(feature_BTD.dtype))
    wide = SimpleNamespace(embed=lambda ids: target.embed(ids).to(feature_BTD.dtype))
    head.zero_grad(set_to_none=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss, sums = training_loss(
            head,
            wide,
            batch,
            feature_BTD,
            layer,
            recipe.alignment,
            recipe.objective,
            n_steps=n_steps,
        )
    (3 * loss).backward()
    return loss.detach(), sums, [weight.grad.clone() for weight in head.parameters()]


@pytest.mark.parametrize("n_steps", [2, 3, 5])
@pytest.mark.parametrize("shape", [{}, {"qkv_bias": True, "fc_bias": True}])
@pytest.mark.parametrize("tokens", ["text", "own"])
def test_recomputed_gradients_equal_those_of_one_backward(tiny_target, n_steps, shape, tokens):
    head, batch, feature_BTD = setting(tiny_target, torch.float64, **shape)
    settings = {"n_steps": n_steps, "tokens": tokens}
    held = gradients(head, tiny_target, batch, feature_BTD, recompute=False, **settings)
    again = gradients(head, tiny_target, batch, feature_BTD, recompute=True, **settings)
    torch.testing.assert_close(again[0], held[0], rtol=1e-12, atol=0)
    assert torch.equal(again[1]["hit"], held[1]["hit"])
    for ours, expected in zip(again[2], held[2], strict=True):
        assert expected.abs().max() > 0
        # transformers' RMSNorm rounds to float32 inside, wherever the last bits of float64 fall.
        assert (ours - expected).norm() < 1e-8 * expected.norm()


@pytest.mark.parametrize("recompute", [False, True])
def test_packing_changes_neither_loss_nor_gradients(tiny_target, recompute):
    found = []
    for packed in (False, True):
        head, batch, feature_BTD = setting(tiny_target, torch.float64, packed=packed)
        assert batch.packed == packed
        found.append(
            gradients(head, tiny_target, batch, feature_BTD, recompute=recompute, n_steps=4)
        )
    (loss, sums, grads), (packed_loss, packed_sums, packed_grads) = found
    torch.testing.assert_close(packed_loss, loss, rtol=1e-9, atol=0)
    assert torch.equal(packed_sums["hit"], sums["hit"])
    assert torch.equal(packed_sums["count"], sums["count"])
    for ours, expected in zip(packed_grads, grads, strict=True):
        assert (ours - expected).norm() < 1e-6 * expected.norm()


def test_weights_that_autocast_rounds_still_learn(tiny_target):
    head, batch, feature_BTD = setting(tiny_target, torch.float32)
    exact = gradients(head, tiny_target, batch, feature_BTD, recompute=False, n_steps=3)
    held = gradients(
        head, tiny_target, batch, feature_BTD, recompute=False, n_steps=3, autocast=True
    )
    again = gradients(
        head, tiny_target, batch, feature_BTD, recompute=True, n_steps=3, autocast=True
    )
    for ours, twin, expected in zip(again[2], held[2], exact[2], strict=True):
        error = (ours - expected).norm() / expected.norm()
        assert error < 1.5 * (twin - expected).norm() / expected.norm() + 1e-3


def test_gradients_through_the_steps_cannot_be_recomputed():
    with pytest.raises(ValueError, match="set recompute: false"):
        load_recipe(None, ["alignment.detach=false"])
    assert not load_recipe(
        None, ["alignment.detach=false", "alignment.recompute=false"]
    ).alignment.detach
