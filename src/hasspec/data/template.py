"""What a chat template writes around the turns, found by rendering markers through it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from hasspec.target import Target

Message = Mapping[str, Any]

# Neutral words that no template treats specially; a template that changes them is refused.
_MARKER_USER = "zqUSERqz"
_MARKER_ANSWER = "zqANSWERqz"


class ChatTemplate:
    """The chat template of a target, by differences of its renderings.

    Raises:
        ValueError: the target has no tokenizer or its tokenizer no chat template.
    """

    def __init__(self, target: Target):
        if target.tokenizer is None or not target.tokenizer.chat_template:
            raise ValueError(
                f"target {target.name!r} has no chat template, so prompts cannot be put to it; "
                "use an instruction-tuned model or set tokenizer.chat_template"
            )
        self.name = target.name
        self.tokenizer: PreTrainedTokenizerBase = target.tokenizer
        self.eos_ids = target.eos_ids
        self.special_ids = frozenset(self.tokenizer.all_special_ids) | frozenset(
            self.tokenizer.added_tokens_decoder
        )

    def render(self, messages: Sequence[Message], *, answer_next: bool = True) -> str:
        """Text of a conversation, up to the opening of the next answer if ``answer_next``."""
        try:
            return self.tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=answer_next
            )
        except Exception as error:  # jinja raises whatever the template's author chose
            raise ValueError(
                f"the chat template of {self.name!r} refuses a conversation of roles "
                f"{[message['role'] for message in messages]}: {error}"
            ) from error

    def encode(self, text: str) -> list[int]:
        """Token ids of rendered text, special tokens recognised, none added."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids and the half-open character range of each.

        Raises:
            ValueError: the tokenizer keeps no character offsets.
        """
        if not self.tokenizer.is_fast:
            raise ValueError(
                f"the tokenizer of {self.name!r} gives no character offsets, so a loss mask cannot "
                "be placed; use a fast tokenizer, or let the target write the answers"
            )
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return list(encoded["input_ids"]), [tuple(pair) for pair in encoded["offset_mapping"]]

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a conversation up to the opening of the next answer."""
        return self.encode(self.render(messages))

    def user_opening(self, system: str | None = None) -> list[int]:
        """Token ids of everything that precedes the content of the first user turn."""
        before, _ = self._around_user(system)
        return self.encode(before)

    def user_stop_ids(self) -> frozenset[int]:
        """Ids that end a user turn: the special token that follows it, and the target's EOS.

        Raises:
            ValueError: no special token follows a user turn in this template, so a turn that the
                target writes itself has no end.
        """
        _, after = self._around_user(None)
        following = self.encode(after)[:1]
        if not following or following[0] not in self.special_ids:
            raise ValueError(
                f"the chat template of {self.name!r} ends a user turn with {after[:20]!r}, which "
                "is no special token, so the target cannot end a user turn of its own; "
                "use prompts from files instead"
            )
        return self.eos_ids | {following[0]}

    def check_turns(self) -> None:
        """``ValueError`` if this template cannot continue a conversation after an answer."""
        self._tail([{"role": "user", "content": _MARKER_USER}], _MARKER_ANSWER, "next")

    def continuation(
        self, messages: Sequence[Message], answer_ids: Sequence[int], user: str
    ) -> list[int]:
        """Ids between a generated answer and the next one: end of turn, user turn, opening.

        Args:
            messages: the conversation before the answer.
            answer_ids: the answer as generated, its end-of-turn id included if there is one.
            user: the next user turn.

        Raises:
            ValueError: the template would not show the answer as it was generated.
        """
        tail = self._tail(messages, self.answer_text(answer_ids), user)
        if answer_ids and answer_ids[-1] in self.eos_ids:
            # Some templates put a space before the end of turn; the target's own answer ended
            # without it.
            end = self.text([answer_ids[-1]])
            if tail.lstrip().startswith(end):
                tail = tail.lstrip().removeprefix(end)
        return self.encode(tail)

    def text(self, ids: Sequence[int]) -> str:
        """Exactly what the ids say, special tokens included."""
        return self.tokenizer.decode(
            list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )

    def answer_text(self, answer_ids: Sequence[int]) -> str:
        """An answer without the end-of-turn id."""
        ended = bool(answer_ids) and answer_ids[-1] in self.eos_ids
        return self.text(answer_ids[:-1] if ended else answer_ids)

    def _around_user(self, system: str | None) -> tuple[str, str]:
        head = [{"role": "system", "content": system}] if system is not None else []
        text = self.render([*head, {"role": "user", "content": _MARKER_USER}])
        if text.count(_MARKER_USER) != 1:
            raise ValueError(
                f"the chat template of {self.name!r} shows a user turn {text.count(_MARKER_USER)} "
                "times; expected once"
            )
        before, after = text.split(_MARKER_USER)
        if system is not None and system.strip() not in before:
            raise ValueError(f"the chat template of {self.name!r} drops the system message")
        return before, after

    def _tail(self, messages: Sequence[Message], answer: str, user: str) -> str:
        """Text from the end of the answer to the opening of the next one."""
        before = self.render(messages)
        text = self.render(
            [
                *messages,
                {"role": "assistant", "content": answer},
                {"role": "user", "content": user},
            ]
        )
        shown = answer.strip()
        start = text.find(shown, len(before)) if shown else len(before)
        intact = text.startswith(before) and start >= 0 and not text[len(before) : start].strip()
        if not intact or user.strip() not in text[start + len(shown) :]:
            raise ValueError(
                f"the chat template of {self.name!r} rewrites earlier turns (it drops reasoning, "
                "moves the system message, or the like), so what the target wrote is not what it "
                "would see in the next turn; ask single turns only"
            )
        rest = text[start + len(shown) :]
        trailing = answer[len(answer.rstrip()) :]
        return rest[len(trailing) :] if trailing and rest.startswith(trailing) else rest
