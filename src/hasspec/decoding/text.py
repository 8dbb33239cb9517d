"""Text of a growing answer: whole characters only, and nothing of a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

_INCOMPLETE = "\ufffd"


class AnswerText:
    """Turns token ids into text as they arrive.

    Args:
        tokenizer: the target's; None gives no text at all.
        stop: strings that end the answer; the text ends before the first of them that is
            complete.

    Raises:
        ValueError: stop strings without a tokenizer, or an empty one.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase | None, stop: Sequence[str] = ()):
        if stop and tokenizer is None:
            raise ValueError("stop strings need a tokenizer; this target has none")
        if any(not s for s in stop):
            raise ValueError("an empty stop string would end every answer; leave it out")
        self._tokenizer, self._stop = tokenizer, tuple(stop)
        self._ids: list[int] = []
        self._text = ""
        self._n_given = 0

    def push(self, token_ids: Sequence[int]) -> int | None:
        """Add tokens; returns how many of them were needed if a stop string is complete."""
        before = len(self._ids)
        self._ids += token_ids
        self._text = self._decode(len(self._ids))
        if self._stop_at(self._text) is None:
            return None
        # Whole text only grows, so one look a push finds out whether any of its tokens mattered.
        needed = next(
            count
            for count in range(1, len(token_ids) + 1)
            if self._stop_at(self._decode(before + count)) is not None
        )
        del self._ids[before + needed :]
        self._text = self._decode(len(self._ids))
        return needed

    def take(self, *, final: bool = False) -> str:
        """Text that is certain and was not given yet; ``final`` gives all there is."""
        text, stop_at = self._text, self._stop_at(self._text)
        if stop_at is not None:
            end = stop_at
        elif final:
            end = len(text)
        else:
            end = _certain_length(text, self._stop)
        new = text[self._n_given : end]
        self._n_given += len(new)
        return new

    def _decode(self, n_tokens: int) -> str:
        if self._tokenizer is None:
            return ""
        # Cleaning would take back spaces that were already given.
        return self._tokenizer.decode(
            self._ids[:n_tokens], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

    def _stop_at(self, text: str) -> int | None:
        """Where the first complete stop string begins; an incomplete character completes none."""
        whole = text.rstrip(_INCOMPLETE)
        return min((at for s in self._stop if (at := whole.find(s)) >= 0), default=None)


def _certain_length(text: str, stop: Sequence[str]) -> int:
    """Characters that no later token can change or make part of a stop string."""
    whole = text.rstrip(_INCOMPLETE)
    held = 0
    for s in stop:
        for length in range(min(len(s) - 1, len(whole)), 0, -1):
            if whole.endswith(s[:length]):
                held = max(held, length)
                break
    return len(whole) - held
