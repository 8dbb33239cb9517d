"""``hasspec train``: a draft head from a target and data that the target wrote."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hasspec.cli.options import Device, TargetName, Threads

if TYPE_CHECKING:
    from hasspec.cli.training_setup import TrainingData
    from hasspec.draft import DraftHead
    from hasspec.target import Target
    from hasspec.training.recipe import Recipe


def train(
    target: TargetName,
    data: Annotated[list[Path], typer.Option(help="Token store of `hasspec synth`; repeatable.")],
    out: Annotated[Path, typer.Option(help="Folder of the head; an interrupted run continues.")],
    recipe: Annotated[Path | None, typer.Option(help="YAML recipe; without it, defaults.")] = None,
    override: Annotated[
        list[str] | None,
        typer.Option("--set", help="Recipe override, section.key=value; repeatable."),
    ] = None,
    init: Annotated[Path | None, typer.Option(help="Head to start from.")] = None,
    cache: Annotated[
        Path | None,
        typer.Option(help="Folder for a disk cache of target features (2 D bytes/token)."),
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Say what the run will take, and do nothing.")
    ] = False,
    tracker: Annotated[
        list[str] | None,
        typer.Option(help="Also log there, through accelerate (tensorboard, wandb, ..)."),
    ] = None,
    dtype: Annotated[str, typer.Option(help="Dtype of the target.")] = "float32",
    device: Device = "cpu",
    device_map: Annotated[
        str | None,
        typer.Option(help="auto: spread a target too large for one GPU over all (accelerate)."),
    ] = None,
    threads: Threads = None,
) -> None:
    """Train a HASS head (or, with one alignment step and no top-K term, an EAGLE head).

    Started by `accelerate launch -m hasspec.cli.main train ..`, its processes share every batch.
    """
    import torch
    from rich.console import Console

    from hasspec.cli.launch import Launch
    from hasspec.cli.training_setup import feature_source, serving, training_data
    from hasspec.cli.training_view import describe, train_visibly
    from hasspec.draft import load_head
    from hasspec.target import Target
    from hasspec.training import Trainer, load_recipe

    if threads:
        torch.set_num_threads(threads)
    settings = load_recipe(recipe, override or [])
    launch = Launch.of(device, tracker or [], out, device_map)
    console = Console(stderr=True, quiet=not launch.processes.main)
    loaded = Target.load(target, dtype=dtype, device=launch.device, device_map=device_map)
    start = load_head(init, target=loaded) if init else None
    found = training_data(loaded, target, data, settings, start)
    if plan:
        if launch.processes.main:
            _show_plan(loaded, found, settings, cache, start)
        return
    trainer = Trainer(
        loaded,
        found.examples,
        feature_source(cache, found.examples, loaded, console, launch.processes),
        settings,
        out,
        provenance=found.provenance,
        init=start,
        held_out=found.held_out,
        serve=serving(loaded, settings, found.held_out),
        processes=launch.processes,
    )
    describe(trainer, console)
    with launch.tracked(settings.model_dump(mode="json")) as log:
        finished = train_visibly(trainer, console, log)
    if not finished:
        console.print(f"Interrupted at step {trainer.step}; the same command continues.")
        raise typer.Exit(130)
    console.print(f"Head written to {out}")


def _show_plan(
    target: Target,
    data: TrainingData,
    recipe: Recipe,
    cache: Path | None,
    start: DraftHead | None,
) -> None:
    from rich.console import Console

    from hasspec.cli.planning import plan_table
    from hasspec.training.feature_cache import FeatureCache
    from hasspec.training.plan import plan

    store = FeatureCache(cache, target) if cache else None
    found = plan(target, data.examples, recipe, cache=store, init=start, held_out=data.held_out)
    Console().print(plan_table(found, decoded_prompts=recipe.validation.prompts))
