"""The processed law against a plain twin, and the quick top-p against transformers'."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import TopPLogitsWarper

from hasspec.decoding import Sampling
from hasspec.decoding.sampling import Nucleus, Sampler

LOGITS = st.lists(st.floats(-6, 6), min_size=2, max_size=12, unique=True)


def plain_law(logits: list[float], context: list[int], sampling: Sampling) -> list[float]:
    """Penalty, temperature, top-k, top-p, in this order, one number at a time."""
    scores = list(logits)
    for token in set(context):
        penalty = sampling.repetition_penalty
        scores[token] *= penalty if scores[token] < 0 else 1 / penalty
    if sampling.temperature == 0:
        return [float(v == scores.index(max(scores))) for v in range(len(scores))]
    ranked = sorted(range(len(scores)), key=lambda v: -scores[v])
    weight = {v: math.exp(scores[v] / sampling.temperature) for v in ranked}
    if sampling.top_k:
        weight = {v: weight[v] for v in ranked[: sampling.top_k]}
    total, above, kept = sum(weight.values()), 0.0, {}
    for token, share in weight.items():
        if above < sampling.top_p * total:
            kept[token] = share
        above += share
    return [kept.get(v, 0.0) / sum(kept.values()) for v in range(len(scores))]


@settings(max_examples=300, deadline=None)
@given(
    logits=LOGITS,
    context=st.lists(st.integers(0, 1), min_size=1, max_size=4),
    temperature=st.sampled_from([0.0, 0.5, 1.0, 1.7]),
    top_k=st.integers(0, 5),
    top_p=st.sampled_from([0.05, 0.33, 0.61, 0.97, 1.0]),
    repetition_penalty=st.sampled_from([0.7, 1.0, 1.3]),
)
def test_law_equals_its_plain_twin(logits, context, temperature, top_k, top_p, repetition_penalty):
    sampling = Sampling(temperature, top_k, top_p, repetition_penalty)
    found = Sampler(sampling).probabilities(torch.tensor(logits, dtype=torch.float64), context)
    assert found.tolist() == pytest.approx(plain_law(logits, context, sampling), abs=1e-9)


@settings(max_examples=300, deadline=None)
@given(
    logits=LOGITS,
    top_p=st.sampled_from([0.05, 0.33, 0.61, 0.97]),
    head=st.integers(1, 12),
    n_excluded=st.integers(0, 1),
)
def test_quick_top_p_equals_that_of_transformers(logits, top_p, head, n_excluded):
    """However small the head that it sorts first; tokens excluded before stay excluded."""
    score_1V = torch.tensor([logits], dtype=torch.float64)
    score_1V[0, :n_excluded] = -torch.inf
    expected = TopPLogitsWarper(top_p)(torch.empty(1, 0), score_1V)
    assert torch.equal(Nucleus(top_p, head)(torch.empty(1, 0), score_1V), expected)


def test_quick_top_p_of_equally_likely_tokens_keeps_as_many():
    for head in (2, 64):
        found = Nucleus(0.49, head)(torch.empty(1, 0), torch.zeros(1, 40))
        assert int(found.isfinite().sum()) == 20
