"""Training data written by the target: prompts in, conversations into a token store.

Conversations end in any order but are stored in the order of their prompts, so what a store holds
does not depend on timing, and a run that was interrupted goes on after the last whole shard.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from hasspec.data.generation import Script, Stage, generate
from hasspec.data.prompts import Prompt
from hasspec.data.store import Conversation, TokenStore
from hasspec.data.template import ChatTemplate
from hasspec.target import Target


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


@dataclass
class Progress:
    """Where a run stands, for its display."""

    source: str
    done: int
    total: int
    answer_tokens: int
    rejected: Mapping[str, int] = field(default_factory=dict)


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


def write_store(
    target: Target,
    sources: Sequence[Source],
    store: TokenStore,
    settings: AnswerSettings,
    *,
    rows: int = 96,
    shard_size: int = 256,
    shard_seconds: float = 60.0,
    report: Callable[[Progress], None] = lambda progress: None,
) -> None:
    """Run every source to its end; interrupted, the store keeps what is complete.

    Args:
        target: writes the answers.
        sources: run one after the other.
        store: empty, or written by an earlier run with the same settings.
        settings: how answers are written.
        rows: conversations decoded together.
        shard_size: conversations after which a shard is written,
        shard_seconds: or seconds, whichever comes first.
        report: called after every conversation.

    Raises:
        ValueError: the context wanted is beyond the target's.
    """
    if settings.max_context > target.max_length:
        raise ValueError(
            f"max_context {settings.max_context} is beyond the {target.max_length} tokens of "
            f"target {target.name!r}"
        )
    counts = Counter(store.metadata.progress)
    for source in sources:
        source.restore(store)
        writer = _OrderedWriter(source, store, counts, shard_size, shard_seconds, report)
        try:
            for script in generate(
                target,
                writer.next_script,
                rows=rows,
                capacity=settings.max_context,
                refill=max(1, rows // 12),
            ):
                writer.add(script)
            writer.add_rejected()
        finally:
            writer.flush()
    store.append([], progress=counts, complete=True)


def messages_of(system: str | None, user: str) -> list[dict[str, Any]]:
    """A conversation of one user turn, under a system message if there is one."""
    head = [] if system is None else [{"role": "system", "content": system}]
    return [*head, {"role": "user", "content": user}]


class _OrderedWriter:
    """Puts scripts that ended in any order back into order, and into shards."""

    def __init__(
        self,
        source: Source,
        store: TokenStore,
        counts: Counter[str],
        shard_size: int,
        shard_seconds: float,
        report: Callable[[Progress], None],
    ):
        self._source, self._store, self._counts = source, store, counts
        self._shard_size, self._shard_seconds = shard_size, shard_seconds
        self._report = report
        self._position_key = f"{source.name}: position"
        self._counts.setdefault(self._position_key, 0)
        self._ended: dict[int, StoredScript] = {}
        self._kept: list[Conversation] = []
        self._answer_tokens = store.n_answer_tokens
        self._written_at = time.monotonic()

    def next_script(self) -> StoredScript | None:
        """The next script to be run; those rejected beforehand pass by."""
        while script := self._source.next_script():
            if not script.rejected:
                return script
            self._ended[script.index] = script
        return None

    def add(self, script: StoredScript) -> None:
        self._ended[script.index] = script
        self.add_rejected()

    def add_rejected(self) -> None:
        """Take over every ended script whose predecessors have all ended."""
        while script := self._ended.pop(self._counts[self._position_key], None):
            if self._source.done() >= self._source.total:
                return
            reason = self._source.judge(script)
            self._counts[self._position_key] += 1
            if reason:
                self._counts[f"{self._source.name}: rejected: {reason}"] += 1
            else:
                self._keep(script.conversation)
            self._report(self._progress())
            too_old = time.monotonic() - self._written_at > self._shard_seconds
            if len(self._kept) >= self._shard_size or (self._kept and too_old):
                self.flush()

    def flush(self) -> None:
        self._store.append(self._kept, progress=self._counts)
        self._kept = []
        self._written_at = time.monotonic()

    def _keep(self, conversation: Conversation) -> None:
        self._kept.append(conversation)
        self._answer_tokens += sum(end - start for start, end in conversation.answer_spans)
        self._counts[f"{self._source.name}: kept"] += 1
        self._counts[f"{self._source.name}: ended by {conversation.finish}"] += 1

    def _progress(self) -> Progress:
        prefix = f"{self._source.name}: rejected: "
        return Progress(
            self._source.name,
            self._source.done(),
            self._source.total,
            self._answer_tokens,
            {
                key.removeprefix(prefix): count
                for key, count in self._counts.items()
                if key.startswith(prefix)
            },
        )
