"""Held-out acceptance counts what the engine's own chains would have accepted."""

from __future__ import annotations

import json
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hasspec.decoding.drafting import Drafter
from hasspec.decoding.tree import TreeSpec
from hasspec.draft import DraftConfig, DraftHead, DraftVocabulary
from hasspec.training import Trainer, load_recipe
from hasspec.training.batches import example_of
from hasspec.training.features import ComputedFeatures
from hasspec.training.validation import Validation, set_aside

DEPTH = 4
CHAIN = TreeSpec.parse(f"chain:{DEPTH}")
DRAFTED = torch.tensor([5, 6, 7])


def random_head(target) -> DraftHead:
    head = DraftHead(DraftConfig.from_target(target.config))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in head.parameters():
            weight.normal_(0.0, 0.3, generator=generator)
    head.draft_vocab_N = DRAFTED
    return head


def conversations(n: int) -> list[SimpleNamespace]:
    """Text over three tokens, so that a third of all guesses is right; two answers each."""
    rng = np.random.default_rng(3)
    made = []
    for length in rng.integers(14, 30, size=n).tolist():
        ids = rng.choice(DRAFTED.numpy(), size=length).tolist()
        made.append(SimpleNamespace(token_ids=ids, answer_spans=[(3, 9), (11, length)]))
    return made


def test_counts_are_those_of_the_engines_chains(tiny_target):
    head = random_head(tiny_target)
    chats = conversations(11)
    judged, accepted = np.zeros(DEPTH, int), np.zeros(DEPTH, int)
    for chat in chats:
        token_T = torch.tensor(chat.token_ids)
        with torch.inference_mode():
            feature_TD = tiny_target.features(token_T[None])[0]
        for start, end in chat.answer_spans:
            for root in range(start - 1, end - 2):
                drafter = Drafter(
                    tiny_target,
                    head,
                    DraftVocabulary(tiny_target, head.draft_vocab_N),
                    len(token_T),
                    CHAIN,
                )
                with torch.inference_mode():
                    drafter.extend(token_T[1 : root + 2], feature_TD[: root + 1])
                    tree = drafter.propose(int(token_T[root + 1]), CHAIN)
                for step, guess in enumerate(tree.token_N[1:]):
                    position = root + 2 + step
                    if position >= end:
                        break
                    judged[step] += 1
                    if guess != token_T[position]:
                        break
                    accepted[step] += 1

    examples = [example_of(chat, tiny_target.max_length) for chat in chats]
    counts = Validation(tiny_target, examples, DEPTH).measure(head, DRAFTED, nullcontext)

    assert counts.judged_n.tolist() == judged.tolist()
    assert counts.accepted_n.tolist() == accepted.tolist()
    assert accepted[1] > 0
    alpha = accepted / judged
    assert counts.alpha == pytest.approx(alpha)
    assert counts.chain_tau == pytest.approx(1 + np.cumprod(alpha).sum())


def test_without_a_draft_vocabulary_all_tokens_compete(tiny_target):
    head = random_head(tiny_target)
    examples = [example_of(chat, tiny_target.max_length) for chat in conversations(5)]
    validation = Validation(tiny_target, examples, 2)
    everything = torch.arange(tiny_target.vocab_size)
    assert (
        validation.measure(head, None, nullcontext).alpha
        == validation.measure(head, everything, nullcontext).alpha
    )


def test_what_is_set_aside_is_not_trained_on_and_depends_on_the_seed_alone():
    items = list(range(50))
    kept, aside = set_aside(items, 8, seed=1)
    assert sorted(kept + aside) == items
    assert len(aside) == 8
    assert set_aside(items, 8, seed=1) == (kept, aside)
    assert set_aside(items, 8, seed=2)[1] != aside
    assert set_aside(items, 0, seed=1) == (items, [])
    with pytest.raises(ValueError, match="leaves nothing of 50"):
        set_aside(items, 50, seed=1)


def test_answers_too_short_to_judge_are_refused(tiny_target):
    chat = SimpleNamespace(token_ids=[3, 4, 5, 6], answer_spans=[(2, 3)])
    with pytest.raises(ValueError, match="set aside more"):
        Validation(tiny_target, [example_of(chat, 16)], 2)


def test_the_trainer_logs_it_and_records_the_last(tiny_target, tmp_path):
    examples = [example_of(chat, tiny_target.max_length) for chat in conversations(20)]
    kept, aside = set_aside(examples, 4, seed=0)
    recipe = load_recipe(
        None,
        [
            "optimisation.steps=5",
            "optimisation.batch=4",
            "validation.every=2",
            "validation.depth=3",
        ],
    )
    trainer = Trainer(
        tiny_target, kept, ComputedFeatures(tiny_target), recipe, tmp_path, held_out=aside
    )
    seen = []
    assert trainer.train(on_progress=seen.append)
    assert [progress.step for progress in seen if progress.held_out] == [2, 4, 5]
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    logged = [json.loads(line) for line in lines]
    assert [len(record["held_out"]["alpha"]) for record in logged] == [3, 3, 3]
    about = json.loads((tmp_path / "hasspec.json").read_text())
    assert about["training"]["held_out"] == logged[-1]["held_out"]
