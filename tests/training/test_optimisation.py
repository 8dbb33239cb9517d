"""One update, however its batch is split; and what happens to numbers that are none."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from hasspec.target import Target
from hasspec.training import Trainer, load_recipe
from hasspec.training.batches import Batch, example_of
from hasspec.training.features import ComputedFeatures


@pytest.fixture
def examples(tiny_target):
    rng = np.random.default_rng(0)
    conversations = [
        SimpleNamespace(
            token_ids=rng.integers(3, 100, size=length).tolist(), answer_spans=[(4, length)]
        )
        for length in rng.integers(7, 30, size=23)
    ]
    return [example_of(c, tiny_target.max_length) for c in conversations]


def trainer(target: Target, examples, out: Path, features=None, **changes: object) -> Trainer:
    settings = {
        "optimisation.steps": 8,
        "optimisation.batch": 6,
        "optimisation.lr": 0.003,
        "optimisation.feature_noise": 0.05,
        "log_every": 1,
        **changes,
    }
    recipe = load_recipe(None, [f"{key}={value}" for key, value in settings.items()])
    return Trainer(target, examples, features or ComputedFeatures(target), recipe, out)


def records(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "run" / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("mean", ["token", "sequence"])
@pytest.mark.parametrize("packed", ["true", "false"])
def test_accumulated_parts_make_the_update_of_the_whole(
    tiny_target, examples, tmp_path, mean, packed
):
    runs = {}
    for parts in (1, 2, 5):
        settings = {"objective.mean": mean, "optimisation.packed": packed}
        settings["optimisation.accumulate"] = parts
        run = trainer(tiny_target, examples, tmp_path / str(parts), **settings)
        assert run.train()
        runs[parts] = run.head.state_dict(), records(tmp_path / str(parts))
    weights, log = runs.pop(1)
    start = trainer(tiny_target, examples, tmp_path / "start").head.state_dict()
    for again, log_again in runs.values():
        for name, weight in weights.items():
            moved = (weight - start[name]).norm()
            assert (again[name] - weight).norm() < 1e-3 * moved + 1e-6
        for one, other in zip(log, log_again, strict=True):
            assert other["loss"] == pytest.approx(one["loss"], rel=1e-4)
            assert other["tokens"] == one["tokens"]
            assert other["ce"] == pytest.approx(one["ce"], rel=1e-4)
            assert other["accuracy"] == pytest.approx(one["accuracy"], abs=0.02)


def test_a_batch_too_small_for_its_parts_is_refused(tiny_target, examples, tmp_path):
    with pytest.raises(ValueError, match="cannot be split over 1 processes"):
        trainer(tiny_target, examples, tmp_path, **{"optimisation.accumulate": 7})


def test_until_miss_cannot_be_accumulated(tiny_target, examples, tmp_path):
    changes = {"optimisation.accumulate": 2, "objective.until_miss": "true"}
    with pytest.raises(ValueError, match="until_miss"):
        trainer(tiny_target, examples, tmp_path, **changes)


class Spoilt:
    """Features that are not numbers at some of the batches."""

    def __init__(self, target: Target, bad: range):
        self._true, self._bad, self._seen = ComputedFeatures(target), bad, 0

    def features(self, batch: Batch) -> Tensor:
        feature_BTD = self._true.features(batch)
        self._seen += 1
        return feature_BTD * torch.nan if self._seen - 1 in self._bad else feature_BTD


def test_a_loss_that_is_not_finite_is_skipped_and_counted(tiny_target, examples, tmp_path):
    spoilt = Spoilt(tiny_target, range(3, 5))
    run = trainer(tiny_target, examples, tmp_path, spoilt)
    assert run.train()
    assert [line.get("skipped") for line in records(tmp_path)] == [None] * 3 + [1] + [2] * 4
    assert all(weight.isfinite().all() for weight in run.head.state_dict().values())
    assert not (tmp_path / "run" / "not-finite.pt").exists()


def test_too_many_in_a_row_end_training_with_the_batch_saved(tiny_target, examples, tmp_path):
    spoilt = Spoilt(tiny_target, range(2, 9))
    run = trainer(tiny_target, examples, tmp_path, spoilt, **{"optimisation.skip_limit": 3})
    with pytest.raises(ValueError, match=r"not finite at 4 optimiser steps in a row.*not-finite"):
        run.train()
    saved = torch.load(tmp_path / "run" / "not-finite.pt", weights_only=True)
    assert saved["step"] == 5
    index_B = saved["examples"]
    assert len(index_B) == 6
    for index, token_T in zip(index_B, saved["token_ids"], strict=True):
        assert token_T.tolist() == examples[index].token_T.tolist()
    assert all(weight.isfinite().all() for weight in saved["head"].values())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_checkpoint_on_a_full_disk_is_named_and_the_last_one_whole(
    tiny_target, examples, tmp_path
):
    first = trainer(tiny_target, examples, tmp_path)
    first.train(interrupted=lambda: first.step == 3)
    second = trainer(tiny_target, examples, tmp_path)
    partial = tmp_path / "run" / f".state.pt.{os.getpid()}.partial"
    partial.symlink_to("/dev/full")
    with pytest.raises(ValueError, match=r"no space is left to write .*state\.pt"):
        second.train(interrupted=lambda: second.step == 6)
    assert trainer(tiny_target, examples, tmp_path).step == 3


class Hungry:
    """Features that no machine has room for."""

    def features(self, batch: Batch) -> Tensor:
        return torch.empty(len(batch.token_BT), 1 << 20, 1 << 24)


def test_too_little_memory_names_the_settings(tiny_target, examples, tmp_path):
    with pytest.raises(ValueError, match=r"raise optimisation\.accumulate \(now 1"):
        trainer(tiny_target, examples, tmp_path, Hungry()).train()
