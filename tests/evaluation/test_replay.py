"""A replay has the rounds of decoding."""

from __future__ import annotations

import pytest
import torch

from hasspec.data import Conversation
from hasspec.decoding import Decoder, TreeSpec
from hasspec.draft import DraftConfig, DraftHead
from hasspec.evaluation.acceptance import AcceptanceCounts
from hasspec.evaluation.replay import Replay, conversation_features

PROMPTS = [[5, 6, 7, 8, 9], [11, 4, 30], [60, 61, 62, 60, 61], [12, 13]]


def repeating_head(target) -> DraftHead:
    torch.manual_seed(0)
    head = DraftHead(DraftConfig.from_target(target.config))
    with torch.no_grad():
        # A head that says what it is fed drafts repetitions, some of which are accepted.
        head.fc.weight[:, target.hidden_size :] += torch.eye(target.hidden_size)
    head.draft_vocab_N = torch.arange(2, target.vocab_size)
    return head.eval().requires_grad_(False)


@pytest.mark.parametrize("tree", ["6x10x60", "chain:4", "2x3x5", "4x4x12"])
@pytest.mark.parametrize("limit", [40, 9])
def test_rounds_are_those_of_decoding(tiny_target, tree, limit):
    head = repeating_head(tiny_target)
    # Whatever token decoding says tenth ends the answer in the second half of the prompts.
    said = Decoder(tiny_target).generate(PROMPTS[2], max_new_tokens=40).token_ids[9]
    spec = TreeSpec.parse(tree)
    replay = Replay(tiny_target, head, spec, max_new_tokens=limit)
    accepted = endings = 0
    for eos_ids in (frozenset(), frozenset([said])):
        tiny_target.eos_ids = eos_ids
        for prompt in PROMPTS:
            generation = Decoder(tiny_target, head, tree=spec).generate(
                prompt, max_new_tokens=limit
            )
            token_ids = [*prompt, *generation.token_ids]
            conversation = Conversation(token_ids, [(len(prompt), len(token_ids))])
            feature_TD = conversation_features(tiny_target, conversation)
            replayed = list(replay.rounds(token_ids, len(prompt), feature_TD))
            assert [r.token_ids for r in replayed] == [r.token_ids for r in generation.rounds]
            shapes = [(r.tree_depth, r.tree_nodes) for r in replayed]
            assert shapes == [(r.tree_depth, r.tree_nodes) for r in generation.rounds]
            counts = AcceptanceCounts.of(generation.rounds)
            assert replay.counts(conversation, feature_TD) == counts
            accepted += sum(counts.accepted_D)
            endings += generation.finish_reason == "eos"
    assert accepted > 0
    assert endings > 0
