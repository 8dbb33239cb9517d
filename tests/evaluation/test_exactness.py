"""Re-scoring finds what is not the target's own, and lets the target's own pass."""

from __future__ import annotations

import torch

from hasspec.decoding import Decoder
from hasspec.evaluation import FlipCounts, Rescorer
from hasspec.target import Target

PROMPT = [5, 9, 17, 33]


def test_greedy_answer_has_no_gap(tiny_target: Target) -> None:
    answer = Decoder(tiny_target).generate(PROMPT, max_new_tokens=20).token_ids
    gap_T = Rescorer(tiny_target).gaps(PROMPT, answer)
    assert gap_T.shape == (len(answer),)
    assert gap_T.dtype == torch.float32
    assert FlipCounts.of(gap_T) == FlipCounts(tokens=len(answer))


def test_a_foreign_token_is_found_where_it_is(tiny_target: Target) -> None:
    answer = Decoder(tiny_target).generate(PROMPT, max_new_tokens=8).token_ids
    with torch.inference_mode():
        ids_BT = torch.tensor([PROMPT + answer[:3]])
        logit_V = tiny_target.logits(tiny_target.features(ids_BT)[0, -1])
    worst = int(logit_V.argmin())
    gap_T = Rescorer(tiny_target).gaps(PROMPT, [*answer[:3], worst])
    torch.testing.assert_close(gap_T[:3], torch.zeros(3))
    torch.testing.assert_close(gap_T[3], logit_V.max() - logit_V.min())
    counts = FlipCounts.of(gap_T, near_tie=0.5)
    assert (counts.tokens, counts.flips, counts.beyond) == (4, 1, 1)
    assert counts.per_1000 == 250


def test_near_ties_and_errors_are_told_apart() -> None:
    counts = FlipCounts.of(torch.tensor([0.0, 0.1, 0.5, 0.7]), near_tie=0.5)
    assert (counts.tokens, counts.flips, counts.beyond) == (4, 3, 1)
    total = counts + FlipCounts.of(torch.tensor([0.0, 2.0]), near_tie=0.5)
    assert (total.tokens, total.flips, total.beyond, total.largest) == (6, 4, 2, 2.0)
    assert FlipCounts().per_1000 is None


def test_scores_in_float32_with_the_rounded_weights(tiny_target: Target) -> None:
    lower = Target.from_model(tiny_target.model.to(torch.bfloat16), tiny_target.tokenizer)
    judge = Rescorer(lower)
    same = Rescorer(lower, "same")
    answer = Decoder(lower).generate(PROMPT, max_new_tokens=12).token_ids
    rounded = Target.from_model(lower.model.float(), lower.tokenizer)
    with torch.inference_mode():
        feature_BTD = rounded.features(torch.tensor([[*PROMPT, *answer[:-1]]]))
        logit_TV = rounded.logits(feature_BTD[0, len(PROMPT) - 1 :])
    own_T = logit_TV[torch.arange(len(answer)), torch.tensor(answer)]
    expected_T = logit_TV.max(dim=-1).values - own_T
    torch.testing.assert_close(judge.gaps(PROMPT, answer), expected_T)
    # The copy in float32 was made before the target's own weights changed their type.
    assert same.gaps(PROMPT, answer).shape == expected_T.shape
