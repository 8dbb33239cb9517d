"""An ablation as a page of Markdown with plots."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from hasspec.evaluation.ablation import Comparison, Results, compare
from hasspec.evaluation.grid import Grid
from hasspec.files import replacing, write_atomically

_DEPTHS_SHOWN = 6


def write_ablation_report(
    grid: Grid, results: Mapping[str, Sequence[Results]], about: Sequence[str], out: Path
) -> list[Path]:
    """Write ``report.md`` and a plot for each tree.

    Args:
        results: of each finished cell, by seed.
        about: lines that say what it was run on.
        out: folder.

    Returns:
        The files written, the page first.
    """
    page = ["# Ablation", "", *about, ""]
    files = []
    for tree in next(iter(results.values()))[0]:
        compared = {name: _compared(grid, results, name, tree) for name in results}
        page += [f"## `{tree}`", "", *_table(grid, compared), ""]
        plot = out / f"ratio-{tree.replace(':', '-')}.png"
        _draw(compared, plot)
        files.append(plot)
        page += [f"![ratios on {tree}]({plot.name})", ""]
    page += ["## Cells", "", *_cells(grid), ""]
    written = out / "report.md"
    write_atomically(written, "\n".join(page))
    return [written, *files]


def _compared(
    grid: Grid, results: Mapping[str, Sequence[Results]], name: str, tree: str
) -> Comparison:
    rival = grid.rival_of(name)
    ours = [of_seed[tree] for of_seed in results[name]]
    if rival == name or rival not in results:
        return compare(ours, None)
    theirs = [of_seed[tree] for of_seed in results[rival]]
    both = min(len(ours), len(theirs))
    return compare(ours[:both], theirs[:both])


def _table(grid: Grid, compared: Mapping[str, Comparison]) -> list[str]:
    sets = list(next(iter(compared.values())).tau)
    head = ["cell", *(f"τ {name}" for name in sets), "mean τ", "against", "ratio, 95 %"]
    head += ["by seed", "says", f"n-α 1 to {_DEPTHS_SHOWN}, %"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name, found in compared.items():
        ratio = found.ratio
        row = [
            name,
            *(f"{found.tau[of_set]:.3f}" for of_set in sets),
            f"{found.mean_tau:.3f}",
            grid.rival_of(name) if ratio else "-",
            f"{ratio.median:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]" if ratio else "-",
            " ".join(f"{of_seed:.3f}" for of_seed in found.ratio_S) or "-",
            found.verdict,
            " ".join("-" if a is None else f"{100 * a:.1f}" for a in found.alpha[:_DEPTHS_SHOWN]),
        ]
        lines.append("| " + " | ".join(row) + " |")
    return lines


def _cells(grid: Grid) -> list[str]:
    lines = []
    for name, cell in grid.cells.items():
        parts: list[str] = [f"`{key}: {value}`" for key, value in cell.set.items()]
        parts += [f"data `{' '.join(path.name for path in cell.data)}`"] if cell.data else []
        parts += [f"started from `{cell.init.name}`"] if cell.init else []
        lines.append(f"- **{name}**: {', '.join(parts) or 'the recipe as it is'}")
    return lines


def _draw(compared: Mapping[str, Comparison], to: Path) -> None:
    shown: dict[str, Any] = {name: found for name, found in compared.items() if found.ratio}
    figure = Figure(figsize=(7, 1 + 0.35 * max(len(shown), 1)), layout="constrained")
    axes = figure.subplots()
    for row, found in enumerate(shown.values()):
        axes.plot([found.ratio.low, found.ratio.high], [row, row], color="tab:blue")
        axes.plot(found.ratio.median, row, "o", color="tab:blue")
        axes.plot(found.ratio_S, [row] * len(found.ratio_S), "|", color="black")
    axes.axvline(1.0, color="grey", linewidth=0.8)
    axes.set_yticks(range(len(shown)), list(shown))
    axes.invert_yaxis()
    axes.set_xlabel("mean τ, ratio; line: 95 % over conversations, ticks: seeds")
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=120, metadata={"Software": None})
    with replacing(to) as partial:
        partial.write_bytes(drawn.getvalue())
