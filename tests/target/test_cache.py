"""The preallocated caches refuse what would corrupt them."""

from __future__ import annotations

import pytest
import torch

from hasspec.target import RaggedCache, SequenceCache, Target

IDS_BT = torch.tensor([[5, 9, 33, 71, 18]])


@torch.inference_mode()
def test_storage_is_allocated_once(tiny_target: Target) -> None:
    cache = SequenceCache(tiny_target.n_layers, 16)
    tiny_target.features(IDS_BT, cache=cache)
    storage = [layer.keys.data_ptr() for layer in cache.layers]
    assert cache.layers[0].keys.shape == (1, 2, 16, 8)
    for _ in range(3):
        tiny_target.features(IDS_BT[:, :2], cache=cache)
        cache.keep(cache.length - 2, torch.tensor([1]))
    assert cache.length == 8
    assert [layer.keys.data_ptr() for layer in cache.layers] == storage


@torch.inference_mode()
def test_truncate_forgets(tiny_target: Target) -> None:
    cache = SequenceCache(tiny_target.n_layers, 16)
    tiny_target.features(IDS_BT, cache=cache)
    cache.truncate(3)
    found = tiny_target.features(IDS_BT[:, 3:], cache=cache)
    expected = tiny_target.features(IDS_BT)[:, 3:]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    for length in (-1, 6):
        with pytest.raises(ValueError, match="cannot truncate"):
            cache.truncate(length)


@torch.inference_mode()
def test_keep_of_the_empty_path_is_a_truncation(tiny_target: Target) -> None:
    cache = SequenceCache(tiny_target.n_layers, 16)
    tiny_target.features(IDS_BT, cache=cache)
    cache.keep(2, torch.tensor([], dtype=torch.long))
    assert cache.length == 2


@torch.inference_mode()
def test_writing_past_the_capacity_is_refused(tiny_target: Target) -> None:
    cache = SequenceCache(tiny_target.n_layers, 4)
    with pytest.raises(ValueError, match="holds 4 tokens but 5 were written"):
        tiny_target.features(IDS_BT, cache=cache)
    ragged = RaggedCache(tiny_target.n_layers, rows=1, capacity=4)
    ragged.select(torch.tensor([0]))
    with pytest.raises(ValueError, match="holds 4 tokens a row but 5 were written"):
        ragged.mask(5)


@torch.inference_mode()
def test_ragged_rows_need_their_own_mask_and_positions(tiny_target: Target) -> None:
    cache = RaggedCache(tiny_target.n_layers, rows=1, capacity=8)
    cache.select(torch.tensor([0]))
    with pytest.raises(ValueError, match="have different lengths"):
        tiny_target.features(IDS_BT, cache=cache, mask=cache.mask(5))


@torch.inference_mode()
def test_cleared_row_takes_a_new_sequence(tiny_target: Target) -> None:
    cache = RaggedCache(tiny_target.n_layers, rows=2, capacity=16)
    both = torch.tensor([0, 1])

    def write(ids_BT: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        cache.select(rows)
        n_tokens = ids_BT.shape[1]
        position_BT = cache.length_R[rows][:, None] + torch.arange(n_tokens)
        found = tiny_target.features(
            ids_BT, cache=cache, mask=cache.mask(n_tokens), position_BT=position_BT
        )
        cache.advance(torch.full((len(rows),), n_tokens))
        return found

    write(IDS_BT.expand(2, -1), both)
    cache.clear(torch.tensor([1]))
    assert cache.length_R.tolist() == [5, 0]
    fresh_BT = torch.tensor([[80, 81, 82]])
    torch.testing.assert_close(
        write(fresh_BT, torch.tensor([1])), tiny_target.features(fresh_BT), rtol=1e-4, atol=1e-5
    )
    # The row that stayed goes on undisturbed, beside a row of another length.
    found = write(torch.tensor([[90], [91]]), both)
    for row, text in enumerate([[*IDS_BT[0].tolist(), 90], [80, 81, 82, 91]]):
        expected = tiny_target.features(torch.tensor([text]))[0, -1]
        torch.testing.assert_close(found[row, 0], expected, rtol=1e-4, atol=1e-5)
