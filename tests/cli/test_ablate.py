"""``hasspec ablate`` on a tiny target: trained, compared, resumed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hasspec.data import Conversation, TokenStore
from hasspec.data.store import StoreMetadata
from hasspec.decoding import Decoder
from hasspec.target import Target

GRID = """
recipe: recipe.yaml
data: [data]
answers: [answers]
trees: [2x2x4, "chain:2"]
seeds: [0, 1]
baseline: hass
cells:
  hass: {}
  eagle: {set: {alignment.steps: 1, objective.top_k: 0}}
  longer: {set: {optimisation.steps: 5}, against: eagle}
"""
RECIPE = """
alignment: {steps: 2}
optimisation: {steps: 3, batch: 4, lr: 3.0e-3}
log_every: 1
"""


@pytest.fixture
def grid(make_store, tiny_target_folder: Path, tmp_path: Path) -> Path:
    target = Target.load(str(tiny_target_folder))
    make_store(tmp_path / "data", target.fingerprint())
    about = {"fingerprint": target.fingerprint()}
    settings = {"answers": {"temperature": 0}}
    store = TokenStore.create(tmp_path / "answers", StoreMetadata(target=about, settings=settings))
    plain = Decoder(target)
    conversations = []
    for first in range(5, 12):
        prompt = [first, first + 1, first + 2]
        answer = plain.generate(prompt, max_new_tokens=12).token_ids
        conversations.append(Conversation(prompt + answer, [(3, 3 + len(answer))]))
    store.append(conversations, complete=True)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    file = tmp_path / "grid.yaml"
    file.write_text(GRID)
    return file


def test_a_grid_is_trained_compared_and_resumed(run, grid, tiny_target_folder, tmp_path) -> None:
    out, elsewhere = tmp_path / "out", tmp_path / "grids"
    elsewhere.mkdir()
    for file in (grid, grid.parent / "recipe.yaml"):
        file.rename(elsewhere / file.name)
    grid = elsewhere / "grid.yaml"
    command = ("ablate", tiny_target_folder, grid, "--root", tmp_path, "--out", out)
    command += ("--cache", tmp_path / "cache")
    first = run(*command)
    assert first.exit_code == 0, first.output
    results = sorted(out.glob("cells/*/results.json"))
    assert [file.parent.name for file in results] == [
        *("eagle-0", "eagle-1", "hass-0", "hass-1", "longer-0", "longer-1")
    ]
    page = (out / "report.md").read_text()
    rows = [line.split(" | ")[0] for line in page.splitlines() if line.startswith("| ")]
    assert rows == ["| cell", "| hass", "| eagle", "| longer"] * 2
    assert "`optimisation.steps: 5`" in page
    assert (out / "ratio-static-2x2x4.png").stat().st_size > 1000

    # A finished cell is not trained again, an unfinished one is, and nothing changes.
    written = {file: file.stat().st_mtime_ns for file in results}
    results[1].unlink()
    again = run(*command)
    assert again.exit_code == 0, again.output
    assert (out / "report.md").read_text() == page
    assert [file for file in results if file.stat().st_mtime_ns != written[file]] == [results[1]]


def test_a_cell_that_has_changed_is_refused(run, grid, tiny_target_folder, tmp_path) -> None:
    out = tmp_path / "out"
    grid.write_text(GRID.replace("seeds: [0, 1]", "seeds: [0]"))
    assert run("ablate", tiny_target_folder, grid, "--out", out).exit_code == 0
    grid.write_text(GRID.replace("seeds: [0, 1]", "seeds: [0]\nconversations: 3"))
    changed = run("ablate", tiny_target_folder, grid, "--out", out)
    assert changed.exit_code == 2
    assert "another conversations" in changed.output


def test_measured_without_randomness(tiny_target_folder: Path, grid: Path) -> None:
    from hasspec.decoding import TreeSpec
    from hasspec.draft import DraftConfig, DraftHead
    from hasspec.evaluation.ablation import AnswerSets

    target = Target.load(str(tiny_target_folder))
    torch.manual_seed(0)
    head = DraftHead(DraftConfig.from_target(target.config)).eval()
    sets = AnswerSets(target, [grid.parent / "answers"], 4)
    trees = [TreeSpec.parse("2x2x4")]
    found = sets.measure(head, trees)
    assert found == sets.measure(head, trees)
    assert len(found[str(trees[0])]["answers"]["rounds"]) == 4
