"""Heads as the commands take them: a folder, or the name of a shipped one."""

from __future__ import annotations

from pathlib import Path


def head_folder(value: str) -> Path:
    """The folder that ``--head`` means; a folder of that name goes before a shipped head.

    Raises:
        ValueError: neither a folder nor a shipped head.
    """
    from hasspec.heads import shipped_head

    folder = Path(value)
    return folder if folder.is_dir() else shipped_head(value)


def named_heads(values: list[str]) -> dict[str, Path]:
    """``NAME=PATH`` options as ``{NAME: folder}``; a shipped head's name alone will do.

    Raises:
        ValueError: an option that is neither, or a name given twice.
    """
    heads: dict[str, Path] = {}
    for value in values:
        name, separator, path = value.partition("=")
        if not name or (separator and not path):
            raise ValueError(f"--head {value!r}: expected NAME=PATH or the name of a shipped head")
        if name in heads:
            raise ValueError(f"--head {name!r} is given twice; give every head its own name")
        heads[name] = head_folder(path or name)
    return heads
