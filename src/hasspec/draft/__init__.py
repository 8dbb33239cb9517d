"""The draft head: one decoder layer that continues the target's features."""

from hasspec.draft.checkpoint import load_head, save_head
from hasspec.draft.config import DraftConfig
from hasspec.draft.head import DraftHead
from hasspec.draft.vocabulary import DraftVocabulary

__all__ = ["DraftConfig", "DraftHead", "DraftVocabulary", "load_head", "save_head"]
