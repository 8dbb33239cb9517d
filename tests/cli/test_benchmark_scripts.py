"""The scripts of benchmarks/ run, and say so when something differs."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from hasspec.decoding import Decoder

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    def run(name: str, *arguments: object) -> None:
        spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        spec.loader.exec_module(module)
        module.main()

    return run


def test_identity_is_seen_and_so_is_its_absence(
    script, tiny_target_folder, tiny_head_folder, prompts, tmp_path, monkeypatch
):
    out = tmp_path / "out.jsonl"
    arguments = [tiny_target_folder, tiny_head_folder, prompts]
    arguments += ["--max-new-tokens", 8, "--batch", 3, "--out", out]
    with pytest.raises(SystemExit) as ended:
        script("identity", *arguments, "--limit", 3)
    assert ended.value.code == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(line["prompt"], line["turn"]) for line in lines] == [
        ("1", 1),
        ("1", 2),
        ("2", 1),
        ("3", 1),
    ]

    decode = Decoder.generate

    def wrong(self, ids, **options):
        generation = decode(self, ids, **options)
        generation.token_ids[2] += 1
        return generation

    monkeypatch.setattr(Decoder, "generate", wrong)
    with pytest.raises(SystemExit) as ended:
        script("identity", *arguments)
    assert ended.value.code == 1
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    # What was compared before is kept; the rest differs, also when asked alone.
    assert [line["identical"] for line in lines] == [True] * 4 + [False] * 4
    assert all(line["asked_alone"] and line["first_difference"] == 3 for line in lines[4:])


def test_replay_of_stores(script, run, tiny_target_folder, tiny_head_folder, prompts, tmp_path):
    made = run(
        *("synth", tiny_target_folder, "--prompts", prompts, "--out", tmp_path / "answers" / "one"),
        *("--max-new-tokens", 20, "--max-context", 200, "--dtype", "float32"),
    )
    assert made.exit_code == 0, made.output
    report = tmp_path / "report.json"
    script(
        *("replay", tmp_path / "answers", "--head", f"mine={tiny_head_folder}", "--json", report),
        *("--tree", "2x3x5", "--tree", "chain:2", "--target", tiny_target_folder),
        *("--dtype", "float32"),
    )
    measured = json.loads(report.read_text())
    assert set(measured) == {"2x3x5", "chain:2"}
    for heads in measured.values():
        assert heads["mine"]["one"]["tau"] == heads["mine"]["tau_mean_over_sets"] >= 1
