"""Colours fall on the characters that the head guessed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from hasspec.cli.painting import Painter
from hasspec.decoding import Round
from hasspec.decoding.text import AnswerText
from tiny_models import build_tokenizer

TOKENIZER = build_tokenizer()


def ids_of(text: str, tokenizer: PreTrainedTokenizerFast = TOKENIZER) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def rounds_of(rounds: list[tuple[str, int]], stop: tuple[str, ...] = ()) -> list[Round]:
    text = AnswerText(TOKENIZER, stop)
    made = []
    for index, (new, accepted) in enumerate(rounds):
        text.push(ids_of(new))
        shown = text.take(final=index == len(rounds) - 1)
        made.append(Round(ids_of(new), accepted, 3, 7, text=shown))
    return made


def test_pieces_of_a_round() -> None:
    painter = Painter(TOKENIZER)
    first, second, third = rounds_of([("a", 0), ("bcd", 2), ("ef", 2)])
    assert painter.pieces(first) == [("a", False)]
    assert painter.pieces(second) == [("bc", True), ("d", False)]
    assert painter.pieces(third) == [("ef", True)]


def test_text_that_was_held_back_keeps_its_colour() -> None:
    painter = Painter(TOKENIZER)
    # "bc" may begin the stop string, so it is shown a round later than it was decoded.
    first, second = rounds_of([("abc", 2), ("dx", 1)], stop=("bcE",))
    assert first.text == "a"
    assert painter.pieces(first) == [("a", True)]
    assert painter.pieces(second) == [("b", True), ("c", False), ("d", True), ("x", False)]


@given(st.lists(st.tuples(st.text("ab \n", min_size=1, max_size=5), st.integers(0, 5)), min_size=1))
def test_pieces_add_up_to_the_text(drawn: list[tuple[str, int]]) -> None:
    painter = Painter(TOKENIZER)
    rounds = rounds_of(drawn, stop=("ab a",))
    for decoded in rounds:
        pieces = painter.pieces(decoded)
        assert "".join(text for text, _ in pieces) == decoded.text
        assert all(text for text, _ in pieces)
