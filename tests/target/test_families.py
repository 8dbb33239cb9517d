"""Every family serves as a target: features give the logits, and a tree is verified at once."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hasspec.target import RaggedCache, SequenceCache, Target
from tiny_models import FAMILIES

Factory = Callable[..., Target]

PREFIX = [5, 9, 33, 71, 2, 18, 64]
# Parent of each node, the root first: two chains that share a stem, and a late sibling.
TREE_PARENT = [-1, 0, 0, 1, 1, 2, 3, 0]
TREE_TOKEN = [40, 41, 42, 43, 44, 45, 46, 47]


@pytest.fixture(params=list(FAMILIES))
def target(request: pytest.FixtureRequest, tiny_target_factory: Factory) -> Target:
    return tiny_target_factory(request.param)


def path_to(node: int) -> list[int]:
    """Nodes from the root to ``node``."""
    return [] if node < 0 else [*path_to(TREE_PARENT[node]), node]


def plain_features(target: Target, ids: list[int]) -> Tensor:
    return target.features(torch.tensor([ids]))[0]


def tree_inputs(n_past: int) -> tuple[Tensor, Tensor, Tensor]:
    n_nodes = len(TREE_TOKEN)
    mask = torch.zeros(1, 1, n_nodes, n_past + n_nodes, dtype=torch.bool)
    mask[..., :n_past] = True
    for node in range(n_nodes):
        mask[0, 0, node, [n_past + ancestor for ancestor in path_to(node)]] = True
    depth = [len(path_to(node)) - 1 for node in range(n_nodes)]
    return torch.tensor([TREE_TOKEN]), mask, torch.tensor([depth]) + n_past


@torch.inference_mode()
def test_output_layer_on_features_gives_the_models_logits(target: Target) -> None:
    ids_BT = torch.tensor([PREFIX, PREFIX[::-1]])
    expected = target.model(input_ids=ids_BT).logits
    torch.testing.assert_close(target.logits(target.features(ids_BT)), expected, rtol=0, atol=0)
    by_hand = target.features(ids_BT) @ target.head_weight.T
    torch.testing.assert_close(by_hand, expected)


@torch.inference_mode()
def test_padding_mask_leaves_true_tokens_alone(target: Target) -> None:
    ids_BT = torch.tensor([PREFIX, [*PREFIX[:4], 0, 0, 0]])
    mask_BT = torch.ones_like(ids_BT)
    mask_BT[1, 4:] = 0
    found = target.features(ids_BT, mask=mask_BT)
    torch.testing.assert_close(found[0], plain_features(target, PREFIX), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[1, :4], plain_features(target, PREFIX[:4]))


@torch.inference_mode()
@pytest.mark.parametrize("chunks", [[7], [1] * 7, [3, 4], [4, 1, 2]])
def test_cached_forward_in_pieces_equals_one_forward(target: Target, chunks: list[int]) -> None:
    cache = SequenceCache(target.n_layers, 16)
    found = [
        target.features(piece[None], cache=cache)[0] for piece in torch.tensor(PREFIX).split(chunks)
    ]
    assert cache.length == len(PREFIX)
    expected = plain_features(target, PREFIX)
    torch.testing.assert_close(torch.cat(found), expected, rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_tree_forward_equals_a_plain_forward_of_each_path(target: Target) -> None:
    cache = SequenceCache(target.n_layers, 32)
    target.features(torch.tensor([PREFIX]), cache=cache)
    ids_BT, mask, position_BT = tree_inputs(len(PREFIX))
    found = target.features(ids_BT, cache=cache, mask=mask, position_BT=position_BT)[0]
    for node in range(len(TREE_TOKEN)):
        path = [TREE_TOKEN[ancestor] for ancestor in path_to(node)]
        expected = plain_features(target, PREFIX + path)[-1]
        torch.testing.assert_close(found[node], expected, rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_kept_path_continues_as_if_it_had_been_decoded_plainly(target: Target) -> None:
    cache = SequenceCache(target.n_layers, 32)
    target.features(torch.tensor([PREFIX]), cache=cache)
    ids_BT, mask, position_BT = tree_inputs(len(PREFIX))
    target.features(ids_BT, cache=cache, mask=mask, position_BT=position_BT)
    accepted = path_to(6)
    cache.keep(len(PREFIX), torch.tensor(accepted))
    text = PREFIX + [TREE_TOKEN[node] for node in accepted]
    assert cache.length == len(text)
    found = target.features(torch.tensor([[80, 81, 82]]), cache=cache)[0]
    expected = plain_features(target, [*text, 80, 81, 82])[-3:]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_ragged_batch_equals_each_sequence_alone(target: Target) -> None:
    lengths = [3, 7, 1, 5]
    sequences = [[(11 * row + 3 * t) % 101 for t in range(12)] for row in range(4)]
    cache = RaggedCache(target.n_layers, rows=4, capacity=16)

    def step(rows: list[int], counts: list[int]) -> dict[int, Tensor]:
        """Write the next ``counts`` tokens of ``rows``, padded to the longest."""
        start = cache.length_R[rows].tolist()
        width = max(counts)
        ids_BT = torch.zeros(len(rows), width, dtype=torch.long)
        for i, (row, count) in enumerate(zip(rows, counts, strict=True)):
            ids_BT[i, :count] = torch.tensor(sequences[row][start[i] : start[i] + count])
        cache.select(torch.tensor(rows))
        position_BT = torch.tensor(start)[:, None] + torch.arange(width)
        found = target.features(
            ids_BT, cache=cache, mask=cache.mask(width), position_BT=position_BT
        )
        cache.advance(torch.tensor(counts))
        return {row: found[i, : counts[i]] for i, row in enumerate(rows)}

    parts: dict[int, list[Tensor]] = {row: [] for row in range(4)}
    # Prompts of unequal length, then single tokens, then a subset in another order.
    for rows, counts in [
        ([0, 1, 2, 3], lengths),
        ([0, 1, 2, 3], [1, 1, 1, 1]),
        ([3, 0], [2, 4]),
        ([2, 1, 0], [1, 1, 1]),
    ]:
        for row, feature_TD in step(rows, counts).items():
            parts[row].append(feature_TD)
    for row, pieces in parts.items():
        found = torch.cat(pieces)
        assert len(found) == cache.length_R[row]
        expected = plain_features(target, sequences[row][: len(found)])
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_sliding_window_bounds_the_length(tiny_target_factory: Factory) -> None:
    assert tiny_target_factory("mistral").max_length == 64
    assert tiny_target_factory("mistral", sliding_window=None).max_length == 256
    windowed = {"sliding_window": 16, "max_window_layers": 1}
    assert tiny_target_factory("qwen2", use_sliding_window=True, **windowed).max_length == 16
    assert tiny_target_factory("qwen2", use_sliding_window=False, **windowed).max_length == 256


@torch.inference_mode()
def test_up_to_the_window_the_tree_forward_is_the_models_own(tiny_target_factory: Factory) -> None:
    target = tiny_target_factory("mistral", sliding_window=16)
    ids = [(7 * t) % 101 for t in range(target.max_length)]
    cache = SequenceCache(target.n_layers, target.max_length)
    target.features(torch.tensor([ids[:10]]), cache=cache)
    mask = torch.ones(6, 16, dtype=torch.bool).tril(10)[None, None]
    position_BT = torch.arange(10, 16)[None]
    found = target.features(
        torch.tensor([ids[10:]]), cache=cache, mask=mask, position_BT=position_BT
    )[0]
    expected = target.model.model(input_ids=torch.tensor([ids])).last_hidden_state[0, 10:]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
