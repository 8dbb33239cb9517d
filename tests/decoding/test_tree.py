"""Tree building against a brute-force twin in plain Python."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hasspec.decoding import DraftTree, TreeSpec
from hasspec.decoding.tree import TreeBuilder


def law(path: tuple[int, ...], vocab: int, seed: int, coarse: bool) -> list[float]:
    """A made-up draft law after a path; coarse ones are full of ties."""
    rng = np.random.default_rng([seed, *path])
    raw = rng.integers(1, 4, size=vocab) if coarse else rng.random(vocab) + 1e-3
    return (raw / raw.sum()).tolist()


def candidates(path: tuple[int, ...], width: int, vocab: int, seed: int, coarse: bool):
    probs = law(path, vocab, seed, coarse)
    order = sorted(range(vocab), key=lambda v: (-probs[v], v))[:width]
    return [(token, float(np.log(probs[token]))) for token in order]


def brute_force(spec: TreeSpec, vocab: int, seed: int, coarse: bool) -> set[tuple[int, ...]]:
    """Paths of the chosen nodes, from the definition and with nothing shared with the builder."""
    pool: list[tuple[tuple[int, ...], float]] = []
    frontier: list[tuple[tuple[int, ...], float]] = [((), 0.0)]
    for _ in range(spec.depth):
        level = [
            ((*path, token), score + log_prob)
            for path, score in frontier
            for token, log_prob in candidates(path, spec.width, vocab, seed, coarse)
        ]
        pool += level
        # sorted is stable: of equal scores, the one proposed first comes first.
        frontier = sorted(level, key=lambda node: -node[1])[: spec.width]
    return {path for path, _ in sorted(pool, key=lambda node: -node[1])[: spec.budget - 1]}


def build(spec: TreeSpec, vocab: int, seed: int, coarse: bool) -> DraftTree:
    builder = TreeBuilder(spec)
    paths: list[tuple[int, ...]] = [()]
    for _ in range(spec.depth):
        proposed = [candidates(path, spec.width, vocab, seed, coarse) for path in paths]
        tokens = np.array([[token for token, _ in row] for row in proposed])
        scores = np.array([[score for _, score in row] for row in proposed])
        best = builder.propose(tokens, scores)
        width = tokens.shape[1]
        paths = [(*paths[i // width], int(tokens[i // width, i % width])) for i in best]
    return builder.finish(root_token=99)


def paths_of(tree: DraftTree) -> list[tuple[int, ...]]:
    paths: list[tuple[int, ...]] = [()]
    for token, parent in zip(tree.token_N[1:], tree.parent_N[1:], strict=True):
        paths.append((*paths[parent], token))
    return paths


@settings(max_examples=150, deadline=None)
@given(
    depth=st.integers(1, 4),
    width=st.integers(1, 4),
    budget=st.integers(1, 30),
    vocab=st.integers(2, 6),
    seed=st.integers(0, 10**6),
    coarse=st.booleans(),
)
def test_builder_chooses_the_nodes_of_the_definition(depth, width, budget, vocab, seed, coarse):
    spec = TreeSpec(depth, width, budget)
    tree = build(spec, vocab, seed, coarse)
    paths = paths_of(tree)
    assert set(paths[1:]) == brute_force(spec, vocab, seed, coarse)
    assert len(set(paths)) == len(tree) <= budget
    assert tree.token_N[0] == 99 and tree.parent_N[0] == -1
    assert tree.depth_N == [len(path) for path in paths]
    assert all(parent < node for node, parent in enumerate(tree.parent_N))
    for i, path in enumerate(paths):
        for j, other in enumerate(paths):
            assert tree.ancestors_NN()[i, j] == (path[: len(other)] == other)
        for token in range(vocab):
            child = tree.child(i, token)
            assert (child is not None) == ((*path, token) in paths)
            assert child is None or paths[child] == (*path, token)


def test_log_probability_rounded_above_zero_keeps_parents():
    """A child must never outrank its parent, or it would be chosen without it."""
    builder = TreeBuilder(TreeSpec(depth=3, width=1, budget=3))
    for token in (1, 2, 3):
        builder.propose(np.array([[token]]), np.array([[1e-7]]))
    assert builder.finish(0) == DraftTree([0, 1, 2], [-1, 0, 1], [0, 1, 2])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("static:6x10x60", TreeSpec(6, 10, 60)),
        ("6x10x60", TreeSpec(6, 10, 60)),
        ("chain:4", TreeSpec(4, 1, 5)),
        ("default", TreeSpec.default("cpu")),
    ],
)
def test_specs_are_read(text, expected):
    assert TreeSpec.parse(text) == expected
    assert TreeSpec.parse(str(expected)) == expected


@pytest.mark.parametrize(
    "text", ["", "6x10", "tree", "chain:", "chain:-1", "static:axbxc", "0x0x0"]
)
def test_bad_specs_are_refused(text):
    with pytest.raises(ValueError, match=r"unknown tree|a tree needs"):
        TreeSpec.parse(text)
