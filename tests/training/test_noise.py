"""Noise follows the conversation, not its place."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from hasspec.training.batches import Batch, collate, example_of
from hasspec.training.noise import feature_noise


def by_conversation(batch: Batch, noise_BTD: torch.Tensor) -> dict[int, torch.Tensor]:
    return {
        place.index: noise_BTD[place.row, place.start : place.start + place.length]
        for place in batch.places
    }


def test_noise_is_uniform_and_follows_the_conversation():
    examples = [
        example_of(SimpleNamespace(token_ids=list(range(n)), answer_spans=[(2, n)]), 64)
        for n in (40, 15, 22, 9)
    ]
    found = []
    for packed, index in ((False, [0, 1, 2]), (True, [2, 1, 0]), (False, [1, 3])):
        batch = collate(examples, index, "cpu", packed=packed)
        feature_BTD = torch.zeros(*batch.token_BT.shape, 32)
        noise_BTD = feature_noise(batch, feature_BTD, 0.2, seed=5, step=7)
        assert not noise_BTD[batch.document_BT < 0].any()
        assert noise_BTD.abs().max() <= 0.2
        found.append(by_conversation(batch, noise_BTD))
    for index in (0, 1, 2):
        assert torch.equal(found[0][index], found[1][index])
    assert torch.equal(found[0][1], found[2][1])
    assert not torch.equal(found[0][0][:9], found[2][3])

    # Mean 0, variance (2 * 0.2)**2 / 12, over 40 * 32 draws.
    assert found[0][0].mean().abs() < 0.02
    assert abs(found[0][0].var() / (0.4**2 / 12) - 1) < 0.15

    batch = collate(examples, [0], "cpu")
    later = feature_noise(batch, torch.zeros(1, 40, 32), 0.2, seed=5, step=8)
    assert not torch.equal(later[0], found[0][0])


def test_longer_conversations_get_less_noise_where_a_length_is_given():
    examples = [
        example_of(SimpleNamespace(token_ids=list(range(n)), answer_spans=[(2, n)]), 64)
        for n in (40, 10)
    ]
    batch = collate(examples, [0, 1], "cpu")
    feature_BTD = torch.zeros(*batch.token_BT.shape, 32)
    plain = feature_noise(batch, feature_BTD, 0.2, seed=5, step=7)
    scaled = feature_noise(batch, feature_BTD, 0.2, seed=5, step=7, at_length=20)
    torch.testing.assert_close(scaled[0], plain[0] / 2)
    torch.testing.assert_close(scaled[1], plain[1] * 2)
