"""The training loop: deterministic in its seed, interruptible, resumable."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hasspec.draft import DraftHead, save_head
from hasspec.draft.initial import new_head
from hasspec.files import sole_writer
from hasspec.target import Target
from hasspec.training.batches import Batch, Example, batch_order, collate
from hasspec.training.best import Best
from hasspec.training.features import FeatureSource
from hasspec.training.noise import feature_noise
from hasspec.training.optimiser import optimisers_of
from hasspec.training.progress import Progress, Served, log_record
from hasspec.training.recipe import Recipe
from hasspec.training.run_folder import RunFolder
from hasspec.training.schedule import alignment_steps, learning_rate
from hasspec.training.step import StepSums, training_loss
from hasspec.training.validation import ChainAcceptance, Validation
from hasspec.training.vocabulary import TrainingVocabulary, answer_token_counts, frequent_tokens


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
        serve: decodes with a head and says how much is accepted; the head that is written is then
            the one with the best tau, not the last.
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
        serve: Callable[[DraftHead], Served] | None = None,
    ):
        self.serve = serve
        self.best = Best(recipe.validation.patience)
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
            self.best.restore(state["best"])
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
        serving = 0.0
        first, tokens_logged = self.step, self.tokens
        while self.step < recipe.optimisation.steps and not self.best.exhausted:
            loss, sums = self._optimise(next(order))
            held_out = self._validate()
            began = time.monotonic()
            served = self._serve()
            serving += time.monotonic() - began
            last = self.step == recipe.optimisation.steps
            if self.step % recipe.log_every == 0 or held_out or served or last:
                now = time.monotonic()
                rate = (self.tokens - tokens_logged) / max(now - logged, 1e-9)
                logged, tokens_logged = now, self.tokens
                pace = (now - started) / (self.step - first)
                lr = self.optimisers[0].param_groups[0]["lr"]
                record = log_record(self.step, self.tokens, lr, loss, sums, held_out, served)
                self.run.log(record)
                if on_progress:
                    on_progress(
                        Progress(
                            step=self.step,
                            steps=recipe.optimisation.steps,
                            loss=record["loss"],
                            accuracy=record["accuracy"],
                            tokens_per_second=rate,
                            seconds_left=pace * (recipe.optimisation.steps - self.step),
                            record=record,
                            held_out=held_out,
                            served=served,
                            served_share=serving / max(now - started, 1e-9),
                        )
                    )
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
                "best": self.best.state,
            }
        )

    def _optimise(self, index_B: list[int]) -> tuple[Tensor, StepSums]:
        recipe = self.recipe
        batch = collate(
            self.examples, index_B, self.target.device, packed=recipe.optimisation.packed
        )
        feature_BTD = self.features.features(batch)
        with self.autocast():
            loss, sums = training_loss(
                self.head,
                self.target,
                batch,
                feature_BTD,
                self.vocabulary.layer(self.step),
                recipe.alignment,
                recipe.objective,
                n_steps=alignment_steps(recipe, self.step),
                noise_BTD=self._noise(batch, feature_BTD),
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

    def autocast(self) -> torch.autocast:
        """The precision of the recipe, as a context."""
        enabled = self.recipe.precision == "bfloat16"
        return torch.autocast(self.target.device.type, torch.bfloat16, enabled=enabled)

    @property
    def _due(self) -> bool:
        validation, last = self.recipe.validation, self.recipe.optimisation.steps
        return self.step % validation.every == 0 or self.step == last

    def _validate(self) -> ChainAcceptance | None:
        if self.validation is None or not self._due:
            return None
        measured = self.validation.measure(self.head, self.frequent_N, self.autocast)
        self.last_held_out = measured.record
        return measured

    def _serve(self) -> Served | None:
        if self.serve is None or not self._due:
            return None
        head = copy.deepcopy(self.head).to(self.target.dtype).eval().requires_grad_(False)
        head.draft_vocab_N = self.frequent_N
        served = self.serve(head)
        if self.best.offer(self.step, self.tokens, served.tau, served.record):
            self.run.save_best(self.head.state_dict())
        return served

    def _noise(self, batch: Batch, feature_BTD: Tensor) -> Tensor | None:
        half_width = self.recipe.optimisation.feature_noise
        if not half_width:
            return None
        return feature_noise(batch, feature_BTD, half_width, self.recipe.seed, self.step)

    def _frequent(self) -> tuple[Tensor | None, float]:
        n_drafted = self.recipe.vocabulary.drafted
        if not n_drafted or n_drafted >= self.target.vocab_size:
            return None, 1.0
        count_V = answer_token_counts(self.examples, self.target.vocab_size)
        return frequent_tokens(count_V, n_drafted)

    def _write_head(self) -> None:
        if self.best.step is not None:
            self.head.load_state_dict(self.run.load_best())
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
                **({"best": self.best.state} if self.best.step is not None else {}),
            },
        }
        save_head(self.head, self.run.out)
