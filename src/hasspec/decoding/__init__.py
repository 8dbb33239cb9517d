"""Decoding: draft a tree, verify it in one target forward, emit what the target itself says."""

from hasspec.decoding.engine import Decoder
from hasspec.decoding.result import Generation, Round
from hasspec.decoding.sampling import Sampling
from hasspec.decoding.timing import TimeSplit
from hasspec.decoding.tree import DraftTree, TreeSpec

__all__ = ["Decoder", "DraftTree", "Generation", "Round", "Sampling", "TimeSplit", "TreeSpec"]
