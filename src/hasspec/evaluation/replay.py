"""Acceptance on answers that the target has already written, without decoding them again.

Greedy decoding with any head says what the target says, so once the answer is known a round needs
no verification: the tree is drafted as ever, and the walk down it reads the answer instead of the
target's logits. The features come from one forward over the whole conversation. What remains is
the drafting, a small part of decoding; many heads and trees can be compared on whole prompt sets.

The rounds are those of :class:`hasspec.decoding.Decoder` at temperature 0, up to the rounding of
features (float32 on the tests' targets: exactly those). Times mean nothing here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from hasspec.data.store import Conversation
from hasspec.decoding import Round, TreeSpec
from hasspec.decoding.drafting import Drafter
from hasspec.decoding.tree import DraftTree
from hasspec.decoding.verification import accept
from hasspec.draft import DraftHead, DraftVocabulary
from hasspec.evaluation.acceptance import AcceptanceCounts
from hasspec.target import Target

_BEYOND_THE_END = -1


class Replay:
    """Replays answers with one head and one tree.

    Args:
        target: wrote the answers, at temperature 0.
        head: the draft head.
        tree: its draft tree.
        max_new_tokens: the limit under which the answers were written: near it trees are smaller.
        draft_vocab: as for :class:`hasspec.decoding.Decoder`.
    """

    def __init__(
        self,
        target: Target,
        head: DraftHead,
        tree: TreeSpec,
        *,
        max_new_tokens: int = 256,
        draft_vocab: Literal["head", "full"] = "head",
    ):
        self._target, self._head, self._tree = target, head, tree
        self._max_new_tokens = max_new_tokens
        ids_N = head.draft_vocab_N if draft_vocab == "head" else None
        self._vocabulary = DraftVocabulary(target, ids_N)

    def counts(self, conversation: Conversation, feature_TD: Tensor) -> AcceptanceCounts:
        """Acceptance over all answers of a conversation.

        Args:
            feature_TD: the target's features of all its tokens (:func:`conversation_features`).
        """
        total = AcceptanceCounts()
        for start, end in conversation.answer_spans:
            total += AcceptanceCounts.of(
                self.rounds(conversation.token_ids[:end], start, feature_TD)
            )
        return total

    def rounds(self, token_ids: Sequence[int], start: int, feature_TD: Tensor) -> Iterator[Round]:
        """The rounds that decode ``token_ids[start:]`` after ``token_ids[:start]``."""
        device = self._target.device
        limit = min(self._target.max_length, start + self._max_new_tokens)
        drafter = Drafter(self._target, self._head, self._vocabulary, limit, self._tree)
        with torch.inference_mode():
            first_T = torch.tensor(token_ids[1 : start + 1], device=device)
            drafter.extend(first_T, feature_TD[:start])
        yield Round(token_ids[start : start + 1], 0, 0, 1, is_prefill=True)
        root = start
        while root + 1 < len(token_ids):
            with torch.inference_mode():
                tree = self._propose(drafter, token_ids[root], limit - root - 2)
            answer = [*token_ids[root + 1 :], _BEYOND_THE_END]
            path, emitted = accept(tree, lambda _, so_far, rest=answer: rest[len(so_far)])
            kept = [token for token in emitted if token != _BEYOND_THE_END]
            yield Round(kept, len(path) - 1, max(tree.depth_N), len(tree))
            following = root + len(kept)
            if following + 1 < len(token_ids):
                with torch.inference_mode():
                    next_K = torch.tensor(token_ids[root + 1 : following + 1], device=device)
                    drafter.extend(next_K, feature_TD[root:following])
            root = following

    def _propose(self, drafter: Drafter, root_token: int, room: int) -> DraftTree:
        if room < 1:
            return DraftTree.root_only(root_token)
        return drafter.propose(root_token, self._tree.within(room))


def conversation_features(target: Target, conversation: Conversation) -> Tensor:
    """The target's features of a whole conversation, ``[T, D]``."""
    ids_1T = torch.tensor([conversation.token_ids], device=target.device)
    with torch.inference_mode():
        return target.features(ids_1T)[0]
