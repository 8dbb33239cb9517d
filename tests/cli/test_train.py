"""From data to a head by the command, and what is recorded on the way."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from hasspec.draft import load_head
from hasspec.evaluation.grid import load_grid
from hasspec.target import Target
from hasspec.training import load_recipe


@pytest.fixture
def target(tiny_target_folder: Path) -> Target:
    return Target.load(str(tiny_target_folder))


@pytest.fixture
def train(run, make_store, tiny_target_folder: Path, target: Target, tmp_path: Path):
    store = make_store(tmp_path / "data", target.fingerprint())

    def invoke(*arguments: object):
        settings = ["optimisation.steps=6", "optimisation.batch=4", "log_every=2"]
        return run(
            *("train", tiny_target_folder, "--data", store, "--cache", tmp_path / "cache"),
            *[part for setting in settings for part in ("--set", setting)],
            *arguments,
        )

    return invoke


def test_data_to_head(run, train, target: Target, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "name: mine\n"
        "validation:\n"
        "  {conversations: 4, every: 3, depth: 2, prompts: 3, new_tokens: 6, tree: 3x2x5}\n"
    )
    planned = train("--recipe", recipe, "--out", tmp_path / "head", "--plan")
    assert planned.exit_code == 0, planned.output
    assert "peak memory" in planned.output
    assert not (tmp_path / "head").exists()
    assert not list((tmp_path / "cache").rglob("*.bin"))

    result = train("--recipe", recipe, "--out", tmp_path / "head")
    assert result.exit_code == 0, result.output
    assert "16 conversations" in result.output
    assert result.output.count("on held-out text, alpha") == 2
    assert result.output.count("decoded, static:3x2x5 T=0 tau") == 2
    assert result.output.count("static:2x1x3 T=1 tau") == 2
    about = load_head(tmp_path / "head", target=target).metadata
    assert about["name"] == "mine"
    assert about["data"]["data"][0]["conversations"] == 20
    assert about["training"]["best"]["served"][0]["tree"] == "static:3x2x5"
    assert "init" not in about["data"]

    # A finished run that is asked for again keeps what it measured.
    written = (tmp_path / "head" / "hasspec.json").read_text()
    assert train("--recipe", recipe, "--out", tmp_path / "head").exit_code == 0
    assert (tmp_path / "head" / "hasspec.json").read_text() == written

    # The run can be read back, the same every time.
    assert run("report", tmp_path / "head").exit_code == 0
    page = (tmp_path / "head" / "report" / "report.md").read_text()
    assert page.startswith("# mine\n")
    assert "| 6 | `static:3x2x5` | 0 |" in page
    plots = ["loss.png", "accuracy.png", "held_out.png", "served.png"]
    for name in plots:
        assert f"({name})" in page
    assert run("report", tmp_path / "head", "--out", tmp_path / "again").exit_code == 0
    for name in ["report.md", *plots]:
        again = (tmp_path / "again" / name).read_bytes()
        assert again == (tmp_path / "head" / "report" / name).read_bytes()

    # A second stage says what it started from.
    second = train("--out", tmp_path / "second", "--init", tmp_path / "head")
    assert second.exit_code == 0, second.output
    begun = load_head(tmp_path / "second", target=target).metadata["data"]["init"]
    assert begun["name"] == "mine"
    assert begun["training"]["optimiser_steps"] == 6

    # The same folder takes no other run, and a finished one is not trained again.
    other = train("--out", tmp_path / "second")
    assert other.exit_code == 2
    assert "another init" in other.output
    lines = (tmp_path / "second" / "run" / "metrics.jsonl").read_text()
    assert train("--out", tmp_path / "second", "--init", tmp_path / "head").exit_code == 0
    assert (tmp_path / "second" / "run" / "metrics.jsonl").read_text() == lines


def test_data_of_another_target_is_refused(run, make_store, tiny_target_folder, tmp_path) -> None:
    store = make_store(tmp_path / "foreign", "0123456789abcdef")
    result = run("train", tiny_target_folder, "--data", store, "--out", tmp_path / "head")
    assert result.exit_code == 2
    assert "was written by another target" in result.output
    assert not (tmp_path / "head").exists()


def test_data_of_another_tokenizer_is_refused(
    run, make_store, tiny_target_folder, tmp_path
) -> None:
    store = make_store(tmp_path / "data", Target.load(str(tiny_target_folder)).fingerprint())
    about = json.loads((store / "store.json").read_text())
    (store / "store.json").write_text(json.dumps({**about, "tokenizer_fingerprint": "other"}))
    result = run("train", tiny_target_folder, "--data", store, "--out", tmp_path / "head")
    assert result.exit_code == 2
    assert "made with another tokenizer or chat template (fingerprint other" in result.output


def test_a_start_of_another_target_is_refused(
    run, make_store, tiny_target_folder, tiny_head_folder, tmp_path
) -> None:
    store = make_store(tmp_path / "data", Target.load(str(tiny_target_folder)).fingerprint())
    head = Path(shutil.copytree(tiny_head_folder, tmp_path / "start"))
    (head / "hasspec.json").write_text('{"target_fingerprint": "other"}')
    command = ("train", tiny_target_folder, "--data", store, "--out", tmp_path / "head")
    result = run(*command, "--init", head)
    assert result.exit_code == 2
    assert "was trained for another target (weights other" in result.output


def test_shipped_recipes_are_valid() -> None:
    recipes = Path(__file__).parents[2] / "recipes"
    files = {path.stem: path for path in sorted(recipes.glob("*.yaml"))}
    grid = load_grid(files.pop("ablation"))
    assert len(list(grid.runs)) == len(grid.seeds) * len(grid.cells) > 50
    found = {name: load_recipe(path) for name, path in files.items()}
    hass, eagle = found["hass"], found["eagle"]
    assert (hass.alignment.steps, eagle.alignment.steps, eagle.objective.top_k) == (3, 1, 0)
    assert hass.optimisation == eagle.optimisation
    shipped = found["smollm2-135m-hass"], found["smollm2-135m-eagle"]
    assert shipped[0].optimisation == shipped[1].optimisation


def test_a_report_needs_a_run(run, tmp_path: Path) -> None:
    result = run("report", tmp_path)
    assert result.exit_code == 2
    assert "holds no training run" in result.output
    (tmp_path / "run.json").write_text('{"described": {}}')
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "lo')
    assert "nothing has been logged" in run("report", tmp_path).output
