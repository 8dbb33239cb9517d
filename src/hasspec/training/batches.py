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
class Place:
    """Where an example lies in a batch: row ``row``, tokens ``start`` to ``start + length``."""

    index: int
    row: int
    start: int
    length: int


@dataclass(frozen=True)
class Batch:
    """Examples in rows, one a row or several (*packed*); rows are right-padded.

    ``position_BT`` counts from 0 in each example and ``document_BT`` tells them apart; padding
    belongs to document -1. ``root_BR`` are places in the row.

    ``in_batch_M`` and ``in_root_M`` index ``[B, R]`` by the M true roots, row after row;
    ``place_M`` tells which of ``places`` each lies in, ``offset_M`` counts the roots of the same
    span before it. Read as a *target* index, entry m is token ``root_M[m]`` of its row: step j
    reaches it from the root ``j - 1`` entries before, which exists when ``offset_M[m] >= j - 1``.
    """

    places: list[Place]
    token_BT: Tensor
    position_BT: Tensor
    document_BT: Tensor
    root_BR: Tensor
    in_batch_M: Tensor
    in_root_M: Tensor
    root_M: Tensor
    place_M: Tensor
    offset_M: Tensor

    @property
    def packed(self) -> bool:
        """Whether any row holds more than one example."""
        return len(self.places) > len(self.token_BT)

    def sees_BQT(self, place_BQ: Tensor) -> Tensor:
        """Bool ``[B, Q, T]``: what each place of its row sees: its own example, not past itself."""
        place_T = torch.arange(self.token_BT.shape[1], device=self.token_BT.device)
        document_BQ = torch.take_along_dim(self.document_BT, place_BQ, dim=1)
        causal_BQT = place_T <= place_BQ[:, :, None]
        return causal_BQT & (self.document_BT[:, None, :] == document_BQ[:, :, None])

    def valid_nM(self, n_steps: int) -> Tensor:
        """Bool ``[n, M]``: step j has a chain that ends at target index m."""
        step_n = torch.arange(n_steps, device=self.offset_M.device)
        return self.offset_M >= step_n[:, None]

    def of_own_chain(self, of_target_M: Tensor) -> Tensor:
        """What the previous step of each chain had: the entry one target before, 0 for none."""
        return torch.cat([of_target_M.new_zeros(1), of_target_M[:-1]])

    def by_target(self, drafted: list[Tensor]) -> Tensor:
        """Drafted features ``[B, R, D]`` of each step, ordered by target index: ``[n, M, D]``."""
        flat = []
        for step, drafted_BRD in enumerate(drafted):
            drafted_MD = drafted_BRD[self.in_batch_M, self.in_root_M]
            kept = drafted_MD[: drafted_MD.shape[0] - step]
            flat.append(torch.nn.functional.pad(kept, (0, 0, drafted_MD.shape[0] - len(kept), 0)))
        return torch.stack(flat)


def collate(
    examples: Sequence[Example],
    index_B: Sequence[int],
    device: torch.device | str,
    *,
    packed: bool = False,
) -> Batch:
    """Lay the chosen examples out as a batch on ``device``.

    Args:
        packed: fill rows as long as the longest example with several shorter ones. Nothing that
            is learned changes, there is only less padding.
    """
    lengths = [len(examples[i].token_T) for i in index_B]
    rows = pack(lengths) if packed else [[i] for i in range(len(lengths))]
    n_roots = [sum(len(examples[index_B[i]].root_R) for i in row) for row in rows]
    token_BT = torch.zeros(len(rows), max(lengths), dtype=torch.long)
    position_BT, document_BT = token_BT.clone(), token_BT - 1
    root_BR = torch.zeros(len(rows), max(n_roots), dtype=torch.long)
    places: list[Place] = []
    offsets: list[np.ndarray] = []
    for row, members in enumerate(rows):
        start = first_root = 0
        for document, i in enumerate(members):
            example, length = examples[index_B[i]], lengths[i]
            here = slice(start, start + length)
            token_BT[row, here] = torch.from_numpy(example.token_T)
            position_BT[row, here] = torch.arange(length)
            document_BT[row, here] = document
            roots = torch.from_numpy(example.root_R + start)
            root_BR[row, first_root : first_root + len(roots)] = roots
            places.append(Place(index_B[i], row, start, length))
            offsets.append(example.offset_R)
            start, first_root = start + length, first_root + len(roots)
    in_batch_M = torch.from_numpy(np.repeat(np.arange(len(rows)), n_roots))
    in_root_M = torch.from_numpy(np.concatenate([np.arange(n) for n in n_roots]))
    return Batch(
        places=places,
        token_BT=token_BT.to(device),
        position_BT=position_BT.to(device),
        document_BT=document_BT.to(device),
        root_BR=root_BR.to(device),
        in_batch_M=in_batch_M.to(device),
        in_root_M=in_root_M.to(device),
        root_M=root_BR[in_batch_M, in_root_M].to(device),
        place_M=torch.repeat_interleave(torch.tensor([len(o) for o in offsets])).to(device),
        offset_M=torch.from_numpy(np.concatenate(offsets)).to(device),
    )


def pack(lengths: Sequence[int]) -> list[list[int]]:
    """Rows of examples, none longer than the longest example: first fit, longest first."""
    room = max(lengths)
    rows: list[list[int]] = []
    left: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        row = next((row for row, free in enumerate(left) if free >= lengths[i]), None)
        if row is None:
            row = len(rows)
            rows.append([])
            left.append(room)
        rows[row].append(i)
        left[row] -= lengths[i]
    return rows


def batch_order(
    examples: Sequence[Example], batch: int, seed: int, *, start: int = 0, pooled: bool = True
) -> Iterator[list[int]]:
    """Endless batches of example indices, from optimiser step ``start`` on.

    Each epoch is a fresh shuffle; *pooled*, examples of like length go together within pools of
    32 batches, so that little is padded. The order is a function of the seed alone, so a resumed
    run sees what an uninterrupted one would have.
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
        if pooled:
            pools = [
                pool[np.argsort(lengths[pool], kind="stable")]
                for pool in np.split(shuffled, range(32 * batch, len(shuffled), 32 * batch))
            ]
            shuffled = np.concatenate(pools)
        batches = shuffled.reshape(per_epoch, batch)
        for position in rng.permutation(per_epoch)[skipped:]:
            yield batches[position].tolist()
        epoch, skipped = epoch + 1, 0
