"""Acceptance counts against rounds worked out by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasspec.decoding import Round
from hasspec.evaluation import AcceptanceCounts, macro_tau


def round_of(
    accepted: int, *, depth: int = 3, emitted: int | None = None, prefill: bool = False
) -> Round:
    n_emitted = accepted + 1 if emitted is None else emitted
    return Round(
        token_ids=list(range(n_emitted)),
        accepted=accepted,
        tree_depth=depth,
        tree_nodes=2 * depth + 1,
        is_prefill=prefill,
        cut=emitted is not None,
    )


PREFILL = round_of(0, depth=0, prefill=True)


def test_worked_example() -> None:
    # Accepted 0, 2, 3 and 1 of trees three deep.
    counts = AcceptanceCounts.of([PREFILL, *(round_of(a) for a in (0, 2, 3, 1))])
    assert (counts.emitted, counts.forwards) == (10, 4)
    assert counts.tau == 2.5
    assert (counts.accepted_D, counts.judged_D) == ([3, 2, 1], [4, 3, 2])
    assert counts.alpha == [3 / 4, 2 / 3, 1 / 2]
    assert counts.survival == [3 / 4, 2 / 4, 1 / 4]
    assert counts.tau == 1 + sum(counts.survival)


def test_a_depth_behind_the_end_of_the_answer_is_not_judged() -> None:
    # Three accepted, but EOS was the second token: depth 3 says nothing, nor does the bonus.
    counts = AcceptanceCounts.of([round_of(3, emitted=2), round_of(1)])
    assert (counts.emitted, counts.forwards) == (4, 2)
    assert (counts.accepted_D, counts.judged_D) == ([2, 1, 0], [2, 2, 0])
    assert counts.alpha == [1.0, 1 / 2, None]
    # At depth 3 only the second round is known, and it ended before.
    assert counts.survival == [1.0, 1 / 2, 0.0]


def test_end_of_the_answer_in_the_bonus_token_cuts_nothing() -> None:
    assert AcceptanceCounts.of([round_of(2, emitted=3)]) == AcceptanceCounts.of([round_of(2)])


def test_a_round_that_emits_nothing_counts_as_a_forward() -> None:
    # A stop string may end before the round's first token.
    counts = AcceptanceCounts.of([round_of(2, emitted=0)])
    assert (counts.emitted, counts.forwards, counts.tau) == (0, 1, 0.0)
    assert counts.alpha == counts.survival == [None, None, None]


def test_a_shallower_tree_is_not_judged_deeper_but_did_not_survive() -> None:
    counts = AcceptanceCounts.of([round_of(1, depth=1), round_of(2, depth=3)])
    assert (counts.accepted_D, counts.judged_D) == ([2, 1, 0], [2, 1, 1])
    assert counts.survival == [1.0, 1 / 2, 0.0]


def test_plain_decoding_has_tau_one() -> None:
    counts = AcceptanceCounts.of([PREFILL, *[round_of(0, depth=0)] * 7])
    assert (counts.tau, counts.alpha, counts.survival) == (1.0, [], [])


def test_an_answer_of_the_prefill_alone_has_no_tau() -> None:
    only_prefill = AcceptanceCounts.of([PREFILL])
    assert only_prefill.tau is None
    two = AcceptanceCounts.of([round_of(1)])
    four = AcceptanceCounts.of([round_of(3), round_of(3), round_of(3)])
    assert macro_tau([only_prefill, two, four]) == 3.0
    assert (two + four).tau == 14 / 4
    assert macro_tau([only_prefill]) is None


rounds = st.builds(
    lambda accepted, slack, cut: round_of(
        accepted, depth=accepted + slack, emitted=min(cut, accepted + 1) if cut else None
    ),
    st.integers(0, 5),
    st.integers(0, 3),
    st.integers(0, 7),
)


@given(st.lists(rounds, max_size=12), st.lists(rounds, max_size=12))
def test_counts_add_up(left: list[Round], right: list[Round]) -> None:
    together = AcceptanceCounts.of([*left, *right])
    added = AcceptanceCounts.of(left) + AcceptanceCounts.of(right)
    assert added == together


@given(st.lists(rounds, min_size=1, max_size=20))
def test_counts_against_a_naive_reading_of_the_definitions(drawn: list[Round]) -> None:
    counts = AcceptanceCounts.of(drawn)
    for depth in range(1, max(r.tree_depth for r in drawn) + 1):
        judged = [
            r
            for r in drawn
            if r.accepted >= depth - 1 and r.tree_depth >= depth and len(r.token_ids) >= depth
        ]
        passed = [r for r in judged if r.accepted >= depth]
        expected = len(passed) / len(judged) if judged else None
        assert counts.alpha[depth - 1] == expected
        known = [r for r in drawn if len(r.token_ids) >= min(depth, r.accepted + 1)]
        survived = [r for r in known if min(r.accepted, len(r.token_ids)) >= depth]
        expected = len(survived) / len(known) if known else None
        assert counts.survival[depth - 1] == pytest.approx(expected)
