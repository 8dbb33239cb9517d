"""Acceptance of many heads on the same answers, and what may be said of their differences."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hasspec.data.store import Conversation, TokenStore
from hasspec.decoding import TreeSpec
from hasspec.draft import DraftHead
from hasspec.evaluation.acceptance import AcceptanceCounts
from hasspec.evaluation.bootstrap import Interval
from hasspec.evaluation.replay import Replay, conversation_features
from hasspec.target import Target

# By tree and by set of answers: (emitted, forwards) of each conversation, and n-alpha over all.
Results = dict[str, dict[str, dict[str, Any]]]


class AnswerSets:
    """Answers that the target wrote at temperature 0, with its features, to replay heads on.

    Args:
        target: wrote them.
        stores: a token store each; a set is called by its folder's name.
        conversations: of each at most so many.

    Raises:
        ValueError: answers that were sampled, or written by another target; two sets of one name.
    """

    def __init__(self, target: Target, stores: Sequence[Path], conversations: int | None = None):
        self._target = target
        self._sets: dict[str, list[tuple[Conversation, torch.Tensor]]] = {}
        for path in stores:
            store = TokenStore.open(path)
            about = store.metadata
            if about.target["fingerprint"] != target.fingerprint():
                raise ValueError(
                    f"the answers in {path} were written by another target; acceptance needs this "
                    "target's own: write them with hasspec synth --temperature 0"
                )
            if about.settings.get("answers", {}).get("temperature") != 0:
                raise ValueError(
                    f"the answers in {path} were not written at temperature 0, where a head can be "
                    "measured on them without decoding; write them with hasspec synth"
                )
            if path.name in self._sets:
                raise ValueError(f"two sets of answers are called {path.name!r}; rename a folder")
            self._sets[path.name] = [
                (conversation, conversation_features(target, conversation))
                for conversation in itertools.islice(store, conversations)
            ]

    def measure(self, head: DraftHead, trees: Sequence[TreeSpec]) -> Results:
        """Replay every conversation with every tree."""
        found: Results = {}
        for tree in trees:
            replay = Replay(self._target, head, tree)
            for name, conversations in self._sets.items():
                counts = [replay.counts(c, feature_TD) for c, feature_TD in conversations]
                found.setdefault(str(tree), {})[name] = {
                    "rounds": [(one.emitted, one.forwards) for one in counts],
                    "alpha": sum(counts, AcceptanceCounts()).alpha,
                }
        return found


@dataclass(frozen=True)
class Comparison:
    """Acceptance of a cell against another's, on one tree.

    Attributes:
        tau: of each set of answers, all seeds together.
        mean_tau: unweighted mean over the sets.
        ratio: of the mean tau to the other cell's, resampled over conversations (the same of both)
            within each set; None for the cell that others are compared with.
        ratio_S: the same ratio of each seed.
        alpha: n-alpha by depth, mean over sets and seeds.
    """

    tau: dict[str, float]
    mean_tau: float
    ratio: Interval | None
    ratio_S: list[float]
    alpha: list[float | None]

    @property
    def verdict(self) -> str:
        """What the numbers allow to say."""
        if self.ratio is None:
            return "baseline"
        if not self.ratio.differs_from_one:
            return "no difference shown"
        if len(self.ratio_S) < 2:
            return f"{'better' if self.ratio.median > 1 else 'worse'}, one seed"
        if len({ratio > 1 for ratio in self.ratio_S}) > 1:
            return "seeds disagree"
        return "better" if self.ratio.median > 1 else "worse"


def compare(
    cell_S: Sequence[Mapping[str, Any]],
    rival_S: Sequence[Mapping[str, Any]] | None,
    *,
    seed: int = 0,
    resamples: int = 4000,
) -> Comparison:
    """Compare two cells on one tree.

    Args:
        cell_S: by seed, what :meth:`AnswerSets.measure` found for the tree.
        rival_S: the other cell's, of the same seeds; None for the baseline itself.
    """
    sets = list(cell_S[0])
    tau = {name: _tau(_rounds(cell_S, name)) for name in sets}
    ratio, ratio_S = None, []
    if rival_S is not None:
        rng = np.random.default_rng(seed)
        mean_R, rival_R = np.zeros(resamples), np.zeros(resamples)
        for name in sets:
            ours_SP2, theirs_SP2 = _rounds(cell_S, name), _rounds(rival_S, name)
            n = ours_SP2.shape[1]
            drawn_RP = rng.integers(n, size=(resamples, n))
            for sum_R, of_SP2 in ((mean_R, ours_SP2), (rival_R, theirs_SP2)):
                emitted_P, forwards_P = of_SP2.sum(axis=0).T
                sum_R += emitted_P[drawn_RP].sum(axis=1) / forwards_P[drawn_RP].sum(axis=1)
        low, median, high = np.quantile(mean_R / rival_R, [0.025, 0.5, 0.975])
        smallest = min(_rounds(cell_S, name).shape[1] for name in sets)
        ratio = Interval(float(median), float(low), float(high), smallest)
        ratio_S = [
            sum(_tau(_rounds([ours], name)) for name in sets)
            / sum(_tau(_rounds([theirs], name)) for name in sets)
            for ours, theirs in zip(cell_S, rival_S, strict=True)
        ]
    return Comparison(tau, sum(tau.values()) / len(tau), ratio, ratio_S, _alpha(cell_S))


def _rounds(cell_S: Sequence[Mapping[str, Any]], name: str) -> np.ndarray:
    """Emitted tokens and forwards, ``[S, P, 2]``."""
    return np.array([of_seed[name]["rounds"] for of_seed in cell_S], dtype=np.float64)


def _tau(rounds_SP2: np.ndarray) -> float:
    emitted, forwards = rounds_SP2.sum(axis=(0, 1))
    return float(emitted / forwards)


def _alpha(cell_S: Sequence[Mapping[str, Any]]) -> list[float | None]:
    all_alphas = [of_set["alpha"] for of_seed in cell_S for of_set in of_seed.values()]
    by_depth = itertools.zip_longest(*all_alphas)
    known = [[alpha for alpha in of_depth if alpha is not None] for of_depth in by_depth]
    return [sum(alphas) / len(alphas) if alphas else None for alphas in known]
