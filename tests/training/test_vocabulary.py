"""Frequent tokens, and the sampled output layer as an estimate of the whole one."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch

from hasspec.training.batches import example_of
from hasspec.training.vocabulary import TrainingVocabulary, answer_token_counts, frequent_tokens


def test_counts_are_of_predicted_answer_tokens_only():
    tokens = [7, 7, 7, 1, 2, 3, 3, 9, 9]
    example = example_of(SimpleNamespace(token_ids=tokens, answer_spans=[(3, 7)]), 64)
    count_V = answer_token_counts([example], 12)
    # x_3 = 1 is what the prefill yields; drafted are x_4 .. x_6.
    assert {v: int(c) for v, c in enumerate(count_V) if c} == {2: 1, 3: 2}


def test_frequent_tokens_cover_the_most_and_break_ties_low():
    count_V = np.array([0, 5, 2, 9, 2, 2])
    ids, coverage = frequent_tokens(count_V, 3)
    assert ids.tolist() == [1, 2, 3]
    assert coverage == 16 / 20


def test_all_tokens_in_gives_the_whole_layer(tiny_target):
    everything = torch.arange(tiny_target.vocab_size)
    feature_MD = torch.randn(4, tiny_target.hidden_size)
    whole = TrainingVocabulary(tiny_target, None, 0, 0).layer(3).logits(feature_MD)
    listed = TrainingVocabulary(tiny_target, everything, 5, 0).layer(3).logits(feature_MD)
    torch.testing.assert_close(listed, whole)


def test_sampled_layer_estimates_the_normaliser_without_bias(tiny_target):
    feature_1D = torch.randn(1, tiny_target.hidden_size, generator=torch.Generator().manual_seed(0))
    whole = torch.logsumexp(tiny_target.logits(feature_1D).double(), -1).exp()
    vocabulary = TrainingVocabulary(tiny_target, torch.arange(0, 30), 12, seed=5)
    estimates = [
        torch.logsumexp(vocabulary.layer(step).logits(feature_1D).double(), -1).exp()
        for step in range(3000)
    ]
    mean = torch.stack(estimates).mean()
    spread = torch.stack(estimates).std() / 3000**0.5
    assert abs(mean - whole.item()) < 4 * spread


def test_a_step_always_draws_the_same_sample(tiny_target):
    def weights(step: int) -> torch.Tensor:
        vocabulary = TrainingVocabulary(tiny_target, torch.arange(10), 7, seed=1)
        return vocabulary.layer(step).weight_ND

    assert torch.equal(weights(4), weights(4))
    assert not torch.equal(weights(4), weights(5))
