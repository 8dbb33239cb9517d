"""Where conversations come from: scripts in order, each to be run and then stored or rejected."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from hasspec.data.generation import Script, Stage
from hasspec.data.prompts import Prompt
from hasspec.data.store import Conversation, TokenStore
from hasspec.data.template import ChatTemplate


@dataclass(frozen=True)
class AnswerSettings:
    """How answers are written.

    Attributes:
        max_new_tokens: most tokens of one answer, the end-of-turn id included.
        temperature: 0 for greedy.
        top_p: mass of the nucleus when sampling.
        seed: of the sampling; each conversation has its own numbers.
        max_context: most tokens of a conversation.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    max_context: int = 2048

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}")
        if self.temperature < 0:
            raise ValueError(f"temperature must not be negative, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p}")
        if self.max_context < 2:
            raise ValueError(f"max_context must be at least 2, got {self.max_context}")

    def stage(self, ids: list[int], stop_ids: frozenset[int], *noise_key: object) -> Stage:
        return Stage(
            ids,
            self.max_new_tokens,
            stop_ids,
            self.temperature,
            self.top_p,
            (self.seed, *noise_key),
        )


class StoredScript(Script, Protocol):
    """A script that ends as a conversation to store, or as a reason not to store one."""

    index: int
    conversation: Conversation
    rejected: str


class Source(Protocol):
    """Scripts in order of their index.

    Attributes:
        name: prefix of its counts in the store's progress.
        total: conversations to be stored, or prompts to be asked.
    """

    name: str
    total: int

    def restore(self, store: TokenStore) -> None:
        """Go on after what the store holds."""
        ...

    def next_script(self) -> StoredScript | None: ...

    def judge(self, script: StoredScript) -> str:
        """Why the ended script is not stored, or ""; called once each, in order of index."""
        ...

    def done(self) -> int:
        """How many of ``total`` are done."""
        ...


class PromptScript:
    """Asks the turns of one prompt, one after the other."""

    def __init__(
        self,
        index: int,
        prompt: Prompt,
        prompt_ids: list[int],
        template: ChatTemplate,
        settings: AnswerSettings,
    ):
        self.index = index
        self.rejected = ""
        self.conversation = Conversation([], [], prompt.source, "", prompt.prompt_id)
        self._template = template
        self._settings = settings
        self._turns = list(prompt.turns[1:])
        self._messages: list[dict[str, Any]] = messages_of(prompt.system, prompt.turns[0])
        self._ids = prompt_ids

    def first(self) -> Stage:
        return self._stage()

    def following(self, written: list[int], finish: str) -> Stage | None:
        start = len(self._ids)
        self._ids = self._ids + written
        self.conversation.token_ids = self._ids
        self.conversation.answer_spans.append((start, len(self._ids)))
        self.conversation.finish = finish
        if not self._turns or finish == "context":
            return None
        user = self._turns.pop(0)
        try:
            between = self._template.continuation(self._messages, written, user)
        except ValueError:
            # This answer's form (reasoning marks, say) cannot be continued; the turns so far can
            # be kept, and the report says how many conversations ended so.
            self.conversation.finish = "template"
            return None
        if len(self._ids) + len(between) >= self._settings.max_context:
            self.conversation.finish = "context"
            return None
        self._messages += [
            {"role": "assistant", "content": self._template.answer_text(written)},
            {"role": "user", "content": user},
        ]
        self._ids = self._ids + between
        return self._stage()

    def _stage(self) -> Stage:
        turn = len(self.conversation.answer_spans)
        key = ("prompt", self.index, turn)
        return self._settings.stage(self._ids, self._template.eos_ids, *key)


class PromptSource:
    """Prompts from files and datasets.

    Args:
        prompts: asked in this order.
        turns: ask all turns of a prompt; only the first otherwise.

    Raises:
        ValueError: later turns are wanted and the template cannot continue a conversation.
    """

    name = "prompts"

    def __init__(
        self,
        prompts: Sequence[Prompt],
        template: ChatTemplate,
        settings: AnswerSettings,
        *,
        turns: bool = True,
    ):
        if not turns:
            prompts = [Prompt(p.prompt_id, p.turns[:1], p.system, p.source) for p in prompts]
        if any(len(prompt.turns) > 1 for prompt in prompts):
            template.check_turns()
        self.total = len(prompts)
        self._prompts = prompts
        self._template = template
        self._settings = settings
        self._next = self._judged = 0

    def restore(self, store: TokenStore) -> None:
        self._next = self._judged = store.metadata.progress.get(f"{self.name}: position", 0)

    def next_script(self) -> PromptScript | None:
        if self._next >= self.total:
            return None
        index, prompt = self._next, self._prompts[self._next]
        self._next += 1
        ids = self._template.prompt_ids(messages_of(prompt.system, prompt.turns[0]))
        script = PromptScript(index, prompt, ids, self._template, self._settings)
        if len(ids) >= self._settings.max_context:
            script.rejected = "prompt beyond the context"
        return script

    def judge(self, script: StoredScript) -> str:
        self._judged += 1
        return script.rejected

    def done(self) -> int:
        return self._judged


def messages_of(system: str | None, user: str) -> list[dict[str, Any]]:
    """A conversation of one user turn, under a system message if there is one."""
    head = [] if system is None else [{"role": "system", "content": system}]
    return [*head, {"role": "user", "content": user}]
