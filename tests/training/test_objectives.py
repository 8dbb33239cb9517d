"""The fused objectives against naive float64 versions of the paper's equations."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from hasspec.training import objectives
from hasspec.training.objectives import (
    Distillation,
    DistillationWeights,
    OutputLayer,
    feature_loss,
)


def naive_distillation(
    drafted_MD: Tensor, feature_MD: Tensor, layer: OutputLayer, weights: DistillationWeights
) -> tuple[Tensor, Tensor, Tensor]:
    """Per-row CE, top-K CE and hit, straight from the equations."""
    q_MV = torch.softmax(feature_MD @ layer.weight_ND.T + layer.bias_N, dim=-1)
    p_MV = torch.softmax(drafted_MD @ layer.weight_ND.T + layer.bias_N, dim=-1)
    ce_M, top_M, hit_M = [], [], []
    for q_V, p_V in zip(q_MV, p_MV, strict=True):
        chosen = sorted(range(len(q_V)), key=lambda v: -float(q_V[v]))[: weights.k]
        ce_M.append(-sum(q_V[v] * p_V[v].log() for v in range(len(q_V))))
        top_M.append(-sum(q_V[v] * p_V[v].log() for v in chosen))
        hit_M.append(float(p_V.argmax() == q_V.argmax()))
    return torch.stack(ce_M), torch.stack(top_M), torch.tensor(hit_M, dtype=torch.float64)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    n_steps=st.integers(1, 3),
    rows=st.integers(1, 9),
    ce=st.sampled_from([0.0, 0.1, 1.1]),
    top_k=st.sampled_from([0.0, 0.3, 1.0]),
    k=st.sampled_from([1, 3, 50]),
)
def test_fused_loss_and_gradient_equal_the_equations(seed, n_steps, rows, ce, top_k, k):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    width, vocab = 5, 17
    layer = OutputLayer(normal(vocab, width), normal(vocab))
    weights = DistillationWeights(ce, top_k, k)
    feature_MD = normal(rows, width)
    valid_nM = torch.rand(n_steps, rows, generator=generator) < 0.7
    step_weight_n = normal(n_steps).abs()

    fused_input = normal(n_steps, rows, width).requires_grad_()
    loss_n, sums_n3 = Distillation.apply(fused_input, feature_MD, valid_nM, layer, weights)
    (loss_n * step_weight_n).sum().backward()

    naive_input = fused_input.detach().clone().requires_grad_()
    naive_total = torch.zeros((), dtype=torch.float64)
    for step in range(n_steps):
        ce_M, top_M, hit_M = naive_distillation(naive_input[step], feature_MD, layer, weights)
        valid_M = valid_nM[step].double()
        naive_loss = ((ce * ce_M + top_k * top_M) * valid_M).sum()
        torch.testing.assert_close(loss_n[step], naive_loss, rtol=1e-10, atol=1e-10)
        expected_3 = torch.stack([(x * valid_M).sum() for x in (ce_M, top_M, hit_M)])
        torch.testing.assert_close(sums_n3[step], expected_3.detach(), rtol=1e-10, atol=1e-10)
        naive_total = naive_total + step_weight_n[step] * naive_loss
    naive_total.backward()
    torch.testing.assert_close(fused_input.grad, naive_input.grad, rtol=1e-9, atol=1e-9)


def test_rows_beyond_one_chunk_are_all_counted(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    layer = OutputLayer(torch.randn(13, 4, generator=generator))
    drafted = torch.randn(2, 23, 4, generator=generator)
    feature_MD = torch.randn(23, 4, generator=generator)
    valid_nM = torch.ones(2, 23, dtype=torch.bool)
    args = (drafted, feature_MD, valid_nM, layer, DistillationWeights())
    whole, _ = Distillation.apply(*args)
    monkeypatch.setattr(objectives, "CHUNK_ROWS", 5)
    chunked, _ = Distillation.apply(*args)
    torch.testing.assert_close(chunked, whole)


def test_top_k_is_not_renormalised():
    """Mass that p leaves outside the teacher's top K must cost something."""
    layer = OutputLayer(torch.eye(4, dtype=torch.float64))
    feature_MD = torch.tensor([[4.0, 3.0, 0.0, 0.0]], dtype=torch.float64)
    weights = DistillationWeights(ce=0.0, top_k=1.0, k=2)
    valid_nM = torch.ones(1, 1, dtype=torch.bool)

    def loss(outside: float) -> float:
        drafted = torch.tensor([[[4.0, 3.0, outside, outside]]], dtype=torch.float64)
        return float(Distillation.apply(drafted, feature_MD, valid_nM, layer, weights)[0])

    assert loss(2.0) > loss(-2.0) + 0.1


def test_feature_loss_is_the_mean_smooth_l1_of_each_row():
    generator = torch.Generator().manual_seed(1)
    drafted_MD = 3 * torch.randn(6, 7, generator=generator, dtype=torch.float64)
    feature_MD = torch.randn(6, 7, generator=generator, dtype=torch.float64)
    expected_M = []
    for g, f in zip(drafted_MD, feature_MD, strict=True):
        difference = (g - f).abs()
        per_entry = torch.where(difference < 1, 0.5 * difference**2, difference - 0.5)
        expected_M.append(per_entry.sum() / 7)
    torch.testing.assert_close(feature_loss(drafted_MD, feature_MD), torch.stack(expected_M))
    assert functional.smooth_l1_loss(feature_MD, feature_MD).item() == 0
