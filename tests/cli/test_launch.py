"""Training started by ``accelerate launch``, and trackers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker

from hasspec.cli.launch import Launch
from hasspec.draft import load_head
from hasspec.target import Target
from hasspec.training.processes import Processes

RECIPE = """
optimisation: {steps: 9, batch: 5, lr: 3.0e-3, feature_noise: 0.05}
vocabulary: {drafted: 60, sampled: 10}
log_every: 1
validation: {conversations: 4, every: 4, depth: 3, prompts: 2, new_tokens: 6, tree: 3x2x5}
"""


@pytest.mark.parametrize("more", ["accumulate", "until_miss"])
def test_two_processes_train_what_one_does(make_store, tiny_target_folder: Path, tmp_path, more):
    store = make_store(tmp_path / "data", Target.load(str(tiny_target_folder)).fingerprint())
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE)

    def command(out: Path) -> list[str]:
        arguments = ["train", tiny_target_folder, "--data", store, "--recipe", recipe]
        arguments += ["--threads", 1, "--cache", tmp_path / "cache", "--out", out]
        if more == "accumulate":
            arguments += ["--set", f"optimisation.accumulate={2 if out.name == 'two' else 1}"]
        else:
            arguments += ["--set", "objective.until_miss=true"]
        return ["-m", "hasspec.cli.main", *map(str, arguments)]

    one, two = tmp_path / "one", tmp_path / "two"
    launch = "-m accelerate.commands.launch --cpu --num_processes 2 --num_machines 1"
    launched = [sys.executable, *launch.split(), "--mixed_precision", "no", *command(two)]
    found = subprocess.run(launched, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr[-3000:]
    subprocess.run([sys.executable, *command(one)], check=True, capture_output=True)

    lines = [(out / "run" / "metrics.jsonl").read_text().splitlines() for out in (one, two)]
    for alone, shared in zip(*(map(json.loads, of_run) for of_run in lines), strict=True):
        assert shared["loss"] == pytest.approx(alone["loss"], rel=1e-4)
        assert shared["ce"] == pytest.approx(alone["ce"], rel=1e-4)
        assert [shared[key] for key in ("step", "tokens", "lr")] == [
            alone[key] for key in ("step", "tokens", "lr")
        ]
        assert ("served" in shared, "held_out" in shared) == (
            "served" in alone,
            "held_out" in alone,
        )
    target = Target.load(str(tiny_target_folder))
    expected, again = load_head(one, target=target), load_head(two, target=target)
    for name, weight in expected.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], weight, rtol=1e-3, atol=1e-4)


class Remembered(GeneralTracker):
    name = "remembered"
    requires_logging_directory = False

    def __init__(self) -> None:
        super().__init__()
        self.config: dict = {}
        self.lines: list[tuple[int, dict]] = []

    @property
    def tracker(self) -> None:
        return None

    def store_init_configuration(self, values: dict) -> None:
        self.config = values

    def log(self, values: dict, step: int | None = None, **_: object) -> None:
        self.lines.append((step, values))


def test_trackers_are_told_config_and_every_record() -> None:
    tracker = Remembered()
    launch = Launch(Processes(), "cpu", Accelerator(cpu=True, log_with=[tracker]))
    with launch.tracked({"name": "a", "alignment": {"steps": 3, "detach": True}}) as log:
        log({"step": 5, "loss": 0.5, "accuracy": [0.1, 0.2], "held_out": {"alpha": [None, 0.3]}})
    assert tracker.config == {"name": "a", "alignment.steps": 3, "alignment.detach": True}
    values = {"step": 5, "loss": 0.5, "accuracy.1": 0.1, "accuracy.2": 0.2, "held_out.alpha.2": 0.3}
    assert tracker.lines == [(5, values)]


def test_an_unknown_tracker_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nonsense"):
        Launch.of("cpu", ["nonsense"], tmp_path)


def test_a_tracker_that_is_not_installed_is_refused(tmp_path: Path) -> None:
    from accelerate.tracking import get_available_trackers

    absent = {"aim", "comet_ml", "swanlab"} - {str(name) for name in get_available_trackers()}
    with pytest.raises(ValueError, match="is not installed"):
        Launch.of("cpu", [sorted(absent)[0]], tmp_path)


def test_one_process_needs_no_accelerate(tmp_path: Path) -> None:
    launch = Launch.of("cpu", [], tmp_path)
    assert launch.accelerator is None
    assert (launch.processes.count, launch.processes.main, launch.device) == (1, True, "cpu")
