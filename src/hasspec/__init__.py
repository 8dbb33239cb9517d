"""Lossless speculative decoding with HASS draft heads: train, run, measure.

The names below are the public Python API; each is imported when first used, so that
``import hasspec`` does not load torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hasspec.decoding import Decoder as Decoder
    from hasspec.decoding import Sampling as Sampling
    from hasspec.decoding import TreeSpec as TreeSpec
    from hasspec.draft import load_head as load_head
    from hasspec.heads import shipped_head as shipped_head
    from hasspec.target import Target as Target

_HOME = {
    "Decoder": "hasspec.decoding",
    "Sampling": "hasspec.decoding",
    "Target": "hasspec.target",
    "TreeSpec": "hasspec.decoding",
    "load_head": "hasspec.draft",
    "shipped_head": "hasspec.heads",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
