"""Heads by folder and by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from hasspec import heads
from hasspec.cli.heads import head_folder, named_heads


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "shipped"
    for name in ("b-head", "a-head", "not-a-head"):
        (folder / name).mkdir(parents=True)
    for name in ("b-head", "a-head"):
        (folder / name / "config.json").write_text("{}")
    monkeypatch.setattr(heads, "_FOLDER", folder)
    return folder


def test_shipped_heads_by_name(shipped: Path) -> None:
    assert heads.shipped_heads() == ["a-head", "b-head"]
    assert heads.shipped_head("a-head") == shipped / "a-head"
    with pytest.raises(ValueError, match="shipped: a-head, b-head"):
        heads.shipped_head("not-a-head")
    # A name must not reach out of the folder.
    with pytest.raises(ValueError, match="no shipped head"):
        heads.shipped_head("../shipped/a-head")


def test_a_folder_goes_before_a_shipped_head(
    shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert head_folder("a-head") == shipped / "a-head"
    Path("a-head").mkdir()
    assert head_folder("a-head") == Path("a-head")


def test_named_heads(shipped: Path, tmp_path: Path) -> None:
    assert named_heads(["x=a-head", "b-head", f"y={tmp_path}"]) == {
        "x": shipped / "a-head",
        "b-head": shipped / "b-head",
        "y": tmp_path,
    }
