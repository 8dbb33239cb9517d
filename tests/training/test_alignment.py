"""Law: training equals decoding. Every root and step is held against a real draft decode."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hasspec.draft import DraftConfig, DraftHead
from hasspec.target import SequenceCache, Target
from hasspec.training.alignment import Chains, align
from hasspec.training.batches import Batch, collate, example_of, pack
from hasspec.training.objectives import OutputLayer

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
    for place in batch.places:
        generator = torch.Generator().manual_seed(seed + place.index)
        feature_BTD[place.row, place.start : place.start + place.length] = torch.randn(
            place.length, target.hidden_size, generator=generator, dtype=torch.float64
        )
    return feature_BTD


def conversation(rng: np.random.Generator, length: int, spans: list[tuple[int, int]]):
    tokens = rng.integers(3, 100, size=length).tolist()
    return SimpleNamespace(token_ids=tokens, answer_spans=spans)


@pytest.mark.parametrize(
    ("family", "overrides"),
    [("llama", {}), ("llama3", {}), ("qwen2", {"qkv_bias": True, "fc_bias": True})],
)
@pytest.mark.parametrize("packed", [False, True])
def test_every_root_and_step_equals_a_cached_decode(tiny_target_factory, family, overrides, packed):
    target = tiny_target_factory(family)
    head = make_head(target, **overrides)
    rng = np.random.default_rng(1)
    examples = [
        example_of(conversation(rng, 19, [(4, 19)]), 64),
        example_of(conversation(rng, 26, [(3, 9), (14, 24)]), 64),
        example_of(conversation(rng, 7, [(1, 7)]), 64),
    ]
    batch = collate(examples, [2, 0, 1], "cpu", packed=packed)
    assert len(batch.token_BT) == (2 if packed else 3)
    feature_BTD = random_features(batch, target)
    with torch.no_grad():
        drafted = align(
            Chains(head, lambda ids: target.embed(ids).double(), batch, feature_BTD),
            N_STEPS,
        )
    checked = 0
    for row, column, root in zip(
        batch.in_batch_M.tolist(), batch.in_root_M.tolist(), batch.root_M.tolist(), strict=True
    ):
        place = next(
            p for p in batch.places if p.row == row and p.start <= root < p.start + p.length
        )
        here = slice(place.start, place.start + place.length)
        n_steps = min(N_STEPS, place.start + place.length - 1 - root)
        expected_nD = decode_chain(
            head,
            target,
            batch.token_BT[row, here],
            feature_BTD[row, here],
            root - place.start,
            n_steps,
        )
        for step in range(n_steps):
            torch.testing.assert_close(
                drafted[step][row, column], expected_nD[step], rtol=1e-11, atol=1e-10
            )
            checked += 1
    assert checked > 100


def direct_form(
    head: DraftHead, embed: Callable[[Tensor], Tensor], token_T: Tensor, feature_TD: Tensor, n: int
) -> list[Tensor]:
    """The paper's form, a row at a time: at step j the row of position t sees at s <= t the keys
    made from the features of step ``max(0, s - (t - (j - 1)))``. Returns ``g^(j)``, ``[T - 1, D]``.
    """
    last = len(token_T) - 1
    position_1T = torch.arange(last)[None]
    embed_1TD = embed(token_T[None, 1:])
    inputs, queries, keys, values, drafted = [feature_TD[:last]], [], [], [], []
    for j in range(1, n + 1):
        row_1TD = head.rows(embed_1TD, inputs[-1][None])
        query, key, value = head.project(row_1TD, position_1T)
        for kept, new in ((queries, query), (keys, key), (values, value)):
            kept.append(new.repeat_interleave(head.config.num_attention_heads // new.shape[1], 1))
        attended = torch.zeros_like(queries[-1])
        for t in range(last):
            source_S = [max(0, s - (t - (j - 1))) for s in range(t + 1)]
            key_HSd = torch.stack([keys[i][0, :, s] for s, i in enumerate(source_S)], 1)
            value_HSd = torch.stack([values[i][0, :, s] for s, i in enumerate(source_S)], 1)
            score_HS = (key_HSd @ queries[-1][0, :, t, :, None])[..., 0] / head.config.head_dim**0.5
            attended[0, :, t] = (score_HS.softmax(-1)[:, None] @ value_HSd)[:, 0]
        drafted.append(head.finish(row_1TD, attended)[0])
        inputs.append(torch.cat([feature_TD[:1], drafted[-1][:-1]]))
    return drafted


def test_chain_root_form_equals_the_direct_form(tiny_target):
    head = make_head(tiny_target)
    example = example_of(conversation(np.random.default_rng(5), 21, [(1, 21)]), 64)
    batch = collate([example], [0], "cpu")
    feature_BTD = random_features(batch, tiny_target)

    def embed(ids: Tensor) -> Tensor:
        return tiny_target.embed(ids).double()

    with torch.no_grad():
        direct = direct_form(head, embed, batch.token_BT[0], feature_BTD[0], N_STEPS)
        drafted = align(Chains(head, embed, batch, feature_BTD), N_STEPS)
    for j in range(1, N_STEPS + 1):
        n_rows = 20 - (j - 1)  # the row of position t belongs to the root t - (j - 1)
        n_roots = min(n_rows, len(example.root_R))
        torch.testing.assert_close(
            drafted[j - 1][0, :n_roots],
            direct[j - 1][j - 1 : j - 1 + n_roots],
            rtol=1e-11,
            atol=1e-9,
        )


def test_own_tokens_continue_the_chain_as_decoding_would(tiny_target):
    """Law for ``alignment.tokens: own``: a real draft decode that feeds back its own tokens."""
    head = make_head(tiny_target)
    rng = np.random.default_rng(7)
    examples = [example_of(conversation(rng, n, [(3, n)]), 64) for n in (17, 12)]
    batch = collate(examples, [0, 1], "cpu", packed=True)
    feature_BTD = random_features(batch, tiny_target)
    layer = OutputLayer(
        tiny_target.head_weight[40:60].double(), ids_N=torch.arange(40, 60, device="cpu")
    )

    def embed(ids: Tensor) -> Tensor:
        return tiny_target.embed(ids).double()

    with torch.no_grad():
        drafted = align(Chains(head, embed, batch, feature_BTD, layer.tokens), N_STEPS)
    checked = differs = 0
    for place in batch.places:
        here = slice(place.start, place.start + place.length)
        text_T = batch.token_BT[place.row, here]
        for root in examples[place.index].root_R.tolist():
            column = (batch.root_BR[place.row] == root + place.start).nonzero()[0, 0]
            own_T = torch.cat([text_T, text_T.new_zeros(N_STEPS)])
            for step in range(1, N_STEPS + 1):
                chain_nD = decode_chain(
                    head, tiny_target, own_T, feature_BTD[place.row, here], root, step
                )
                torch.testing.assert_close(
                    drafted[step - 1][place.row, column], chain_nD[-1], rtol=1e-10, atol=1e-9
                )
                guess = 40 + int(layer.logits(chain_nD[-1]).argmax())
                differs += guess != int(own_T[root + step + 1])
                own_T[root + step + 1] = guess
                checked += 1
    assert checked > 80
    assert differs > 40


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
            Chains(head, lambda ids: tiny_target.embed(ids).double(), batch, feature_BTD),
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
            Chains(head, lambda ids: tiny_target.embed(ids).double(), batch, feature_BTD),
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


@given(lengths=st.lists(st.integers(1, 50), min_size=1, max_size=20))
def test_packing_keeps_every_example_once_and_lengthens_no_row(lengths):
    rows = pack(lengths)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert max(sum(lengths[i] for i in row) for row in rows) == max(lengths)
    # First fit: no two rows could have been one.
    totals = sorted(sum(lengths[i] for i in row) for row in rows)
    assert len(totals) < 2 or totals[0] + totals[1] > max(lengths)


def test_the_reference_mask_breaks_the_law(tiny_target):
    """Why it is off: with it, what is trained is not what decoding does."""
    head, rng = make_head(tiny_target), np.random.default_rng(1)
    batch = collate([example_of(conversation(rng, 19, [(4, 19)]), 64)], [0], "cpu")
    feature_BTD = random_features(batch, tiny_target)
    found = []
    for reference_mask in (False, True):
        chains = Chains(
            *(head, lambda ids: tiny_target.embed(ids).double(), batch, feature_BTD),
            reference_mask=reference_mask,
        )
        with torch.no_grad():
            found.append(torch.stack(align(chains, 3))[:, 0])
    root = int(batch.root_BR[0, 0])
    decoded = decode_chain(head, tiny_target, batch.token_BT[0], feature_BTD[0], root, 3)
    torch.testing.assert_close(found[0][:, 0], decoded, rtol=1e-11, atol=1e-10)
    assert ((found[1][:, 0] - decoded).abs().amax(-1) > 0.01).all()
