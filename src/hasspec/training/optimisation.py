"""One optimiser step: a batch in parts, over processes, to one update of the head."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor

from hasspec.draft import DraftHead
from hasspec.target import Target
from hasspec.training.batches import Example, collate
from hasspec.training.features import FeatureSource
from hasspec.training.noise import feature_noise
from hasspec.training.optimiser import optimisers_of
from hasspec.training.processes import Processes
from hasspec.training.recipe import Recipe
from hasspec.training.run_folder import RunFolder
from hasspec.training.schedule import alignment_steps, learning_rate
from hasspec.training.step import Sums, TrainingStep, counted
from hasspec.training.vocabulary import TrainingVocabulary


class OptimiserStep:
    """Updates a head in place.

    However a batch is split, over processes or into the recipe's accumulated parts, the update is
    that of the whole batch: means divide by what the whole batch holds.

    Args:
        head: is trained.
        target: frozen.
        examples: the training sequences.
        features: where their features come from.
        vocabulary: the output layer of each step.
        recipe: every knob.
        processes: those that share each batch.
        run: where a batch goes whose loss is not finite.

    Attributes:
        optimisers: their state belongs into a checkpoint.
        skipped: updates that were left out because loss or gradient was not finite.

    Raises:
        ValueError: the batch is too small for its split.
    """

    def __init__(
        self,
        head: DraftHead,
        target: Target,
        examples: Sequence[Example],
        features: FeatureSource,
        vocabulary: TrainingVocabulary,
        recipe: Recipe,
        processes: Processes,
        run: RunFolder,
    ):
        self.optimisers = optimisers_of(head, recipe.optimisation)
        self.skipped = 0
        self._skipped_in_a_row = 0
        self._head, self._target, self._examples = head, target, examples
        self._features, self._vocabulary, self._recipe = features, vocabulary, recipe
        self._processes, self._run = processes, run
        self._stepping = processes.replicate(
            TrainingStep(head, target, recipe.alignment, recipe.objective)
        )
        smallest = min(recipe.optimisation.batch, sum(len(e.root_R) > 0 for e in examples))
        if smallest < processes.count * recipe.optimisation.accumulate:
            raise ValueError(
                f"a batch of {smallest} conversations cannot be split over {processes.count} "
                f"processes with optimisation.accumulate = {recipe.optimisation.accumulate} parts "
                "each; raise optimisation.batch, or lower the others"
            )

    def __call__(self, index_B: list[int], step: int) -> tuple[Tensor, Sums]:
        """Optimiser step ``step`` on the given examples.

        Returns:
            Loss and sums of this process's share; :meth:`of_all_processes` adds them up.

        Raises:
            ValueError: loss or gradient were not finite too often in a row.
        """
        n_steps = alignment_steps(self._recipe, step)
        of_all = self._of_all(index_B, n_steps)
        parts = self._parts(index_B)
        self._head.zero_grad(set_to_none=True)
        found = []
        for part in parts:
            whole = part is parts[-1]
            apart = nullcontext() if whole else self._processes.apart(self._stepping)
            with apart, self._memory_named():
                loss, sums = self._forward(part, step, n_steps, of_all)
                # The losses of parts add up, where processes average their gradients.
                (loss * self._processes.count).backward()
            found.append((loss.detach(), sums))
        self._update(index_B, step)
        losses, sums = zip(*found, strict=True)
        return sum(losses), {name: sum(of_part[name] for of_part in sums) for name in sums[0]}

    def of_all_processes(self, loss: Tensor, sums: Sums) -> tuple[float, Sums]:
        """Loss and sums of the whole batch."""
        loss = self._processes.sum(loss)
        return loss.item(), {name: self._processes.sum(sum_n) for name, sum_n in sums.items()}

    def autocast(self) -> torch.autocast:
        """The precision of the recipe, as a context."""
        enabled = self._recipe.precision == "bfloat16"
        return torch.autocast(self._target.device.type, torch.bfloat16, enabled=enabled)

    @contextmanager
    def _memory_named(self) -> Iterator[None]:
        """Says which settings take less memory where there was too little."""
        try:
            yield
        except RuntimeError as error:
            # On the CPU it is a plain RuntimeError of the allocator.
            if not isinstance(error, torch.OutOfMemoryError) and "can't allocate" not in str(error):
                raise
            alignment, optimisation = self._recipe.alignment, self._recipe.optimisation
            raise ValueError(
                "memory ran out in an optimiser step. In this order: raise optimisation.accumulate "
                f"(now {optimisation.accumulate}; the result stays the same), set "
                f"alignment.recompute (now {str(alignment.recompute).lower()}) to true, reduce "
                f"vocabulary.drafted (now {self._recipe.vocabulary.drafted or 'all'}) or "
                f"max_length (now {self._recipe.max_length}). `hasspec train --plan` says what a "
                f"run takes. The last checkpoint is whole. ({str(error).splitlines()[0]})"
            ) from error

    def _parts(self, index_B: list[int]) -> list[list[int]]:
        """The examples of each forward of this process."""
        n_parts = self._recipe.optimisation.accumulate
        own = self._processes.share(index_B)
        return [own[part::n_parts] for part in range(n_parts)]

    def _of_all(self, index_B: list[int], n_steps: int) -> Callable[[Tensor], Tensor]:
        objective = self._recipe.objective
        if objective.until_miss:
            return self._processes.sum
        count_n = counted(self._examples, index_B, n_steps, objective.mean)
        return count_n.to(self._target.device).expand_as

    def _forward(
        self, index_B: list[int], step: int, n_steps: int, of_all: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Sums]:
        optimisation = self._recipe.optimisation
        batch = collate(self._examples, index_B, self._target.device, packed=optimisation.packed)
        feature_BTD = self._features.features(batch)
        noise_BTD = None
        if optimisation.feature_noise:
            noise_BTD = feature_noise(
                batch,
                feature_BTD,
                optimisation.feature_noise,
                self._recipe.seed,
                step,
                at_length=optimisation.feature_noise_length,
            )
        with self.autocast():
            return self._stepping(
                batch,
                feature_BTD,
                self._vocabulary.layer(step),
                n_steps=n_steps,
                noise_BTD=noise_BTD,
                of_all=of_all,
            )

    def _update(self, index_B: list[int], step: int) -> None:
        optimisation = self._recipe.optimisation
        norm = torch.nn.utils.clip_grad_norm_(self._head.parameters(), optimisation.clip)
        if not torch.isfinite(norm):
            self._skip(index_B, step)
            return
        self._skipped_in_a_row = 0
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(optimisation, step)
            optimiser.step()

    def _skip(self, index_B: list[int], step: int) -> None:
        self.skipped += 1
        self._skipped_in_a_row += 1
        limit = self._recipe.optimisation.skip_limit
        if self._skipped_in_a_row <= limit:
            return
        tokens = [torch.from_numpy(self._examples[index].token_T) for index in index_B]
        about = {"step": step, "examples": index_B, "token_ids": tokens}
        file = self._processes.from_main(
            lambda: self._run.save_not_finite({**about, "head": self._head.state_dict()})
        )
        raise ValueError(
            f"loss or gradient were not finite at {self._skipped_in_a_row} optimiser steps in a "
            f"row, the last being step {step}; its conversations and the head are in {file}. Lower "
            "optimisation.lr or optimisation.clip, train in float32, or look for damaged features; "
            "the last checkpoint is from before, the same command goes on from it"
        )
