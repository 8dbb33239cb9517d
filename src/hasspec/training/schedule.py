"""What changes from one optimiser step to the next: learning rate, alignment steps."""

from __future__ import annotations

import math

from hasspec.training.recipe import Optimisation, Recipe


def learning_rate(optimisation: Optimisation, step: int) -> float:
    """Learning rate of the ``step``-th (from 0) optimiser step: warm-up, then decay to zero."""
    warmup = max(1, round(optimisation.warmup * optimisation.steps))
    if step < warmup:
        return optimisation.lr * (step + 1) / warmup
    left = (optimisation.steps - step) / max(1, optimisation.steps - warmup)
    if optimisation.schedule == "cosine":
        left = 0.5 * (1 - math.cos(math.pi * left))
    return optimisation.lr * left


def alignment_steps(recipe: Recipe, step: int) -> int:
    """Alignment steps n of the ``step``-th (from 0) optimiser step.

    A beginner's own features are noise; ``alignment.delay`` spends its first steps on n = 1.
    """
    delayed = step < recipe.alignment.delay * recipe.optimisation.steps
    return 1 if delayed else recipe.alignment.steps
