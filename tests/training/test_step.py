"""The loss of a batch against loops over conversations, chains and steps."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hasspec.draft import DraftConfig, DraftHead
from hasspec.training import load_recipe
from hasspec.training.alignment import Chains, align
from hasspec.training.batches import collate, example_of
from hasspec.training.objectives import OutputLayer, feature_loss
from hasspec.training.step import training_loss

N_STEPS, BETA, CE = 3, 0.6, 0.4


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("mean", ["token", "sequence"])
@pytest.mark.parametrize("until_miss", [False, True])
def test_loss_equals_loops_over_chains(tiny_target, packed, mean, until_miss):
    torch.manual_seed(0)
    head = DraftHead(DraftConfig.from_target(tiny_target.config)).double()
    rng = np.random.default_rng(0)
    shapes = ((25, [(4, 25)]), (31, [(3, 12), (18, 29)]), (6, [(2, 6)]))
    examples = [
        example_of(
            SimpleNamespace(token_ids=rng.integers(3, 100, size=n).tolist(), answer_spans=spans), 64
        )
        for n, spans in shapes
    ]
    batch = collate(examples, [0, 1, 2], "cpu", packed=packed)
    feature_BTD = torch.randn(*batch.token_BT.shape, tiny_target.hidden_size).double()
    # Few tokens to choose from, so that some guesses are right.
    layer = OutputLayer(tiny_target.head_weight[:4].double())
    wide = SimpleNamespace(embed=lambda ids: tiny_target.embed(ids).double())
    recipe = load_recipe(
        None,
        [
            f"alignment.beta={BETA}",
            f"objective.ce={CE}",
            "objective.top_k=0",
            f"objective.mean={mean}",
            f"objective.until_miss={str(until_miss).lower()}",
        ],
    )
    with torch.no_grad():
        loss, sums = training_loss(
            *(head, wide, batch, feature_BTD, layer, recipe.alignment, recipe.objective),
            n_steps=N_STEPS,
        )
        drafted = align(Chains(head, wide.embed, batch, feature_BTD), N_STEPS)

    losses = [[[] for _ in examples] for _ in range(N_STEPS)]
    n_hits = [0] * N_STEPS
    for document, place in enumerate(batch.places):
        example = examples[place.index]
        ends = {r for s, e in shapes[place.index][1] for r in range(s - 1, e - 2)}
        for root in example.root_R.tolist():
            column = (batch.root_BR[place.row] == root + place.start).nonzero()[0, 0]
            for step in range(1, N_STEPS + 1):
                if root + step - 1 not in ends:
                    break
                g = drafted[step - 1][place.row, column]
                f = feature_BTD[place.row, place.start + root + step]
                q, p = layer.logits(f).softmax(-1), layer.logits(g).softmax(-1)
                losses[step - 1][document].append(
                    float(feature_loss(g[None], f[None])[0] - CE * (q * p.log()).sum())
                )
                hit = bool(q.argmax() == p.argmax())
                n_hits[step - 1] += hit
                if until_miss and not hit:
                    break
    expected = 0.0
    for step, of_step in enumerate(losses):
        if mean == "token":
            average = np.mean([value for of_document in of_step for value in of_document])
        else:
            average = np.mean([np.mean(values) for values in of_step if values])
        expected += BETA**step * average
        assert int(sums["count"][step]) == sum(map(len, of_step))
        assert int(sums["hit"][step]) == n_hits[step]
    assert 0 < n_hits[1] < int(sums["count"][1])
    assert float(loss) == pytest.approx(expected, rel=1e-5)
