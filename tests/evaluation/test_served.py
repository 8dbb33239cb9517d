"""Acceptance by decoding: what is measured, that it repeats, and how the best head is chosen."""

from __future__ import annotations

import pytest
import torch

from hasspec.decoding import Decoder, Sampling, TreeSpec
from hasspec.draft.initial import new_head
from hasspec.evaluation import AcceptanceCounts
from hasspec.evaluation.bootstrap import ratio_interval
from hasspec.evaluation.served import ServedAcceptance

PROMPTS = [[5, 9, 17], [4, 4, 8, 31], [60, 2, 7]]
TREES = [TreeSpec.parse("3x2x6"), TreeSpec.parse("chain:2")]


def test_it_is_the_engines_own_acceptance(tiny_target):
    head = new_head(tiny_target, 0)
    measure = ServedAcceptance(tiny_target, PROMPTS, TREES, [0.0, 1.0], new_tokens=12, seed=3)
    report = measure.measure(head)
    assert [(s.tree, s.temperature) for s in report.settings] == [
        ("static:3x2x6", 0.0),
        ("static:2x1x3", 0.0),
        ("static:3x2x6", 1.0),
        ("static:2x1x3", 1.0),
    ]
    assert report.tau == report.settings[0].tau
    for setting, tree in zip(report.settings, TREES * 2, strict=True):
        decoder = Decoder(tiny_target, head, tree=tree)
        counts = AcceptanceCounts()
        for index, prompt in enumerate(PROMPTS):
            sampling = Sampling(temperature=setting.temperature, seed=3 + index)
            answer = decoder.generate(prompt, max_new_tokens=12, sampling=sampling)
            counts += AcceptanceCounts.of(answer.rounds)
        assert setting.tau == counts.tau
        assert setting.alpha == counts.alpha
        assert setting.interval is not None
        assert setting.interval.low <= setting.tau <= setting.interval.high
    assert measure.measure(head).record == report.record


def test_an_interval_of_a_ratio_of_totals():
    steady = ratio_interval([6, 3, 9], [2, 1, 3])
    assert (steady.low, steady.median, steady.high) == (3.0, 3.0, 3.0)
    uneven = ratio_interval([8, 1, 8, 1, 8], [2, 1, 2, 1, 2])
    assert 1.0 <= uneven.low < 26 / 8 < uneven.high <= 4.0
    one_without = ratio_interval([0, 6], [0, 3])
    assert one_without.low == one_without.high == 2.0


def test_nothing_to_measure_is_refused(tiny_target):
    with pytest.raises(ValueError, match="a prompt, a tree and a temperature"):
        ServedAcceptance(tiny_target, [], TREES, [0.0])


def test_decoding_leaves_the_heads_weights_alone(tiny_target):
    head = new_head(tiny_target, 1)
    before = {name: weight.clone() for name, weight in head.state_dict().items()}
    ServedAcceptance(tiny_target, PROMPTS[:1], TREES[:1], [1.0], new_tokens=6).measure(head)
    assert all(torch.equal(weight, before[name]) for name, weight in head.state_dict().items())
