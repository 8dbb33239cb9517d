"""Batches of conversations: which positions are roots, and in which order data is seen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor


class ConversationLike(Protocol):
    """Token ids and the half-open spans of them that the target wrote."""

    token_ids: Sequence[int]
    answer_spans: Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Example:
    """One training sequence: its tokens, and the roots of its alignment chains.

    A root r is a position from which decoding drafts: the target's feature at r is known and
    so is the token x_{r+1}, an answer token. Step j from r predicts x_{r+j+1}, so an answer
    span [s, e) has the roots s-1 .. e-3, and root r has ``e - 2 - r`` steps inside the span.
    """

    token_T: np.ndarray
    root_R: np.ndarray
    offset_R: np.ndarray  # how many roots of the same span come before


def example_of(conversation: ConversationLike, max_length: int) -> Example:
    """Cut a conversation to ``max_length`` and find its roots."""
    token_T = np.asarray(conversation.token_ids[:max_length], dtype=np.int64)
    roots: list[np.ndarray] = []
    offsets: list[np.ndarray] = []
    for start, end in conversation.answer_spans:
        first, last = max(start - 1, 0), min(end, len(token_T)) - 3
        if last >= first:
            roots.append(np.arange(first, last + 1))
            offsets.append(np.arange(last + 1 - first))
    empty = np.zeros(0, dtype=np.int64)
    return Example(
        token_T,
        np.concatenate(roots) if roots else empty,
        np.concatenate(offsets) if offsets else empty,
    )


@dataclass(frozen=True)
class Batch:
    """Right-padded examples.

    ``in_batch_M`` and ``in_root_M`` index ``[B, R]`` by the M true roots, example after example;
    ``offset_M`` counts the roots of the same span before each. Read as a *target* index, entry m
    is position ``root_M[m]``: step j reaches it from the root ``j - 1`` entries before, which
    exists when ``offset_M[m] >= j - 1``.
    """

    index_B: list[int]
    token_BT: Tensor
    length_B: list[int]
    root_BR: Tensor
    in_batch_M: Tensor
    in_root_M: Tensor
    root_M: Tensor
    offset_M: Tensor

    def valid_nM(self, n_steps: int) -> Tensor:
        """Bool ``[n, M]``: step j has a chain that ends at target index m."""
        step_n = torch.arange(n_steps, device=self.offset_M.device)
        return self.offset_M >= step_n[:, None]

    def by_target(self, drafted: list[Tensor]) -> Tensor:
        """Drafted features ``[B, R, D]`` of each step, ordered by target index: ``[n, M, D]``."""
        flat = []
        for step, drafted_BRD in enumerate(drafted):
            drafted_MD = drafted_BRD[self.in_batch_M, self.in_root_M]
            kept = drafted_MD[: drafted_MD.shape[0] - step]
            flat.append(torch.nn.functional.pad(kept, (0, 0, drafted_MD.shape[0] - len(kept), 0)))
        return torch.stack(flat)


def collate(
    examples: Sequence[Example], index_B: Sequence[int], device: torch.device | str
) -> Batch:
    """Pad the chosen examples into a batch on ``device``."""
    chosen = [examples[i] for i in index_B]
    longest = max(len(e.token_T) for e in chosen)
    most_roots = max(len(e.root_R) for e in chosen)
    token_BT = torch.zeros(len(chosen), longest, dtype=torch.long)
    root_BR = torch.zeros(len(chosen), most_roots, dtype=torch.long)
    for row, example in enumerate(chosen):
        token_BT[row, : len(example.token_T)] = torch.from_numpy(example.token_T)
        root_BR[row, : len(example.root_R)] = torch.from_numpy(example.root_R)
    counts = [len(e.root_R) for e in chosen]
    columns = np.concatenate([np.arange(count) for count in counts])
    return Batch(
        index_B=list(index_B),
        token_BT=token_BT.to(device),
        length_B=[len(e.token_T) for e in chosen],
        root_BR=root_BR.to(device),
        in_batch_M=torch.from_numpy(np.repeat(np.arange(len(chosen)), counts)).to(device),
        in_root_M=torch.from_numpy(columns).to(device),
        root_M=torch.from_numpy(np.concatenate([e.root_R for e in chosen])).to(device),
        offset_M=torch.from_numpy(np.concatenate([e.offset_R for e in chosen])).to(device),
    )


def batch_order(
    examples: Sequence[Example], batch: int, seed: int, *, start: int = 0
) -> Iterator[list[int]]:
    """Endless batches of example indices, from optimiser step ``start`` on.

    Each epoch is a fresh shuffle; within pools of 32 batches, examples of like length go
    together, so little is padded. The order is a function of the seed alone, so a resumed run
    sees what an uninterrupted one would have.
    """
    lengths = np.array([len(e.token_T) for e in examples])
    usable = np.flatnonzero([len(e.root_R) > 0 for e in examples])
    if len(usable) == 0:
        raise ValueError(
            "no conversation has an answer of three tokens or more to train on; check the "
            "answer spans of the data and max_length of the recipe"
        )
    batch = min(batch, len(usable))
    per_epoch = len(usable) // batch
    epoch, skipped = divmod(start, per_epoch)
    while True:
        rng = np.random.default_rng([seed, epoch])
        shuffled = rng.permutation(usable)[: per_epoch * batch]
        pools = [
            pool[np.argsort(lengths[pool], kind="stable")]
            for pool in np.split(shuffled, range(32 * batch, len(shuffled), 32 * batch))
        ]
        batches = np.concatenate(pools).reshape(per_epoch, batch)
        for position in rng.permutation(per_epoch)[skipped:]:
            yield batches[position].tolist()
        epoch, skipped = epoch + 1, 0
