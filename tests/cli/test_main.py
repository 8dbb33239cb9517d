"""The command as a whole: help, version, errors."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest
from click.testing import Result


def test_help_lists_the_commands_without_heavy_imports() -> None:
    script = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from hasspec.cli.main import app\n"
        "print(CliRunner().invoke(app, ['--help']).stdout)\n"
        "print('heavy:', sorted({'torch', 'transformers', 'datasets', 'numpy'} & {*sys.modules}))\n"
    )
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "heavy: []" in shown.stdout, shown.stderr
    for command in ("demo", "generate", "chat", "synth", "ingest", "train", "bench"):
        assert f" {command} " in shown.stdout


def test_version(run: Callable[..., Result]) -> None:
    assert run("--version").stdout == f"hasspec {version('hasspec')}\n"


def test_a_users_mistake_is_one_line(run: Callable[..., Result], tmp_path: Path) -> None:
    mistake = ("generate", tmp_path / "nothing", "--prompt", "x")
    result = run(*mistake)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert "Traceback" not in result.output


def test_debug_shows_where_a_mistake_was_found(run: Callable[..., Result], tmp_path: Path) -> None:
    result = run("--debug", "generate", tmp_path / "nothing", "--prompt", "x")
    assert isinstance(result.exception, ValueError)


def test_an_error_of_the_program_is_not_hidden(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("hasspec.target.Target.load", broken)
    result = run("generate", "smollm2-135m", "--prompt", "x")
    assert isinstance(result.exception, RuntimeError)
