"""A race of decoders in the terminal."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from hasspec.cli.race import Lane, race

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

REFRESH_SECONDS = 0.1
PANEL_LINES = 14


def show_race(console: Console, lanes: list[Lane]) -> None:
    """Run the race in live panels; without a terminal, print the answers one after the other."""
    from rich.live import Live
    from rich.text import Text

    if not console.is_terminal or console.is_dumb_terminal:
        race(lanes, lambda: None)
        for lane in lanes:
            console.print(f"--- {_title(lane)}")
            console.print(Text("".join(text for text, _ in lane.pieces)), soft_wrap=True)
        return
    drawn = 0.0

    def show() -> None:
        nonlocal drawn
        if time.monotonic() - drawn > REFRESH_SECONDS:
            live.update(_panels(console, lanes), refresh=True)
            drawn = time.monotonic()

    with Live(_panels(console, lanes), console=console, auto_refresh=False) as live:
        race(lanes, show)
        live.update(_panels(console, lanes), refresh=True)


def _title(lane: Lane) -> str:
    return (
        f"{lane.name}: {len(lane.generation.token_ids)} tokens, {lane.tokens_per_second:.0f} tok/s"
    )


def _panels(console: Console, lanes: list[Lane]) -> RenderableType:
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    from hasspec.cli.painting import GUESSED

    table = Table.grid(expand=True)
    width = console.width // len(lanes)
    height = max(3, min(PANEL_LINES, console.height - 6))
    panels = []
    for lane in lanes:
        table.add_column(width=width)
        text = Text.assemble(*((part, GUESSED if guessed else "") for part, guessed in lane.pieces))
        lines = text.wrap(console, width - 4)[-height:]
        panels.append(Panel(Text("\n").join(lines), title=_title(lane), height=height + 2))
    table.add_row(*panels)
    return table
