"""Existing dialogues through the chat template, with a loss mask that is checked.

A mask that is silently empty or shifted is the commonest reason for a head that learns nothing.
Here the answers are located in the rendered text by rendering the conversation turn by turn, the
mask comes from the tokenizer's character offsets, and each masked span is decoded again and must
say what the answer says.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from hasspec.data.prompts import jsonl_lines, parse_row
from hasspec.data.store import Conversation
from hasspec.data.template import ChatTemplate

_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}


class _Fault(ValueError):
    """A row that cannot be used: ``kind`` is what is counted, the message says it all."""

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind


def read_dialogues(
    path: Path | str,
    template: ChatTemplate,
    *,
    max_length: int,
    on_error: Literal["raise", "skip"] = "raise",
    skipped: Counter[str] | None = None,
) -> Iterator[Conversation]:
    """Conversations of a JSONL file, with the spans of their answers.

    A row holds ``messages`` (role/content) or ShareGPT's ``conversations`` (from/value).

    Args:
        path: JSONL file.
        template: of the target that is to be trained for.
        max_length: most tokens of a conversation.
        on_error: what to do with a row that cannot be used; ``"skip"`` counts it.
        skipped: receives the counts by reason.

    Raises:
        ValueError: a row that cannot be used; file, line, reason and remedy are named.
    """
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error must be 'raise' or 'skip', got {on_error!r}")
    path = Path(path)
    for number, raw in jsonl_lines(path):
        where = f"{path}:{number}"
        try:
            try:
                row = parse_row(raw, where)
            except ValueError as error:
                raise _Fault("not a JSON object", str(error)) from error
            messages = _messages(row, where)
            conversation = mask_dialogue(messages, template, where=where, max_length=max_length)
        except _Fault as fault:
            if on_error == "raise":
                raise ValueError(f"{fault}\n(on_error 'skip' leaves such rows out)") from fault
            if skipped is not None:
                skipped[fault.kind] += 1
            continue
        conversation.source = path.name
        conversation.prompt_id = str(row.get("id", f"{path.stem}-{number}"))
        yield conversation


def mask_dialogue(
    messages: Sequence[Mapping[str, str]],
    template: ChatTemplate,
    *,
    where: str = "dialogue",
    max_length: int,
) -> Conversation:
    """Token ids and answer spans of one dialogue.

    A span covers the answer's tokens and the end-of-turn id behind it, if that is an EOS.

    Args:
        messages: system (or not), then user and assistant in turn, as role and content.
        template: of the target.
        where: names the dialogue in errors.
        max_length: most tokens.

    Raises:
        ValueError: the template does not show the dialogue as it is, or the mask does not decode
            to the answers.
    """
    text, answers = _locate(messages, template, where)
    ids, offsets = template.encode_with_offsets(text)
    if len(ids) > max_length:
        raise _Fault(
            "too long",
            f"{where}: {len(ids)} tokens, at most {max_length} fit; split the dialogue",
        )
    spans = []
    for start, end in answers:
        covered = [
            index
            for index, (left, right) in enumerate(offsets)
            if left < end and right > start and left < right
        ]
        answer = text[start:end]
        span = (covered[0], covered[-1] + 1) if covered else (0, 0)
        decoded = template.text(ids[slice(*span)])
        if decoded.strip() != answer.strip():
            raise _Fault(
                "mask does not decode to the answer",
                f"{where}: the tokens of the answer {answer[:40]!r} decode to {decoded[:40]!r}; "
                "the tokenizer changes text or joins it with the template's, so the answer "
                "cannot be masked; let the target answer the prompts instead (hasspec synth)",
            )
        ended = span[1] < len(ids) and ids[span[1]] in template.eos_ids
        spans.append((span[0], span[1] + ended))
    return Conversation(ids, spans, finish="given")


def _locate(
    messages: Sequence[Mapping[str, str]], template: ChatTemplate, where: str
) -> tuple[str, list[tuple[int, int]]]:
    """The rendered dialogue and the character range of each answer in it."""
    try:
        text = template.render(messages, answer_next=False)
        openings = [
            template.render(messages[:index])
            for index, message in enumerate(messages)
            if message["role"] == "assistant"
        ]
    except ValueError as error:
        raise _Fault("refused by the template", f"{where}: {error}") from error
    answers: list[tuple[int, int]] = []
    reached = 0
    opening = iter(openings)
    for index, message in enumerate(messages):
        shown = message["content"].strip()
        if message["role"] == "assistant":
            before = next(opening)
            if not text.startswith(before):
                raise _rewritten(where, index, "shows the turns before it differently later on")
            reached = len(before)
        start = text.find(shown, reached)
        if start < 0:
            raise _rewritten(where, index, f"does not show {shown[:40]!r} as it is")
        if message["role"] == "assistant":
            if text[reached:start].strip():
                raise _rewritten(where, index, f"inserts {text[reached:start][:40]!r} before it")
            answers.append((start, start + len(shown)))
        reached = start + len(shown)
    return text, answers


def _rewritten(where: str, index: int, what: str) -> _Fault:
    return _Fault(
        "rewritten by the template",
        f"{where}: message {index}: the chat template {what}, so the answers' tokens are not "
        "those the target would have written; remove reasoning and markup from the dialogue, or "
        "let the target answer the prompts instead (hasspec synth)",
    )


def _messages(row: Mapping[str, Any], where: str) -> list[dict[str, str]]:
    if "messages" in row:
        raw, role_key, content_key = row["messages"], "role", "content"
    elif "conversations" in row:
        raw, role_key, content_key = row["conversations"], "from", "value"
    else:
        raise _Fault(
            "no dialogue",
            f"{where}: found keys {sorted(row)}; expected 'messages' (role/content) or "
            "'conversations' (from/value)",
        )
    if not isinstance(raw, list) or not raw:
        raise _Fault("no dialogue", f"{where}: expected a non-empty list of messages")
    messages = []
    for index, message in enumerate(raw):
        if not isinstance(message, Mapping) or not {role_key, content_key} <= set(message):
            raise _Fault(
                "malformed message",
                f"{where}: message {index} must hold {role_key!r} and {content_key!r}",
            )
        role, content = _ROLES.get(str(message[role_key])), message[content_key]
        if role is None:
            raise _Fault(
                "unknown role",
                f"{where}: message {index} has role {message[role_key]!r}; "
                f"expected one of {', '.join(_ROLES)}",
            )
        if not isinstance(content, str) or not content.strip():
            raise _Fault(
                "empty message",
                f"{where}: message {index} ({role}) is empty or no text; remove the dialogue or "
                "the turn",
            )
        messages.append({"role": role, "content": content})
    _check_order(messages, where)
    return messages


def _check_order(messages: Sequence[Mapping[str, str]], where: str) -> None:
    roles = [message["role"] for message in messages]
    turns = roles[1:] if roles[0] == "system" else roles
    expected = ["user", "assistant"] * (len(turns) // 2)
    if not turns or turns != expected:
        raise _Fault(
            "bad role order",
            f"{where}: roles are {', '.join(roles)}; expected user and assistant in turn, "
            "beginning with user and ending with assistant, after at most one system message",
        )
