"""Objectives besides cross-entropy and Top-K, each a function of student and teacher logits.

All take logits ``[C, N]`` in float32 or wider and return one loss a row, ``[C]``; q is the
teacher's softmax, p the student's. They are differentiated by autograd, a chunk of rows at a time
(``training/objectives.py``, which holds the two of the paper's recipe in closed form).

The HASS paper compares Top-P, normed Top-K, bi-directional Top-K, a Recall@k surrogate and BiLD
(arXiv 2408.15766, appendix); total variation and its mix with KL come from LK losses
(arXiv 2602.23881).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class TermSettings:
    """Parameters of the terms: K, the nucleus P, and the share of KL in the LK mix."""

    k: int = 10
    p: float = 0.9
    kl_share: float = 0.5


def kl(student_CN: Tensor, teacher_CN: Tensor, _: TermSettings) -> Tensor:
    """``sum q (log q - log p)``: the gradient of cross-entropy, and zero where p = q."""
    log_q = teacher_CN.log_softmax(-1)
    return (log_q.exp() * (log_q - student_CN.log_softmax(-1))).sum(-1)


def tv(student_CN: Tensor, teacher_CN: Tensor, _: TermSettings) -> Tensor:
    """Total variation ``sum |q - p| / 2``: the share of proposals that sampling rejects."""
    return 0.5 * (teacher_CN.softmax(-1) - student_CN.softmax(-1)).abs().sum(-1)


def lk(student_CN: Tensor, teacher_CN: Tensor, settings: TermSettings) -> Tensor:
    """``kl_share * KL + (1 - kl_share) * TV``: KL leads far from the teacher, TV near it."""
    share = settings.kl_share
    return share * kl(student_CN, teacher_CN, settings) + (1 - share) * tv(
        student_CN, teacher_CN, settings
    )


def top_p(student_CN: Tensor, teacher_CN: Tensor, settings: TermSettings) -> Tensor:
    """``-sum q log p`` over the teacher's nucleus: its fewest tokens that hold mass P."""
    q_CN, order_CN = teacher_CN.softmax(-1).sort(dim=-1, descending=True, stable=True)
    inside_CN = q_CN.cumsum(-1) - q_CN < settings.p
    log_p_CN = student_CN.log_softmax(-1).gather(1, order_CN)
    return -(q_CN * log_p_CN * inside_CN).sum(-1)


def normed_top_k_linear(student_CN: Tensor, teacher_CN: Tensor, settings: TermSettings) -> Tensor:
    """Cross-entropy of both distributions renormalised on the teacher's top K by their sums."""
    top_CK = _top(teacher_CN, settings)
    q_CK = teacher_CN.gather(1, top_CK).softmax(-1)
    return -(q_CK * student_CN.gather(1, top_CK).log_softmax(-1)).sum(-1)


def normed_top_k_softmax(student_CN: Tensor, teacher_CN: Tensor, settings: TermSettings) -> Tensor:
    """The same, renormalised by a softmax of the *probabilities* of the top K."""
    top_CK = _top(teacher_CN, settings)
    q_CK = teacher_CN.softmax(-1).gather(1, top_CK).softmax(-1)
    p_CK = student_CN.softmax(-1).gather(1, top_CK)
    return -(q_CK * p_CK.log_softmax(-1)).sum(-1)


def bidirectional_top_k(student_CN: Tensor, teacher_CN: Tensor, settings: TermSettings) -> Tensor:
    """``-sum q log p`` over the teacher's top K, plus the same over the student's own."""
    q_CN, log_p_CN = teacher_CN.softmax(-1), student_CN.log_softmax(-1)
    loss_C = torch.zeros_like(log_p_CN[:, 0])
    for leader in (teacher_CN, student_CN):
        top_CK = _top(leader, settings)
        loss_C = loss_C - (q_CN.gather(1, top_CK) * log_p_CN.gather(1, top_CK)).sum(-1)
    return loss_C


def recall(
    student_CN: Tensor,
    teacher_CN: Tensor,
    settings: TermSettings,
    *,
    rank_temperature: float = 0.1,
    hit_temperature: float = 1.0,
) -> Tensor:
    """A smooth 1 - Recall@K: how many of the teacher's top K are in the student's
    (Patel et al., arXiv 2108.11179: step functions become sigmoids).
    """
    top_CK = _top(teacher_CN, settings)
    wanted_CK1 = student_CN.gather(1, top_CK)[..., None]
    ahead_CKN = torch.sigmoid((student_CN[:, None, :] - wanted_CK1) / rank_temperature)
    rank_CK = ahead_CKN.sum(-1) + 0.5  # a token is half ahead of itself: ranks begin at 1
    hit_CK = torch.sigmoid((top_CK.shape[1] + 0.5 - rank_CK) / hit_temperature)
    return 1 - hit_CK.mean(-1)


def bild(student_CN: Tensor, teacher_CN: Tensor, settings: TermSettings) -> Tensor:
    """Bi-directional logits difference (arXiv 2406.13555): KL between the softmaxes of all
    pairwise logit differences, among the teacher's top K and again among the student's.
    """
    loss_C = torch.zeros_like(student_CN[:, 0])
    for leader in (teacher_CN, student_CN):
        top_CK = _top(leader, settings)
        log_q = _differences(teacher_CN.gather(1, top_CK)).log_softmax(-1)
        log_p = _differences(student_CN.gather(1, top_CK)).log_softmax(-1)
        loss_C = loss_C + functional.kl_div(log_p, log_q, reduction="none", log_target=True).sum(-1)
    return loss_C


TERMS: dict[str, Callable[[Tensor, Tensor, TermSettings], Tensor]] = {
    term.__name__: term
    for term in (
        kl,
        tv,
        lk,
        top_p,
        normed_top_k_linear,
        normed_top_k_softmax,
        bidirectional_top_k,
        recall,
        bild,
    )
}


def _top(logits_CN: Tensor, settings: TermSettings) -> Tensor:
    return logits_CN.detach().topk(min(settings.k, logits_CN.shape[-1]), dim=-1).indices


def _differences(logits_CK: Tensor) -> Tensor:
    """``z_i - z_j`` for i < j, ``[C, K (K - 1) / 2]``; i is the more likely one."""
    first, second = torch.triu_indices(logits_CK.shape[1], logits_CK.shape[1], offset=1)
    return logits_CK[:, first] - logits_CK[:, second]
