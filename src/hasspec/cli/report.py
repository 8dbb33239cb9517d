"""``hasspec report``: a training run as a page with plots."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    run: Annotated[Path, typer.Argument(help="Folder that `hasspec train` wrote.")],
    out: Annotated[Path | None, typer.Option(help="Where to write; RUN/report without it.")] = None,
) -> None:
    """Write a training run's page and plots again, from its folder alone."""
    from hasspec.training.report import write_report

    for file in write_report(run, out or run / "report"):
        typer.echo(file)
