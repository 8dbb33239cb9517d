"""Which characters of an answer the head guessed."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from hasspec.decoding import Round

GUESSED = "green"


class Painter:
    """Splits the streamed text of one answer into guessed and other pieces.

    The text of a round may lag behind its tokens (incomplete characters and possible stop
    strings are held back), so pieces are told apart by their place in the answer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._n_shown = 0
        # (end, guessed) of consecutive pieces, in characters of the answer.
        self._edges: list[tuple[int, bool]] = []

    def pieces(self, decoded: Round) -> list[tuple[str, bool]]:
        """The round's new text as ``(text, guessed)`` pieces; their texts add up to it."""
        accepted = min(decoded.accepted, len(decoded.token_ids))
        for ids, guessed in (
            (decoded.token_ids[:accepted], True),
            (decoded.token_ids[accepted:], False),
        ):
            if ids:
                self._ids += ids
                text = self._tokenizer.decode(self._ids, skip_special_tokens=True)
                self._edges.append((len(text), guessed))
        pieces: list[tuple[str, bool]] = []
        begin, end = self._n_shown, self._n_shown + len(decoded.text)
        for edge, guessed in self._edges:
            cut = min(edge, end)
            if cut > begin:
                pieces.append((decoded.text[begin - self._n_shown : cut - self._n_shown], guessed))
                begin = cut
        if begin < end:
            pieces.append((decoded.text[begin - self._n_shown :], False))
        self._n_shown = end
        self._edges = [(edge, guessed) for edge, guessed in self._edges if edge > end]
        return pieces
