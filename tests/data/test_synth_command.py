from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from hasspec.cli.ingest import ingest
from hasspec.cli.synth import synth
from hasspec.data import TokenStore
from hasspec.target import Target

PROMPTS = [{"id": n, "turns": [f"What is {n}?", "Why?"]} for n in range(9)]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(map(json.dumps, PROMPTS)) + "\n")
    return path


@pytest.fixture
def run(tiny_target_folder: Path):
    app = typer.Typer()
    app.command()(synth)
    app.command()(ingest)

    def invoke(command: str, *arguments: object) -> Result:
        given = [command, str(tiny_target_folder), *map(str, arguments)]
        return CliRunner().invoke(app, given)

    return invoke


def test_prompts_to_store(run, prompts: Path, tmp_path: Path, tiny_target: Target) -> None:
    arguments = [
        *("--prompts", prompts, "--out", tmp_path / "s", "--dtype", "float32", "--rows", 4),
        *("--max-new-tokens", 6, "--max-context", 200),
    ]
    result = run("synth", *arguments, "--limit", 3)
    assert result.exit_code == 0, result.output
    store = TokenStore.open(tmp_path / "s")
    assert [c.prompt_id for c in store] == ["0", "1", "2"]
    assert all(len(c.answer_spans) == 2 for c in store)
    assert store.metadata.target["fingerprint"] == tiny_target.fingerprint()
    assert "prompts: kept: 3" in result.output

    # A larger limit goes on where the smaller one ended.
    again = run("synth", *arguments)
    assert "going on after 3 conversations" in again.output
    assert [c.prompt_id for c in TokenStore.open(tmp_path / "s")] == [str(n) for n in range(9)]

    other = run("synth", *arguments, "--temperature", 0.5)
    assert isinstance(other.exception, ValueError)
    assert "'temperature': 0.0" in str(other.exception)
    assert "'temperature': 0.5" in str(other.exception)


def test_the_seed_orders_shuffled_prompts(run, prompts: Path, tmp_path: Path) -> None:
    def order(name: str, seed: int) -> list[str]:
        run(
            *("synth", "--prompts", prompts, "--out", tmp_path / name, "--shuffle"),
            *("--seed", seed, "--first-turn", "--max-new-tokens", 1, "--dtype", "float32"),
        )
        return [c.prompt_id for c in TokenStore.open(tmp_path / name)]

    one = order("a", 0)
    assert sorted(one) == [str(n) for n in range(9)]
    assert order("b", 0) == one != order("c", 1)


def test_a_dataset_source(run, tmp_path: Path) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text("question\nWhat?\nWhy?\n")
    result = run(
        *("synth", "--dataset", rows, "--column", "question", "--out", tmp_path / "s"),
        *("--max-new-tokens", 2, "--dtype", "float32"),
    )
    assert result.exit_code == 0, result.output
    assert [c.prompt_id for c in TokenStore.open(tmp_path / "s")] == ["rows.csv-0", "rows.csv-1"]


def test_nothing_to_ask(run, tmp_path: Path) -> None:
    result = run("synth", "--out", tmp_path / "s")
    assert "give --prompts, --dataset or --magpie" in str(result.exception)
    assert not (tmp_path / "s").exists()


def test_ingest(run, tmp_path: Path) -> None:
    rows = tmp_path / "dialogues.jsonl"
    good = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}]}
    rows.write_text(json.dumps(good) + "\n{}\n")
    result = run("ingest", rows, "--out", tmp_path / "s")
    assert "dialogues.jsonl:2: found keys []" in str(result.exception)
    result = run("ingest", rows, "--out", tmp_path / "s", "--on-error", "skip")
    assert result.exit_code == 0
    assert "skipped: no dialogue: 1" in result.output
    assert len(TokenStore.open(tmp_path / "s")) == 1
