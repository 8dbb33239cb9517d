"""Two decoders on one prompt, side by side, neither ahead of the other in computing time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hasspec.decoding import Decoder, Generation, Round


class Lane:
    """One decoder's answer while it grows.

    Attributes:
        name: who decodes.
        generation: the answer so far, with the computing time that it took.
        pieces: its text as ``(text, guessed)``.
        done: whether the answer has ended.
    """

    def __init__(self, name: str, decoder: Decoder, messages: list[dict[str, Any]], limit: int):
        from hasspec.cli.painting import Painter
        from hasspec.decoding import Generation

        self.name = name
        self.generation: Generation = Generation([])
        self.pieces: list[tuple[str, bool]] = []
        self.done = False
        self._painter = Painter(decoder.target.tokenizer)
        self._rounds: Iterator[Round] = decoder.stream(
            messages, max_new_tokens=limit, into=self.generation
        )

    @property
    def seconds(self) -> float:
        """Computing time so far; showing the text does not count."""
        return self.generation.time.total

    @property
    def tokens_per_second(self) -> float:
        return len(self.generation.token_ids) / self.seconds if self.seconds else 0.0

    def advance(self) -> None:
        """Decode one more round."""
        decoded = next(self._rounds, None)
        if decoded is None:
            self.done = True
            return
        self.pieces += self._painter.pieces(decoded)
        if self.generation.finish_reason:
            self.done = True


def race(lanes: list[Lane], show: Callable[[], None]) -> None:
    """Decode all lanes to the end, always advancing the one that computed least so far.

    At every moment all have had the same time on the same machine, whatever else it does.
    """
    while running := [lane for lane in lanes if not lane.done]:
        min(running, key=lambda lane: lane.seconds).advance()
        show()
