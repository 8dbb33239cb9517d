"""Which tokens are frequent in the training answers, and the output layer of a training step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from hasspec.target import Target
from hasspec.training.batches import Example
from hasspec.training.objectives import OutputLayer


def answer_token_counts(examples: Sequence[Example], vocab_size: int) -> np.ndarray:
    """How often each token is predicted in training (int64 ``[V]``)."""
    count_V = np.zeros(vocab_size, dtype=np.int64)
    for example in examples:
        count_V += np.bincount(example.token_T[example.root_R + 2], minlength=vocab_size)
    return count_V


def frequent_tokens(count_V: np.ndarray, n: int) -> tuple[Tensor, float]:
    """The n most frequent token ids, ascending, and the share of all occurrences they cover.

    Ties go to the lower id, which byte-pair vocabularies give to the more common token.
    """
    order = np.argsort(-count_V, kind="stable")[:n]
    coverage = float(count_V[order].sum() / max(count_V.sum(), 1))
    return torch.from_numpy(np.sort(order)), coverage


class TrainingVocabulary:
    """The output layer of each optimiser step.

    Args:
        target: whose ``lm_head`` is used.
        frequent_N: token ids that are always in; None for the whole vocabulary.
        n_sampled: random others a step, each standing for its share of the rest; 0 leaves the
            rest out.
        seed: with the step, decides the sample.
    """

    def __init__(self, target: Target, frequent_N: Tensor | None, n_sampled: int, seed: int):
        self._target, self._seed = target, seed
        self._frequent_N = frequent_N
        if frequent_N is None:
            self._rest_N, self._n_sampled = torch.zeros(0, dtype=torch.long), 0
            return
        out = torch.ones(target.vocab_size, dtype=torch.bool)
        out[frequent_N] = False
        self._rest_N = out.nonzero()[:, 0]
        self._n_sampled = min(n_sampled, len(self._rest_N))

    def layer(self, step: int) -> OutputLayer:
        """The output layer of optimiser step ``step``, the same whenever it is asked for."""
        weight_VD, bias_V = self._target.head_weight, self._target.head_bias
        if self._frequent_N is None:
            return OutputLayer(weight_VD, bias_V)
        ids_N = self._frequent_N
        offset_N = torch.zeros(len(ids_N))
        if self._n_sampled:
            rng = np.random.default_rng([self._seed, step, 1])
            chosen = rng.choice(len(self._rest_N), self._n_sampled, replace=False, shuffle=False)
            ids_N = torch.cat([ids_N, self._rest_N[torch.from_numpy(chosen)]])
            stands_for = np.log(len(self._rest_N) / self._n_sampled)
            offset_N = torch.cat([offset_N, torch.full((self._n_sampled,), float(stands_for))])
        ids_N = ids_N.to(weight_VD.device)
        offset_N = offset_N.to(weight_VD)
        bias_N = offset_N if bias_V is None else offset_N + bias_V[ids_N]
        return OutputLayer(weight_VD[ids_N], bias_N, ids_N)
