"""Training data written by the target: prompts in, conversations into a token store.

Conversations end in any order but are stored in the order of their prompts, so what a store holds
does not depend on timing, and a run that was interrupted goes on after the last whole shard.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from hasspec.data.generation import generate
from hasspec.data.sources import AnswerSettings, Source, StoredScript
from hasspec.data.store import Conversation, TokenStore
from hasspec.files import sole_writer
from hasspec.target import Target


@dataclass
class Progress:
    """Where a run stands, for its display."""

    source: str
    done: int
    total: int
    answer_tokens: int
    rejected: Mapping[str, int] = field(default_factory=dict)


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
        ValueError: the context wanted is beyond the target's, or another process writes there.
    """
    if settings.max_context > target.max_length:
        raise ValueError(
            f"max_context {settings.max_context} is beyond the {target.max_length} tokens of "
            f"target {target.name!r}"
        )
    with sole_writer(store.path):
        # Another run may have written on since the store was opened.
        store.metadata = TokenStore.open(store.path).metadata
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
