"""What an ablation says of differences: counted by hand, and no more than the numbers allow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hasspec.evaluation.ablation import AnswerSets, compare
from hasspec.evaluation.grid import load_grid
from hasspec.target import Target


def of_seed(*rounds: tuple[int, int], alpha: list[float | None] | None = None) -> dict:
    return {"set": {"rounds": list(rounds), "alpha": alpha or [0.5]}}


def test_ratio_of_means_over_sets() -> None:
    ours = {**of_seed((30, 10), (30, 10)), "other": {"rounds": [(20, 10)], "alpha": [0.7, 0.1]}}
    theirs = {**of_seed((30, 15), (30, 15)), "other": {"rounds": [(20, 20)], "alpha": [0.1]}}
    found = compare([ours], [theirs])
    assert found.tau == {"set": 3.0, "other": 2.0}
    assert found.mean_tau == 2.5
    assert found.ratio_S == [pytest.approx(2.5 / 1.5)]
    assert found.ratio.median == pytest.approx(2.5 / 1.5)
    assert found.ratio.prompts == 1  # of the smallest set: too few to claim anything
    assert found.verdict == "no difference shown"
    assert found.alpha == [pytest.approx(0.6), 0.1]


def test_verdicts() -> None:
    rng = np.random.default_rng(0)
    forwards = rng.integers(10, 20, size=40)
    base = of_seed(*[(60, int(n)) for n in forwards])
    faster = of_seed(*[(60, int(n) - 3) for n in forwards])
    slightly = of_seed(*[(60, int(n) + int(rng.integers(-2, 3))) for n in forwards])
    slower = of_seed(*[(60, int(n) + 1) for n in forwards])
    assert compare([base], None).verdict == "baseline"
    assert compare([faster], [base]).verdict == "better, one seed"
    assert compare([faster, faster], [base, base]).verdict == "better"
    assert compare([slower, slower], [base, base]).verdict == "worse"
    assert compare([faster, slower], [base, base]).verdict == "seeds disagree"
    assert compare([slightly, slightly], [base, base]).verdict == "no difference shown"


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for trial in range(120):
        forwards = rng.integers(10, 40, size=(2, 60))
        ours, theirs = (of_seed(*[(60, int(n)) for n in side]) for side in forwards)
        found = compare([ours], [theirs], seed=trial, resamples=500).ratio
        covered += found.low <= 1.0 <= found.high
    assert 105 <= covered <= 120


GRID = """
recipe: recipe.yaml
data: [data]
answers: [answers]
baseline: n3
cells:
  n3: {}
  n1: {set: {alignment.steps: 1}}
"""


def write(tmp_path: Path, grid: str) -> Path:
    (tmp_path / "recipe.yaml").write_text("optimisation: {steps: 3}")
    file = tmp_path / "grid.yaml"
    file.write_text(grid)
    return file


def test_a_grid_is_read(tmp_path: Path) -> None:
    grid = load_grid(write(tmp_path, GRID + "seeds: [4, 5]\n"))
    assert list(grid.runs) == [("n3", 4), ("n1", 4), ("n3", 5), ("n1", 5)]
    assert grid.recipe_of("n1", 5).alignment.steps == 1
    assert grid.recipe_of("n1", 5).seed == 5
    assert grid.data_of("n1") == [tmp_path / "data"]
    assert grid.rival_of("n1") == "n3"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("baseline: n3", "baseline: n4", "no cell is called 'n4'"),
        ("alignment.steps", "alignment.stepz", "cell 'n1'.*stepz"),
        ("answers:", "answer:", "answer"),
        ("n1: {set", "a/b: {set", "cells"),
        ("recipe.yaml", "other.yaml", "no recipe at"),
        ("cells:", "cells: [", "not valid YAML"),
    ],
)
def test_a_bad_grid_is_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"(?s){message}"):
        load_grid(write(tmp_path, GRID.replace(old, new)))
    with pytest.raises(ValueError, match="no grid at"):
        load_grid(tmp_path / "nothing.yaml")


def test_sampled_answers_are_refused(tiny_target: Target, tmp_path: Path) -> None:
    from hasspec.data import TokenStore
    from hasspec.data.store import StoreMetadata

    about = {"fingerprint": tiny_target.fingerprint()}
    for name, target, settings, message in (
        ("a", about, {"answers": {"temperature": 0.7}}, "not written at temperature 0"),
        ("b", about, {}, "not written at temperature 0"),
        ("c", {"fingerprint": "other"}, {}, "another target"),
    ):
        TokenStore.create(tmp_path / name, StoreMetadata(target=target, settings=settings))
        with pytest.raises(ValueError, match=message):
            AnswerSets(tiny_target, [tmp_path / name])
