"""One request: the target's cache, the round, and the tokens so far."""

from __future__ import annotations

import torch
from torch import Tensor

from hasspec.decoding.drafting import Drafter
from hasspec.decoding.sampling import Sampler
from hasspec.decoding.timing import Stopwatch
from hasspec.decoding.tree import DraftTree, TreeSpec
from hasspec.decoding.verification import accept
from hasspec.target import SequenceCache, Target


class Session:
    """Decodes one sequence round by round; knows nothing of text or of when to stop.

    All caches are allocated here once; a round writes in place.

    Args:
        limit: most tokens of prompt and answer together.
        largest: the largest tree that a round may verify.
        drafter: None for plain decoding, which is the same loop over trees of one node.
    """

    def __init__(
        self,
        target: Target,
        prompt_ids: list[int],
        sampler: Sampler,
        limit: int,
        largest: TreeSpec,
        drafter: Drafter | None,
        stopwatch: Stopwatch,
    ):
        self._target, self._sampler, self._drafter = target, sampler, drafter
        self._stopwatch, self._limit, self._largest = stopwatch, limit, largest
        self.token_ids = list(prompt_ids)
        self.n_prompt = len(prompt_ids)
        capacity = limit + largest.budget
        self._cache = SequenceCache(target.n_layers, capacity)
        self._mask = torch.zeros(
            1, 1, largest.budget, capacity, dtype=torch.bool, device=target.device
        )

    def prefill(self) -> list[int]:
        """Run the prompt; returns the first answer token."""
        ids_1T = torch.tensor([self.token_ids], device=self._target.device)
        feature_TD = self._target.features(ids_1T, cache=self._cache)[0]
        logit_1V = self._target.logits(feature_TD[-1:])
        token = self._choose(logit_1V, None, 0, [])
        self._stopwatch.lap("prefill")
        self.token_ids.append(token)
        if self._drafter is not None:
            next_T = torch.tensor(self.token_ids[1:], device=self._target.device)
            self._drafter.extend(next_T, feature_TD)
            self._stopwatch.lap("prefill", wait=True)
        return [token]

    def round(self) -> tuple[list[int], DraftTree, int]:
        """Draft, verify, accept: emitted tokens, the tree, and the draft tokens accepted.

        A round emits at most as many tokens as are left to the limit.
        """
        tree = self._draft()
        self._stopwatch.lap("draft")
        n_past = self._cache.length
        feature_ND = self._verify(tree)
        logit_NV = self._target.logits(feature_ND)
        greedy = self._sampler.sampling.is_plain_argmax
        best_N = logit_NV.argmax(-1).tolist() if greedy else None
        # Acceptance reads the logits next, so nothing is lost by waiting for them.
        self._stopwatch.lap("verify", wait=True)
        path, emitted = accept(
            tree, lambda node, so_far: self._choose(logit_NV, best_N, node, so_far)
        )
        path_K = torch.tensor(path, device=self._target.device)
        if path == list(range(len(path))):
            # Already where it belongs; so it is in all plain decoding.
            self._cache.truncate(n_past + len(path))
        else:
            self._cache.keep(n_past, path_K)
        self.token_ids += emitted
        self._stopwatch.lap("other")
        if self._drafter is not None:
            next_K = torch.tensor(emitted, device=self._target.device)
            self._drafter.extend(next_K, feature_ND[path_K])
            self._stopwatch.lap("draft")
        return emitted, tree, len(path) - 1

    def _draft(self) -> DraftTree:
        root_token = self.token_ids[-1]
        # The bonus token needs a place too.
        room = self._limit - len(self.token_ids) - 1
        if self._drafter is None or room < 1:
            return DraftTree.root_only(root_token)
        return self._drafter.propose(root_token, self._largest.within(room))

    def _verify(self, tree: DraftTree) -> Tensor:
        """One target forward over the tree: features ``[N, D]``."""
        device = self._target.device
        n_past, n_nodes = self._cache.length, len(tree)
        ids_1N = torch.tensor([tree.token_N], device=device)
        if n_nodes == 1:
            return self._target.features(ids_1N, cache=self._cache)[0]
        mask = self._mask[:, :, :n_nodes, : n_past + n_nodes]
        mask[..., :n_past] = True
        mask[0, 0, :, n_past:] = torch.from_numpy(tree.ancestors_NN()).to(device)
        position_1N = n_past + torch.tensor([tree.depth_N], device=device)
        return self._target.features(ids_1N, cache=self._cache, mask=mask, position_BT=position_1N)[
            0
        ]

    def _choose(
        self, logit_NV: Tensor, best_N: list[int] | None, node: int, so_far: list[int]
    ) -> int:
        if best_N is not None:
            return best_N[node]
        index = len(self.token_ids) - self.n_prompt + len(so_far)
        return self._sampler.choose(logit_NV[node], self.token_ids + so_far, index)
