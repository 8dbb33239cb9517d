"""Streaming text: whole characters, nothing of a stop string, and the pieces add up."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hasspec.decoding.text import AnswerText


class ByteTokenizer:
    """One token a byte, so that characters and stop strings fall across tokens."""

    def decode(self, ids: list[int], **options: bool) -> str:
        return bytes(i for i in ids if i < 256).decode("utf-8", errors="replace")


def pieces(text: str, sizes: list[int]) -> list[list[int]]:
    data, groups = list(text.encode()), []
    while data:
        size = sizes[len(groups) % len(sizes)]
        groups.append(data[:size])
        data = data[size:]
    return groups


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=30), sizes=st.lists(st.integers(1, 5), min_size=1, max_size=5))
def test_pieces_add_up_to_the_text_and_never_break_a_character(text, sizes):
    answer = AnswerText(ByteTokenizer())
    given_so_far = ""
    for group in pieces(text, sizes):
        assert answer.push(group) is None
        given_so_far += answer.take()
        assert text.startswith(given_so_far)
    assert given_so_far + answer.take(final=True) == text


@settings(max_examples=150, deadline=None)
@given(
    text=st.text(alphabet="ab\n", max_size=25),
    stop=st.lists(st.text(alphabet="ab\n", min_size=1, max_size=3), min_size=1, max_size=3),
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=4),
)
def test_text_ends_before_the_first_stop_string(text, stop, sizes):
    answer = AnswerText(ByteTokenizer(), stop)
    # One token a character: the answer ends at the first prefix that holds a stop string.
    prefixes = [text[:n] for n in range(len(text) + 1)]
    ended = next((p for p in prefixes if any(s in p for s in stop)), None)
    expected = text if ended is None else ended[: min(ended.find(s) for s in stop if s in ended)]
    given_so_far, n_tokens, stopped = "", 0, False
    for group in pieces(text, sizes):
        needed = answer.push(group)
        n_tokens += len(group) if needed is None else needed
        stopped = needed is not None
        given_so_far += answer.take(final=stopped)
        assert expected.startswith(given_so_far)
        if stopped:
            break
    assert stopped == (ended is not None)
    assert n_tokens == len(text if ended is None else ended)
    assert given_so_far + answer.take(final=True) == expected


def test_an_emoji_across_tokens_is_held_back():
    answer = AnswerText(ByteTokenizer())
    smile = list("🙂".encode())
    answer.push(smile[:2])
    assert answer.take() == ""
    answer.push(smile[2:])
    assert answer.take() == "🙂"


def test_an_incomplete_character_neither_hides_nor_completes_a_stop_string():
    answer = AnswerText(ByteTokenizer(), ["end", "\ufffd"])
    smile = list("🙂".encode())
    assert answer.push([*b"the ", *smile[:3]]) is None
    assert answer.take() == "the "
    assert answer.push([*smile[3:], *b" en"]) is None
    assert answer.take() == "🙂 "
    assert answer.push([*b"d", *smile[:1]]) == 1
    assert answer.take(final=True) == ""


def test_the_real_tokenizer_streams_what_it_decodes(embedded_target):
    """Accents, CJK and emoji of several tokens each, in groups as rounds would give them."""
    text = "Fünf 猫 say: 🙂👩‍🚀!\n  if x == 42:\n\treturn 'naïve'  "
    ids = embedded_target.tokenizer(text)["input_ids"]
    for size in (1, 2, 3):
        answer = AnswerText(embedded_target.tokenizer)
        given_so_far = ""
        for start in range(0, len(ids), size):
            answer.push(ids[start : start + size])
            given_so_far += answer.take()
            assert text.startswith(given_so_far)
        assert given_so_far + answer.take(final=True) == text


def test_bad_stop_strings_are_refused():
    with pytest.raises(ValueError, match="empty stop string"):
        AnswerText(ByteTokenizer(), [""])
    with pytest.raises(ValueError, match="need a tokenizer"):
        AnswerText(None, ["x"])


def test_streamed_text_equals_the_answer(tiny_target):
    from hasspec.decoding import Decoder, Generation

    generation = Generation([])
    rounds = Decoder(tiny_target).stream([5, 6, 7], max_new_tokens=20, into=generation)
    assert "".join(r.text for r in rounds) == generation.text
    assert generation.text == tiny_target.tokenizer.decode(
        generation.token_ids, skip_special_tokens=True
    )
