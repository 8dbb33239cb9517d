"""How a target's logits become the next token: the same way for every emitted token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import (
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
                self._processors.append(TopPLogitsWarper(sampling.top_p))

    def process(self, logit_V: Tensor, context_ids: Sequence[int]) -> Tensor:
        """Processed logits ``[V]`` in at least float32, given all tokens so far."""
        wide = torch.promote_types(logit_V.dtype, torch.float32)
        ids_1T = torch.tensor([list(context_ids)], device=logit_V.device)
        return self._processors(ids_1T, logit_V[None].to(wide))[0]

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


def invert(law_V: Tensor, uniform: float) -> int:
    """The token at ``uniform`` of the cumulative law; never one of probability 0."""
    cumulative_V = law_V.cumsum(0)
    threshold = uniform * cumulative_V[-1]
    token = int(torch.searchsorted(cumulative_V, threshold, right=True))
    # Rounding at the very end must not step past the last possible token.
    return min(token, int(law_V.nonzero()[-1, 0]))
