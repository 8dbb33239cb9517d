"""``hasspec demo``: a real model, decoded plainly and with the shipped head, side by side."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from hasspec.cli.options import Device, Threads

if TYPE_CHECKING:
    from rich.console import Console

    from hasspec.decoding import Generation, TreeSpec
    from hasspec.target import Target

PROMPTS = (
    "What are three good reasons to go for a walk every day?",
    "Tom buys 4 boxes of pencils with 12 pencils each. He gives 9 pencils to his sister and "
    "splits the rest evenly between himself and 2 friends. How many pencils does each of them "
    "get? Explain step by step.",
    "Write a Python function that counts how often each word occurs in a text, and show how to "
    "call it.",
    "Explain to a child why the sky is blue.",
    "A train travels 180 kilometres in 2 hours and then 120 kilometres in 1 hour. What is its "
    "average speed?",
    "Write a Python class for a bank account with methods to deposit, withdraw and show the "
    "balance.",
    "Write a short e-mail that invites a colleague to lunch on Friday.",
    "A rectangle is 8 cm long and 5 cm wide. What are its area and its perimeter? Show the "
    "calculation.",
)
HEAD_LANE = "with head"
INTERRUPTED = 130


def demo(
    target: Annotated[str, typer.Option(help="Hub id, local folder or smollm2-135m.")] = (
        "smollm2-135m"
    ),
    head: Annotated[str, typer.Option(help="Head folder or shipped head.")] = "smollm2-135m-hass",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of an answer.")] = 96,
    seconds: Annotated[
        float, typer.Option(help="No further prompt is begun after this time.")
    ] = 120.0,
    tree: Annotated[
        str, typer.Option(help="DEPTHxWIDTHxBUDGET (root included), chain:K or default.")
    ] = "default",
    dtype: Annotated[
        str, typer.Option(help="Dtype, or auto for the faster of bfloat16 and float32.")
    ] = "auto",
    device: Device = "cpu",
    threads: Threads = None,
) -> None:
    """Watch a model decode plainly and with a draft head, and check that both say the same."""
    from rich.console import Console

    console = Console()
    try:
        wrong = _demo(console, target, head, max_new_tokens, seconds, tree, dtype, device, threads)
    except KeyboardInterrupt:
        console.print("\nInterrupted.")
        raise typer.Exit(INTERRUPTED) from None
    if wrong:
        raise typer.Exit(1)


def _demo(
    console: Console,
    target: str,
    head: str,
    max_new_tokens: int,
    seconds: float,
    tree: str,
    dtype: str,
    device: str,
    threads: int | None,
) -> bool:
    """Returns whether an answer was wrong."""
    import torch

    from hasspec.cli.calibration import faster_dtype, fastest_threads
    from hasspec.cli.heads import head_folder
    from hasspec.cli.race import Lane
    from hasspec.cli.race_view import show_race
    from hasspec.cli.verdict import Judge
    from hasspec.decoding import Decoder, TreeSpec
    from hasspec.draft import load_head
    from hasspec.target import Target

    folder = head_folder(head)
    spec = TreeSpec.parse(tree, device)
    if threads:
        torch.set_num_threads(threads)
    if dtype == "auto":
        dtype = faster_dtype(torch.device(device))
    console.print(f"Loading {target} in {dtype} on {device}, head {folder.name} …")
    loaded = Target.load(target, dtype=dtype, device=device)
    decoders = {
        "plain": Decoder(loaded),
        HEAD_LANE: Decoder(loaded, load_head(folder, target=loaded), tree=spec),
    }
    if not threads and loaded.device.type == "cpu":
        most, threads = torch.get_num_threads(), fastest_threads(decoders["plain"])
        if threads < most:
            console.print(f"Decoding with {threads} of {most} threads: faster, as others are busy.")
    for decoder in decoders.values():
        decoder.generate([{"role": "user", "content": "Hello"}], max_new_tokens=12)
    judge = Judge(loaded)
    began = time.monotonic()
    raced: list[dict[str, Generation]] = []
    for number, prompt in enumerate(PROMPTS, start=1):
        if raced and time.monotonic() - began > seconds:
            console.print(f"{seconds:.0f} s are over: {len(PROMPTS) - len(raced)} prompts left out")
            break
        console.print(f"\n[bold]{number}/{len(PROMPTS)}[/] {prompt}", highlight=False)
        messages = [{"role": "user", "content": prompt}]
        lanes = [
            Lane(name, decoder, messages, max_new_tokens) for name, decoder in decoders.items()
        ]
        show_race(console, lanes)
        raced.append({lane.name: lane.generation for lane in lanes})
        console.print(judge.verdict(*raced[-1].values()), highlight=False)
    _conclude(console, loaded, spec, raced)
    return judge.wrong


def _conclude(
    console: Console, target: Target, spec: TreeSpec, raced: list[dict[str, Generation]]
) -> None:
    import torch
    from rich.table import Table

    from hasspec.evaluation import AcceptanceCounts, speedup_interval

    plain, drafted = ([pair[name] for pair in raced] for name in ("plain", HEAD_LANE))
    tau = AcceptanceCounts.of(decoded for answer in drafted for decoded in answer.rounds).tau
    sides = [
        [measure(answer) for answer in side]
        for side in (drafted, plain)
        for measure in (lambda answer: len(answer.token_ids), lambda answer: answer.time.total)
    ]
    table = Table(title="Result", show_header=False)
    table.add_row("acceptance length τ", f"{tau:.2f} tokens a target forward" if tau else "-")
    for name, side in (("plain", plain), (HEAD_LANE, drafted)):
        tokens = sum(len(answer.token_ids) for answer in side)
        table.add_row(name, f"{tokens / sum(a.time.total for a in side):.1f} tokens a second")
    table.add_row("speedup, 95 % interval", speedup_interval(*sides).claim)
    total = sum(answer.time.total for answer in drafted)
    draft, verify = (sum(getattr(a.time, part) for a in drafted) for part in ("draft", "verify"))
    table.add_row(
        "time with head",
        f"draft {draft / total:.0%}, verify {verify / total:.0%}, "
        f"rest {(total - draft - verify) / total:.0%}",
    )
    dtype = str(target.dtype).removeprefix("torch.")
    table.add_row(
        "measured on", f"{target.device}, {dtype}, {torch.get_num_threads()} threads, tree {spec}"
    )
    console.print()
    console.print(table)
