"""Training data: prompts, conversations written by the target, and the store that holds them."""

from hasspec.data.prompts import Prompt, read_dataset, read_prompts
from hasspec.data.store import Conversation, TokenStore

__all__ = ["Conversation", "Prompt", "TokenStore", "read_dataset", "read_prompts"]
