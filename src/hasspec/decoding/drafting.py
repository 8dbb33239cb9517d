"""Drafting a tree with the head: one row in for every true feature, then level by level."""

from __future__ import annotations

import torch
from torch import Tensor

from hasspec.decoding.tree import DraftTree, TreeBuilder, TreeSpec
from hasspec.draft import DraftHead, DraftVocabulary
from hasspec.target import SequenceCache, Target


class Drafter:
    """The head at work on one sequence.

    Its cache holds rows of true target features only; the rows of a tree are appended while it
    grows and forgotten afterwards.

    Args:
        capacity: true rows that the sequence may reach.
        largest: the largest tree that will be asked for.
    """

    def __init__(
        self,
        target: Target,
        head: DraftHead,
        vocabulary: DraftVocabulary,
        capacity: int,
        largest: TreeSpec,
    ):
        self._target, self._head, self._vocabulary = target, head, vocabulary
        tree_rows = max(largest.depth - 1, 0) * largest.width
        self.cache = SequenceCache(1, capacity + tree_rows)
        self._mask = torch.zeros(
            1, 1, largest.width, capacity + tree_rows, dtype=torch.bool, device=target.device
        )
        self._root_feature_11D: Tensor | None = None

    def extend(self, next_token_T: Tensor, feature_TD: Tensor) -> None:
        """Add rows of true features; the last one becomes the root of the next tree.

        Args:
            next_token_T: int64, the token *after* each feature's position.
            feature_TD: the target's features, following those already here.
        """
        start = self.cache.length
        position_1T = torch.arange(start, start + len(next_token_T), device=feature_TD.device)
        drafted_1TD = self._head(
            self._target.embed(next_token_T)[None],
            feature_TD[None],
            position_1T[None],
            cache=self.cache,
        )
        self._root_feature_11D = drafted_1TD[:, -1:]

    def propose(self, root_token: int, spec: TreeSpec) -> DraftTree:
        """Grow a tree under ``root_token``, the token that the last true row embeds."""
        builder = TreeBuilder(spec)
        n_true = self.cache.length
        device = self._target.device
        feature_1FD = self._root_feature_11D
        # Tree rows that each frontier node sees: its ancestors' and, once written, its own.
        seen_FS = torch.zeros(1, 0, dtype=torch.bool, device=device)
        for level in range(1, min(spec.depth, spec.budget - 1) + 1):
            token_FW, log_prob_FW = self._candidates(feature_1FD[0], spec.width)
            best = builder.propose(
                token_FW.cpu().numpy(), log_prob_FW.to("cpu", torch.float64).numpy()
            )
            if level == min(spec.depth, spec.budget - 1):
                break
            best_F = torch.from_numpy(best).to(device)
            parent_F = best_F // token_FW.shape[1]
            n_rows = len(best)
            own = torch.eye(n_rows, dtype=torch.bool, device=device)
            seen_FS = torch.cat([seen_FS[parent_F], own], dim=1)
            feature_1FD = self._expand(
                token_FW.reshape(-1)[best_F], feature_1FD[:, parent_F], n_true, level, seen_FS
            )
        self.cache.truncate(n_true)
        return builder.finish(root_token)

    def _candidates(self, feature_FD: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """The ``width`` most likely tokens after each row and their log probabilities."""
        logit_FN = self._vocabulary.logits(feature_FD).float()
        value_FW, index_FW = logit_FN.topk(min(width, logit_FN.shape[-1]), dim=-1)
        log_prob_FW = value_FW - torch.logsumexp(logit_FN, dim=-1, keepdim=True)
        return self._vocabulary.token_ids(index_FW), log_prob_FW

    def _expand(
        self, token_F: Tensor, feature_1FD: Tensor, n_true: int, level: int, seen_FS: Tensor
    ) -> Tensor:
        """Run the head on the nodes of one level, fed with its own earlier outputs."""
        n_rows, n_tree = seen_FS.shape
        mask = self._mask[:, :, :n_rows, : n_true + n_tree]
        mask[..., :n_true] = True
        mask[0, 0, :, n_true:] = seen_FS
        # A node at depth d embeds the token at root + d beside the feature before it.
        position_1F = torch.full((1, n_rows), n_true - 1 + level, device=token_F.device)
        return self._head(
            self._target.embed(token_F)[None],
            feature_1FD,
            position_1F,
            cache=self.cache,
            mask=mask,
        )
