"""The ``hasspec`` command."""

from __future__ import annotations

from typing import Annotated

import typer
from typer.core import TyperGroup

from hasspec.cli.ablate import ablate
from hasspec.cli.bench import bench
from hasspec.cli.chat import chat
from hasspec.cli.demo import demo
from hasspec.cli.generate import generate
from hasspec.cli.ingest import ingest
from hasspec.cli.report import report
from hasspec.cli.synth import synth
from hasspec.cli.train import train

WRONG_USE = 2


class CleanErrors(TyperGroup):
    """A ``ValueError`` is the user's to read: one line and exit status 2, no traceback."""

    def invoke(self, ctx: typer.Context) -> object:
        try:
            return super().invoke(ctx)
        except ValueError as error:
            if ctx.params.get("debug"):
                raise
            typer.echo(f"error: {' '.join(str(error).split())}", err=True)
            raise typer.Exit(WRONG_USE) from None


app = typer.Typer(
    cls=CleanErrors,
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    help="Lossless speculative decoding with HASS draft heads: train, run, measure.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"hasspec {version('hasspec')}")
        raise typer.Exit


@app.callback()
def main(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Version.")
    ] = False,
) -> None:
    """Lossless speculative decoding with HASS draft heads: train, run, measure."""


for command in (demo, generate, chat, synth, ingest, train, report, ablate, bench):
    app.command()(command)


if __name__ == "__main__":
    app()
