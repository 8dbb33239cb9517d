"""The training loop: deterministic in its seed, interruptible, resumable."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from torch import Tensor

from hasspec.draft import DraftHead, save_head
from hasspec.draft.initial import new_head
from hasspec.files import sole_writer
from hasspec.target import Target
from hasspec.training.batches import Example, batch_order
from hasspec.training.best import Best
from hasspec.training.features import FeatureSource
from hasspec.training.optimisation import OptimiserStep
from hasspec.training.processes import Processes
from hasspec.training.progress import Progress, Served, log_record
from hasspec.training.recipe import Recipe
from hasspec.training.run_folder import RunFolder
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
        processes: those that share the run.
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
        processes: Processes | None = None,
    ):
        self.serve, self.processes = serve, processes or Processes()
        self.best = Best(recipe.validation.patience)
        self.target, self.examples, self.features, self.recipe = target, examples, features, recipe
        self.provenance = provenance or {}
        self.run = RunFolder(out)
        self.processes.from_main(lambda: self.run.start(recipe, self.provenance))
        state = self.run.state()
        self.head = (init or new_head(target, recipe.seed)).float().train().requires_grad_(True)
        self.frequent_N, self.coverage = self._frequent()
        self.optimise = OptimiserStep(
            self.head,
            target,
            examples,
            features,
            TrainingVocabulary(target, self.frequent_N, recipe.vocabulary.sampled, recipe.seed),
            recipe,
            self.processes,
            self.run,
        )
        self.step, self.tokens = 0, 0
        self.last_held_out: dict[str, Any] | None = None
        if state is not None:
            self.head.load_state_dict(state["head"])
            for optimiser, stored in zip(
                self.optimise.optimisers, state["optimisers"], strict=True
            ):
                optimiser.load_state_dict(stored)
            self.step, self.tokens = state["step"], state["tokens"]
            self.optimise.skipped = state["skipped"]
            self.last_held_out = state["held_out"]
            self.best.restore(state["best"])
            self.processes.from_main(lambda: self.run.forget_after(self.step))
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
        with sole_writer(self.run.folder) if self.processes.main else nullcontext():
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
            index_B = next(order)
            loss, sums = self.optimise(index_B, self.step)
            self.step += 1
            self.tokens += sum(len(self.examples[index].root_R) for index in index_B)
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
                lr = self.optimise.optimisers[0].param_groups[0]["lr"]
                loss, sums = self.optimise.of_all_processes(loss, sums)
                record = log_record(self.step, self.tokens, lr, loss, sums, held_out, served)
                if self.optimise.skipped:
                    record["skipped"] = self.optimise.skipped
                if self.processes.main:
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
            stop = self.processes.any(interrupted())
            if stop or time.monotonic() - saved > 60 * recipe.checkpoint_minutes:
                self.save()
                saved = time.monotonic()
            if stop:
                return False
        self.save()
        if self.processes.main:
            self._write_head()
        return True

    def save(self) -> None:
        """Write the state that a later run resumes from."""
        if not self.processes.main:
            return
        self.run.save_state(
            {
                "head": self.head.state_dict(),
                "optimisers": [optimiser.state_dict() for optimiser in self.optimise.optimisers],
                "step": self.step,
                "tokens": self.tokens,
                "skipped": self.optimise.skipped,
                "held_out": self.last_held_out,
                "best": self.best.state,
            }
        )

    @property
    def _due(self) -> bool:
        validation, last = self.recipe.validation, self.recipe.optimisation.steps
        return self.step % validation.every == 0 or self.step == last

    def _validate(self) -> ChainAcceptance | None:
        if self.validation is None or not self._due:
            return None
        measured = self.processes.from_main(
            lambda: self.validation.measure(self.head, self.frequent_N, self.optimise.autocast)
        )
        self.last_held_out = measured.record
        return measured

    def _serve(self) -> Served | None:
        if self.serve is None or not self._due:
            return None
        served = self.processes.from_main(self._decode)
        best = self.best.offer(self.step, self.tokens, served.tau, served.record)
        if best and self.processes.main:
            self.run.save_best(self.head.state_dict())
        return served

    def _decode(self) -> Served:
        head = copy.deepcopy(self.head).to(self.target.dtype).eval().requires_grad_(False)
        head.draft_vocab_N = self.frequent_N
        return self.serve(head)

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
