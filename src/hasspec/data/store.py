"""The token store: conversations as token ids, with the spans that the target wrote.

A folder of parquet shards and one ``store.json``. The shards are ordinary parquet, readable by
``datasets.load_dataset("parquet", data_files=...)``; ``store.json`` is replaced after each shard,
so a reader sees whole shards only and a writer that was killed goes on after the last of them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from transformers import PreTrainedTokenizerBase

from hasspec.files import write_atomically

FORMAT_VERSION = 1
_INDEX = "store.json"
_SCHEMA = pa.schema(
    [
        ("token_ids", pa.list_(pa.int32())),
        ("answer_spans", pa.list_(pa.int32())),
        ("source", pa.string()),
        ("finish", pa.string()),
        ("prompt_id", pa.string()),
    ]
)


@dataclass
class Conversation:
    """One conversation as the target saw it.

    Attributes:
        token_ids: all tokens, prompt and answers.
        answer_spans: half-open ``(start, end)`` of the target's tokens, end-of-turn included.
        source: where the prompt comes from.
        finish: how the last answer ended: ``"eos"``, ``"length"`` or ``"context"``.
        prompt_id: id of the prompt.
    """

    token_ids: list[int]
    answer_spans: list[tuple[int, int]]
    source: str = ""
    finish: str = ""
    prompt_id: str = ""


class Shard(BaseModel):
    """One parquet file of the store."""

    model_config = ConfigDict(extra="forbid")
    file: str
    sha256: str
    conversations: int
    tokens: int
    answer_tokens: int


class StoreMetadata(BaseModel):
    """Contents of ``store.json``.

    Attributes:
        format_version: version of this layout.
        target: name and weight fingerprint of the model that wrote the answers.
        tokenizer_fingerprint: hash of the tokenizer's serialised form.
        settings: everything that decides the contents; a resumed run must have the same.
        seed: of the sampling.
        shards: in order.
        progress: counts kept by the writer (position, rejected prompts by reason, ...).
        complete: whether the writer reached its end.
    """

    model_config = ConfigDict(extra="forbid")
    format_version: int = FORMAT_VERSION
    target: dict[str, str] = Field(default_factory=dict)
    tokenizer_fingerprint: str = ""
    settings: dict[str, Any] = Field(default_factory=dict)
    seed: int = 0
    shards: list[Shard] = Field(default_factory=list)
    progress: dict[str, int] = Field(default_factory=dict)
    complete: bool = False


class TokenStore:
    """A folder of conversations. Use :meth:`create`, :meth:`open` or :meth:`resume`."""

    def __init__(self, path: Path, metadata: StoreMetadata):
        self.path = path
        self.metadata = metadata

    @classmethod
    def create(cls, path: Path | str, metadata: StoreMetadata) -> TokenStore:
        """A new store; ``ValueError`` if the folder already holds one or anything else."""
        path = Path(path)
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise ValueError(f"{path}: already exists and is not an empty folder")
        path.mkdir(parents=True, exist_ok=True)
        store = cls(path, metadata)
        store._write_index()
        return store

    @classmethod
    def open(cls, path: Path | str) -> TokenStore:
        """An existing store; ``ValueError`` for a missing or foreign index or a missing shard."""
        path = Path(path)
        index = path / _INDEX
        if not index.is_file():
            raise ValueError(f"{path}: no token store there ({_INDEX} is missing)")
        try:
            raw = json.loads(index.read_text(encoding="utf-8"))
            version = raw.get("format_version") if isinstance(raw, dict) else None
            if version != FORMAT_VERSION:
                raise ValueError(
                    f"{index}: format version {version!r}, this program reads {FORMAT_VERSION}"
                )
            metadata = StoreMetadata.model_validate(raw)
        except (UnicodeDecodeError, json.JSONDecodeError, ValidationError) as error:
            raise ValueError(f"{index}: not the index of a token store: {error}") from error
        for shard in metadata.shards:
            if not (path / shard.file).is_file():
                raise ValueError(
                    f"{path / shard.file}: shard is missing; "
                    "restore it or write the store again from its prompts"
                )
        return cls(path, metadata)

    @classmethod
    def resume(cls, path: Path | str, metadata: StoreMetadata) -> TokenStore:
        """Open the store at ``path`` to go on writing it, or create it.

        Raises:
            ValueError: the store there was written with other settings (they are named).
        """
        path = Path(path)
        if not (path / _INDEX).exists():
            return cls.create(path, metadata)
        store = cls.open(path)
        differences = _differences(store.metadata, metadata)
        if differences:
            raise ValueError(
                f"{path}: was written with other settings, so it cannot be continued:\n  "
                + "\n  ".join(differences)
                + "\nRun with the stored settings, or write to another folder."
            )
        return store

    def append(
        self,
        conversations: Sequence[Conversation],
        *,
        progress: Mapping[str, int] | None = None,
        complete: bool = False,
    ) -> None:
        """Write conversations as one shard (none if there are none), then the index.

        Args:
            conversations: in the order in which they are to be read.
            progress: replaces ``metadata.progress`` in the same step.
            complete: marks the store as finished.
        """
        if conversations:
            self.metadata.shards.append(self._write_shard(conversations))
        if progress is not None:
            self.metadata.progress = dict(progress)
        self.metadata.complete = complete
        self._write_index()

    def __len__(self) -> int:
        return sum(shard.conversations for shard in self.metadata.shards)

    @property
    def n_tokens(self) -> int:
        return sum(shard.tokens for shard in self.metadata.shards)

    @property
    def n_answer_tokens(self) -> int:
        return sum(shard.answer_tokens for shard in self.metadata.shards)

    def __iter__(self) -> Iterator[Conversation]:
        for shard in self.metadata.shards:
            yield from self._read_shard(shard)

    def fingerprint(self) -> str:
        """Hash of all token ids and spans in order, whatever the division into shards."""
        digest = hashlib.sha256()
        for conversation in self:
            spans = [edge for span in conversation.answer_spans for edge in span]
            digest.update(f"{conversation.token_ids}{spans}".encode())
        return digest.hexdigest()[:16]

    def _read_shard(self, shard: Shard) -> Iterator[Conversation]:
        path = self.path / shard.file
        advice = "restore it or write the store again from its prompts"
        try:
            content = path.read_bytes()
        except OSError as error:
            raise ValueError(f"{path}: shard cannot be read ({error}); {advice}") from error
        if hashlib.sha256(content).hexdigest() != shard.sha256:
            raise ValueError(f"{path}: shard differs from what was written; {advice}")
        # The shards are small, and without threads no pool is left at the interpreter's exit.
        table = pq.read_table(
            pa.BufferReader(content), schema=_SCHEMA, use_threads=False, pre_buffer=False
        )
        for batch in table.to_batches(max_chunksize=256):
            for row in batch.to_pylist():
                edges = row.pop("answer_spans")
                spans = list(zip(edges[::2], edges[1::2], strict=True))
                yield Conversation(answer_spans=spans, **row)

    def _write_shard(self, conversations: Sequence[Conversation]) -> Shard:
        for conversation in conversations:
            _check(conversation)
        rows = [
            {
                "token_ids": conversation.token_ids,
                "answer_spans": [edge for span in conversation.answer_spans for edge in span],
                "source": conversation.source,
                "finish": conversation.finish,
                "prompt_id": conversation.prompt_id,
            }
            for conversation in conversations
        ]
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA), sink, compression="zstd")
        content = sink.getvalue().to_pybytes()
        file = f"shard-{len(self.metadata.shards):05d}.parquet"
        write_atomically(self.path / file, content)
        return Shard(
            file=file,
            sha256=hashlib.sha256(content).hexdigest(),
            conversations=len(conversations),
            tokens=sum(len(conversation.token_ids) for conversation in conversations),
            answer_tokens=sum(
                end - start
                for conversation in conversations
                for start, end in conversation.answer_spans
            ),
        )

    def _write_index(self) -> None:
        text = self.metadata.model_dump_json(indent=1)
        write_atomically(self.path / _INDEX, text)


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash of the tokenizer's serialised form, without the state of padding and truncation."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        form: Any = {"vocab": tokenizer.get_vocab(), "class": type(tokenizer).__name__}
    else:
        form = json.loads(backend.to_str())
        form["padding"] = form["truncation"] = None
    digest = hashlib.sha256(json.dumps(form, sort_keys=True).encode())
    digest.update(str(tokenizer.chat_template).encode())
    return digest.hexdigest()[:16]


def _check(conversation: Conversation) -> None:
    previous = 0
    for start, end in conversation.answer_spans:
        if not previous <= start < end <= len(conversation.token_ids):
            raise ValueError(
                f"conversation {conversation.prompt_id!r}: answer spans "
                f"{conversation.answer_spans} are not ascending, non-empty and within "
                f"{len(conversation.token_ids)} tokens"
            )
        previous = end
    if not conversation.answer_spans:
        raise ValueError(f"conversation {conversation.prompt_id!r} has no answer span")


def _differences(stored: StoreMetadata, wanted: StoreMetadata) -> list[str]:
    def flat(metadata: StoreMetadata) -> dict[str, Any]:
        # Through JSON, as the stored one went: tuples become lists.
        settings = json.loads(json.dumps(metadata.settings))
        return settings | {
            "seed": metadata.seed,
            "target fingerprint": metadata.target.get("fingerprint"),
            "tokenizer fingerprint": metadata.tokenizer_fingerprint,
        }

    old, new = flat(stored), flat(wanted)
    return [
        f"{key}: {old.get(key)!r} in the store, {new.get(key)!r} now"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]
