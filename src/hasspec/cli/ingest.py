"""``hasspec ingest``: existing dialogues into a token store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, cast

import typer

from hasspec.cli.options import TargetName


def ingest(
    target: TargetName,
    files: Annotated[
        list[Path], typer.Argument(help="JSONL files of messages or ShareGPT conversations.")
    ],
    out: Annotated[Path, typer.Option(help="New folder of the token store.")],
    on_error: Annotated[
        str, typer.Option(help="raise: stop at a row that cannot be used; skip: count it.")
    ] = "raise",
    max_context: Annotated[int, typer.Option(help="Most tokens of a conversation.")] = 2048,
) -> None:
    """Put existing dialogues through the target's chat template, with a checked loss mask.

    Answers that the target did not write itself train a poorer head: prefer `hasspec synth`.
    """
    from rich.console import Console

    from hasspec.data.ingestion import ingest_dialogues
    from hasspec.target import Target

    console = Console(stderr=True)
    model = Target.load(target)
    store, skipped = ingest_dialogues(
        model,
        files,
        out,
        on_error=cast(Literal["raise", "skip"], on_error),
        max_length=min(max_context, model.max_length),
    )
    console.print(
        f"{out}: {len(store)} conversations, {store.n_answer_tokens} answer tokens",
        markup=False,
        soft_wrap=True,
    )
    for reason, count in sorted(skipped.items()):
        console.print(f"  skipped: {reason}: {count}", highlight=False, markup=False)
