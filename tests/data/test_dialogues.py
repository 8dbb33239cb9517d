from __future__ import annotations

import copy
import json
from collections import Counter
from pathlib import Path

import pytest

from hasspec.data import TokenStore
from hasspec.data.dialogues import mask_dialogue, read_dialogues
from hasspec.data.ingestion import ingest_dialogues
from hasspec.data.template import ChatTemplate
from hasspec.target import Target

U, A, S = "user", "assistant", "system"


def messages(*pairs: tuple[str, object]) -> list[dict[str, object]]:
    return [{"role": role, "content": content} for role, content in pairs]


GOOD = messages((U, "Hi"), (A, "Hello."), (U, "Hi"), (A, " Hi\nagain "))


def write_lines(path: Path, *rows: object) -> Path:
    text = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(text) + "\n")
    return path


def with_template(target: Target, chat_template: str) -> ChatTemplate:
    tokenizer = copy.deepcopy(target.tokenizer)
    tokenizer.chat_template = chat_template
    return ChatTemplate(Target.from_model(target.model, tokenizer, name="t"))


def test_the_mask_covers_the_answers_and_their_ends(tiny_target: Target) -> None:
    template = ChatTemplate(tiny_target)
    found = mask_dialogue(GOOD, template, max_length=256)
    assert template.text(found.token_ids) == template.render(GOOD, answer_next=False)
    spoken = [template.text(found.token_ids[start:end]) for start, end in found.answer_spans]
    assert spoken[0] == "Hello.<|im_end|>"
    # White space at an answer's edges is the template's to keep or to trim: not learned.
    assert spoken[1] == "Hi\nagain"


def test_an_answer_that_repeats_the_question_is_found_in_its_place(tiny_target: Target) -> None:
    template = ChatTemplate(tiny_target)
    found = mask_dialogue(messages((U, "user"), (A, "user")), template, max_length=256)
    [(start, end)] = found.answer_spans
    assert template.text(found.token_ids[:start]).endswith("<|im_start|>assistant\n")
    assert template.text(found.token_ids[start:end]) == "user<|im_end|>"


def test_both_formats(tiny_target: Target, tmp_path: Path) -> None:
    share = [
        {"from": "system", "value": "Be kind."},
        {"from": "human", "value": "Hi"},
        {"from": "gpt", "value": "Hello."},
    ]
    path = write_lines(
        tmp_path / "d.jsonl",
        {"messages": messages((S, "Be kind."), (U, "Hi"), (A, "Hello."))},
        {"id": 7, "conversations": share},
    )
    one, two = read_dialogues(path, ChatTemplate(tiny_target), max_length=256)
    assert (one.token_ids, one.answer_spans) == (two.token_ids, two.answer_spans)
    assert (one.prompt_id, two.prompt_id, one.source) == ("d-1", "7", "d.jsonl")


BAD = [
    ('{"messages": [', "not a line of JSON"),
    ({"text": "Hi"}, "expected 'messages'"),
    ({"messages": []}, "non-empty list"),
    ({"messages": [{"role": "user"}]}, "must hold 'role' and 'content'"),
    ({"messages": messages((U, "Hi"), ("tool", "x"))}, "unknown role|role 'tool'"),
    ({"messages": messages((U, "Hi"), (A, " "))}, r"message 1 \(assistant\) is empty"),
    ({"messages": messages((U, "Hi"), (A, None))}, r"message 1 \(assistant\) is empty"),
    ({"messages": messages((A, "Hello"), (U, "Hi"))}, "roles are assistant, user"),
    ({"messages": messages((U, "Hi"), (U, "Hi"), (A, "Hello"))}, "roles are user, user"),
    ({"messages": messages((U, "Hi"))}, "roles are user; expected"),
    ({"messages": messages((S, "Hi"))}, "roles are system; expected"),
    ({"messages": messages((U, "Hi"), (A, "long " * 60))}, "at most 256 fit"),
    # One unknown token stands for the character that the tokenizer does not have.
    ({"messages": messages((U, "Hi"), (A, "caf\u00e9"))}, "decode to"),
]


@pytest.mark.parametrize(("row", "message"), BAD)
def test_a_row_that_cannot_be_used_is_named(
    tiny_target: Target, tmp_path: Path, row: object, message: str
) -> None:
    path = write_lines(tmp_path / "d.jsonl", {"messages": GOOD}, row)
    with pytest.raises(ValueError, match=message) as caught:
        list(read_dialogues(path, ChatTemplate(tiny_target), max_length=256))
    assert "d.jsonl:2: " in str(caught.value)


def test_skipping_is_counted(tiny_target: Target, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "d.jsonl", *(row for row, _ in BAD), {"messages": GOOD})
    skipped: Counter[str] = Counter()
    template = ChatTemplate(tiny_target)
    kept = list(read_dialogues(path, template, max_length=256, on_error="skip", skipped=skipped))
    assert len(kept) == 1
    assert skipped.total() == len(BAD)
    assert skipped["bad role order"] == 4 and skipped["too long"] == 1
    with pytest.raises(ValueError, match="on_error"):
        list(read_dialogues(path, template, max_length=256, on_error="ignore"))


HEAD = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
TAIL = "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


@pytest.mark.parametrize(
    ("chat_template", "message"),
    [
        # Drops reasoning.
        (HEAD + "{{ m['content'].split('</think>')[-1] }}" + TAIL, "does not show"),
        # Puts an empty reasoning block before the answers.
        (
            HEAD
            + "{% if m['role'] == 'assistant' %}<think></think>{% endif %}{{ m['content'] }}"
            + TAIL,
            "inserts '<think></think>'",
        ),
        # Counts the messages at the top.
        ("{{ messages | length }}" + HEAD + "{{ m['content'] }}" + TAIL, "differently later on"),
        (HEAD + "{{ raise_exception('no assistants') }}" + TAIL, "no assistants"),
    ],
)
def test_a_template_that_does_not_show_the_dialogue(
    tiny_target: Target, chat_template: str, message: str
) -> None:
    template = with_template(tiny_target, chat_template)
    dialogue = messages((U, "Hi"), (A, "<think>hm</think>Hello"), (U, "Go on"), (A, "Yes"))
    with pytest.raises(ValueError, match=message):
        mask_dialogue(dialogue, template, max_length=256)


def test_a_token_across_the_edge_of_an_answer_is_refused(
    embedded_target: Target,
) -> None:
    """Here the template puts a letters behind the answer, and both become one token."""
    template = with_template(
        embedded_target,
        HEAD + "{{ m['content'] }}ing" + TAIL,
    )
    with pytest.raises(ValueError, match="decode to"):
        mask_dialogue(messages((U, "Hi"), (A, "I like read")), template, max_length=256)


def test_ingest_is_all_or_nothing(tiny_target: Target, tmp_path: Path) -> None:
    good = write_lines(tmp_path / "good.jsonl", *[{"messages": GOOD}] * 3)
    mixed = write_lines(tmp_path / "mixed.jsonl", {"messages": GOOD}, BAD[0][0])
    out = tmp_path / "store"
    with pytest.raises(ValueError, match=r"mixed\.jsonl:2"):
        ingest_dialogues(tiny_target, [good, mixed], out, max_length=256)
    assert not out.exists()
    store, skipped = ingest_dialogues(
        tiny_target, [good, mixed], out, on_error="skip", max_length=256
    )
    assert len(store) == len(list(TokenStore.open(out))) == 4
    assert skipped == {"not a JSON object": 1}
    assert store.metadata.progress == {"dialogues: skipped: not a JSON object": 1}
    assert store.metadata.settings["answers"] == "given"
    with pytest.raises(ValueError, match="already exists"):
        ingest_dialogues(tiny_target, [good], out)
    useless = write_lines(tmp_path / "bad.jsonl", BAD[0][0])
    with pytest.raises(ValueError, match="no dialogue of"):
        ingest_dialogues(tiny_target, [useless], tmp_path / "none", on_error="skip")
    assert not (tmp_path / "none").exists()
