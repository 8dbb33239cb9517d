"""How a target's logits become the next token: the same way for every emitted token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)


@dataclass(frozen=True)
class Sampling:
    """Sampling parameters; each means what it means in transformers.

    Attributes:
        temperature: 0 is greedy.
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: keep the smallest set of tokens with this probability; 1 keeps all.
        repetition_penalty: above 1 makes tokens of the context less likely.
        seed: with the position in the answer, decides every draw.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        problems = []
        if not 0 <= self.temperature < float("inf"):
            problems.append(f"temperature must be 0 or more, got {self.temperature}")
        if self.top_k < 0:
            problems.append(f"top_k must be 0 (off) or more, got {self.top_k}")
        if not 0 < self.top_p <= 1:
            problems.append(f"top_p must be in (0, 1], got {self.top_p}")
        if not 0 < self.repetition_penalty < float("inf"):
            problems.append(f"repetition_penalty must be positive, got {self.repetition_penalty}")
        if self.seed < 0:
            problems.append(f"seed must be 0 or more, got {self.seed}")
        if problems:
            raise ValueError("; ".join(problems))

    @property
    def is_plain_argmax(self) -> bool:
        """Whether the next token is the argmax of the raw logits."""
        return self.temperature == 0 and self.repetition_penalty == 1


class Sampler:
    """Draws one token at a time from processed distributions.

    The draw for the i-th answer token uses one uniform number that is a function of (seed, i)
    alone, by inversion of the cumulative distribution. So the tokens do not depend on how they
    were grouped into rounds: plain and speculative decoding with one seed agree token by token.
    """

    def __init__(self, sampling: Sampling):
        self.sampling = sampling
        self._processors = LogitsProcessorList()
        if sampling.repetition_penalty != 1:
            self._processors.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
        if sampling.temperature > 0:
            if sampling.temperature != 1:
                self._processors.append(TemperatureLogitsWarper(sampling.temperature))
            if sampling.top_k:
                self._processors.append(TopKLogitsWarper(sampling.top_k))
            if sampling.top_p < 1:
                self._processors.append(Nucleus(sampling.top_p))

    def process(self, logit_V: Tensor, context_ids: Sequence[int]) -> Tensor:
        """Processed logits ``[V]`` in at least float32, given all tokens so far."""
        wide_1V = logit_V[None].to(torch.promote_types(logit_V.dtype, torch.float32))
        seen = context_ids if self.sampling.repetition_penalty != 1 else ()
        ids_1T = torch.tensor([list(seen)], dtype=torch.long, device=logit_V.device)
        return self._processors(ids_1T, wide_1V)[0]

    def probabilities(self, logit_V: Tensor, context_ids: Sequence[int]) -> Tensor:
        """The law of the next token, float64 ``[V]``; at temperature 0 all on one token."""
        processed_V = self.process(logit_V, context_ids)
        if self.sampling.temperature == 0:
            law_V = torch.zeros_like(processed_V, dtype=torch.float64)
            law_V[processed_V.argmax()] = 1.0
            return law_V
        return torch.softmax(processed_V.double(), dim=-1)

    def choose(self, logit_V: Tensor, context_ids: Sequence[int], index: int) -> int:
        """The ``index``-th token of the answer (from 0)."""
        if self.sampling.temperature == 0:
            return int(self.process(logit_V, context_ids).argmax())
        return invert(self.probabilities(logit_V, context_ids), self.uniform(index))

    def uniform(self, index: int) -> float:
        """The uniform number in [0, 1) of answer token ``index``."""
        return float(np.random.default_rng([self.sampling.seed, index]).random())


class Nucleus(LogitsProcessor):
    """Top-p as in transformers, which sorts the whole vocabulary; here only its head is.

    A token stays if the tokens more likely than it have less than ``top_p`` in all.

    Args:
        top_p: probability to keep, in (0, 1).
        head: how many of the most likely tokens are tried first; if they have too little
            probability, transformers' own processor does the work.
    """

    def __init__(self, top_p: float, head: int = 1024):
        self._top_p, self._head = top_p, head
        self._whole = TopPLogitsWarper(top_p)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores ``[1, V]`` with those outside the nucleus at minus infinity."""
        value_1K, index_1K = scores.topk(min(self._head, scores.shape[-1]), dim=-1)
        law_1K = (value_1K - scores.logsumexp(-1, keepdim=True)).exp()
        above_1K = law_1K.cumsum(-1) - law_1K
        if above_1K[0, -1] < self._top_p and scores.shape[-1] > self._head:
            return self._whole(input_ids, scores)
        kept_1K = value_1K.masked_fill(above_1K >= self._top_p, -torch.inf)
        return torch.full_like(scores, -torch.inf).scatter(-1, index_1K, kept_1K)


def invert(law_V: Tensor, uniform: float) -> int:
    """The token at ``uniform`` of the cumulative law; never one of probability 0."""
    cumulative_V = law_V.cumsum(0)
    token = int(torch.searchsorted(cumulative_V, uniform * cumulative_V[-1], right=True))
    if token < len(law_V):
        return token
    # Rounding stepped past the very end, and so past the last possible token.
    return int(law_V.nonzero()[-1, 0])
