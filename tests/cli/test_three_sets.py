"""The README's table is made of what ``hasspec bench`` writes."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from click.testing import Result

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "three_sets.py"


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("three_sets", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("tau_only", [False, True])
def test_table(
    script: ModuleType,
    run: Callable[..., Result],
    tiny_target_folder: Path,
    tiny_head_folder: Path,
    tmp_path: Path,
    tau_only: bool,
) -> None:
    options = ["--max-new-tokens", 4, "--json", tmp_path / "out.json"]
    for name in script.SETS:
        file = tmp_path / f"{name}.jsonl"
        file.write_text('{"prompt": "abc"}\n')
        options += ["--prompts", file]
    heads = [f"--head={name}={tiny_head_folder}" for name in script.HEADS]
    result = run("bench", tiny_target_folder, *heads, *options, *["--tau-only"] * tau_only)
    assert result.exit_code == 0, result.output
    lines = script.table(json.loads((tmp_path / "out.json").read_text())).split("\n")
    for label in (*script.SETS.values(), "all"):
        for name in script.HEADS:
            row = next(line for line in lines if line.startswith(f"| {label} | {name} |"))
            assert row.count("|") == lines[0].count("|")
            assert ("1/1" in row or "3/3" in row) is not tau_only
    assert "float32" in lines[-1]


def test_missing_sets_are_named(script: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="missing: .*mt_bench.jsonl"):
        script.main([str(tmp_path), str(tmp_path / "out")])
