"""The acceptance rule: speculative sampling (arXiv 2302.01318) on a deterministic tree."""

from __future__ import annotations

from collections.abc import Callable

from hasspec.decoding.tree import DraftTree


def accept(tree: DraftTree, choose: Callable[[int, list[int]], int]) -> tuple[list[int], list[int]]:
    """Walk down the tree along the tokens that the target itself chooses.

    At each node the target's next token is chosen, by argmax at temperature 0 and by a sample of
    its processed distribution otherwise. If it is a child, the walk goes on there; if not, it is
    emitted and the walk ends. Every emitted token is the target's own choice given the tokens
    before it, so the output law is the target's, whatever the tree holds. No lossless rule
    accepts more on a deterministic tree.

    Args:
        choose: ``choose(node, emitted)`` gives the target's token after ``node``, with the
            tokens emitted so far in this walk.

    Returns:
        The nodes of the path, the root first, and as many emitted tokens: the accepted nodes'
        and, last, the bonus token.
    """
    path, emitted = [0], []
    while True:
        token = choose(path[-1], emitted)
        emitted.append(token)
        child = tree.child(path[-1], token)
        if child is None:
            return path, emitted
        path.append(child)
