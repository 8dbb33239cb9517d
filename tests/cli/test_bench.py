"""``hasspec bench`` from end to end, and its contract with scripts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

Run = Callable[..., Result]


@pytest.fixture
def bench(run: Run, tiny_target_folder: Path, tiny_head_folder: Path) -> Run:
    def invoke(*arguments: object) -> Result:
        common = ("--max-new-tokens", 6, "--tree", "static:3x2x6")
        return run("bench", tiny_target_folder, *common, *arguments)

    return invoke


def check_head(head: dict, n_prompts: int) -> None:
    assert {
        "tau",
        "tau_macro",
        "alpha",
        "tokens_per_second",
        "speedup",
        "identical",
        "prompts",
        "time",
    } <= set(head)
    assert 1 <= head["tau"] <= 4
    assert 1 <= head["tau_macro"] <= 4
    assert head["alpha"]
    assert all(alpha is None or 0 <= alpha <= 1 for alpha in head["alpha"])
    assert head["tokens_per_second"] > 0
    assert {"median", "low", "high"} <= set(head["speedup"])
    assert head["speedup"]["low"] <= head["speedup"]["median"] <= head["speedup"]["high"]
    assert head["identical"] == head["prompts"] == n_prompts
    assert set(head["time"]) == {"draft", "verify", "other"}
    assert all(seconds > 0 for seconds in head["time"].values())


def test_contract(bench: Run, prompts: Path, tmp_path: Path, tiny_head_folder: Path) -> None:
    second, out = tmp_path / "second.jsonl", tmp_path / "out.json"
    second.write_text('{"prompt": "abc"}\n{"prompt": "def"}\n')
    heads = [f"--head={name}={tiny_head_folder}" for name in ("a", "b")]
    files = ("--prompts", prompts, "--prompts", second)
    options = ("--limit", 6, "--temperature", 0, "--dtype", "float32", "--seed", 3)
    result = bench(*heads, *files, *options, "--json", out)
    assert result.exit_code == 0, result.output
    report = json.loads(out.read_text())
    assert {"plain", "heads", "by_prompts", "machine"} <= set(report)
    assert report["complete"] is True
    assert report["plain"]["tokens_per_second"] > 0
    assert list(report["heads"]) == ["a", "b"]
    for head in report["heads"].values():
        check_head(head, n_prompts=8)
    assert list(report["by_prompts"]) == [str(prompts), str(second)]
    for path, n_prompts in ((prompts, 6), (second, 2)):
        group = report["by_prompts"][str(path)]
        assert group["plain"]["tokens_per_second"] > 0
        for head in group["heads"].values():
            check_head(head, n_prompts)
    assert report["machine"]["dtype"] == "float32"
    assert report["settings"]["tree"] == "static:3x2x6"
    assert report["settings"]["seed"] == 3
    assert [a["id"] for a in report["answers"]][:2] == ["1", "2"]
    assert sorted(report["answers"][0]["order"][1]) == ["a", "b", "plain"]
    assert not list(tmp_path.glob("*.partial"))
    for shown in ("Acceptance", "Speed", "τ", "identical", "static:3x2x6"):
        assert shown in result.stdout
    assert "2/2" in result.stdout


def test_a_speedup_that_may_be_chance_is_not_printed(
    bench: Run, prompts: Path, tmp_path: Path, tiny_head_folder: Path
) -> None:
    out = tmp_path / "out.json"
    result = bench(
        "--head", f"a={tiny_head_folder}", "--prompts", prompts, "--limit", 2, "--json", out
    )
    assert "too few prompts" in result.stdout
    speedup = json.loads(out.read_text())["heads"]["a"]["speedup"]
    assert f"{speedup['median']:.2f}x" not in result.stdout


def test_lower_precision_is_rescored(
    bench: Run, prompts: Path, tmp_path: Path, tiny_head_folder: Path
) -> None:
    out = tmp_path / "out.json"
    head = ("--head", f"a={tiny_head_folder}", "--prompts", prompts, "--json", out)
    assert bench(*head, "--dtype", "bfloat16").exit_code == 0
    report = json.loads(out.read_text())
    assert report["settings"]["teacher_check"] == "float32"
    for variant in (report["plain"], report["heads"]["a"]):
        assert variant["flips"]["tokens"] == variant["tokens"]
        assert variant["flips"]["beyond"] == 0
    assert bench(*head, "--teacher-check", "off").exit_code == 0
    assert json.loads(out.read_text())["plain"]["flips"] is None


def test_tau_only(bench: Run, prompts: Path, tmp_path: Path, tiny_head_folder: Path) -> None:
    out = tmp_path / "out.json"
    head = ("--head", f"a={tiny_head_folder}", "--prompts", prompts, "--json", out)
    result = bench(*head, "--tau-only", "--temperature", 1)
    assert result.exit_code == 0, result.output
    report = json.loads(out.read_text())
    assert report["plain"] is None
    assert report["heads"]["a"]["tau"] >= 1
    assert "Speed" not in result.stdout


def test_plain_decoding_alone(bench: Run, prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    assert bench("--prompts", prompts, "--limit", 2, "--json", out).exit_code == 0
    report = json.loads(out.read_text())
    assert report["heads"] == {}
    assert report["plain"]["answers"] == 3


def test_shipped_heads_are_named_when_one_is_missing(bench: Run, prompts: Path) -> None:
    result = bench("--head", "no-such-head", "--prompts", prompts)
    assert result.exit_code == 2
    assert "no shipped head is named 'no-such-head'" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--head", "=x"], "expected NAME=PATH"),
        (["--head", "x="], "expected NAME=PATH"),
        (["--tree", "bush"], "unknown tree 'bush'"),
        (["--temperature", "-1"], "temperature must be 0 or more"),
        (["--dtype", "int3"], "unknown dtype 'int3'"),
        (["--json", "missing/folder/out.json"], "does not exist"),
        (["--teacher-check", "same", "--temperature", "1"], "leave it out at temperature"),
        (["--tau-only"], "at least one head"),
    ],
)
def test_mistakes(bench: Run, prompts: Path, arguments: list[str], message: str) -> None:
    result = bench("--prompts", prompts, *arguments)
    assert result.exit_code == 2
    last_line = result.stderr.strip().split("\n")[-1]
    assert last_line.startswith("error: ")
    assert message in last_line


def test_a_head_given_twice(bench: Run, prompts: Path, tiny_head_folder: Path) -> None:
    twice = [f"--head=a={tiny_head_folder}"] * 2
    assert "'a' is given twice" in bench(*twice, "--prompts", prompts).stderr


def test_a_malformed_line_is_named(bench: Run, prompts: Path) -> None:
    prompts.write_text('{"prompt": "fine"}\n{"prompt": "fine"}\n{"prompt": \n')
    result = bench("--prompts", prompts)
    assert result.exit_code == 2
    assert "prompts.jsonl:3:" in result.stderr
