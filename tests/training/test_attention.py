"""The joined attention of alignment rows against one softmax over all keys, with gradients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hasspec.training.attention import (
    chain_attention,
    concatenated_attention,
    diluted_attention,
)

Arguments = tuple[Tensor, Tensor, Tensor, Tensor, list[Tensor], list[Tensor]]


def arguments(
    seed: int, *, n_own: int, groups: int = 1, dtype: torch.dtype = torch.float64
) -> Arguments:
    generator = torch.Generator().manual_seed(seed)
    batch, n_kv, n_tokens, n_roots, width = 2, 2, 23, 9, 8

    def random(*shape: int) -> Tensor:
        values = torch.randn(shape, generator=generator, dtype=torch.float64)
        return values.to(dtype).requires_grad_(True)

    # Roots need not be neighbours (several turns), and padding repeats one.
    root_BR = torch.randint(0, n_tokens, (batch, n_roots), generator=generator).sort(-1).values
    sees = torch.arange(n_tokens) <= root_BR[:, None, :, None]
    return (
        random(batch, n_kv * groups, n_roots, width),
        random(batch, n_kv * groups, n_tokens, width),
        random(batch, n_kv * groups, n_tokens, width),
        sees,
        [random(batch, n_kv, n_roots, width) for _ in range(n_own)],
        [random(batch, n_kv, n_roots, width) for _ in range(n_own)],
    )


def outputs_and_gradients(attention, given_arguments: Arguments) -> list[Tensor]:
    query, key, value, _, own_keys, own_values = given_arguments
    out = attention(*given_arguments)
    leaves = [query, key, value, *own_keys, *own_values]
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    return [out.detach(), *torch.autograd.grad((out * weights).sum(), leaves)]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), n_own=st.integers(0, 4), groups=st.sampled_from([1, 3]))
def test_joined_attention_equals_one_softmax(seed, n_own, groups):
    given_arguments = arguments(seed, n_own=n_own, groups=groups)
    joined = outputs_and_gradients(chain_attention, given_arguments)
    plain = outputs_and_gradients(concatenated_attention, given_arguments)
    for ours, expected in zip(joined, plain, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("scale", [30.0, -30.0])
def test_a_softmax_that_one_side_owns_does_not_overflow(scale):
    *target_side, own_keys, own_values = arguments(1, n_own=2)
    far_keys = [(key.detach() * scale).requires_grad_(True) for key in own_keys]
    extreme = (*target_side, far_keys, own_values)
    joined = outputs_and_gradients(chain_attention, extreme)
    plain = outputs_and_gradients(concatenated_attention, extreme)
    for ours, expected in zip(joined, plain, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-11)


def test_bfloat16_is_as_near_to_float32_as_its_plain_twin():
    wide = arguments(2, n_own=3, groups=3, dtype=torch.float32)
    expected = outputs_and_gradients(concatenated_attention, wide)
    narrow = arguments(2, n_own=3, groups=3, dtype=torch.bfloat16)
    joined = outputs_and_gradients(chain_attention, narrow)
    plain = outputs_and_gradients(concatenated_attention, narrow)
    for ours, twin, exact in zip(joined, plain, expected, strict=True):
        error = (ours.float() - exact).norm() / exact.norm()
        twin_error = (twin.float() - exact).norm() / exact.norm()
        assert error < max(1.5 * twin_error, 0.01)


@pytest.mark.parametrize("n_own", [0, 2])
def test_the_reference_mask_gives_hidden_keys_a_weight_and_no_value(n_own):
    query, key, value, sees, own_keys, own_values = arguments(3, n_own=n_own, groups=3)
    with torch.no_grad():
        found = diluted_attention(query, key, value, sees, own_keys, own_values)
    for b, h, r in torch.cartesian_prod(*map(torch.arange, query.shape[:3])).tolist():
        seen = sees[b, 0, r]
        keys = [*key[b, h, seen], *(own[b, h // 3, r] for own in own_keys)]
        values = [*value[b, h, seen], *(own[b, h // 3, r] for own in own_values)]
        weights = [(query[b, h, r] @ k / 8**0.5).exp().item() for k in keys]
        hidden = max(key.shape[2] - len(keys), 0)
        expected = sum(w * v for w, v in zip(weights, values, strict=True))
        torch.testing.assert_close(found[b, h, r], expected / (sum(weights) + hidden))
