"""Options that several commands share, so that they read and mean the same everywhere."""

from __future__ import annotations

from typing import Annotated

import typer

TargetName = Annotated[str, typer.Argument(help="Hub id, local folder or smollm2-135m.")]
Device = Annotated[str, typer.Option(help="Device, such as cpu or cuda.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads.")]
DecodingDtype = Annotated[str, typer.Option("--dtype", help="Dtype of target and head.")]

OneHead = Annotated[
    str | None,
    typer.Option("--head", help="Head folder or shipped head; without it, plain decoding."),
]
Tree = Annotated[str, typer.Option(help="DEPTHxWIDTHxBUDGET (root included), chain:K or default.")]
Temperature = Annotated[float, typer.Option(help="0 is greedy.")]
TopK = Annotated[int, typer.Option(help="Sample among the k likeliest; 0 is all.")]
TopP = Annotated[float, typer.Option(help="Nucleus; 1 is all.")]
RepetitionPenalty = Annotated[float, typer.Option(help="1 is none.")]
SamplingSeed = Annotated[int, typer.Option(help="The same seed gives the same answers.")]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="Most tokens of an answer.")]
System = Annotated[str | None, typer.Option(help="System message of the chat.")]
Color = Annotated[bool, typer.Option(help="Show text that the head guessed in colour.")]
