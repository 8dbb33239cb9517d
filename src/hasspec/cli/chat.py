"""``hasspec chat``: a conversation in the terminal."""

from __future__ import annotations

from typing import Annotated

import typer


def chat(
    target: Annotated[str, typer.Argument(help="Hub id, local folder or smollm2-135m.")],
    head: Annotated[
        str | None, typer.Option(help="Head folder or shipped head; without it, plain decoding.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of an answer.")] = 512,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    top_k: Annotated[int, typer.Option(help="Sample among the k likeliest; 0 is all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Nucleus; 1 is all.")] = 1.0,
    repetition_penalty: Annotated[float, typer.Option(help="1 is none.")] = 1.0,
    seed: Annotated[int, typer.Option(help="The same seed gives the same answers.")] = 0,
    tree: Annotated[
        str, typer.Option(help="DEPTHxWIDTHxBUDGET (root included), chain:K or default.")
    ] = "default",
    dtype: Annotated[str, typer.Option(help="Dtype of target and head.")] = "float32",
    device: Annotated[str, typer.Option(help="Device, such as cpu or cuda.")] = "cpu",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    color: Annotated[bool, typer.Option(help="Show text that the head guessed in colour.")] = True,
) -> None:
    """Chat with a target. /reset begins anew, /exit leaves; Ctrl-C stops an answer."""
    from rich.console import Console

    from hasspec.cli.streaming import load_decoder, statistics_line, stream_answer
    from hasspec.decoding import Sampling

    sampling = Sampling(temperature, top_k, top_p, repetition_penalty, seed)
    decoder = load_decoder(target, head, tree=tree, dtype=dtype, device=device, threads=threads)
    console, notes = Console(), Console(stderr=True)
    opening = [{"role": "system", "content": system}] if system is not None else []
    messages = list(opening)
    notes.print("/reset begins anew, /exit leaves, Ctrl-C stops an answer", style="dim")
    while (said := _next_line(notes)) is not None:
        if said == "/exit":
            return
        if said == "/reset":
            messages = list(opening)
            notes.print("begun anew", style="dim")
            continue
        if said.startswith("/"):
            notes.print(f"unknown command {said!r}; there are /reset and /exit", style="dim")
            continue
        if not said:
            continue
        asked = [*messages, {"role": "user", "content": said}]
        try:
            generation = stream_answer(
                decoder,
                asked,
                console,
                color=color,
                max_new_tokens=max_new_tokens,
                sampling=sampling,
            )
        except ValueError as error:
            # Such as a conversation that outgrew the target's context: it can still be reset.
            notes.print(f"error: {error}", style="red", highlight=False, soft_wrap=True)
            continue
        notes.print(statistics_line(generation), style="dim", highlight=False, soft_wrap=True)
        messages = [*asked, {"role": "assistant", "content": generation.text}]


def _next_line(notes: object) -> str | None:
    """What the user says; None at the end of input. Ctrl-C at the prompt leaves, too."""
    try:
        return input("> ").strip()
    except (EOFError, KeyboardInterrupt):
        notes.print()
        return None
