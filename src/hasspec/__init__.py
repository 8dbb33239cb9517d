"""Lossless speculative decoding with HASS draft heads: train, run, measure.

The names below are the public Python API; each is imported when first used, so that
``import hasspec`` does not load torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hasspec.target import Target as Target

_HOME = {
    "Target": "hasspec.target",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
