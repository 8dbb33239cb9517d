"""``hasspec synth``: the target writes its own training set."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hasspec.cli.options import TargetName, Threads

if TYPE_CHECKING:
    from hasspec.data.prompts import Prompt
    from hasspec.data.sources import Source
    from hasspec.data.store import TokenStore


def synth(
    target: TargetName,
    out: Annotated[Path, typer.Option(help="Folder of the token store; continued if it exists.")],
    prompts: Annotated[
        list[Path] | None, typer.Option(help="JSONL file of prompts; may be repeated.")
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Hub name, folder or file that `datasets` loads.")
    ] = None,
    column: Annotated[str, typer.Option(help="Column of --dataset that holds prompts.")] = "prompt",
    split: Annotated[str, typer.Option(help="Split of --dataset.")] = "train",
    magpie: Annotated[
        int, typer.Option(min=0, help="Conversations whose prompts the target writes itself.")
    ] = 0,
    magpie_system: Annotated[
        list[str] | None,
        typer.Option(help="System message while a user turn is written; may be repeated."),
    ] = None,
    magpie_temperature: Annotated[float, typer.Option(help="Temperature of the user turns.")] = 1.0,
    magpie_top_p: Annotated[float, typer.Option(help="Nucleus of the user turns.")] = 1.0,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of an answer.")] = 256,
    temperature: Annotated[
        float, typer.Option(min=0, help="Temperature of the answers; 0 is greedy.")
    ] = 0.0,
    top_p: Annotated[float, typer.Option(help="Nucleus of the answers.")] = 1.0,
    max_context: Annotated[int, typer.Option(help="Most tokens of a conversation.")] = 2048,
    turns: Annotated[
        bool, typer.Option("--turns/--first-turn", help="Ask all turns of a prompt.")
    ] = True,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Most prompts from files and dataset together.")
    ] = None,
    shuffle: Annotated[bool, typer.Option(help="Ask the prompts in a seeded order.")] = False,
    seed: Annotated[int, typer.Option(help="Of the sampling and of --shuffle.")] = 0,
    rows: Annotated[int, typer.Option(min=1, help="Conversations decoded together.")] = 96,
    dtype: Annotated[str, typer.Option(help="Dtype of the target.")] = "bfloat16",
    device: Annotated[str, typer.Option(help="Device of the target.")] = "cpu",
    threads: Threads = None,
) -> None:
    """Let the target answer prompts, and store the token ids of what it wrote.

    Prompts come from JSONL files, a dataset, the target itself (Magpie), or all of them. The same
    command continues an interrupted run.
    """
    import torch
    from rich.console import Console

    from hasspec.data.sources import AnswerSettings
    from hasspec.data.store import StoreMetadata, TokenStore, tokenizer_fingerprint
    from hasspec.data.template import ChatTemplate
    from hasspec.target import Target

    console = Console(stderr=True)
    if not (prompts or dataset or magpie):
        raise ValueError("nothing to ask: give --prompts, --dataset or --magpie")
    asked = _read(prompts or [], dataset, column, split)
    if shuffle:
        order = torch.randperm(len(asked), generator=torch.Generator().manual_seed(seed))
        asked = [asked[index] for index in order.tolist()]
    contents = _digest(asked)
    asked = asked[:limit]
    if threads:
        torch.set_num_threads(threads)
    model = Target.load(target, dtype=dtype, device=device)
    template = ChatTemplate(model)
    answers = AnswerSettings(
        max_new_tokens, temperature, top_p, seed, min(max_context, model.max_length)
    )
    sources, settings = _sources(
        asked, magpie, template, answers, turns, magpie_system, magpie_temperature, magpie_top_p
    )
    settings |= {
        "prompts": [str(path.name) for path in prompts or []],
        "dataset": f"{dataset} {split} {column}" if dataset else None,
        "prompts fingerprint": contents,
        "dtype": dtype,
    }
    metadata = StoreMetadata(
        target={"name": model.name, "fingerprint": model.fingerprint()},
        tokenizer_fingerprint=tokenizer_fingerprint(template.tokenizer),
        settings=settings,
        seed=seed,
    )
    store = TokenStore.resume(out, metadata)
    if len(store):
        console.print(
            f"{out}: going on after {len(store)} conversations", markup=False, soft_wrap=True
        )
    _run(model, sources, store, answers, rows, console)


def _read(files: list[Path], dataset: str | None, column: str, split: str) -> list[Prompt]:
    from hasspec.data.prompts import read_dataset, read_prompts

    asked = [prompt for file in files for prompt in read_prompts(file)]
    return asked + (read_dataset(dataset, column=column, split=split) if dataset else [])


def _digest(asked: list[Prompt]) -> str:
    import hashlib

    text = repr([(prompt.system, prompt.turns) for prompt in asked])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _sources(
    asked: list[Prompt],
    magpie: int,
    template: Any,
    answers: Any,
    turns: bool,
    systems: list[str] | None,
    magpie_temperature: float,
    magpie_top_p: float,
) -> tuple[list[Source], dict[str, Any]]:
    from dataclasses import asdict

    from hasspec.data.magpie import MagpieSettings, MagpieSource
    from hasspec.data.sources import PromptSource

    sources: list[Source] = []
    settings: dict[str, Any] = {"answers": asdict(answers)}
    if asked:
        sources.append(PromptSource(asked, template, answers, turns=turns))
        settings["turns"] = turns
    if magpie:
        user = MagpieSettings(magpie_temperature, magpie_top_p, systems=tuple(systems or ()))
        sources.append(MagpieSource(magpie, template, answers, user))
        settings["magpie"] = asdict(user)
    return sources, settings


def _run(
    model: Any, sources: list[Source], store: TokenStore, answers: Any, rows: int, console: Any
) -> None:
    import time

    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from hasspec.data import synthesis

    before, started = store.n_answer_tokens, time.monotonic()
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
        console=console,
    )
    tasks: dict[str, Any] = {}

    def report(progress: synthesis.Progress) -> None:
        if progress.source not in tasks:
            tasks[progress.source] = bar.add_task(progress.source, total=progress.total, rate="")
        rate = (progress.answer_tokens - before) / (time.monotonic() - started)
        bar.update(tasks[progress.source], completed=progress.done, rate=f"{rate:.0f} tok/s")

    try:
        with bar:
            synthesis.write_store(model, sources, store, answers, rows=rows, report=report)
    finally:
        seconds = time.monotonic() - started
        written = store.n_answer_tokens - before
        console.print(
            f"{store.path}: {len(store)} conversations, {store.n_answer_tokens} answer tokens; "
            f"this run {written} in {seconds:.0f} s ({written / seconds:.0f} a second)",
            markup=False,
            soft_wrap=True,
        )
        for name, count in sorted(store.metadata.progress.items()):
            console.print(f"  {name}: {count}", highlight=False, markup=False)
