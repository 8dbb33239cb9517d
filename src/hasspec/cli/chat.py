"""``hasspec chat``: a conversation in the terminal."""

from __future__ import annotations

from hasspec.cli import options


def chat(
    target: options.TargetName,
    head: options.OneHead = None,
    system: options.System = None,
    max_new_tokens: options.MaxNewTokens = 512,
    temperature: options.Temperature = 0.0,
    top_k: options.TopK = 0,
    top_p: options.TopP = 1.0,
    repetition_penalty: options.RepetitionPenalty = 1.0,
    seed: options.SamplingSeed = 0,
    tree: options.Tree = "default",
    dtype: options.DecodingDtype = "float32",
    device: options.Device = "cpu",
    threads: options.Threads = None,
    color: options.Color = True,
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
