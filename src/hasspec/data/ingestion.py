"""Dialogue files into a token store, all or nothing."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from hasspec.data.dialogues import read_dialogues
from hasspec.data.store import Conversation, StoreMetadata, TokenStore, tokenizer_fingerprint
from hasspec.data.template import ChatTemplate
from hasspec.target import Target

_SHARD_SIZE = 1024


def ingest_dialogues(
    target: Target,
    files: Sequence[Path],
    out: Path | str,
    *,
    on_error: Literal["raise", "skip"] = "raise",
    max_length: int = 2048,
) -> tuple[TokenStore, Counter[str]]:
    """Write the dialogues of JSONL files to a new store.

    Args:
        target: its chat template and tokenizer are used; its fingerprint is stored.
        files: see :func:`hasspec.data.dialogues.read_dialogues`.
        out: folder that must not exist, or be empty; it appears when everything is written.
        on_error: what to do with a row that cannot be used.
        max_length: most tokens of a conversation.

    Returns:
        The store, and the counts of skipped rows by reason.

    Raises:
        ValueError: a row that cannot be used, no usable row at all, or ``out`` is taken.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out}: already exists and is not an empty folder; choose another")
    template = ChatTemplate(target)
    draft = out.with_name(f"{out.name}.partial")
    shutil.rmtree(draft, ignore_errors=True)
    metadata = StoreMetadata(
        target={"name": target.name, "fingerprint": target.fingerprint()},
        tokenizer_fingerprint=tokenizer_fingerprint(template.tokenizer),
        settings={
            "answers": "given",
            "files": {path.name: _sha256(path) for path in files},
            "max_length": max_length,
            "on_error": on_error,
        },
    )
    store = TokenStore.create(draft, metadata)
    skipped: Counter[str] = Counter()
    pending: list[Conversation] = []
    for path in files:
        for conversation in read_dialogues(
            path, template, max_length=max_length, on_error=on_error, skipped=skipped
        ):
            pending.append(conversation)
            if len(pending) == _SHARD_SIZE:
                store.append(pending)
                pending = []
    progress = {f"dialogues: skipped: {reason}": count for reason, count in skipped.items()}
    store.append(pending, progress=progress, complete=True)
    if not len(store):
        raise ValueError(
            f"no dialogue of {', '.join(map(str, files))} can be used; skipped: {dict(skipped)}"
        )
    os.replace(draft, out)
    return TokenStore.open(out), skipped


def _sha256(path: Path) -> str:
    if not path.is_file():
        raise ValueError(f"{path}: no such file; expected JSONL dialogues")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
