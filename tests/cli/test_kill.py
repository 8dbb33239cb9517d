"""A training process is killed, without a chance to say goodbye, and nothing is lost."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from hasspec.draft import load_head
from hasspec.target import Target

RECIPE = """
optimisation: {steps: 75, batch: 4, lr: 3.0e-3, feature_noise: 0.05}
vocabulary: {drafted: 60, sampled: 10}
checkpoint_minutes: 1.0e-5
log_every: 1
validation: {conversations: 4, every: 15, depth: 3, prompts: 2, new_tokens: 6, tree: 3x2x5}
"""


@pytest.fixture
def command(make_store, tiny_target_folder: Path, tmp_path: Path):
    store = make_store(tmp_path / "data", Target.load(str(tiny_target_folder)).fingerprint())
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE)

    def build(out: Path) -> list[str]:
        arguments = ["train", tiny_target_folder, "--data", store, "--recipe", recipe]
        arguments += ["--threads", 1, "--out", out]
        return [sys.executable, "-m", "hasspec.cli.main", *map(str, arguments)]

    return build


def test_a_killed_run_repeats_the_uninterrupted_one(
    command, tiny_target_folder: Path, tmp_path: Path
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run(command(whole), check=True, capture_output=True)

    kills = 0
    for wanted in (7, 40):
        process = subprocess.Popen(
            command(killed), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        metrics = killed / "run" / "metrics.jsonl"
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if metrics.is_file() and metrics.read_text().count("\n") >= wanted:
                process.kill()
            time.sleep(0.005)
        assert process.wait() in (-signal.SIGKILL, 0)
        kills += process.returncode == -signal.SIGKILL
    assert kills
    subprocess.run(command(killed), check=True, capture_output=True)

    # Losses, accuracies, learning rates and every tau, bit for bit.
    assert (killed / "run" / "metrics.jsonl").read_text() == (
        whole / "run" / "metrics.jsonl"
    ).read_text()
    target = Target.load(str(tiny_target_folder))
    expected = load_head(whole, target=target)
    again = load_head(killed, target=target)
    assert again.metadata == expected.metadata
    for name, weight in expected.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight)
