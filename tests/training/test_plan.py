"""A plan counts exactly what can be counted, measures the rest, and leaves nothing behind."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hasspec.draft.initial import new_head
from hasspec.training import load_recipe
from hasspec.training.batches import example_of
from hasspec.training.feature_cache import FeatureCache
from hasspec.training.plan import plan


@pytest.fixture
def examples():
    rng = np.random.default_rng(0)
    return [
        example_of(
            SimpleNamespace(token_ids=rng.integers(3, 100, n).tolist(), answer_spans=[(4, n)]), 64
        )
        for n in rng.integers(10, 30, size=12).tolist()
    ]


def recipe(**changes: object):
    settings = {"optimisation.steps": 600, "optimisation.batch": 4, **changes}
    return load_recipe(None, [f"{key}={value}" for key, value in settings.items()])


def test_what_can_be_counted_is_counted(tiny_target, examples, tmp_path):
    answers = sum(len(example.root_R) for example in examples)
    cache = FeatureCache(tmp_path / "cache", tiny_target)
    cache.add(examples[:5])
    head = new_head(tiny_target, 0)
    before = {name: weight.clone() for name, weight in head.state_dict().items()}
    found = plan(tiny_target, examples, recipe(), cache=cache, init=head)
    assert (found.conversations, found.answer_tokens, found.steps) == (12, answers, 600)
    assert found.passes == pytest.approx(answers / 12 * 4 * 600)
    assert found.epochs == pytest.approx(200)
    missing = sum(len(example.token_T) for example in examples[5:])
    assert found.cache_bytes == missing * 2 * tiny_target.hidden_size
    assert found.validation_seconds < 0.01
    assert found.peak_memory > 10**7
    assert found.step_seconds > 0
    assert found.seconds > 600 * found.step_seconds
    assert len(cache.missing(examples)) == 7
    assert all(torch.equal(weight, before[name]) for name, weight in head.state_dict().items())


def test_features_of_every_step_cost_more_than_a_cache(tiny_target, examples, tmp_path):
    settings = recipe(**{"alignment.delay": 0.5, "validation.every": 100})
    cached = plan(
        tiny_target, examples, settings, cache=FeatureCache(tmp_path, tiny_target),
        held_out=examples[:2],
    )  # fmt: skip
    computed = plan(tiny_target, examples, settings, held_out=examples[:2])
    assert computed.cache_bytes == 0
    # 600 steps of 4 conversations against 12 conversations once.
    assert computed.feature_seconds > 10 * cached.feature_seconds
    assert computed.validation_seconds > 0
