"""The target: any Hugging Face causal LM, its features, its head and its tree forward."""

from hasspec.target.cache import RaggedCache, SequenceCache
from hasspec.target.model import Target

__all__ = ["RaggedCache", "SequenceCache", "Target"]
