"""A benchmark's summary as tables, and as a file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.table import Table

from hasspec.evaluation.bootstrap import Interval
from hasspec.files import write_atomically

ALL_FILES = "all"
SHOWN_DEPTHS = 6


def acceptance_table(summary: dict[str, Any]) -> Table:
    """Tau by both definitions, against the first head's, and n-alpha of the first depths."""
    table = Table(title="Acceptance", caption="α in %: accepted at depth 1, 2, … given all before")
    for column in ("prompts", "head"):
        table.add_column(column, overflow="fold")
    for column in ("τ", "τ macro", "τ ratio", "α", "capped", "distinct-4"):
        table.add_column(column, justify="right", no_wrap=True)
    for label, group in _groups(summary):
        first = next(iter(group["heads"].values()), None)
        for name, head in group["heads"].items():
            table.add_row(
                f"{Path(label).name} ({head['prompts']})",
                name,
                _number(head["tau"]),
                _number(head["tau_macro"]),
                _number(head["tau"] / first["tau"]) if head["tau"] and first["tau"] else "-",
                " ".join(
                    "-" if alpha is None else f"{100 * alpha:.0f}"
                    for alpha in head["alpha"][:SHOWN_DEPTHS]
                ),
                f"{head['capped']:.0%}",
                _number(head["distinct_n"]["4"]),
            )
        table.add_section()
    return table


def speed_table(summary: dict[str, Any]) -> Table:
    """Tokens a second, speedup where it is significant, time split and exactness."""
    table = Table(title="Speed", caption="speedup over plain decoding in this engine, 95 %")
    for column in ("prompts", "variant"):
        table.add_column(column, overflow="fold")
    for column in ("tok/s", "speedup", "draft/verify/other", "identical", "flips/1000"):
        table.add_column(column, justify="right", no_wrap=True)
    for label, group in _groups(summary):
        variants = {"plain": group["plain"]} if group["plain"] else {}
        for name, measured in {**variants, **group["heads"]}.items():
            identical = measured.get("identical")
            table.add_row(
                Path(label).name,
                name,
                f"{measured['tokens_per_second']:.1f}",
                _speedup(measured),
                _time_split(measured),
                "-" if identical is None else f"{identical}/{measured['prompts']}",
                _flips(measured["flips"]),
            )
        table.add_section()
    return table


def write_json(path: Path, report: dict[str, Any]) -> None:
    """Write whole or not at all; numbers that do not exist are null."""
    write_atomically(path, json.dumps(report, indent=2, allow_nan=False) + "\n")


def _groups(summary: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    yield from summary["by_prompts"].items()
    if len(summary["by_prompts"]) > 1:
        yield ALL_FILES, summary


def _speedup(measured: dict[str, Any]) -> str:
    speedup = measured.get("speedup")
    if speedup is None:
        return "-"
    bounds = (speedup[key] for key in ("median", "low", "high"))
    return Interval(*bounds, measured["prompts"]).claim


def _time_split(measured: dict[str, Any]) -> str:
    return " / ".join(
        f"{seconds / measured['seconds']:.0%}" for seconds in measured["time"].values()
    )


def _flips(flips: dict[str, Any] | None) -> str:
    if flips is None:
        return "-"
    beyond = f" ({flips['beyond']} beyond ties!)" if flips["beyond"] else ""
    return _number(flips["per_1000"]) + beyond


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
