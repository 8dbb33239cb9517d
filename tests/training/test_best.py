"""The head that is kept is the one with the best tau, through interruptions and early stops."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hasspec.draft import DraftHead, load_head
from hasspec.target import Target
from hasspec.training import Trainer, load_recipe
from hasspec.training.batches import example_of
from hasspec.training.best import Best
from hasspec.training.features import ComputedFeatures


@dataclass
class Scripted:
    """Says the taus of a script, and remembers the heads it was shown."""

    taus: list[float]
    heads: list[dict] = field(default_factory=list)

    def __call__(self, head: DraftHead) -> SimpleNamespace:
        tau = self.taus[len(self.heads)]
        self.heads.append({name: weight.clone() for name, weight in head.state_dict().items()})
        return SimpleNamespace(tau=tau, record=[{"tau": tau}])


def trainer(target: Target, out: Path, serve: Scripted, patience: int = 0) -> Trainer:
    rng = np.random.default_rng(0)
    examples = [
        example_of(
            SimpleNamespace(token_ids=rng.integers(3, 100, n).tolist(), answer_spans=[(4, n)]), 64
        )
        for n in rng.integers(10, 30, size=12).tolist()
    ]
    recipe = load_recipe(
        None,
        [
            "optimisation.steps=12",
            "optimisation.batch=4",
            "optimisation.lr=0.003",
            "validation.every=3",
            "validation.conversations=2",
            "validation.prompts=2",
            f"validation.patience={patience}",
        ],
    )
    return Trainer(
        target, examples[2:], ComputedFeatures(target), recipe, out, held_out=examples[:2],
        serve=serve,
    )  # fmt: skip


def assert_written(out: Path, target: Target, weights: dict[str, torch.Tensor]) -> None:
    written = load_head(out, target=target).state_dict()
    for name, weight in written.items():
        # Heads are stored in bfloat16.
        assert torch.equal(weight, weights[name].bfloat16().to(weight.dtype))


def test_the_best_head_is_written_not_the_last(tiny_target, tmp_path):
    serve = Scripted([1.2, 1.9, 1.9, 1.4])
    assert trainer(tiny_target, tmp_path, serve).train()
    assert_written(tmp_path, tiny_target, serve.heads[1])
    best = load_head(tmp_path, target=tiny_target).metadata["training"]["best"]
    assert (best["step"], best["tau"], best["served"]) == (6, 1.9, [{"tau": 1.9}])


def test_an_interrupted_run_still_knows_its_best(tiny_target, tmp_path):
    first = trainer(tiny_target, tmp_path, Scripted([1.2, 1.9]))
    assert not first.train(interrupted=lambda: first.step == 7)
    best = {name: weight.clone() for name, weight in first.run.load_best().items()}
    assert trainer(tiny_target, tmp_path, Scripted([1.8, 1.7])).train()
    assert_written(tmp_path, tiny_target, best)


def test_patience_ends_a_run_and_it_stays_ended(tiny_target, tmp_path):
    serve = Scripted([1.5, 1.4, 1.3, 9.0])
    run = trainer(tiny_target, tmp_path, serve, patience=2)
    assert run.train()
    assert run.step == 9
    again = trainer(tiny_target, tmp_path, Scripted([]), patience=2)
    assert again.train()
    assert again.step == 9
    assert_written(tmp_path, tiny_target, serve.heads[0])


def test_equal_heads_do_not_reset_patience():
    best = Best(patience=2)
    assert best.offer(1, 10, 1.5, [])
    assert not best.offer(2, 20, 1.5, [])
    assert not best.exhausted
    assert not best.offer(3, 30, 1.4, [])
    assert best.exhausted
    restored = Best(patience=2)
    restored.restore(best.state)
    assert restored.exhausted
    assert restored.step == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["validation.prompts=3"], "raise conversations"),
        (["validation.patience=3"], "patience needs prompts"),
        (["validation.temperatures=[-1]"], "temperatures"),
    ],
)
def test_settings_that_measure_nothing_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        load_recipe(None, settings)
