"""``hasspec generate``: one prompt, one answer, streamed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from hasspec.cli import options

INTERRUPTED = 130


def generate(
    target: options.TargetName,
    prompt: Annotated[
        str | None, typer.Option(help="The prompt; without any, standard input is read.")
    ] = None,
    prompt_file: Annotated[Path | None, typer.Option(help="File that holds the prompt.")] = None,
    head: options.OneHead = None,
    chat: Annotated[
        bool, typer.Option("--chat/--raw", help="As a user turn of a chat, or as raw text.")
    ] = True,
    system: options.System = None,
    max_new_tokens: options.MaxNewTokens = 256,
    temperature: options.Temperature = 0.0,
    top_k: options.TopK = 0,
    top_p: options.TopP = 1.0,
    repetition_penalty: options.RepetitionPenalty = 1.0,
    stop: Annotated[
        list[str] | None, typer.Option(help="String that ends the answer; repeatable.")
    ] = None,
    seed: options.SamplingSeed = 0,
    tree: options.Tree = "default",
    dtype: options.DecodingDtype = "float32",
    device: options.Device = "cpu",
    threads: options.Threads = None,
    color: options.Color = True,
) -> None:
    """Decode one answer; the text goes to standard output, a line of statistics to stderr."""
    from rich.console import Console

    from hasspec.cli.streaming import load_decoder, statistics_line, stream_answer
    from hasspec.decoding import Sampling

    text = _prompt_text(prompt, prompt_file)
    if system is not None and not chat:
        raise ValueError("--system belongs to a chat; with --raw, write it into the prompt")
    sampling = Sampling(temperature, top_k, top_p, repetition_penalty, seed)
    decoder = load_decoder(target, head, tree=tree, dtype=dtype, device=device, threads=threads)
    opening = [{"role": "system", "content": system}] if system is not None else []
    generation = stream_answer(
        decoder,
        [*opening, {"role": "user", "content": text}] if chat else text,
        Console(),
        color=color,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        stop=stop or (),
    )
    Console(stderr=True).print(
        statistics_line(generation), style="dim", highlight=False, soft_wrap=True
    )
    if not generation.finish_reason:
        raise typer.Exit(INTERRUPTED)


def _prompt_text(prompt: str | None, prompt_file: Path | None) -> str:
    if prompt is not None and prompt_file is not None:
        raise ValueError("give either --prompt or --prompt-file, not both")
    if prompt is not None:
        text, source = prompt, "--prompt"
    elif prompt_file is not None:
        if not prompt_file.is_file():
            raise ValueError(f"--prompt-file {prompt_file}: no such file")
        text, source = prompt_file.read_text(encoding="utf-8"), str(prompt_file)
    else:
        text, source = sys.stdin.read(), "standard input"
    if not text:
        raise ValueError(f"the prompt from {source} is empty; give at least one character")
    return text
