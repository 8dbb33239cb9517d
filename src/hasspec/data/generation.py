"""Continuous batched generation with the target.

R rows decode together; a row that ends is refilled with the next conversation, and the prompts of
the refilled rows are prefilled together, right-padded. Nothing of a conversation depends on which
others share its batch, except for rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from hasspec.data.sampling import sample, uniform_noise
from hasspec.target import RaggedCache, Target

# Most tokens, padding included, of one prefill forward: bounds its activations.
_PREFILL_TOKENS = 2048


@dataclass(frozen=True)
class Stage:
    """One stretch that the target is to write.

    Attributes:
        ids: everything before it.
        max_new_tokens: most tokens to write.
        stop_ids: ids that end it; the id itself is kept as its last token.
        temperature: 0 for the most likely token.
        top_p: mass of the nucleus, 1 for all tokens.
        noise_key: identifies the random numbers: the same key, the same numbers.
    """

    ids: list[int]
    max_new_tokens: int
    stop_ids: frozenset[int]
    temperature: float = 0.0
    top_p: float = 1.0
    noise_key: tuple[object, ...] = ()


class Script(Protocol):
    """A conversation in progress: what to write first, and what after that."""

    def first(self) -> Stage: ...

    def following(self, written: list[int], finish: str) -> Stage | None:
        """The next stage after ``written`` ended by ``"eos"``, ``"length"`` or ``"context"``.

        A stage whose ids go on from what the row holds is continued on the row's cache.
        """
        ...


S = TypeVar("S", bound=Script)


@dataclass(eq=False)
class _Row(Generic[S]):
    """What one row of the batch is writing."""

    slot: int
    script: S
    stage: Stage
    n_cached: int = 0
    written: list[int] = field(default_factory=list)
    noise: list[float] = field(default_factory=list)
    finish: str = ""

    def start(self, stage: Stage) -> None:
        held = (self.stage.ids + self.written)[: self.n_cached]
        if stage.ids[: self.n_cached] != held or len(stage.ids) == self.n_cached:
            self.n_cached = 0
        self.stage, self.written, self.finish = stage, [], ""
        self.noise = (
            uniform_noise(stage.max_new_tokens, *stage.noise_key) if stage.temperature > 0 else []
        )

    def take(self, token: int, capacity: int) -> bool:
        """Add a token; True if the stage ends with it."""
        self.written.append(token)
        if token in self.stage.stop_ids:
            self.finish = "eos"
        elif len(self.written) >= self.stage.max_new_tokens:
            self.finish = "length"
        elif len(self.stage.ids) + len(self.written) >= capacity:
            self.finish = "context"
        return bool(self.finish)


def generate(
    target: Target,
    next_script: Callable[[], S | None],
    *,
    rows: int,
    capacity: int,
    refill: int = 1,
) -> Iterator[S]:
    """Run scripts to their ends, ``rows`` at a time, and yield each as it ends.

    Args:
        target: the model.
        next_script: gives the next conversation; None for none now (it is asked again, and the
            run is over when it gives none while no row is busy).
        rows: conversations decoded together.
        capacity: most tokens of a conversation; one that reaches it ends with ``"context"``.
        refill: ready rows that are waited for, so that their prompts are prefilled together.

    Raises:
        ValueError: a stage that leaves no room within ``capacity``, or asks for no tokens.
    """
    return _Batch(target, rows, capacity, min(refill, rows)).run(next_script)


class _Batch(Generic[S]):
    def __init__(self, target: Target, rows: int, capacity: int, refill: int):
        if rows < 1:
            raise ValueError(f"rows must be at least 1, got {rows}")
        self.target = target
        self.rows, self.capacity = rows, capacity
        self.refill = refill
        self.cache = RaggedCache(target.n_layers, rows, capacity)
        self.cache.length_R = self.cache.length_R.to(target.device)
        self.last_R = torch.zeros(rows, dtype=torch.long, device=target.device)
        self.free = list(range(rows))
        self.waiting: list[_Row[S]] = []
        self.decoding: list[_Row[S]] = []
        self.busy: list[int] = []

    @torch.inference_mode()
    def run(self, next_script: Callable[[], S | None]) -> Iterator[S]:
        while True:
            if len(self.waiting) + len(self.free) >= self.refill or not self.decoding:
                self._fill(next_script)
                if self.waiting:
                    ended = self._prefill()
                elif self.decoding:
                    ended = self._decode()
                else:
                    return
            else:
                ended = self._decode()
            for row in ended:
                self.decoding.remove(row)
                stage = row.script.following(row.written, row.finish)
                if stage is None:
                    self.free.append(row.slot)
                    self.cache.clear(torch.tensor([row.slot], device=self.target.device))
                    yield row.script
                else:
                    self._start(row, stage)

    def _fill(self, next_script: Callable[[], S | None]) -> None:
        self.free.sort(reverse=True)
        while self.free:
            script = next_script()
            if script is None:
                return
            stage = script.first()
            self._start(_Row(self.free.pop(), script, stage), stage)

    def _start(self, row: _Row[S], stage: Stage) -> None:
        if not 0 < len(stage.ids) < self.capacity or stage.max_new_tokens < 1:
            raise ValueError(
                f"a prompt of {len(stage.ids)} tokens with {stage.max_new_tokens} new ones asked "
                f"for does not fit: expected 1 to {self.capacity - 1} tokens and at least 1 new"
            )
        row.start(stage)
        self.waiting.append(row)

    def _prefill(self) -> list[_Row[S]]:
        ended = []
        # Rows of like length share a forward, for every row is padded to the longest.
        self.waiting.sort(key=lambda row: (row.n_cached > 0, len(row.stage.ids) - row.n_cached))
        while self.waiting:
            group = [self.waiting.pop()]
            longest = group[0].n_cached
            width = len(group[0].stage.ids) - longest
            while self.waiting and (len(group) + 1) * width <= _PREFILL_TOKENS:
                candidate = self.waiting[-1]
                if bool(candidate.n_cached) != bool(group[0].n_cached):
                    break
                # Padding is written too, so the widest prompt must fit behind the longest row.
                if max(longest, candidate.n_cached) + width > self.capacity:
                    break
                longest = max(longest, candidate.n_cached)
                group.append(self.waiting.pop())
            ended += self._prefill_group(group, width)
        self.decoding.sort(key=lambda row: row.slot)
        return ended

    def _prefill_group(self, group: list[_Row[S]], width: int) -> list[_Row[S]]:
        feeds = [row.stage.ids[row.n_cached :] for row in group]
        ids_BT = torch.stack([self._ids(feed + [0] * (width - len(feed))) for feed in feeds])
        count_B = self._ids(len(feed) for feed in feeds)
        slot_B = self._ids(row.slot for row in group)
        start_B = self._ids(row.n_cached for row in group)
        self.cache.length_R[slot_B] = start_B
        self.cache.select(slot_B)
        self.busy = []
        feature_BTD = self.target.features(
            ids_BT,
            cache=self.cache,
            mask=self.cache.mask(width),
            position_BT=start_B[:, None] + torch.arange(width, device=self.target.device),
        )
        self.cache.advance(count_B)
        for row in group:
            row.n_cached = len(row.stage.ids)
        self.decoding += group
        last_B = torch.arange(len(group), device=self.target.device)
        return self._emit(group, slot_B, feature_BTD[last_B, count_B - 1])

    def _decode(self) -> list[_Row[S]]:
        group = self.decoding
        busy = [row.slot for row in group]
        # All slots together read the cache in place, a part of them a copy of it: a few idle
        # slots are cheaper to carry along.
        carry = len(group) * 2 >= self.rows
        if self.busy != busy:
            self.busy = busy
            self.busy_B = self._ids(busy)
            idle = sorted(set(range(self.rows)) - set(busy))
            held = {row.slot: row.n_cached for row in self.waiting}
            self.idle_I = self._ids(idle)
            self.held_I = self._ids([held.get(slot, 0) for slot in idle])
            self.cache.length_R[self.idle_I] = self.held_I
            self.cache.select(self._ids(range(self.rows)) if carry else self.busy_B)
        slot_B = self.cache.row_B
        feature_BTD = self.target.features(
            self.last_R[slot_B][:, None],
            cache=self.cache,
            mask=self.cache.mask(1),
            position_BT=self.cache.length_R[slot_B][:, None],
        )
        self.cache.advance(torch.ones_like(slot_B))
        # What an idle slot wrote lies behind what it holds, where its next prompt is written.
        self.cache.length_R[self.idle_I] = self.held_I
        for row in group:
            row.n_cached += 1
        feature_BD = feature_BTD[:, 0]
        return self._emit(group, self.busy_B, feature_BD[self.busy_B] if carry else feature_BD)

    def _emit(self, group: list[_Row[S]], slot_B: Tensor, feature_BD: Tensor) -> list[_Row[S]]:
        logit_BV = self.target.logits(feature_BD)
        # max is several times faster than argmax here, with the same first-of-equals rule.
        token_B = logit_BV.max(dim=-1).indices
        hot = [index for index, row in enumerate(group) if row.stage.temperature > 0]
        if hot:
            rows = [group[index] for index in hot]
            hot_H = torch.tensor(hot, device=logit_BV.device)
            per_row = torch.tensor(
                [(r.stage.temperature, r.stage.top_p, r.noise[len(r.written)]) for r in rows],
                device=logit_BV.device,
            )
            token_B[hot_H] = sample(logit_BV[hot_H], *per_row.unbind(-1))
        self.last_R[slot_B] = token_B
        return [
            row
            for row, token in zip(group, token_B.tolist(), strict=True)
            if row.take(token, self.capacity)
        ]

    def _ids(self, values: Iterable[int]) -> Tensor:
        return torch.tensor(list(values), dtype=torch.long, device=self.target.device)
