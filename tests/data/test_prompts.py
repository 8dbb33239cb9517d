from __future__ import annotations

import json
from pathlib import Path

import datasets
import pytest

from hasspec.data import read_dataset, read_prompts


def write_lines(path: Path, *lines: object) -> Path:
    text = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(text) + "\n", encoding="utf-8")
    return path


def test_rows_of_every_shape(tmp_path: Path) -> None:
    path = write_lines(
        tmp_path / "p.jsonl",
        {"id": "a", "turns": ["one", "two"]},
        "",
        {"prompt": "three"},
        {
            "messages": [
                {"role": "system", "content": "be brief"},
                {"role": "user", "content": "four"},
                {"role": "assistant", "content": "left out"},
                {"role": "user", "content": "five"},
            ]
        },
    )
    first, second, third = read_prompts(path)
    assert (first.prompt_id, first.turns, first.source) == ("a", ("one", "two"), "p.jsonl")
    assert (second.prompt_id, second.turns) == ("p-3", ("three",))
    assert (third.system, third.turns) == ("be brief", ("four", "five"))


@pytest.mark.parametrize(
    "line",
    [
        '{"turns": ["cut off',
        '["a list"]',
        {"question": "unknown key"},
        {"turns": []},
        {"turns": ["fine", "  "]},
        {"turns": "text instead of a list"},
        {"prompt": 3},
        {"messages": [{"role": "tool", "content": "x"}]},
        {"messages": [{"content": "no role"}]},
        {"messages": [{"role": "assistant", "content": "no user turn"}]},
    ],
)
def test_malformed_line_is_named(tmp_path: Path, line: object) -> None:
    path = write_lines(tmp_path / "bad.jsonl", {"prompt": "good"}, line)
    with pytest.raises(ValueError, match=r"bad\.jsonl:2: "):
        read_prompts(path)


def test_bytes_that_are_no_utf8_are_named(tmp_path: Path) -> None:
    path = tmp_path / "latin.jsonl"
    path.write_bytes(b'{"prompt": "caf\xe9"}\n')
    with pytest.raises(ValueError, match=r"latin\.jsonl:1: "):
        read_prompts(path)


def test_no_file_and_no_prompts(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file"):
        read_prompts(tmp_path / "absent.jsonl")
    with pytest.raises(ValueError, match="holds no prompts"):
        read_prompts(write_lines(tmp_path / "empty.jsonl", ""))


def test_dataset_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    path = tmp_path / "rows.parquet"
    datasets.Dataset.from_dict(
        {
            "question": ["a?", "b?"],
            "turns": [["a?", "and?"], ["b?"]],
            "chat": [[{"role": "user", "content": "a?"}], [{"role": "user", "content": "b?"}]],
            "number": [1, 2],
        }
    ).to_parquet(path)
    assert [p.turns for p in read_dataset(str(path), column="question")] == [("a?",), ("b?",)]
    turns = read_dataset(str(path), column="turns", split="train[:1]")
    assert [p.turns for p in turns] == [("a?", "and?")]
    assert [p.turns for p in read_dataset(str(path), column="chat")] == [("a?",), ("b?",)]
    with pytest.raises(ValueError, match="no column 'text'; it has question, turns, chat, number"):
        read_dataset(str(path), column="text")
    with pytest.raises(ValueError, match="row 0: expected a non-empty list"):
        read_dataset(str(path), column="number")
    with pytest.raises(ValueError, match="cannot load split 'test'"):
        read_dataset(str(path), column="question", split="test")
