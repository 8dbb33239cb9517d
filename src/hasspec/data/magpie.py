"""Prompts written by the target itself (Magpie, arXiv 2406.08464).

Given only what its chat template emits before a user's words, an aligned model goes on with a
user turn. That turn is then answered in an ordinary conversation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hasspec.data.generation import Stage
from hasspec.data.sources import AnswerSettings, StoredScript, messages_of
from hasspec.data.store import Conversation, TokenStore
from hasspec.data.template import ChatTemplate

# A run whose user turns are nearly all rejected would never end.
_TRIAL_ATTEMPTS = 500
_LEAST_KEPT = 0.02


@dataclass(frozen=True)
class MagpieSettings:
    """How user turns are written.

    Attributes:
        temperature: of the user turn, above 0.
        top_p: mass of the nucleus.
        max_tokens: a user turn that has not ended by then is rejected.
        min_words: a shorter user turn is rejected.
        systems: system messages used in turn while a user turn is written (to get coding
            questions, say); the answer is written without them.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 256
    min_words: int = 3
    systems: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ValueError(
                f"the temperature of Magpie prompts must be above 0, got {self.temperature}: "
                "the most likely user turn is always the same one"
            )
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p of Magpie prompts must be in (0, 1], got {self.top_p}")


class MagpieScript:
    """Writes one user turn, then its answer."""

    def __init__(self, index: int, source: MagpieSource):
        self.index = index
        self.rejected = ""
        self.user_text = ""
        systems = source.magpie.systems
        self._system = index % len(systems) if systems else None
        label = "magpie" if self._system is None else f"magpie-system-{self._system}"
        self.conversation = Conversation([], [], label, "", f"magpie-{index}")
        self._source = source
        self._prompt_ids: list[int] = []

    def first(self) -> Stage:
        magpie = self._source.magpie
        return Stage(
            self._source.openings[self._system or 0],
            magpie.max_tokens,
            self._source.stop_ids,
            magpie.temperature,
            magpie.top_p,
            (self._source.settings.seed, "magpie", self.index, "user"),
        )

    def following(self, written: list[int], finish: str) -> Stage | None:
        if not self._prompt_ids:
            self.rejected = self._read_user_turn(written, finish)
            if self.rejected:
                return None
            key = ("magpie", self.index, "answer")
            return self._source.settings.stage(
                self._prompt_ids, self._source.template.eos_ids, *key
            )
        start = len(self._prompt_ids)
        if finish == "eos" and len(written) == 1:
            self.rejected = "empty answer"
        self.conversation.token_ids = self._prompt_ids + written
        self.conversation.answer_spans = [(start, start + len(written))]
        self.conversation.finish = finish
        return None

    def _read_user_turn(self, written: list[int], finish: str) -> str:
        if finish != "eos":
            return "user turn too long"
        if any(token in self._source.special_ids for token in written[:-1]):
            return "special token in the user turn"
        self.user_text = self._source.template.text(written[:-1]).strip()
        if not self.user_text:
            return "empty user turn"
        if "\ufffd" in self.user_text:
            return "user turn is not valid UTF-8"
        if len(self.user_text.split()) < self._source.magpie.min_words:
            return "user turn too short"
        self._prompt_ids = self._source.template.prompt_ids(messages_of(None, self.user_text))
        if len(self._prompt_ids) >= self._source.settings.max_context:
            return "user turn too long"
        return ""


class MagpieSource:
    """Conversations whose user turns the target writes.

    Args:
        count: conversations to be kept; rejected ones are replaced.
        template: the target's chat template.
        settings: how answers are written.
        magpie: how user turns are written.

    Raises:
        ValueError: the template gives a user turn no opening or no end.
    """

    name = "magpie"

    def __init__(
        self,
        count: int,
        template: ChatTemplate,
        settings: AnswerSettings,
        magpie: MagpieSettings = MagpieSettings(),  # noqa: B008 (frozen)
    ):
        self.total = count
        self.template, self.settings, self.magpie = template, settings, magpie
        systems: Sequence[str | None] = magpie.systems or (None,)
        self.openings = [template.user_opening(system) for system in systems]
        if not all(self.openings):
            raise ValueError(
                f"the chat template of {template.name!r} writes nothing before a user turn, so "
                "the target cannot be led to write one; use prompts from files instead"
            )
        self.stop_ids = template.user_stop_ids()
        self.special_ids = template.special_ids
        self._next = self._judged = self._kept = 0
        self._seen: set[str] = set()

    def restore(self, store: TokenStore) -> None:
        self._next = self._judged = store.metadata.progress.get(f"{self.name}: position", 0)
        self._kept = store.metadata.progress.get(f"{self.name}: kept", 0)
        for conversation in store if self._kept else ():
            if conversation.prompt_id.startswith("magpie-"):
                self._seen.add(self._key(conversation))

    def next_script(self) -> MagpieScript | None:
        in_flight = self._next - self._judged
        if self._kept + in_flight >= self.total:
            return None
        self._next += 1
        return MagpieScript(self._next - 1, self)

    def judge(self, script: StoredScript) -> str:
        self._judged += 1
        reason = script.rejected
        if not reason:
            key = self._key(script.conversation)
            reason = "duplicate user turn" if key in self._seen else ""
            self._seen.add(key)
        self._kept += not reason
        if self._judged >= _TRIAL_ATTEMPTS and self._kept < _LEAST_KEPT * self._judged:
            raise ValueError(
                f"of {self._judged} user turns that {self.template.name!r} wrote, {self._kept} "
                "passed the checks; it does not seem to be tuned on this chat template"
            )
        return reason

    def done(self) -> int:
        return self._kept

    def _key(self, conversation: Conversation) -> str:
        """The prompt without differences of case and white space."""
        prompt = conversation.token_ids[: conversation.answer_spans[0][0]]
        return " ".join(self.template.text(prompt).casefold().split())
