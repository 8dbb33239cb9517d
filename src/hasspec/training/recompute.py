"""The gradient of alignment with one step's activations in memory, however many steps there are.

With features detached between steps, step j reaches the head's weights through its own forward
and, through the attention of later steps, through its keys and values. So the steps can be gone
through backwards, each run again on its own: by the time that step j is reached, the later steps
have left the gradient of its keys and values. Between the passes only drafted features, keys and
values are kept. The price is a second forward of the head (not of the output layer).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from hasspec.training.alignment import Chains, unrolled


def recomputed(
    chains: Chains, n_steps: int, loss_of: Callable[[Sequence[Tensor]], tuple[Tensor, Any]]
) -> tuple[Tensor, Any]:
    """Loss of n detached alignment steps, its backward already prepared.

    Args:
        chains: the chains of a batch.
        loss_of: scalar loss of the drafted features ``[g^(1), .., g^(n)]``, and anything else.

    Returns:
        What ``loss_of(align(chains, n_steps))`` returns; the gradients of the head's weights are
        those of it as well, and are computed here and now: ``backward`` only hands them out.
    """
    weights = [weight for weight in chains.head.parameters() if weight.requires_grad]
    about: list[Any] = []

    def loss_and_gradients() -> tuple[Tensor, list[Tensor]]:
        with torch.no_grad():
            drafted, keys, values = unrolled(chains, n_steps)
        # Weights that autocast has rounded without gradients must not serve the steps below.
        torch.clear_autocast_cache()
        leaves = [feature_BRD.requires_grad_(True) for feature_BRD in drafted]
        loss, rest = loss_of(leaves)
        about.append(rest)
        grads = list(torch.autograd.grad(loss, leaves))
        drafted = [leaf.detach() for leaf in leaves]
        return loss.detach(), _backward(chains, weights, drafted, grads, keys, values)

    loss = _Prepared.apply(loss_and_gradients, *weights)
    return loss, about[0]


class _Prepared(torch.autograd.Function):
    """A loss whose gradients are computed along with it."""

    @staticmethod
    def forward(ctx, loss_and_gradients, *_weights):  # noqa: ANN001, ANN002, ANN205
        with torch.enable_grad():
            loss, grads = loss_and_gradients()
        ctx.save_for_backward(*grads)
        return loss

    @staticmethod
    def backward(ctx, grad_loss):  # noqa: ANN001, ANN205
        return None, *(grad * grad_loss for grad in ctx.saved_tensors)


def _backward(
    chains: Chains,
    weights: list[Tensor],
    drafted: list[Tensor],
    grads: list[Tensor],
    keys: list[Tensor],
    values: list[Tensor],
) -> list[Tensor]:
    """Gradients of the weights from those of the drafted features; the lists are used up."""
    total = [torch.zeros_like(weight) for weight in weights]
    key_grads = [torch.zeros_like(key) for key in keys]
    value_grads = [torch.zeros_like(value) for value in values]
    for step in range(len(drafted), 0, -1):
        for used in (keys, values, drafted):
            used.pop()
        earlier = [row.requires_grad_(True) for row in (*keys, *values)]
        if step > 1:
            rows, key, value = chains.own(step, drafted[-1])
            feature_BRD = chains.finish(
                rows, keys[0], values[0], [*keys[1:], key], [*values[1:], value]
            )
        else:
            rows, key, value = chains.first()
            feature_BRD = chains.finish(rows, key, value, [], [])
        found = torch.autograd.grad(
            [feature_BRD, key, value],
            [*weights, *earlier],
            [grads.pop(), key_grads.pop(), value_grads.pop()],
        )
        for gathered, grad in zip([*total, *key_grads, *value_grads], found, strict=True):
            gathered += grad
    return total
