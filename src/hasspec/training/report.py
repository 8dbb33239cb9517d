"""A training run read back from its folder: a page of Markdown and its plots."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hasspec.files import replacing, write_atomically

Record = dict[str, Any]


def write_report(run: Path, out: Path) -> list[Path]:
    """Write ``report.md`` and its plots from a run folder alone.

    Args:
        run: the folder of ``run.json`` and ``metrics.jsonl``, or the folder of the head above it.
        out: where to write; created if need be.

    Returns:
        The files written, the page first.

    Raises:
        ValueError: no run, or nothing logged yet.
    """
    folder = run / "run" if (run / "run" / "run.json").is_file() else run
    if not (folder / "run.json").is_file():
        raise ValueError(f"{run} holds no training run; give the folder that `hasspec train` wrote")
    about = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    records = _records(folder / "metrics.jsonl")
    out.mkdir(parents=True, exist_ok=True)
    plots = {"loss.png": _plot_losses, "accuracy.png": _plot_accuracy}
    if any("held_out" in record for record in records):
        plots["held_out.png"] = _plot_held_out
    if any("served" in record for record in records):
        plots["served.png"] = _plot_served
    for name, plot in plots.items():
        _draw(plot, records, out / name)
    page = out / "report.md"
    write_atomically(page, _page(about, records, list(plots)))
    return [page, *(out / name for name in plots)]


def _records(metrics: Path) -> list[Record]:
    lines = metrics.read_text(encoding="utf-8").splitlines() if metrics.is_file() else []
    # A run that is going on, or was killed, may have half a line at the end.
    records = [json.loads(line) for line in lines if line.endswith("}")]
    if not records:
        raise ValueError(f"nothing has been logged in {metrics} yet")
    return records


def _draw(plot: Callable[[Axes, Sequence[Record]], None], records: list[Record], to: Path) -> None:
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel("optimiser step")
    axes.grid(alpha=0.3)
    plot(axes, records)
    axes.legend()
    drawn = io.BytesIO()
    # No version or date in the file: the same run gives the same bytes.
    figure.savefig(drawn, format="png", dpi=120, metadata={"Software": None})
    with replacing(to) as partial:
        partial.write_bytes(drawn.getvalue())


def _plot_losses(axes: Axes, records: Sequence[Record]) -> None:
    steps = [record["step"] for record in records]
    axes.plot(steps, [record["loss"] for record in records], label="loss", color="black")
    for name in ("feature", "ce", "top_k"):
        axes.plot(steps, [record[name][0] for record in records], label=f"{name}, step 1")
    axes.set_ylabel("per token")


def _plot_accuracy(axes: Axes, records: Sequence[Record]) -> None:
    for index in range(max(len(record["accuracy"]) for record in records)):
        seen = [record for record in records if len(record["accuracy"]) > index]
        axes.plot(
            [record["step"] for record in seen],
            [record["accuracy"][index] for record in seen],
            label=f"alignment step {index + 1}",
        )
    axes.set_ylabel("training text: most likely token is the target's")


def _plot_held_out(axes: Axes, records: Sequence[Record]) -> None:
    seen = [record for record in records if "held_out" in record]
    steps = [record["step"] for record in seen]
    for depth in range(len(seen[0]["held_out"]["alpha"])):
        alpha = [record["held_out"]["alpha"][depth] for record in seen]
        axes.plot(steps, [float("nan") if a is None else a for a in alpha], label=f"{depth + 1}-α")
    axes.set_ylabel("held-out text: chain's n-α")


def _plot_served(axes: Axes, records: Sequence[Record]) -> None:
    seen = [record for record in records if "served" in record]
    for index, first in enumerate(seen[0]["served"]):
        settings = [record["served"][index] for record in seen]
        steps = [record["step"] for record in seen]
        label = f"{first['tree']}, T = {first['temperature']:g}"
        (line,) = axes.plot(steps, [s["tau"] for s in settings], marker="o", label=label)
        intervals = [s["interval"] for s in settings]
        if all(intervals):
            axes.fill_between(
                steps,
                [interval["low"] for interval in intervals],
                [interval["high"] for interval in intervals],
                color=line.get_color(),
                alpha=0.12,
            )
    axes.set_ylabel("decoded: τ, 95 % over prompts")


def _page(about: Record, records: Sequence[Record], plots: Sequence[str]) -> str:
    described, last = about["described"], records[-1]
    recipe = described["recipe"]
    lines = [
        f"# {recipe['name']}",
        "",
        f"Target `{described.get('target', 'unknown')}`, "
        f"step {last['step']} of {recipe['optimisation']['steps']}, "
        f"{last['tokens']:,} answer-token passes, loss {last['loss']:.3f}.",
        "",
        "```",
        " ".join(about["command"]),
        "```",
        "",
        ", ".join(f"{name} {version}" for name, version in about["versions"].items()) + ".",
        "",
    ]
    lines += _table(
        ["step", "chain τ", "α by depth, %"],
        [
            [
                record["step"],
                f"{record['held_out']['chain_tau']:.3f}",
                _percent(record["held_out"]["alpha"]),
            ]
            for record in records
            if "held_out" in record
        ],
        "Held-out text",
    )
    lines += _table(
        ["step", "tree", "T", "τ", "95 %", "α by depth, %"],
        [
            [
                record["step"],
                f"`{setting['tree']}`",
                f"{setting['temperature']:g}",
                f"{setting['tau']:.2f}",
                "-"
                if setting["interval"] is None
                else f"{setting['interval']['low']:.2f} to {setting['interval']['high']:.2f}",
                _percent(setting["alpha"]),
            ]
            for record in records
            for setting in record.get("served", [])
        ],
        "Decoded",
    )
    for name in plots:
        lines += [f"![{Path(name).stem}]({name})", ""]
    return "\n".join(lines)


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]], title: str) -> list[str]:
    if not rows:
        return []
    lines = [f"## {title}", "", "| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    return [*lines, *("| " + " | ".join(map(str, row)) + " |" for row in rows), ""]


def _percent(alpha: Sequence[float | None]) -> str:
    return " ".join("-" if value is None else f"{100 * value:.1f}" for value in alpha)
