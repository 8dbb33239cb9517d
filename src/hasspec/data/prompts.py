"""Prompts that the target is asked to answer: JSONL files and ``datasets`` sources."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_FILE_BUILDERS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}
_SHAPES = '{"turns": ["first user turn", ...]}, {"prompt": "..."} or {"messages": [...]}'


@dataclass(frozen=True)
class Prompt:
    """User turns to be asked one after the other.

    Attributes:
        prompt_id: the row's id, or its file and line.
        turns: user turns; each is asked after the target answered the one before.
        system: system message, or None for the template's own default.
        source: file or dataset it comes from.
    """

    prompt_id: str
    turns: tuple[str, ...]
    system: str | None = None
    source: str = ""


def jsonl_lines(path: Path | str) -> Iterator[tuple[int, bytes]]:
    """Lines of a JSONL file with their numbers (from 1), without the blank ones."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file; expected a JSONL file, one object a line")
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            if raw.strip():
                yield number, raw


def parse_row(raw: bytes, where: str) -> dict[str, Any]:
    """The JSON object of one line; ``ValueError`` naming ``where`` if it holds none."""
    try:
        row = json.loads(raw.decode("utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{where}: not a line of JSON ({error}); expected one UTF-8 JSON object a line"
        ) from error
    if not isinstance(row, dict):
        raise ValueError(f"{where}: expected a JSON object, found {type(row).__name__}")
    return row


def read_prompts(path: Path | str) -> list[Prompt]:
    """Prompts of a JSONL file.

    A row holds ``turns`` (a list of user turns), ``prompt`` (one user turn) or ``messages``
    (role/content; assistant messages are left out, for the target writes its own answers), and
    optionally ``id`` and ``system``.

    Raises:
        ValueError: a malformed line (file and line are named) or a file without prompts.
    """
    path = Path(path)
    prompts = []
    for number, raw in jsonl_lines(path):
        where = f"{path}:{number}"
        row = parse_row(raw, where)
        prompt_id = str(row.get("id", f"{path.stem}-{number}"))
        prompts.append(_prompt(row, where, prompt_id, source=path.name))
    if not prompts:
        raise ValueError(f"{path}: holds no prompts; expected one a line: {_SHAPES}")
    return prompts


def read_dataset(name: str, *, column: str = "prompt", split: str = "train") -> list[Prompt]:
    """Prompts of a ``datasets`` source.

    Args:
        name: hub name, a local dataset folder, or a local json, jsonl, csv or parquet file.
        column: holds a user turn, a list of user turns, or a list of role/content messages.
        split: for instance ``"train"`` or ``"train[:1000]"``.

    Raises:
        ValueError: the dataset cannot be loaded, or the column is missing or of another shape.
    """
    import datasets

    builder = _FILE_BUILDERS.get(Path(name).suffix) if Path(name).is_file() else None
    try:
        if builder:
            data = datasets.load_dataset(builder, data_files=str(name), split=split)
        else:
            data = datasets.load_dataset(str(name), split=split)
    except Exception as error:  # the library raises many kinds; the user needs one line
        raise ValueError(
            f"cannot load split {split!r} of dataset {name!r}: {type(error).__name__}: {error}"
        ) from error
    if column not in data.column_names:
        raise ValueError(
            f"dataset {name!r} has no column {column!r}; it has {', '.join(data.column_names)}"
        )
    short = Path(name).name
    prompts = []
    for number, value in enumerate(data[column]):
        where = f"dataset {name!r} row {number}"
        if isinstance(value, str):
            row: dict[str, Any] = {"prompt": value}
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            row = {"messages": value}
        else:
            row = {"turns": value}
        prompts.append(_prompt(row, where, f"{short}-{number}", source=short))
    if not prompts:
        raise ValueError(f"split {split!r} of dataset {name!r} is empty")
    return prompts


def _prompt(row: Mapping[str, Any], where: str, prompt_id: str, *, source: str) -> Prompt:
    system = row.get("system")
    if "turns" in row:
        turns = row["turns"]
    elif "prompt" in row:
        turns = [row["prompt"]]
    elif "messages" in row:
        turns, system = _user_turns(row["messages"], where, system)
    else:
        raise ValueError(f"{where}: found keys {sorted(row)}; expected {_SHAPES}")
    if not isinstance(turns, list) or not turns:
        raise ValueError(f"{where}: expected a non-empty list of user turns")
    for turn in turns:
        if not isinstance(turn, str) or not turn.strip():
            raise ValueError(f"{where}: every user turn must be non-empty text, found {turn!r}")
    if system is not None and not isinstance(system, str):
        raise ValueError(f"{where}: the system message must be text, found {system!r}")
    return Prompt(prompt_id, tuple(turns), system, source)


def _user_turns(
    messages: object, where: str, system: str | None
) -> tuple[list[object], str | None]:
    turns = []
    if not isinstance(messages, list):
        raise ValueError(f"{where}: 'messages' must be a list of role/content objects")
    for message in messages:
        if not isinstance(message, Mapping) or not {"role", "content"} <= set(message):
            raise ValueError(f"{where}: expected a message with role and content, got {message!r}")
        if message["role"] == "user":
            turns.append(message["content"])
        elif message["role"] == "system":
            system = message["content"]
        elif message["role"] != "assistant":
            raise ValueError(
                f"{where}: unknown role {message['role']!r}; expected system, user or assistant"
            )
    return turns, system
