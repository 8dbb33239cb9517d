"""Draft trees: how large (TreeSpec), and the EAGLE-2 choice of nodes (arXiv 2406.16858, 4.1-4.2).

Pure bookkeeping on small host arrays; no model is called here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import numpy as np
import torch

_STATIC = re.compile(r"(?:static:)?(\d+)x(\d+)x(\d+)")
_CHAIN = re.compile(r"chain:(\d+)")
_FORMS = "'static:DEPTHxWIDTHxBUDGET' such as static:6x10x60, 'chain:K', or 'default'"


@dataclass(frozen=True)
class TreeSpec:
    """Size of a draft tree.

    Attributes:
        depth: levels below the root; 0 drafts nothing.
        width: candidates a node proposes, and nodes that are expanded a level.
        budget: nodes that the target verifies, the root included.
    """

    depth: int
    width: int
    budget: int

    def __post_init__(self) -> None:
        if self.depth < 0 or self.width < 1 or self.budget < 1:
            raise ValueError(
                f"a tree needs depth >= 0, width >= 1 and budget >= 1, got depth {self.depth}, "
                f"width {self.width}, budget {self.budget}"
            )

    @classmethod
    def parse(cls, text: str, device: str | torch.device = "cpu") -> TreeSpec:
        """Read ``static:6x10x60`` (or ``6x10x60``), ``chain:K`` or ``default``."""
        if text == "default":
            return cls.default(device)
        if match := _STATIC.fullmatch(text):
            return cls(*map(int, match.groups()))
        if match := _CHAIN.fullmatch(text):
            return cls(int(match[1]), 1, int(match[1]) + 1)
        raise ValueError(f"unknown tree {text!r}; expected {_FORMS}")

    @classmethod
    def default(cls, device: str | torch.device) -> TreeSpec:
        """A size that suits the device: verifying many nodes is nearly free on a GPU only."""
        return cls(6, 10, 60) if torch.device(device).type != "cpu" else cls(5, 6, 24)

    def within(self, depth: int) -> TreeSpec:
        """The same tree, no deeper than ``depth``."""
        return self if depth >= self.depth else TreeSpec(max(depth, 0), self.width, self.budget)

    def __str__(self) -> str:
        return f"static:{self.depth}x{self.width}x{self.budget}"


@dataclass(frozen=True)
class DraftTree:
    """Tokens to verify; node 0 is the root, the last token that is already certain.

    Attributes:
        token_N: token ids.
        parent_N: index of each node's parent, always smaller than its own; the root's is -1.
        depth_N: distance from the root.
    """

    token_N: list[int]
    parent_N: list[int]
    depth_N: list[int]
    _child: dict[tuple[int, int], int] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        edges = zip(self.parent_N[1:], self.token_N[1:], strict=True)
        self._child.update({edge: node for node, edge in enumerate(edges, start=1)})

    @classmethod
    def root_only(cls, token: int) -> DraftTree:
        return cls([token], [-1], [0])

    def __len__(self) -> int:
        return len(self.token_N)

    def child(self, node: int, token: int) -> int | None:
        """The child of a node that carries this token, if there is one."""
        return self._child.get((node, token))

    def ancestors_NN(self) -> np.ndarray:
        """Bool ``[N, N]``: entry (i, j) is True where j is i or one of its ancestors."""
        seen = np.eye(len(self), dtype=bool)
        for node, parent in enumerate(self.parent_N[1:], start=1):
            seen[node] |= seen[parent]
        return seen


class TreeBuilder:
    """Collects proposals level by level, then keeps the best.

    Nodes of the *pool* are numbered from 0 in the order of proposal; -1 is the root. A node's
    score is the sum of log probabilities along its path, which never rises on the way down, so
    the best ``budget - 1`` of the pool bring their ancestors along.
    """

    def __init__(self, spec: TreeSpec):
        self.spec = spec
        self._token: list[np.ndarray] = []
        self._score: list[np.ndarray] = []
        self._parent: list[np.ndarray] = []
        self._size = 0
        self.frontier = np.array([-1])
        self._frontier_score = np.zeros(1)

    def propose(self, token_FW: np.ndarray, log_prob_FW: np.ndarray) -> np.ndarray:
        """Add W candidates under each frontier node; choose the next frontier.

        Args:
            token_FW: token ids, int64.
            log_prob_FW: their log probabilities given the node, float64.

        Returns:
            Indices into the flattened ``[F * W]`` candidates of the nodes to expand next.
        """
        # Rounding can lift a log probability above 0 and so a child above its parent.
        score_FW = self._frontier_score[:, None] + np.minimum(log_prob_FW, 0.0)
        first, width = self._size, token_FW.shape[1]
        self._token.append(token_FW.reshape(-1))
        self._score.append(score_FW.reshape(-1))
        self._parent.append(self.frontier.repeat(width))
        self._size += token_FW.size
        best = np.argsort(-score_FW.reshape(-1), kind="stable")[: self.spec.width]
        self.frontier = first + best
        self._frontier_score = score_FW.reshape(-1)[best]
        return best

    def finish(self, root_token: int) -> DraftTree:
        """The root and the best ``budget - 1`` nodes of the pool, parents first."""
        if not self._size:
            return DraftTree.root_only(root_token)
        token, score = np.concatenate(self._token), np.concatenate(self._score)
        parent = np.concatenate(self._parent)
        # Stable order: of equal scores the earlier proposal wins, and parents come earlier.
        kept = np.sort(np.argsort(-score, kind="stable")[: self.spec.budget - 1])
        node_of = np.full(self._size + 1, -1)
        node_of[kept] = np.arange(1, len(kept) + 1)
        node_of[-1] = 0
        parents = [-1, *node_of[parent[kept]].tolist()]
        depths = [0]
        for node_parent in parents[1:]:
            depths.append(depths[node_parent] + 1)
        return DraftTree([root_token, *token[kept].tolist()], parents, depths)
