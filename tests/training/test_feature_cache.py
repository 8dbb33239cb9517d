"""The cache holds what the target would compute, grows, and is never half there."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hasspec.training import feature_cache
from hasspec.training.batches import collate, example_of
from hasspec.training.feature_cache import CachedFeatures, FeatureCache
from hasspec.training.features import ComputedFeatures


@pytest.fixture
def examples():
    rng = np.random.default_rng(0)
    return [
        example_of(
            SimpleNamespace(
                token_ids=rng.integers(3, 100, size=length).tolist(), answer_spans=[(4, length)]
            ),
            64,
        )
        for length in rng.integers(10, 30, size=23)
    ]


def test_cached_features_equal_computed_ones(tiny_target_factory, examples, tmp_path, monkeypatch):
    monkeypatch.setattr(feature_cache, "_TOKENS_A_SEGMENT", 100)
    target = tiny_target_factory()
    cache = FeatureCache(tmp_path, target)
    seen = []
    cache.add(examples, on_progress=lambda done, total: seen.append((done, total)))
    n_tokens = sum(len(example.token_T) for example in examples)
    assert seen[-1] == (n_tokens, n_tokens)
    assert len(list(cache.folder.glob("*.bin"))) > 2

    source = CachedFeatures(FeatureCache(tmp_path, target), examples, target)
    for packed in (False, True):
        batch = collate(examples, [3, 0, 17, 5], "cpu", packed=packed)
        assert batch.packed == packed
        cached, computed = source.features(batch), ComputedFeatures(target).features(batch)
        assert cached.dtype == computed.dtype
        true_BT = batch.document_BT >= 0
        torch.testing.assert_close(cached[true_BT], computed[true_BT], rtol=0.02, atol=0.001)
        assert not cached[~true_BT].any()


def test_only_what_is_new_is_computed(tiny_target, examples, tmp_path):
    cache = FeatureCache(tmp_path, tiny_target)
    cache.add(examples[:10])
    later = FeatureCache(tmp_path, tiny_target)
    assert len(later.missing([*examples, examples[12]])) == 13
    totals = []
    later.add(examples, on_progress=lambda _, total: totals.append(total))
    assert set(totals) == {sum(len(example.token_T) for example in examples[10:])}
    assert later.missing(examples) == []
    assert FeatureCache(tmp_path, tiny_target).missing(examples) == []


def test_an_interrupted_build_goes_on(tiny_target, examples, tmp_path, monkeypatch):
    monkeypatch.setattr(feature_cache, "_TOKENS_A_SEGMENT", 100)
    cache = FeatureCache(tmp_path, tiny_target)

    def killed(done: int, _total: int) -> None:
        if done > 250:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.add(examples, on_progress=killed)
    again = FeatureCache(tmp_path, tiny_target)
    assert 0 < len(again.missing(examples)) < len(examples)
    again.add(examples)
    assert again.missing(examples) == []


def test_another_target_has_another_folder(tiny_target_factory, examples, tmp_path):
    one, other = tiny_target_factory(seed=0), tiny_target_factory(seed=1)
    FeatureCache(tmp_path, one).add(examples)
    assert len(FeatureCache(tmp_path, other).missing(examples)) == len(examples)


def test_a_damaged_segment_is_refused(tiny_target, examples, tmp_path):
    cache = FeatureCache(tmp_path, tiny_target)
    cache.add(examples)
    next(cache.folder.glob("*.bin")).write_bytes(b"short")
    with pytest.raises(ValueError, match="delete .*json"):
        FeatureCache(tmp_path, tiny_target)


def test_a_changed_byte_is_refused(tiny_target, examples, tmp_path):
    cache = FeatureCache(tmp_path, tiny_target)
    cache.add(examples)
    file = next(cache.folder.glob("*.bin"))
    stored = bytearray(file.read_bytes())
    stored[len(stored) // 2] ^= 1
    file.write_bytes(stored)
    source = CachedFeatures(FeatureCache(tmp_path, tiny_target), examples, tiny_target)
    with pytest.raises(ValueError, match="is damaged: its features are not those that were"):
        for index in range(len(examples)):
            source.features(collate(examples, [index], "cpu"))
