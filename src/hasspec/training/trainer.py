"""The training loop: deterministic in its seed, interruptible, resumable."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hasspec.draft import DraftConfig, DraftHead, save_head
from hasspec.files import sole_writer
from hasspec.target import Target
from hasspec.training.batches import Example, batch_order, collate
from hasspec.training.features import FeatureSource
from hasspec.training.optimiser import optimisers_of
from hasspec.training.recipe import Optimisation, Recipe
from hasspec.training.run_folder import RunFolder
from hasspec.training.step import StepSums, training_loss
from hasspec.training.validation import ChainAcceptance, Validation
from hasspec.training.vocabulary import TrainingVocabulary, answer_token_counts, frequent_tokens


@dataclass(frozen=True)
class Progress:
    """What one logged step reports; losses and accuracies per alignment step, per token.

    ``held_out`` is there at the steps that measure it, see :class:`Validation`.
    """

    step: int
    steps: int
    loss: float
    accuracy: list[float]
    tokens_per_second: float
    seconds_left: float
    record: dict[str, Any]
    held_out: ChainAcceptance | None = None


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


def new_head(target: Target, seed: int) -> DraftHead:
    """A head whose weights the seed decides.

    Small random weights, plus the identity from the incoming feature to the row: the head
    starts from "the next feature is like this one", which learns faster than from noise.
    """
    head = DraftHead(DraftConfig.from_target(target.config))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in head.parameters():
            if weight.dim() == 2:
                weight.normal_(0.0, 0.02, generator=generator)
        width = head.config.hidden_size
        head.fc.weight[:, width:] += torch.eye(width)
    return head.to(target.device)


class Trainer:
    """Trains one head on one data set.

    Args:
        target: frozen; its features, embedding and output layer are used.
        examples: the training sequences.
        features: where their features come from.
        recipe: every knob.
        out: folder of the head and of its run; resumed if it holds an interrupted run.
        provenance: what to record about target and data.
        init: a head to start from instead of random weights.
        held_out: conversations that are none of ``examples``, to measure acceptance on.
    """

    def __init__(
        self,
        target: Target,
        examples: Sequence[Example],
        features: FeatureSource,
        recipe: Recipe,
        out: Path,
        *,
        provenance: dict[str, Any] | None = None,
        init: DraftHead | None = None,
        held_out: Sequence[Example] = (),
    ):
        self.target, self.examples, self.features, self.recipe = target, examples, features, recipe
        self.provenance = provenance or {}
        self.run = RunFolder(out)
        state = self.run.start(recipe, self.provenance)
        self.head = (init or new_head(target, recipe.seed)).float().train().requires_grad_(True)
        self.optimisers = optimisers_of(self.head, recipe.optimisation)
        self.step, self.tokens = 0, 0
        self.last_held_out: dict[str, Any] | None = None
        if state is not None:
            self.head.load_state_dict(state["head"])
            for optimiser, stored in zip(self.optimisers, state["optimisers"], strict=True):
                optimiser.load_state_dict(stored)
            self.step, self.tokens = state["step"], state["tokens"]
            self.last_held_out = state["held_out"]
            self.run.forget_after(self.step)
        self.frequent_N, self.coverage = self._frequent()
        self.vocabulary = TrainingVocabulary(
            target, self.frequent_N, recipe.vocabulary.sampled, recipe.seed
        )
        self.validation = (
            Validation(target, held_out, recipe.validation.depth) if held_out else None
        )

    def train(
        self,
        *,
        on_progress: Callable[[Progress], None] | None = None,
        interrupted: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Train to the end of the recipe.

        Args:
            on_progress: called at every logged step.
            interrupted: asked after every step; True saves the state and returns.

        Returns:
            True when finished and the head is written, False when interrupted.

        Raises:
            ValueError: another process trains into the same folder.
        """
        with sole_writer(self.run.folder):
            return self._train(on_progress, interrupted)

    def _train(
        self, on_progress: Callable[[Progress], None] | None, interrupted: Callable[[], bool]
    ) -> bool:
        recipe = self.recipe
        order = batch_order(
            self.examples,
            recipe.optimisation.batch,
            recipe.seed,
            start=self.step,
            pooled=not recipe.optimisation.packed,
        )
        saved = logged = started = time.monotonic()
        first, tokens_logged = self.step, self.tokens
        while self.step < recipe.optimisation.steps:
            loss, sums = self._optimise(next(order))
            held_out = self._validate()
            last = self.step == recipe.optimisation.steps
            if self.step % recipe.log_every == 0 or held_out or last:
                now = time.monotonic()
                rate = (self.tokens - tokens_logged) / max(now - logged, 1e-9)
                logged, tokens_logged = now, self.tokens
                pace = (now - started) / (self.step - first)
                left = pace * (recipe.optimisation.steps - self.step)
                progress = self._progress(loss, sums, rate, left, held_out)
                self.run.log(progress.record)
                if on_progress:
                    on_progress(progress)
            stop = interrupted()
            if stop or time.monotonic() - saved > 60 * recipe.checkpoint_minutes:
                self.save()
                saved = time.monotonic()
            if stop:
                return False
        self.save()
        self._write_head()
        return True

    def save(self) -> None:
        """Write the state that a later run resumes from."""
        self.run.save_state(
            {
                "head": self.head.state_dict(),
                "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
                "step": self.step,
                "tokens": self.tokens,
                "held_out": self.last_held_out,
            }
        )

    def _optimise(self, index_B: list[int]) -> tuple[Tensor, StepSums]:
        recipe = self.recipe
        batch = collate(
            self.examples, index_B, self.target.device, packed=recipe.optimisation.packed
        )
        feature_BTD = self.features.features(batch)
        with self._autocast():
            loss, sums = training_loss(
                self.head,
                self.target,
                batch,
                feature_BTD,
                self.vocabulary.layer(self.step),
                recipe.alignment,
                recipe.objective,
                n_steps=alignment_steps(recipe, self.step),
                noise_BTD=self._noise(feature_BTD),
            )
        self.head.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.head.parameters(), recipe.optimisation.clip)
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(recipe.optimisation, self.step)
            optimiser.step()
        self.step += 1
        self.tokens += len(batch.root_M)
        return loss.detach(), sums

    def _autocast(self) -> torch.autocast:
        enabled = self.recipe.precision == "bfloat16"
        return torch.autocast(self.target.device.type, torch.bfloat16, enabled=enabled)

    def _validate(self) -> ChainAcceptance | None:
        due = (
            self.step % self.recipe.validation.every == 0
            or self.step == self.recipe.optimisation.steps
        )
        if self.validation is None or not due:
            return None
        return self.validation.measure(self.head, self.frequent_N, self._autocast)

    def _noise(self, feature_BTD: Tensor) -> Tensor | None:
        width = self.recipe.optimisation.feature_noise
        if not width:
            return None
        generator = torch.Generator(device=feature_BTD.device)
        generator.manual_seed((self.recipe.seed << 32) + self.step)
        uniform = torch.rand(
            feature_BTD.shape,
            generator=generator,
            device=feature_BTD.device,
            dtype=feature_BTD.dtype,
        )
        return (2 * uniform - 1) * width

    def _frequent(self) -> tuple[Tensor | None, float]:
        n_drafted = self.recipe.vocabulary.drafted
        if not n_drafted or n_drafted >= self.target.vocab_size:
            return None, 1.0
        count_V = answer_token_counts(self.examples, self.target.vocab_size)
        return frequent_tokens(count_V, n_drafted)

    def _progress(
        self,
        loss: Tensor,
        sums: StepSums,
        rate: float,
        seconds_left: float,
        held_out: ChainAcceptance | None,
    ) -> Progress:
        count_n = sums.count_n.clamp(min=1)
        accuracy = (sums.hit_n / count_n).tolist()
        record = {
            "step": self.step,
            "tokens": self.tokens,
            "loss": loss.item(),
            "feature": (sums.feature_n / count_n).tolist(),
            "ce": (sums.ce_n / count_n).tolist(),
            "top_k": (sums.top_k_n / count_n).tolist(),
            "accuracy": accuracy,
            "lr": self.optimisers[0].param_groups[0]["lr"],
        }
        if held_out:
            record["held_out"] = {"alpha": held_out.alpha, "chain_tau": held_out.chain_tau}
            self.last_held_out = record["held_out"]
        steps = self.recipe.optimisation.steps
        return Progress(
            self.step, steps, loss.item(), accuracy, rate, seconds_left, record, held_out
        )

    def _write_head(self) -> None:
        self.head.draft_vocab_N = self.frequent_N
        self.head.metadata = {
            "format": "hasspec-1",
            "name": self.recipe.name,
            "target": self.target.name,
            "target_fingerprint": self.target.fingerprint(),
            "recipe": self.recipe.model_dump(mode="json"),
            "data": self.provenance,
            "training": {
                "optimiser_steps": self.step,
                "answer_token_passes": self.tokens,
                "draft_vocab_coverage": self.coverage,
                "held_out": self.last_held_out,
            },
        }
        save_head(self.head, self.run.out)
