"""The loop: it learns, resumes bit for bit, and names what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hasspec.draft import load_head
from hasspec.files import sole_writer
from hasspec.target import Target
from hasspec.training import Recipe, Trainer, load_recipe
from hasspec.training.batches import batch_order, example_of
from hasspec.training.features import ComputedFeatures
from hasspec.training.schedule import learning_rate


@pytest.fixture
def examples(tiny_target):
    rng = np.random.default_rng(0)
    conversations = [
        SimpleNamespace(
            token_ids=rng.integers(3, 100, size=length).tolist(), answer_spans=[(4, length)]
        )
        for length in rng.integers(10, 30, size=23)
    ]
    return [example_of(c, tiny_target.max_length) for c in conversations]


def recipe(**changes: object) -> Recipe:
    return load_recipe(
        None,
        [
            "optimisation.steps=12",
            "optimisation.batch=4",
            "optimisation.lr=0.003",
            "log_every=1",
            "optimisation.feature_noise=0.01",
            "vocabulary.drafted=60",
            "vocabulary.sampled=10",
            *[f"{key}={value}" for key, value in changes.items()],
        ],
    )


def trainer(target: Target, examples, out: Path, **changes: object) -> Trainer:
    return Trainer(target, examples, ComputedFeatures(target), recipe(**changes), out)


def losses(out: Path) -> list[float]:
    lines = (out / "run" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def test_training_lowers_the_loss_and_writes_a_head_that_loads(tiny_target, examples, tmp_path):
    assert trainer(tiny_target, examples, tmp_path / "a", **{"optimisation.steps": 150}).train()
    curve = losses(tmp_path / "a")
    assert np.mean(curve[-10:]) < 0.9 * np.mean(curve[:10])
    head = load_head(tmp_path / "a", target=tiny_target)
    assert head.metadata["target_fingerprint"] == tiny_target.fingerprint()
    assert head.metadata["recipe"]["alignment"]["steps"] == 3
    assert len(head.draft_vocab_N) == 60


@pytest.mark.parametrize("changed", ["optimisation.optimiser=muon", "optimisation.packed=true", ""])
def test_interrupted_run_resumes_bit_for_bit(tiny_target, examples, tmp_path, changed):
    changes = dict([changed.split("=")]) if changed else {}
    assert trainer(tiny_target, examples, tmp_path / "whole", **changes).train()

    first = trainer(tiny_target, examples, tmp_path / "parts", **changes)
    assert not first.train(interrupted=lambda: first.step == 5)
    second = trainer(tiny_target, examples, tmp_path / "parts", **changes)
    assert second.step == 5
    assert second.train()

    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    whole = load_head(tmp_path / "whole", target=tiny_target).state_dict()
    parts = load_head(tmp_path / "parts", target=tiny_target).state_dict()
    assert all(torch.equal(parts[name], whole[name]) for name in whole)


def test_a_kill_after_the_last_checkpoint_repeats_those_steps(tiny_target, examples, tmp_path):
    assert trainer(tiny_target, examples, tmp_path / "whole").train()
    killed = trainer(tiny_target, examples, tmp_path / "killed")
    assert not killed.train(interrupted=lambda: killed.step == 4)
    # Three more steps were logged, then the process died within a line.
    metrics = tmp_path / "killed" / "run" / "metrics.jsonl"
    lines = metrics.read_text() + '{"step": 5, "loss": 9}\n{"step": 6, "loss": 9}\n{"step": 7, "lo'
    metrics.write_text(lines)
    assert trainer(tiny_target, examples, tmp_path / "killed").train()
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")


def test_a_folder_with_another_run_is_refused(tiny_target, examples, tmp_path):
    first = trainer(tiny_target, examples, tmp_path)
    first.train(interrupted=lambda: True)
    with pytest.raises(ValueError, match="another recipe"):
        trainer(tiny_target, examples, tmp_path, seed=3)


def test_a_damaged_state_is_named(tiny_target, examples, tmp_path):
    trainer(tiny_target, examples, tmp_path).train(interrupted=lambda: True)
    state = tmp_path / "run" / "state.pt"
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"state\.pt cannot be read"):
        trainer(tiny_target, examples, tmp_path)


def test_eagle_is_one_step_without_top_k(tiny_target, examples, tmp_path):
    eagle = trainer(
        tiny_target, examples, tmp_path, **{"alignment.steps": 1, "objective.top_k": 0.0}
    )
    assert eagle.train()
    record = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert len(record["accuracy"]) == 1
    weighted = record["feature"][0] + 0.1 * record["ce"][0]
    assert record["loss"] == pytest.approx(weighted, rel=1e-4)


def test_delay_trains_one_step_first(tiny_target, examples, tmp_path):
    assert trainer(tiny_target, examples, tmp_path, **{"alignment.delay": 0.5}).train()
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [len(json.loads(line)["accuracy"]) for line in lines] == [1] * 6 + [3] * 6


def test_batch_order_sees_everything_once_an_epoch_and_can_start_anywhere(examples):
    order = batch_order(examples, 4, seed=7)
    epoch = [next(order) for _ in range(len(examples) // 4)]
    assert len({i for batch in epoch for i in batch}) == 4 * len(epoch)
    following = [next(order) for _ in range(8)]
    for start in (0, 3, len(epoch), len(epoch) + 2):
        resumed = batch_order(examples, 4, seed=7, start=start)
        assert [next(resumed) for _ in range(4)] == (epoch + following)[start : start + 4]


def test_two_runs_do_not_share_a_folder(tiny_target, examples, tmp_path):
    run = trainer(tiny_target, examples, tmp_path)
    with (
        sole_writer(tmp_path / "run"),
        pytest.raises(ValueError, match="being written by another process"),
    ):
        run.train()
    assert run.step == 0


def test_data_without_answers_is_refused(tiny_target):
    silent = [example_of(SimpleNamespace(token_ids=[5] * 9, answer_spans=[]), 64)]
    with pytest.raises(ValueError, match="no conversation has an answer"):
        next(batch_order(silent, 4, seed=0))


def test_learning_rate_warms_up_and_decays_to_nothing():
    optimisation = recipe(**{"optimisation.steps": 100, "optimisation.warmup": 0.1}).optimisation
    rates = [learning_rate(optimisation, step) for step in range(101)]
    assert rates[0] == pytest.approx(optimisation.lr / 10)
    assert max(rates) == rates[9] == rates[10] == pytest.approx(optimisation.lr)
    assert rates[100] == 0
    assert all(a >= b for a, b in zip(rates[10:], rates[11:], strict=False))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["alignment.stepz=3"], "alignment.stepz"),
        (["alignment.steps=0"], "alignment.steps"),
        (["lr=3"], "lr"),
        (["alignment"], "section.key=value"),
        (["objective.k=ten"], "objective.k"),
    ],
)
def test_bad_recipe_keys_and_values_are_named(overrides, message):
    with pytest.raises(ValueError, match=message):
        load_recipe(None, overrides)


def test_recipe_files_are_checked(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text("alignment:\n  steps: 2\nobjective: {k: 5}\n")
    assert load_recipe(file, ["seed=4"]).alignment.steps == 2
    file.write_text("- a list")
    with pytest.raises(ValueError, match="mapping"):
        load_recipe(file)
    file.write_text("a: [")
    with pytest.raises(ValueError, match="not valid YAML"):
        load_recipe(file)
    with pytest.raises(ValueError, match="no recipe at"):
        load_recipe(tmp_path / "absent.yaml")
