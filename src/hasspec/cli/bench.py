"""``hasspec bench``: acceptance, speed and exactness of heads against plain decoding."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hasspec.cli.options import Device, TargetName, Threads

if TYPE_CHECKING:
    from rich.console import Console

    from hasspec.evaluation import Benchmark, PromptSet
    from hasspec.evaluation.benchmark import PromptResult

INTERRUPTED = 130
# Cores; with more than this taken by others, timings of small forwards are not to be trusted.
QUIET = 0.25


class DraftVocab(StrEnum):
    head = "head"
    full = "full"


class TeacherCheck(StrEnum):
    auto = "auto"
    off = "off"
    same = "same"
    float32 = "float32"


def bench(
    target: TargetName,
    prompts: Annotated[
        list[Path], typer.Option(help="JSONL file of prompts, multi-turn ones too; repeatable.")
    ],
    head: Annotated[
        list[str] | None,
        typer.Option(help="NAME=PATH, or the name of a shipped head; repeatable."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Most prompts of each file.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of an answer.")] = 256,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    top_k: Annotated[int, typer.Option(help="Sample among the k likeliest; 0 is all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Nucleus; 1 is all.")] = 1.0,
    dtype: Annotated[str, typer.Option(help="Dtype of target and heads.")] = "float32",
    tree: Annotated[
        str, typer.Option(help="DEPTHxWIDTHxBUDGET (root included), chain:K or default.")
    ] = "default",
    draft_vocab: Annotated[
        DraftVocab, typer.Option(help="Draft from the head's frequent tokens or from all.")
    ] = DraftVocab.head,
    seed: Annotated[int, typer.Option(help="Of sampling, order and bootstrap.")] = 0,
    threads: Threads = None,
    device: Device = "cpu",
    tau_only: Annotated[
        bool, typer.Option("--tau-only", help="Acceptance only: plain decoding is left out.")
    ] = False,
    teacher_check: Annotated[
        TeacherCheck,
        typer.Option(
            help="Re-score greedy answers in this dtype; auto: in float32 if dtype is lower."
        ),
    ] = TeacherCheck.auto,
    near_tie: Annotated[
        float, typer.Option(min=0, help="Logits within which a missed argmax is a tie.")
    ] = 0.5,
    json_path: Annotated[
        Path | None, typer.Option("--json", help="Write all numbers to this file.")
    ] = None,
) -> None:
    """Measure heads against plain decoding: same engine, same prompts, interleaved.

    docs/benchmark.md defines every number.
    """
    import torch
    from rich.console import Console

    from hasspec.cli.heads import named_heads
    from hasspec.decoding import Sampling, TreeSpec
    from hasspec.draft import load_head
    from hasspec.evaluation import Benchmark, BenchmarkSettings, PromptSet
    from hasspec.evaluation.machine import LoadMeter, machine_fingerprint
    from hasspec.evaluation.report import write_json
    from hasspec.evaluation.summary import per_prompt, summarise
    from hasspec.target import Target
    from hasspec.target.model import parse_dtype

    folders = named_heads(head or [])
    spec = TreeSpec.parse(tree, device)
    is_float32 = parse_dtype(dtype) is torch.float32
    rescore = _rescore(teacher_check, is_float32, temperature, tau_only)
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    sets = [PromptSet.read(path, limit) for path in dict.fromkeys(prompts)]
    if json_path and not json_path.parent.is_dir():
        raise ValueError(f"--json {json_path}: folder {json_path.parent} does not exist; make it")
    if threads:
        torch.set_num_threads(threads)
    loaded = Target.load(target, dtype=dtype, device=device)
    settings = BenchmarkSettings(
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        tree=spec,
        draft_vocab=draft_vocab.value,
        seed=seed,
        tau_only=tau_only,
        rescore=rescore,
        near_tie=near_tie,
    )
    heads = {name: load_head(folder, target=loaded) for name, folder in folders.items()}
    benchmark = Benchmark(loaded, heads, settings)
    console = Console(stderr=True)
    load = LoadMeter()
    results = _run(benchmark, sets, console)
    other_cores = load.other_cores()
    complete = len(results) == sum(len(prompt_set.prompts) for prompt_set in sets)
    report: dict[str, Any] = {
        **summarise(results, seed=seed),
        "machine": {**machine_fingerprint(loaded), "other_cores": other_cores},
        "settings": {
            "target": target,
            "target_fingerprint": loaded.fingerprint(),
            "heads": {name: str(folder) for name, folder in folders.items()},
            "limit": limit,
            "max_new_tokens": max_new_tokens,
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "tree": str(spec),
            "draft_vocab": draft_vocab.value,
            "seed": seed,
            "teacher_check": settings.rescore,
            "near_tie": near_tie,
        },
        "complete": complete,
        "answers": per_prompt(results),
    }
    _show(report)
    if json_path:
        write_json(json_path, report)
        console.print(f"Numbers written to {json_path}")
    if not complete:
        console.print(f"Interrupted: {len(results)} prompts were measured.")
        raise typer.Exit(INTERRUPTED)


def _rescore(
    check: TeacherCheck, is_float32: bool, temperature: float, tau_only: bool
) -> str | None:
    if check is TeacherCheck.auto:
        return None if is_float32 or temperature > 0 or tau_only else "float32"
    if check is TeacherCheck.off:
        return None
    if temperature > 0:
        raise ValueError(
            f"--teacher-check {check.value} asks whether every token is the argmax, which sampled "
            "tokens are not; leave it out at temperature > 0"
        )
    return check.value


def _run(benchmark: Benchmark, sets: list[PromptSet], console: Console) -> list[PromptResult]:
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    from hasspec.evaluation import AcceptanceCounts

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("turns"),
        TimeRemainingColumn(),
    )
    counts = {name: AcceptanceCounts() for name in benchmark.variants if name != "plain"}
    with Bar(*columns, console=console) as bar:
        task = bar.add_task("warming up", total=sum(prompt_set.n_turns for prompt_set in sets))

        def show(prompt_set: PromptSet, answered: dict[str, Any]) -> None:
            for name in counts:
                counts[name] += answered[name].counts
            taus = [f"{name} τ {c.tau:.2f}" for name, c in counts.items() if c.tau is not None]
            shown = "  ".join([Path(prompt_set.name).stem, *taus])
            bar.update(task, advance=1, description=shown)

        return benchmark.run(sets, show)


def _show(report: dict[str, Any]) -> None:
    from rich.console import Console

    from hasspec.evaluation.report import acceptance_table, speed_table

    console = Console()
    # A file or pipe has no width: what is redirected is read later, unwrapped.
    if not console.is_terminal:
        console = Console(width=120)
    if report["heads"]:
        console.print(acceptance_table(report))
    if report["plain"]:
        console.print(speed_table(report))
    machine, settings = report["machine"], report["settings"]
    console.print(
        f"{settings['target']}, {machine['dtype']}, {machine['accelerator'] or machine['cpu']}, "
        f"{machine['threads']} threads, tree {settings['tree']}, "
        f"temperature {settings['temperature']}, at most {settings['max_new_tokens']} new tokens",
        highlight=False,
    )
    other = machine["other_cores"]
    if report["plain"] and other is not None and other > QUIET:
        console.print(
            f"Other processes kept {other:.1f} of {machine['cores']} cores busy meanwhile: "
            "repeat the timing on a quiet machine.",
            style="yellow",
        )
