"""What ``hasspec train`` shows while it trains."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from hasspec.training.progress import Progress, Served
    from hasspec.training.trainer import Trainer


def describe(trainer: Trainer, console: Console) -> None:
    recipe = trainer.recipe
    answers = sum(len(e.root_R) for e in trainer.examples)
    drafted = "all" if trainer.frequent_N is None else str(len(trainer.frequent_N))
    console.print(
        f"{len(trainer.examples)} conversations, {answers} answer tokens; "
        f"{recipe.optimisation.steps} steps of {recipe.optimisation.batch} conversations, "
        f"n = {recipe.alignment.steps}; drafted vocabulary {drafted} "
        f"(covers {trainer.coverage:.2%} of the answers)"
    )
    if trainer.step:
        console.print(f"Continuing at step {trainer.step}.")


def train_visibly(
    trainer: Trainer, console: Console, on_record: Callable[[dict[str, Any]], None]
) -> bool:
    """Train with a progress bar; Ctrl-C and SIGTERM finish the step, save, and stop.

    Args:
        on_record: called with every line of metrics.jsonl.
    """
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    asked_to_stop: list[int] = []
    handlers = {
        number: signal.signal(number, lambda received, _: asked_to_stop.append(received))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    try:
        with Bar(*columns, console=console) as bar:
            task = bar.add_task("training", total=trainer.recipe.optimisation.steps)

            def show(progress: Progress) -> None:
                on_record(progress.record)
                accuracy = " ".join(f"{value:.3f}" for value in progress.accuracy)
                description = (
                    f"step {progress.step}/{progress.steps}  loss {progress.loss:.3f}  "
                    f"accuracy {accuracy}  {progress.tokens_per_second:.0f} tokens/s  "
                    f"{progress.seconds_left / 60:.0f} min left"
                )
                bar.update(task, completed=progress.step, description=description)
                if progress.held_out:
                    alpha = " ".join(f"{value or 0:.3f}" for value in progress.held_out.alpha)
                    bar.console.print(
                        f"step {progress.step}: on held-out text, alpha {alpha}  "
                        f"chain tau {progress.held_out.chain_tau:.3f}",
                        highlight=False,
                        soft_wrap=True,
                    )
                if progress.served:
                    bar.console.print(
                        f"step {progress.step}: decoded, {_served_line(progress.served)}  "
                        f"({progress.served_share:.0%} of the time)",
                        highlight=False,
                        soft_wrap=True,
                    )
                if not console.is_terminal:
                    console.print(description, highlight=False, soft_wrap=True)

            return trainer.train(on_progress=show, interrupted=lambda: bool(asked_to_stop))
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _served_line(served: Served) -> str:
    parts = []
    for setting in served.record:
        interval = setting["interval"]
        within = f" [{interval['low']:.2f}, {interval['high']:.2f}]" if interval else ""
        parts.append(
            f"{setting['tree']} T={setting['temperature']:g} tau {setting['tau']:.2f}{within}"
        )
    return "  ".join(parts)
