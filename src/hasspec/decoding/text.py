"""Text of a growing answer: whole characters only, and nothing of a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

_INCOMPLETE = "\ufffd"


class AnswerText:
    """Turns token ids into text as they arrive.

    Args:
        tokenizer: the target's; None gives no text at all.
        stop: strings that end the answer; the text ends before the first of them.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase | None, stop: Sequence[str] = ()):
        if stop and tokenizer is None:
            raise ValueError("stop strings need a tokenizer; this target has none")
        if any(not s for s in stop):
            raise ValueError("an empty stop string would end every answer; leave it out")
        self._tokenizer, self._stop = tokenizer, tuple(stop)
        self._ids: list[int] = []
        self._given = ""

    def push(self, token_ids: Sequence[int]) -> int | None:
        """Add tokens; returns how many of them were needed if a stop string is complete."""
        for count, token in enumerate(token_ids, start=1):
            self._ids.append(token)
            if self._stop and self._stop_at() is not None:
                return count
        return None

    def take(self, *, final: bool = False) -> str:
        """Text that is certain and was not given yet; ``final`` gives all there is."""
        if self._tokenizer is None:
            return ""
        text = self._decode()
        stop_at = self._stop_at()
        if stop_at is not None:
            text = text[:stop_at]
        elif not final:
            text = self._certain(text)
        new, self._given = text[len(self._given) :], max(text, self._given, key=len)
        return new

    def _decode(self) -> str:
        return self._tokenizer.decode(self._ids, skip_special_tokens=True)

    def _stop_at(self) -> int | None:
        if not self._stop:
            return None
        text = self._decode()
        found = [at for at in (text.find(s) for s in self._stop) if at >= 0]
        return min(found) if found else None

    def _certain(self, text: str) -> str:
        """Leave out what the next token may still change, or complete to a stop string."""
        text = text.rstrip(_INCOMPLETE)
        held = 0
        for stop in self._stop:
            for length in range(min(len(stop) - 1, len(text)), 0, -1):
                if text.endswith(stop[:length]):
                    held = max(held, length)
                    break
        return text[: len(text) - held]
