"""Harmonized objective distillation (arXiv 2408.15766, section 3.1), fused with the output layer.

    L_ce   = -sum_v q(v) log p(v)              over the vocabulary
    L_topK = -sum_{v in top-K of q} q(v) log p(v)

with p the softmax over the whole vocabulary; nothing is renormalised on the top K. Both are one
weighted cross-entropy with weights ``c = a q + w q_topK``: its gradient is ``(sum c) p - c``, so
a chunk of rows needs its logits once and ``rows x V`` is never held for the whole batch. Further
terms (``training/terms.py``) are differentiated by autograd inside the chunk.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from hasspec.training.terms import TERMS, TermSettings

CHUNK_ROWS = 128


@dataclass(frozen=True)
class OutputLayer:
    """The (possibly reduced) output layer that both distributions are taken over.

    ``weight_ND`` and ``bias_N`` hold the target's rows of N tokens. Where tokens outside the
    frequent ones are represented by a random sample, ``bias_N`` carries the log of how many
    tokens each sampled one stands for (sampled softmax), for draft and target alike. ``ids_N``
    are their token ids; None for the whole vocabulary.
    """

    weight_ND: Tensor
    bias_N: Tensor | None = None
    ids_N: Tensor | None = None

    def logits(self, feature_MD: Tensor) -> Tensor:
        return functional.linear(feature_MD, self.weight_ND, self.bias_N)

    @torch.no_grad()
    def tokens(self, feature_BRD: Tensor) -> Tensor:
        """The most likely token ids, ``[B, R]``."""
        narrow_MD = feature_BRD.detach().flatten(0, 1).to(self.weight_ND.dtype)
        with torch.autocast(narrow_MD.device.type, enabled=False):
            best_M = torch.cat(
                [self.logits(rows_CD).argmax(-1) for rows_CD in narrow_MD.split(CHUNK_ROWS)]
            )
        ids_M = best_M if self.ids_N is None else self.ids_N[best_M]
        return ids_M.view(feature_BRD.shape[:2])


@dataclass(frozen=True)
class DistillationWeights:
    """Weights of the distillation terms: ``ce`` (a), ``top_k`` (w) and K, and any of ``TERMS``."""

    ce: float = 0.1
    top_k: float = 1.0
    k: int = 10
    terms: tuple[tuple[str, float], ...] = ()
    settings: TermSettings = TermSettings()


def feature_loss(drafted_MD: Tensor, feature_MD: Tensor) -> Tensor:
    """``mean_d SmoothL1(g, f)`` (beta = 1) of each row."""
    return functional.smooth_l1_loss(drafted_MD, feature_MD, reduction="none").mean(-1)


class Distillation(torch.autograd.Function):
    """The distillation loss of n drafted features against one teacher.

    ``apply(drafted_nMD, feature_MD, weight_nM, layer, weights)`` returns the loss of each step,
    ``[n]``, summed over rows by their weight, and, not differentiable, ``[n, 3 + terms]`` sums over
    all rows that weigh anything: plain CE, top-K CE, rows whose most likely token is the teacher's,
    and each of ``weights.terms``.
    """

    @staticmethod
    def forward(ctx, drafted_nMD, feature_MD, weight_nM, layer, weights):  # noqa: ANN001, ANN205
        n_steps, n_rows, _ = drafted_nMD.shape
        grad_nMD = torch.zeros_like(drafted_nMD)
        wide = torch.float64 if drafted_nMD.dtype == torch.float64 else torch.float32
        loss_n = drafted_nMD.new_zeros(n_steps, dtype=wide)
        sums_nS = drafted_nMD.new_zeros(n_steps, 3 + len(weights.terms), dtype=wide)
        # Autocast would round the wide logits; every dtype here is chosen by hand.
        with torch.autocast(drafted_nMD.device.type, enabled=False):
            for start in range(0, n_rows, CHUNK_ROWS):
                rows = slice(start, start + CHUNK_ROWS)
                teacher_CN = layer.logits(feature_MD[rows]).to(wide)
                teacher = _teacher(teacher_CN, weights)
                for step in range(n_steps):
                    logits_CN = layer.logits(drafted_nMD[step, rows]).to(wide)
                    weight_C = weight_nM[step, rows].to(wide)
                    others, others_grad_CN = _others(logits_CN, teacher_CN, weights)
                    loss_C, *sums, grad_CN = _student(logits_CN, teacher, weights)
                    if others:
                        grad_CN += others_grad_CN
                        for (_, weight), other_C in zip(weights.terms, others, strict=True):
                            loss_C = loss_C + weight * other_C
                    loss_n[step] += (loss_C * weight_C).sum()
                    sums_nS[step] += torch.stack([*sums, *others]) @ (weight_C > 0).to(wide)
                    grad_CD = grad_CN.to(layer.weight_ND.dtype) @ layer.weight_ND
                    grad_nMD[step, rows] = grad_CD * weight_C[:, None].to(grad_CD.dtype)
        ctx.save_for_backward(grad_nMD)
        ctx.mark_non_differentiable(sums_nS)
        return loss_n, sums_nS

    @staticmethod
    def backward(ctx, grad_loss_n, _grad_sums):  # noqa: ANN001, ANN205
        (grad_nMD,) = ctx.saved_tensors
        scaled = grad_nMD * grad_loss_n[:, None, None].to(grad_nMD.dtype)
        return scaled, None, None, None, None


@torch.no_grad()
def hits(drafted_nMD: Tensor, feature_MD: Tensor, layer: OutputLayer) -> Tensor:
    """Bool ``[n, M]``: rows whose most likely token is the teacher's."""
    hit_nM = torch.empty(drafted_nMD.shape[:2], dtype=torch.bool, device=drafted_nMD.device)
    with torch.autocast(drafted_nMD.device.type, enabled=False):
        for start in range(0, len(feature_MD), CHUNK_ROWS):
            rows = slice(start, start + CHUNK_ROWS)
            expected_C = layer.logits(feature_MD[rows]).argmax(-1)
            for step, drafted_MD in enumerate(drafted_nMD):
                hit_nM[step, rows] = layer.logits(drafted_MD[rows]).argmax(-1) == expected_C
    return hit_nM


@dataclass(frozen=True)
class _Teacher:
    prob_CN: Tensor
    top_prob_CK: Tensor
    top_index_CK: Tensor
    mass_C: Tensor  # sum of the weights c


def _teacher(logits_CN: Tensor, weights: DistillationWeights) -> _Teacher:
    prob_CN = torch.softmax(logits_CN, dim=-1)
    top_prob_CK, top_index_CK = prob_CN.topk(min(weights.k, prob_CN.shape[-1]), dim=-1)
    mass_C = weights.ce + weights.top_k * top_prob_CK.sum(-1)
    return _Teacher(prob_CN, top_prob_CK, top_index_CK, mass_C)


def _others(
    logits_CN: Tensor, teacher_CN: Tensor, weights: DistillationWeights
) -> tuple[list[Tensor], Tensor | None]:
    """The further terms a row, and the gradient of their weighted sum by the logits."""
    if not weights.terms:
        return [], None
    with torch.enable_grad():
        leaf_CN = logits_CN.detach().requires_grad_(True)
        terms, total = [], leaf_CN.new_zeros(())
        for name, weight in weights.terms:
            term_C = TERMS[name](leaf_CN, teacher_CN, weights.settings)
            terms.append(term_C.detach())
            total = total + weight * term_C.sum()
        (grad_CN,) = torch.autograd.grad(total, leaf_CN)
    return terms, grad_CN


def _student(
    logits_CN: Tensor, teacher: _Teacher, weights: DistillationWeights
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Per-row loss, its two parts, the hit, and the gradient with respect to the logits.

    ``logits_CN`` is overwritten.
    """
    expected_C = (teacher.prob_CN * logits_CN).sum(-1)
    top_logit_CK = logits_CN.gather(1, teacher.top_index_CK)
    highest_C1 = logits_CN.amax(dim=-1, keepdim=True)
    hit_C = (top_logit_CK[:, :1] >= highest_C1)[:, 0].to(logits_CN.dtype)
    exp_CN = logits_CN.sub_(highest_C1).exp_()
    total_C1 = exp_CN.sum(-1, keepdim=True)
    lse_C = (total_C1.log() + highest_C1)[:, 0]
    ce_C = lse_C - expected_C
    top_C = teacher.top_prob_CK.sum(-1) * lse_C - (teacher.top_prob_CK * top_logit_CK).sum(-1)
    loss_C = weights.ce * ce_C + weights.top_k * top_C
    grad_CN = exp_CN.mul_(teacher.mass_C[:, None] / total_C1)
    grad_CN.sub_(teacher.prob_CN, alpha=weights.ce)
    grad_CN.scatter_add_(1, teacher.top_index_CK, -weights.top_k * teacher.top_prob_CK)
    return loss_C, ce_C, top_C, hit_C, grad_CN
