"""Law: the output law of decoding is the target's own, by exact enumeration.

Small vocabulary, every ordered tree shape up to five nodes, any tokens on it, all processors: the
production acceptance rule is run on every sequence of choices that the target can make, each
weighed with its probability, and the law of what it emits is compared with the target's own
autoregressive law.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from hasspec.decoding import DraftTree, Sampling
from hasspec.decoding.sampling import Sampler, invert
from hasspec.decoding.verification import accept

LENGTH = 3
PROMPT = [0]
Law = dict[tuple[int, ...], float]


def logits_after(context: tuple[int, ...], vocab: int, seed: int) -> Tensor:
    """An arbitrary target: float64 logits that depend on the whole context."""
    key = seed
    for token in context:
        key = key * 31 + token + 1
    generator = torch.Generator().manual_seed(key)
    return 2 * torch.randn(vocab, generator=generator, dtype=torch.float64)


def next_law(sampler: Sampler, so_far: tuple[int, ...], vocab: int, seed: int) -> Tensor:
    return sampler.probabilities(logits_after(so_far, vocab, seed), [*PROMPT, *so_far])


def own_law(sampler: Sampler, vocab: int, seed: int) -> Law:
    """The target alone: one token after another."""
    law: Law = {(): 1.0}
    for _ in range(LENGTH):
        law = {
            (*so_far, token): mass * float(probability)
            for so_far, mass in law.items()
            for token, probability in enumerate(next_law(sampler, so_far, vocab, seed))
            if probability > 0
        }
    return law


class _Undecided(Exception):
    """The rule asked for a choice that this branch of the enumeration has not made yet."""


def emitted_by_round(
    tree: DraftTree, choice_law: Callable[[list[int]], Tensor]
) -> Iterator[tuple[tuple[int, ...], float]]:
    """Run the production rule on every sequence of target choices: (emitted, probability)."""
    pending: list[tuple[list[int], float]] = [([], 1.0)]
    while pending:
        choices, mass = pending.pop()

        def choose(node: int, emitted: list[int], choices: list[int] = choices) -> int:
            if len(emitted) == len(choices):
                raise _Undecided
            return choices[len(emitted)]

        try:
            _, emitted = accept(tree, choose)
        except _Undecided:
            for token, probability in enumerate(choice_law(choices)):
                if probability > 0:
                    pending.append(([*choices, token], mass * float(probability)))
        else:
            yield tuple(emitted), mass


def decoded_law(
    sampler: Sampler, vocab: int, seed: int, tree_of: Callable[[tuple[int, ...]], DraftTree]
) -> Law:
    """Rounds until LENGTH tokens are there; what lies beyond is cut, as a token limit does."""
    finished: Law = defaultdict(float)
    pending: list[tuple[tuple[int, ...], float]] = [((), 1.0)]
    while pending:
        so_far, mass = pending.pop()
        if len(so_far) >= LENGTH:
            finished[so_far[:LENGTH]] += mass
            continue
        rounds = emitted_by_round(
            tree_of(so_far),
            lambda more, so_far=so_far: next_law(sampler, (*so_far, *more), vocab, seed),
        )
        pending += [((*so_far, *emitted), mass * p) for emitted, p in rounds]
    return finished


def shapes(n_nodes: int) -> Iterator[list[int]]:
    """Parents of every tree of n nodes whose parents come first."""
    yield from (
        [-1, *parents] for parents in itertools.product(*(range(i) for i in range(1, n_nodes)))
    )


def trees(vocab: int, most_nodes: int) -> Iterator[DraftTree]:
    """Every shape, with several assignments of distinct tokens to siblings."""
    for n_nodes in range(1, most_nodes + 1):
        for parents in shapes(n_nodes):
            depth = [0]
            for parent in parents[1:]:
                depth.append(depth[parent] + 1)
            for shift in range(vocab):
                used: dict[int, int] = defaultdict(int)
                tokens = [0]
                for node, parent in enumerate(parents[1:], start=1):
                    tokens.append((used[parent] + shift * node) % vocab)
                    used[parent] += 1
                siblings = [(p, t) for p, t in zip(parents[1:], tokens[1:], strict=True)]
                if len(set(siblings)) == len(siblings):
                    yield DraftTree(tokens, parents, depth)


def largest_error(found: Law, expected: Law) -> float:
    return max(abs(found.get(k, 0.0) - expected.get(k, 0.0)) for k in {*found, *expected})


PROCESSORS = [
    Sampling(temperature=1.0),
    Sampling(temperature=0.6),
    Sampling(temperature=1.3, top_k=2),
    Sampling(temperature=0.9, top_p=0.7),
    Sampling(temperature=1.0, repetition_penalty=1.7),
    Sampling(temperature=0.8, top_k=3, top_p=0.8, repetition_penalty=0.6),
    Sampling(temperature=0.0),
    Sampling(temperature=0.0, repetition_penalty=1.9),
]


@pytest.mark.parametrize("sampling", PROCESSORS, ids=str)
@pytest.mark.parametrize("vocab", [3, 4])
def test_emitted_law_is_the_targets_for_every_tree(sampling, vocab):
    sampler = Sampler(sampling)
    expected = own_law(sampler, vocab, seed=11)
    assert abs(sum(expected.values()) - 1) < 1e-12
    n_trees = 0
    for tree in trees(vocab, most_nodes=5 if vocab == 3 else 4):
        found = decoded_law(sampler, vocab, 11, lambda so_far, tree=tree: tree)
        assert largest_error(found, expected) < 1e-12, tree
        n_trees += 1
    assert n_trees > 20


def test_adversarial_heads_that_know_the_target_cannot_bend_it():
    """Trees built from the target's own law: only its favourites, or never them."""
    sampler = Sampler(Sampling(temperature=1.0))
    expected = own_law(sampler, 4, seed=5)
    for favourite in (True, False):

        def tree_of(so_far: tuple[int, ...], favourite: bool = favourite) -> DraftTree:
            ranked = next_law(sampler, so_far, 4, 5).argsort(descending=favourite).tolist()
            first, second = ranked[:2]
            below = next_law(sampler, (*so_far, first), 4, 5).argsort(descending=favourite)
            return DraftTree([0, first, second, int(below[0])], [-1, 0, 0, 1], [0, 1, 1, 2])

        assert largest_error(decoded_law(sampler, 4, 5, tree_of), expected) < 1e-12


def test_a_lossy_rule_is_caught():
    """The check itself can fail: drawing the bonus from raw logits bends the law."""
    sampler = Sampler(Sampling(temperature=0.5))
    raw = Sampler(Sampling(temperature=1.0))
    expected = own_law(sampler, 3, seed=2)
    tree = DraftTree([0, 1], [-1, 0], [0, 1])
    found: Law = defaultdict(float)
    for first, p in enumerate(next_law(sampler, (), 3, 2)):
        bonus_from = raw if tree.child(0, first) is not None else sampler
        for second, q in enumerate(next_law(bonus_from, (first,), 3, 2)):
            for third, r in enumerate(next_law(sampler, (first, second), 3, 2)):
                found[(first, second, third)] += float(p * q * r)
    assert largest_error(found, expected) > 1e-3


def test_acceptance_attains_the_bound():
    """Expected accepted tokens equal the sum over nodes of the target's path probability."""
    sampler = Sampler(Sampling(temperature=1.0))
    tree = DraftTree([0, 1, 2, 0, 1], [-1, 0, 0, 1, 3], [0, 1, 1, 2, 3])
    found = sum(
        (len(emitted) - 1) * mass
        for emitted, mass in emitted_by_round(
            tree, lambda more: next_law(sampler, tuple(more), 3, 7)
        )
    )
    paths = [(1,), (2,), (1, 0), (1, 0, 1)]
    bound = 0.0
    for path in paths:
        mass = 1.0
        for i, token in enumerate(path):
            mass *= float(next_law(sampler, path[:i], 3, 7)[token])
        bound += mass
    assert found == pytest.approx(bound, abs=1e-12)


def test_inversion_has_exactly_the_law():
    """The measure of the uniforms that give a token is the token's probability."""
    law_V = torch.tensor([0.0, 0.25, 0.0, 0.5, 0.25, 0.0], dtype=torch.float64)
    grid = 4000
    drawn = [invert(law_V, (i + 0.5) / grid) for i in range(grid)]
    shares = [drawn.count(v) / grid for v in range(6)]
    assert shares == law_V.tolist()
    assert invert(law_V, 0.0) == 1
    assert invert(law_V, 1 - 2**-53) == 4


def test_uniforms_depend_on_seed_and_index_alone_and_fill_the_interval():
    one, two = Sampler(Sampling(temperature=1, seed=1)), Sampler(Sampling(temperature=1, seed=2))
    first = [one.uniform(i) for i in range(2000)]
    assert first == [one.uniform(i) for i in range(2000)]
    assert first != [two.uniform(i) for i in range(2000)]
    assert min(first) >= 0 and max(first) < 1
    counts = torch.histc(torch.tensor(first), bins=10, min=0, max=1)
    chi_square = float(((counts - 200) ** 2 / 200).sum())
    assert chi_square < 27.9  # 9 degrees of freedom, p = 0.001
