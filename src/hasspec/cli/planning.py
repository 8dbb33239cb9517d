"""A training plan as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

if TYPE_CHECKING:
    from hasspec.training.plan import Plan


def plan_table(plan: Plan, *, decoded_prompts: int) -> Table:
    """What a run will take, one line a matter."""
    table = Table(title="Plan, from a few measured steps", show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_row("conversations", f"{plan.conversations:,}")
    table.add_row("answer tokens", f"{plan.answer_tokens:,}")
    table.add_row("optimiser steps", f"{plan.steps:,}")
    table.add_row("answer-token passes", f"{plan.passes:,.0f}")
    table.add_row("epochs", f"{plan.epochs:.1f}")
    table.add_section()
    table.add_row("optimiser steps, each", f"{plan.step_seconds:.2f} s")
    table.add_row("optimiser steps, all", _duration(plan.steps * plan.step_seconds))
    table.add_row("target features", _duration(plan.feature_seconds))
    table.add_row("held-out chains", _duration(plan.validation_seconds))
    if decoded_prompts:
        table.add_row("decoded prompts", "not measured")
    table.add_row("together", _duration(plan.seconds))
    table.add_section()
    table.add_row("peak memory", _size(plan.peak_memory))
    table.add_row("feature cache grows by", _size(plan.cache_bytes))
    table.add_row("head and checkpoints", _size(plan.run_bytes))
    return table


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def _size(n_bytes: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if n_bytes < 1024:
            return f"{n_bytes:.0f} {unit}"
        n_bytes /= 1024
    return f"{n_bytes:.2f} GiB"
