"""Streaming one answer to the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from hasspec.decoding import Decoder, Generation, Sampling


def load_decoder(
    target: str,
    head: str | None,
    *,
    tree: str,
    dtype: str,
    device: str,
    threads: int | None,
) -> Decoder:
    """A decoder from the options that ``generate`` and ``chat`` share.

    Raises:
        ValueError: an option that means nothing, or a target or head that cannot be loaded.
    """
    import torch

    from hasspec.cli.heads import head_folder
    from hasspec.decoding import Decoder, TreeSpec
    from hasspec.draft import load_head
    from hasspec.target import Target

    spec = TreeSpec.parse(tree, device)
    folder = head_folder(head) if head else None
    if threads:
        torch.set_num_threads(threads)
    loaded = Target.load(target, dtype=dtype, device=device)
    if loaded.tokenizer is None:
        raise ValueError(f"target {target!r} has no tokenizer, so it has no text to show")
    return Decoder(loaded, load_head(folder, target=loaded) if folder else None, tree=spec)


def stream_answer(
    decoder: Decoder,
    prompt: str | Sequence[int] | list[dict[str, Any]],
    console: Console,
    *,
    color: bool,
    max_new_tokens: int,
    sampling: Sampling,
    stop: Sequence[str] = (),
) -> Generation:
    """Print an answer as it is decoded, guessed text in colour; Ctrl-C ends it early.

    Returns:
        The answer, its ``finish_reason`` empty if it was interrupted.
    """
    from rich.text import Text

    from hasspec.cli.painting import GUESSED, Painter
    from hasspec.decoding import Generation

    generation = Generation([])
    painter = Painter(decoder.target.tokenizer)
    rounds = decoder.stream(
        prompt, max_new_tokens=max_new_tokens, sampling=sampling, stop=stop, into=generation
    )
    try:
        for decoded in rounds:
            for text, guessed in painter.pieces(decoded):
                style = GUESSED if guessed and color else ""
                # soft_wrap: the terminal breaks lines, so that copied text has none of its own.
                console.print(Text(text, style), end="", soft_wrap=True, highlight=False)
    except KeyboardInterrupt:
        rounds.close()
    console.print()
    return generation


def statistics_line(generation: Generation) -> str:
    """Tokens, rate, acceptance length, time split and why it ended, in one line."""
    from hasspec.evaluation import AcceptanceCounts

    split = generation.time
    tokens = len(generation.token_ids)
    tau = AcceptanceCounts.of(generation.rounds).tau
    parts = [
        f"{tokens} tokens in {split.total:.2f} s",
        f"{tokens / split.total:.1f} tok/s" if split.total else "- tok/s",
        f"τ {tau:.2f}" if tau is not None else "τ -",
        f"prefill {split.prefill:.2f} s, draft {split.draft:.2f} s, "
        f"verify {split.verify:.2f} s, other {split.other:.2f} s",
        f"ended by {generation.finish_reason or 'Ctrl-C'}",
    ]
    return " · ".join(parts)
