"""Law: training equals decoding. Every root and step is held against a real draft decode."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from hasspec.draft import DraftConfig, DraftHead
from hasspec.target import SequenceCache, Target
from hasspec.training.alignment import Chains, align
from hasspec.training.batches import Batch, collate, example_of

N_STEPS = 5


def make_head(target: Target, seed: int = 0, **overrides: object) -> DraftHead:
    head = DraftHead(DraftConfig.from_target(target.config, **overrides)).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in head.parameters():
            weight.normal_(0.0, 0.3, generator=generator)
    return head


def decode_chain(
    head: DraftHead, target: Target, token_T: Tensor, feature_TD: Tensor, root: int, n_steps: int
) -> Tensor:
    """A real n-step draft decode whose last true feature is at ``root``: ``[n, D]``.

    One row at a time through the key/value cache, as the engine does, feeding back the head's
    own outputs with the true tokens.
    """
    cache = SequenceCache(1, root + n_steps + 1)
    drafted = []
    with torch.no_grad():
        for position in range(root + n_steps):
            token_11 = token_T[None, position + 1 : position + 2]
            feature_11D = (
                feature_TD[None, position : position + 1] if position <= root else drafted[-1]
            )
            output_11D = head(
                target.embed(token_11).double(),
                feature_11D,
                torch.tensor([[position]]),
                cache=cache,
            )
            if position >= root:
                drafted.append(output_11D)
    return torch.cat(drafted, dim=1)[0]


def random_features(batch: Batch, target: Target, seed: int = 0) -> Tensor:
    """Float64 features that depend on the example alone, so that only the head is compared."""
    feature_BTD = torch.zeros(*batch.token_BT.shape, target.hidden_size, dtype=torch.float64)
    for row, (index, length) in enumerate(zip(batch.index_B, batch.length_B, strict=True)):
        generator = torch.Generator().manual_seed(seed + index)
        feature_BTD[row, :length] = torch.randn(
            length, target.hidden_size, generator=generator, dtype=torch.float64
        )
    return feature_BTD


def conversation(rng: np.random.Generator, length: int, spans: list[tuple[int, int]]):
    tokens = rng.integers(3, 100, size=length).tolist()
    return SimpleNamespace(token_ids=tokens, answer_spans=spans)


@pytest.mark.parametrize(
    ("family", "overrides"),
    [("llama", {}), ("llama3", {}), ("qwen2", {"qkv_bias": True, "fc_bias": True})],
)
def test_every_root_and_step_equals_a_cached_decode(tiny_target_factory, family, overrides):
    target = tiny_target_factory(family)
    head = make_head(target, **overrides)
    rng = np.random.default_rng(1)
    examples = [
        example_of(conversation(rng, 19, [(4, 19)]), 64),
        example_of(conversation(rng, 26, [(3, 9), (14, 24)]), 64),
        example_of(conversation(rng, 8, [(1, 8)]), 64),
    ]
    batch = collate(examples, [2, 0, 1], "cpu")
    feature_BTD = random_features(batch, target)
    with torch.no_grad():
        drafted = align(
            Chains(
                head,
                lambda ids: target.embed(ids).double(),
                batch.token_BT,
                feature_BTD,
                batch.root_BR,
            ),
            N_STEPS,
        )
    checked = 0
    for row, column, root in zip(
        batch.in_batch_M.tolist(), batch.in_root_M.tolist(), batch.root_M.tolist(), strict=True
    ):
        length = batch.length_B[row]
        n_steps = min(N_STEPS, length - 1 - root)
        token_T, feature_TD = batch.token_BT[row, :length], feature_BTD[row, :length]
        expected_nD = decode_chain(head, target, token_T, feature_TD, root, n_steps)
        for step in range(n_steps):
            torch.testing.assert_close(
                drafted[step][row, column], expected_nD[step], rtol=1e-11, atol=1e-10
            )
            checked += 1
    assert checked > 100


def test_padding_and_neighbours_do_not_reach_a_row(tiny_target):
    head = make_head(tiny_target)
    rng = np.random.default_rng(2)
    examples = [
        example_of(conversation(rng, 12, [(4, 12)]), 64),
        example_of(conversation(rng, 40, [(5, 40)]), 64),
    ]

    def run(index: list[int]) -> list[Tensor]:
        batch = collate(examples, index, "cpu")
        feature_BTD = random_features(batch, tiny_target)
        return align(
            Chains(
                head,
                lambda ids: tiny_target.embed(ids).double(),
                batch.token_BT,
                feature_BTD,
                batch.root_BR,
            ),
            3,
        )

    alone, together = run([0]), run([0, 1])
    n_roots = len(examples[0].root_R)
    for step in range(3):
        valid = n_roots - step  # the last roots' later steps run into padding
        torch.testing.assert_close(
            together[step][0, :valid], alone[step][0, :valid], rtol=0, atol=1e-10
        )


def test_gradient_is_stopped_between_steps_unless_asked(tiny_target):
    head = make_head(tiny_target)
    batch = collate(
        [example_of(conversation(np.random.default_rng(3), 16, [(4, 16)]), 64)], [0], "cpu"
    )
    feature_BTD = random_features(batch, tiny_target)

    def fc_gradient(detach: bool) -> Tensor:
        drafted = align(
            Chains(
                head,
                lambda ids: tiny_target.embed(ids).double(),
                batch.token_BT,
                feature_BTD,
                batch.root_BR,
            ),
            2,
            detach=detach,
        )
        reached = torch.autograd.grad(drafted[1].sum(), drafted[0], allow_unused=True)[0]
        assert (reached is None) == detach
        return torch.tensor(0.0) if reached is None else reached

    fc_gradient(True)
    assert fc_gradient(False).abs().max() > 0


def test_roots_are_the_positions_that_decoding_drafts_from():
    # Answer tokens at 4..8: x_4 comes from the prefill, so the first root is 3 (its feature and
    # x_4 are known) and predicts x_5; the last predicts x_8 from root 6.
    example = example_of(SimpleNamespace(token_ids=list(range(12)), answer_spans=[(4, 9)]), 64)
    assert example.root_R.tolist() == [3, 4, 5, 6]
    assert example.offset_R.tolist() == [0, 1, 2, 3]
    cut = example_of(SimpleNamespace(token_ids=list(range(12)), answer_spans=[(4, 9)]), 7)
    assert cut.root_R.tolist() == [3, 4]


def test_by_target_puts_each_step_beside_the_feature_it_drafts():
    spans = [(2, 8), (10, 15)]
    example = example_of(SimpleNamespace(token_ids=list(range(20)), answer_spans=spans), 64)
    batch = collate([example, example], [0, 1], "cpu")
    # A "feature" that only tells which position it drafts: root + step.
    drafted = [(batch.root_BR + step)[..., None].float() for step in (1, 2, 3)]
    by_target_nMD = batch.by_target(drafted)
    valid_nM = batch.valid_nM(3)
    expected_M = (batch.root_M + 1).float()
    for step in range(3):
        valid_M = valid_nM[step]
        assert torch.equal(by_target_nMD[step, valid_M, 0], expected_M[valid_M])
        in_spans = sum(max(0, (e - 3) - (s - 1) + 1 - step) for s, e in spans)
        assert int(valid_M.sum()) == 2 * in_spans
