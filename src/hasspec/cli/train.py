"""``hasspec train``: a draft head from a target and data that the target wrote."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hasspec.cli.options import Device, TargetName, Threads

if TYPE_CHECKING:
    from rich.console import Console

    from hasspec.draft import DraftHead
    from hasspec.target import Target
    from hasspec.training.batches import Example
    from hasspec.training.features import FeatureSource
    from hasspec.training.processes import Processes
    from hasspec.training.progress import Served
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
    from hasspec.cli.training_view import describe, train_visibly
    from hasspec.draft import load_head
    from hasspec.target import Target
    from hasspec.training import Trainer, load_recipe
    from hasspec.training.batches import example_of
    from hasspec.training.validation import set_aside

    if threads:
        torch.set_num_threads(threads)
    settings = load_recipe(recipe, override or [])
    launch = Launch.of(device, tracker or [], out, device_map)
    console = Console(stderr=True, quiet=not launch.processes.main)
    loaded = Target.load(target, dtype=dtype, device=launch.device, device_map=device_map)
    provenance = {"target": target, "target_fingerprint": loaded.fingerprint()}
    examples, provenance["data"] = [], []
    for path in data:
        conversations, about = _read_store(path, loaded)
        provenance["data"].append(about)
        examples += [
            example_of(c, min(settings.max_length, loaded.max_length)) for c in conversations
        ]
    start = load_head(init, target=loaded) if init else None
    if start is not None:
        provenance["init"] = _described(start)
    n_held_out = settings.validation.conversations
    examples, held_out = set_aside(examples, n_held_out, settings.seed)
    if plan:
        _show_plan(loaded, examples, settings, cache, start, held_out)
        return
    trainer = Trainer(
        loaded,
        examples,
        _feature_source(cache, examples, loaded, console, launch.processes),
        settings,
        out,
        provenance=provenance,
        init=start,
        held_out=held_out,
        serve=_serving(loaded, settings, held_out),
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
    examples: list[Example],
    recipe: Recipe,
    cache: Path | None,
    start: DraftHead | None,
    held_out: list[Example],
) -> None:
    from rich.console import Console

    from hasspec.cli.planning import plan_table
    from hasspec.training.feature_cache import FeatureCache
    from hasspec.training.plan import plan

    store = FeatureCache(cache, target) if cache else None
    found = plan(target, examples, recipe, cache=store, init=start, held_out=held_out)
    Console().print(plan_table(found, decoded_prompts=recipe.validation.prompts))


def _described(head: DraftHead) -> dict:
    """What a head that training starts from was, and a hash of its weights."""
    digest = hashlib.sha256()
    for name, weight in sorted(head.state_dict().items()):
        digest.update(name.encode() + weight.float().cpu().numpy().tobytes())
    kept = ("name", "recipe", "data", "training")
    return {
        "weights": digest.hexdigest()[:16],
        **{key: head.metadata[key] for key in kept if key in head.metadata},
    }


def _read_store(path: Path, target: Target) -> tuple[list, dict]:
    from hasspec.data.store import TokenStore

    store = TokenStore.open(path)
    about = store.metadata
    wrote = about.target["fingerprint"]
    if wrote != target.fingerprint():
        raise ValueError(
            f"the data in {path} was written by another target (weights {wrote}, this target's are "
            f"{target.fingerprint()}); a head learns its own target's text: synthesise it again"
        )
    return list(store), {
        "store": path.name,
        "fingerprint": store.fingerprint(),
        "conversations": len(store),
        "answer_tokens": store.n_answer_tokens,
        "settings": about.settings,
        "seed": about.seed,
    }


def _feature_source(
    cache: Path | None,
    examples: list[Example],
    target: Target,
    console: Console,
    processes: Processes,
) -> FeatureSource:
    from rich.progress import Progress, TimeRemainingColumn

    from hasspec.training.feature_cache import CachedFeatures, FeatureCache
    from hasspec.training.features import ComputedFeatures

    if cache is None:
        return ComputedFeatures(target)

    def fill() -> None:
        columns = [*Progress.get_default_columns()[:-1], TimeRemainingColumn()]
        with Progress(*columns, console=console) as progress:
            task = progress.add_task("target features", total=None)
            FeatureCache(cache, target).add(
                examples,
                on_progress=lambda done, total: progress.update(task, completed=done, total=total),
            )

    processes.from_main(fill)
    return CachedFeatures(FeatureCache(cache, target), examples, target)


def _serving(
    target: Target, recipe: Recipe, held_out: list[Example]
) -> Callable[[DraftHead], Served] | None:
    """Decodes the prompts that the recipe's ``validation`` asks for."""
    from hasspec.decoding import TreeSpec
    from hasspec.evaluation.served import ServedAcceptance

    validation = recipe.validation
    if not validation.prompts:
        return None
    answered = [example for example in held_out if len(example.root_R)]
    # The first root is the last token of the first prompt.
    prompts = [e.token_T[: e.root_R[0] + 1].tolist() for e in answered[: validation.prompts]]
    trees = [
        TreeSpec.parse(tree, target.device)
        for tree in (validation.tree, f"chain:{validation.depth}")
    ]
    return ServedAcceptance(
        target,
        prompts,
        list(dict.fromkeys(trees)),
        validation.temperatures,
        new_tokens=validation.new_tokens,
        seed=recipe.seed,
    ).measure
