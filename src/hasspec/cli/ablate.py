"""``hasspec ablate``: a grid of recipes, trained and compared on the same answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hasspec.cli.options import Device, TargetName, Threads

if TYPE_CHECKING:
    from rich.console import Console

    from hasspec.evaluation.ablation import AnswerSets, Results
    from hasspec.evaluation.grid import Grid
    from hasspec.target import Target


def ablate(
    target: TargetName,
    grid: Annotated[Path, typer.Argument(help="YAML file; see docs/training.md.")],
    out: Annotated[Path, typer.Option(help="Folder; an interrupted ablation continues.")],
    root: Annotated[
        Path | None,
        typer.Option(help="Where the grid's stores and heads lie; without it, beside the grid."),
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Folder for a disk cache of target features.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="Dtype of target and heads.")] = "float32",
    device: Device = "cpu",
    threads: Threads = None,
) -> None:
    """Train every cell of a grid with every seed, and report what differs."""
    import torch
    from rich.console import Console

    from hasspec.decoding import TreeSpec
    from hasspec.evaluation.ablation import AnswerSets
    from hasspec.evaluation.ablation_report import write_ablation_report
    from hasspec.evaluation.grid import load_grid
    from hasspec.evaluation.machine import machine_fingerprint
    from hasspec.target import Target

    if threads:
        torch.set_num_threads(threads)
    console = Console(stderr=True)
    cells = load_grid(grid, root)
    loaded = Target.load(target, dtype=dtype, device=device)
    trees = [TreeSpec.parse(tree, loaded.device) for tree in cells.trees]
    answers: AnswerSets | None = None
    results: dict[str, list[Results]] = {}
    runs = list(cells.runs)
    for number, (name, seed) in enumerate(runs, 1):
        folder = out / "cells" / f"{name}-{seed}"
        about = _about(cells, name, seed, loaded.fingerprint(), [str(tree) for tree in trees])
        found = _earlier(folder, about)
        if found is None:
            console.print(f"cell {number} of {len(runs)}: {name}, seed {seed}", highlight=False)
            _train(loaded, target, cells, name, seed, folder, cache, console)
            answers = answers or AnswerSets(loaded, cells.answers, cells.conversations)
            found = _measure(loaded, folder, about, answers, trees)
        results.setdefault(name, []).append(found)
    machine = machine_fingerprint(loaded)
    lines = [
        f"Target `{target}`, {cells.conversations or 'all'} conversations of each set of answers, "
        f"seeds {', '.join(map(str, cells.seeds))}; T = 0, by replay.",
        "",
        ", ".join(f"{key} {value}" for key, value in machine.items()) + ".",
    ]
    for file in write_ablation_report(cells, results, lines, out):
        typer.echo(file)


def _about(grid: Grid, name: str, seed: int, fingerprint: str, trees: list[str]) -> dict[str, Any]:
    """What a finished cell's results depend on."""
    from hasspec.data.store import TokenStore

    return {
        "recipe": grid.recipe_of(name, seed).model_dump(mode="json"),
        "target": fingerprint,
        "data": [TokenStore.open(path).fingerprint() for path in grid.data_of(name)],
        "answers": [TokenStore.open(path).fingerprint() for path in grid.answers],
        "conversations": grid.conversations,
        "trees": trees,
    }


def _earlier(folder: Path, about: dict[str, Any]) -> Results | None:
    file = folder / "results.json"
    if not file.is_file():
        return None
    recorded = json.loads(file.read_text(encoding="utf-8"))
    different = [key for key, value in about.items() if recorded["about"].get(key) != value]
    if different:
        raise ValueError(
            f"{folder} holds a finished cell with another {', '.join(different)}; choose another "
            "--out, or remove that folder to do the cell again"
        )
    return recorded["results"]


def _train(
    target: Target,
    target_name: str,
    grid: Grid,
    name: str,
    seed: int,
    folder: Path,
    cache: Path | None,
    console: Console,
) -> None:
    from hasspec.cli.training_setup import feature_source, serving, training_data
    from hasspec.cli.training_view import train_visibly
    from hasspec.draft import load_head
    from hasspec.training import Trainer
    from hasspec.training.processes import Processes

    recipe = grid.recipe_of(name, seed)
    init = grid.init_of(name)
    start = load_head(init, target=target) if init else None
    found = training_data(target, target_name, grid.data_of(name), recipe, start)
    trainer = Trainer(
        target,
        found.examples,
        feature_source(cache, found.examples, target, console, Processes()),
        recipe,
        folder,
        provenance=found.provenance,
        init=start,
        held_out=found.held_out,
        serve=serving(target, recipe, found.held_out),
    )
    if not train_visibly(trainer, console, lambda record: None):
        console.print(f"Interrupted in cell {name}; the same command continues.")
        raise typer.Exit(130)


def _measure(
    target: Target, folder: Path, about: dict[str, Any], answers: AnswerSets, trees: list
) -> Results:
    from hasspec.draft import load_head
    from hasspec.files import write_atomically

    found = answers.measure(load_head(folder, target=target), trees)
    # Read back, a result is the same whether it was measured now or in an earlier session.
    text = json.dumps({"about": about, "results": found})
    write_atomically(folder / "results.json", text)
    return json.loads(text)["results"]
