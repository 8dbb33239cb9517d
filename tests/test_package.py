"""The package as a whole: its layers and its public names."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import hasspec

SOURCE = Path(hasspec.__file__).parent
LAYERS = [
    "files",
    "heads",
    "target",
    "draft",
    "data",
    "training",
    "decoding",
    "evaluation",
    "serving",
    "cli",
]


def imports_of(path: Path) -> Iterator[str]:
    """Dotted names of everything a file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize(
    "path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE))
)
def test_layers_import_only_what_lies_below(path: Path) -> None:
    layer = path.relative_to(SOURCE).parts[0]
    if path.parent == SOURCE:
        assert layer == "__init__.py"
        return
    allowed = LAYERS[: LAYERS.index(layer) + 1]
    for name in imports_of(path):
        first, _, rest = name.partition(".")
        if first == "hasspec":
            assert rest.split(".")[0] in allowed, f"{path} imports {name}"


def test_public_names_resolve() -> None:
    assert set(hasspec.__all__) <= set(dir(hasspec))
    for name in hasspec.__all__:
        assert getattr(hasspec, name).__name__ == name
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = hasspec.nonsense


def test_import_is_light() -> None:
    script = "import sys, hasspec; print('torch' in sys.modules, callable(hasspec.Target.load))"
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert result.stdout.split() == ["False", "True"], result.stderr
