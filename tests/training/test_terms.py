"""Each further objective against a naive version of its equation, and inside the training loss."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hasspec.training import load_recipe
from hasspec.training.objectives import Distillation, DistillationWeights, OutputLayer
from hasspec.training.terms import TERMS, TermSettings


def softmax(logits: list[float]) -> list[float]:
    exponentials = [math.exp(z - max(logits)) for z in logits]
    return [e / sum(exponentials) for e in exponentials]


def top(logits: list[float], k: int) -> list[int]:
    return sorted(range(len(logits)), key=lambda v: -logits[v])[:k]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0


def cross_entropy(q: list[float], p: list[float]) -> float:
    return -sum(a * math.log(b) for a, b in zip(q, p, strict=True))


def naive_kl(z: list[float], t: list[float], _: TermSettings) -> float:
    return cross_entropy(softmax(t), softmax(z)) - cross_entropy(softmax(t), softmax(t))


def naive_tv(z: list[float], t: list[float], _: TermSettings) -> float:
    # The share of proposals from p that speculative sampling rejects.
    return 1 - sum(min(a, b) for a, b in zip(softmax(t), softmax(z), strict=True))


def naive_lk(z: list[float], t: list[float], s: TermSettings) -> float:
    return s.kl_share * naive_kl(z, t, s) + (1 - s.kl_share) * naive_tv(z, t, s)


def naive_top_p(z: list[float], t: list[float], s: TermSettings) -> float:
    q, p = softmax(t), softmax(z)
    loss = mass = 0.0
    for v in top(t, len(t)):
        if mass >= s.p:
            break
        loss, mass = loss - q[v] * math.log(p[v]), mass + q[v]
    return loss


def naive_linear(z: list[float], t: list[float], s: TermSettings) -> float:
    q, p, chosen = softmax(t), softmax(z), top(t, s.k)
    q_mass, p_mass = sum(q[v] for v in chosen), sum(p[v] for v in chosen)
    return cross_entropy([q[v] / q_mass for v in chosen], [p[v] / p_mass for v in chosen])


def naive_softmax(z: list[float], t: list[float], s: TermSettings) -> float:
    q, p, chosen = softmax(t), softmax(z), top(t, s.k)
    return cross_entropy(softmax([q[v] for v in chosen]), softmax([p[v] for v in chosen]))


def naive_bidirectional(z: list[float], t: list[float], s: TermSettings) -> float:
    q, p = softmax(t), softmax(z)
    return -sum(q[v] * math.log(p[v]) for v in [*top(t, s.k), *top(z, s.k)])


def naive_recall(z: list[float], t: list[float], s: TermSettings) -> float:
    chosen = top(t, s.k)
    hits = 0.0
    for v in chosen:
        rank = 1 + sum(sigmoid((z[u] - z[v]) / 0.1) for u in range(len(z)) if u != v)
        hits += sigmoid(len(chosen) + 0.5 - rank)
    return 1 - hits / len(chosen)


def naive_bild(z: list[float], t: list[float], s: TermSettings) -> float:
    loss = 0.0
    for leader in (t, z):
        pairs = list(itertools.combinations(top(leader, s.k), 2))
        if pairs:
            q = softmax([t[i] - t[j] for i, j in pairs])
            p = softmax([z[i] - z[j] for i, j in pairs])
            loss += cross_entropy(q, p) - cross_entropy(q, q)
    return loss


NAIVE = {
    "kl": naive_kl,
    "tv": naive_tv,
    "lk": naive_lk,
    "top_p": naive_top_p,
    "normed_top_k_linear": naive_linear,
    "normed_top_k_softmax": naive_softmax,
    "bidirectional_top_k": naive_bidirectional,
    "recall": naive_recall,
    "bild": naive_bild,
}


def test_every_term_has_a_naive_twin():
    assert NAIVE.keys() == TERMS.keys()


@pytest.mark.parametrize("name", NAIVE)
@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    k=st.sampled_from([1, 3, 50]),
    p=st.sampled_from([0.3, 0.9, 1.0]),
    scale=st.sampled_from([0.5, 4.0]),
)
def test_term_equals_its_equation(name, seed, k, p, scale):
    generator = torch.Generator().manual_seed(seed)
    student_CN, teacher_CN = scale * torch.randn(2, 4, 11, generator=generator).double()
    chosen = TermSettings(k=k, p=p, kl_share=0.3)
    loss_C = TERMS[name](student_CN, teacher_CN, chosen)
    expected_C = [
        NAIVE[name](z, t, chosen)
        for z, t in zip(student_CN.tolist(), teacher_CN.tolist(), strict=True)
    ]
    torch.testing.assert_close(
        loss_C, torch.tensor(expected_C, dtype=torch.float64), rtol=1e-9, atol=1e-10
    )


@pytest.mark.parametrize("name", sorted(set(NAIVE) - {"recall", "bidirectional_top_k"}))
def test_the_teacher_itself_is_a_minimum(name):
    teacher_CN = torch.randn(3, 9, generator=torch.Generator().manual_seed(0)).double()
    chosen = TermSettings(k=4)
    student_CN = teacher_CN.clone().requires_grad_(True)
    best_C = TERMS[name](student_CN, teacher_CN, chosen)
    for seed in range(20):
        noise_CN = torch.randn(3, 9, generator=torch.Generator().manual_seed(seed + 1)).double()
        worse_C = TERMS[name](teacher_CN + 0.3 * noise_CN, teacher_CN, chosen)
        if name == "top_p":  # like Top-K, it rewards mass that moves onto the nucleus
            continue
        assert (worse_C >= best_C.detach() - 1e-12).all()


def test_terms_join_the_loss_and_its_gradient():
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    layer, feature_MD = OutputLayer(normal(13, 5), normal(13)), normal(6, 5)
    valid_nM = torch.rand(2, 6, generator=generator) < 0.7
    chosen = TermSettings(k=4, p=0.8, kl_share=0.4)
    named = tuple((name, 0.1 * (i + 1)) for i, name in enumerate(TERMS))
    weights = DistillationWeights(0.1, 0.3, 4, named, chosen)
    plain = DistillationWeights(0.1, 0.3, 4)

    fused = normal(2, 6, 5).requires_grad_()
    loss_n, sums_nS = Distillation.apply(fused, feature_MD, valid_nM, layer, weights)
    loss_n.sum().backward()

    separate = fused.detach().clone().requires_grad_()
    expected_n, _ = Distillation.apply(separate, feature_MD, valid_nM, layer, plain)
    teacher_MN = layer.logits(feature_MD)
    for index, (name, weight) in enumerate(named):
        term_nM = torch.stack(
            [TERMS[name](layer.logits(step_MD), teacher_MN, chosen) for step_MD in separate]
        )
        term_n = (term_nM * valid_nM).sum(-1)
        torch.testing.assert_close(sums_nS[:, 3 + index], term_n.detach())
        expected_n = expected_n + weight * term_n
    torch.testing.assert_close(loss_n, expected_n)
    expected_n.sum().backward()
    torch.testing.assert_close(fused.grad, separate.grad, rtol=1e-9, atol=1e-10)


def test_unknown_terms_are_named():
    assert load_recipe(None, ["objective.terms={tv: 1.0}"]).objective.terms == {"tv": 1.0}
    with pytest.raises(ValueError, match="no term is called 'tvd'; there are kl, tv"):
        load_recipe(None, ["objective.terms={tvd: 1.0}"])
