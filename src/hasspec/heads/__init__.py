"""Heads that are shipped with the package, one folder each."""

from __future__ import annotations

from pathlib import Path

_FOLDER = Path(__file__).parent


def shipped_heads() -> list[str]:
    """Names of the shipped heads."""
    return sorted(path.parent.name for path in _FOLDER.glob("*/config.json"))


def shipped_head(name: str) -> Path:
    """Folder of a shipped head.

    Raises:
        ValueError: there is none of that name; the message lists those that there are.
    """
    if name not in shipped_heads():
        listed = ", ".join(shipped_heads()) or "none in this installation"
        raise ValueError(
            f"no shipped head is named {name!r} (shipped: {listed}); "
            "name one of these or give the folder of a head"
        )
    return _FOLDER / name
