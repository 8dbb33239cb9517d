"""What a run will take, from a few measured steps of it."""

from __future__ import annotations

import copy
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hasspec.draft import DraftHead
from hasspec.target import Target
from hasspec.training.batches import Batch, Example
from hasspec.training.feature_cache import FeatureCache
from hasspec.training.features import ComputedFeatures
from hasspec.training.recipe import Recipe
from hasspec.training.schedule import alignment_steps
from hasspec.training.trainer import Trainer

_WARM_UP, _MEASURED = 1, 3
# The state file: float32 weights and two moments of the optimiser.
_BYTES_A_WEIGHT_STORED = 12


@dataclass(frozen=True)
class Plan:
    """An estimate; times in seconds, sizes in bytes.

    Attributes:
        conversations, answer_tokens: what is trained on.
        steps, passes, epochs: optimiser steps, answer tokens seen in all of them, and how often
            each is seen.
        step_seconds: of one optimiser step with features at hand.
        feature_seconds: of the target's forwards: the missing ones of a cache, or of every step.
        validation_seconds: of all held-out measurements (without decoded prompts).
        peak_memory: of the measured steps, target included.
        cache_bytes: that the feature cache will grow by.
        run_bytes: of head and checkpoints.
    """

    conversations: int
    answer_tokens: int
    steps: int
    passes: float
    epochs: float
    step_seconds: float
    feature_seconds: float
    validation_seconds: float
    peak_memory: int
    cache_bytes: int
    run_bytes: int

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.steps * self.step_seconds + self.feature_seconds + self.validation_seconds


def plan(
    target: Target,
    examples: Sequence[Example],
    recipe: Recipe,
    *,
    cache: FeatureCache | None = None,
    init: DraftHead | None = None,
    held_out: Sequence[Example] = (),
) -> Plan:
    """Measure a few steps of a run in a folder that is thrown away, and extrapolate.

    Args:
        cache: the feature cache that the run would use; it is not written to.
        init: the head that the run would start from; not changed.
    """
    steps, aligned = recipe.optimisation.steps, recipe.alignment.steps
    n_delayed = sum(alignment_steps(recipe, step) < aligned for step in range(steps))
    measured: list[_Measured] = []
    with tempfile.TemporaryDirectory() as folder:
        for n_steps in (1, aligned) if n_delayed else (aligned,):
            source = _Timed(ComputedFeatures(target))
            trainer = Trainer(
                target,
                examples,
                source,
                _few_steps(recipe, n_steps),
                Path(folder) / str(n_steps),
                init=copy.deepcopy(init),
                held_out=held_out,
            )
            measured.append(_measure(trainer, source))
        began = time.perf_counter()
        if trainer.validation is not None:
            trainer.validation.measure(trainer.head, trainer.frequent_N, trainer.optimise.autocast)
        n_measurements = -(-steps // recipe.validation.every)
        validation_seconds = n_measurements * (time.perf_counter() - began)
    # Batches differ in length; how many tokens a step sees on average is known, not measured.
    answer_tokens = sum(len(example.root_R) for example in examples)
    batch = min(recipe.optimisation.batch, len(examples))
    passes = answer_tokens / len(examples) * batch
    delayed, later = measured[0].seconds_a_pass, measured[-1].seconds_a_pass
    seconds_a_pass = later + (delayed - later) * n_delayed / steps
    if cache is None:
        n_forward = (
            sum(len(example.token_T) for example in examples) / len(examples) * batch * steps
        )
        cache_bytes = 0
    else:
        n_forward = sum(len(example.token_T) for example in cache.missing(examples))
        cache_bytes = 2 * target.hidden_size * n_forward
    weights = sum(weight.numel() for weight in trainer.head.parameters())
    return Plan(
        conversations=len(examples),
        answer_tokens=answer_tokens,
        steps=steps,
        passes=passes * steps,
        epochs=passes * steps / answer_tokens,
        step_seconds=passes * seconds_a_pass,
        feature_seconds=n_forward * measured[-1].forward_seconds_a_token,
        validation_seconds=validation_seconds,
        peak_memory=peak_memory(target),
        cache_bytes=cache_bytes,
        run_bytes=weights * (_BYTES_A_WEIGHT_STORED + 2),
    )


@dataclass(frozen=True)
class _Measured:
    seconds_a_pass: float
    forward_seconds_a_token: float


def _few_steps(recipe: Recipe, n_steps: int) -> Recipe:
    few = recipe.model_copy(deep=True)
    few.alignment.steps, few.alignment.delay = n_steps, 0.0
    # The last step of a run measures held-out text: it is stopped before.
    few.optimisation.steps = few.validation.every = _WARM_UP + _MEASURED + 1
    few.checkpoint_minutes = 1e9
    return few


def _measure(trainer: Trainer, source: _Timed) -> _Measured:
    """Time of the steps after the warm-up, without and of the target's forwards."""
    marks: list[tuple[float, float, int, int]] = []

    def mark() -> bool:
        marks.append((time.perf_counter(), source.seconds, source.tokens, trainer.tokens))
        return len(marks) == _WARM_UP + _MEASURED

    trainer.train(interrupted=mark)
    elapsed, forward, tokens, passes = (
        after - before for before, after in zip(marks[_WARM_UP - 1], marks[-1], strict=True)
    )
    return _Measured((elapsed - forward) / passes, forward / tokens)


class _Timed:
    """A feature source that keeps the time it takes."""

    def __init__(self, source: ComputedFeatures):
        self._source = source
        self.seconds, self.tokens = 0.0, 0

    def features(self, batch: Batch) -> Tensor:
        began = time.perf_counter()
        feature_BTD = self._source.features(batch)
        if feature_BTD.device.type == "cuda":
            torch.cuda.synchronize(feature_BTD.device)
        self.seconds += time.perf_counter() - began
        self.tokens += sum(place.length for place in batch.places)
        return feature_BTD


def peak_memory(target: Target) -> int:
    """Most memory held so far, in bytes: of the GPU, or of this process."""
    if target.device.type == "cuda":
        return torch.cuda.max_memory_allocated(target.device)
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes if sys.platform == "darwin" else kilobytes * 1024
