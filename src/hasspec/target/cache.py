"""Key/value caches that are allocated once and written in place.

Both speak the cache interface of transformers, so that any model that takes
``past_key_values`` runs on them unchanged. Keys are stored after RoPE: the slot of a row says
nothing about its position, which is what lets a tree of tokens lie in consecutive slots.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin


class _SequenceLayer(CacheLayerMixin):
    """Keys and values of one layer for one sequence: ``[1, H, capacity, head_dim]``."""

    is_sliding = False

    def __init__(self, capacity: int):
        super().__init__()
        self.capacity = capacity
        self.length = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        batch, n_heads = key_states.shape[:2]
        self.keys = key_states.new_zeros(batch, n_heads, self.capacity, key_states.shape[-1])
        self.values = value_states.new_zeros(batch, n_heads, self.capacity, value_states.shape[-1])
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = self.length + key_states.shape[2]
        if end > self.capacity:
            raise ValueError(
                f"the cache holds {self.capacity} tokens but {end} were written; "
                "allocate a larger capacity"
            )
        self.keys[:, :, self.length : end] = key_states
        self.values[:, :, self.length : end] = value_states
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def keep(self, start: int, index_K: Tensor) -> None:
        end = start + index_K.shape[0]
        # index_select copies before the write, so overlapping source and destination are safe.
        self.keys[:, :, start:end] = self.keys.index_select(2, index_K + start)
        self.values[:, :, start:end] = self.values.index_select(2, index_K + start)
        self.length = end

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        return self.length

    def get_max_length(self) -> int:
        return self.capacity


class SequenceCache(Cache):
    """Preallocated cache of one sequence, with room for a tree that is kept only in part.

    Args:
        n_layers: decoder layers of the model that writes here.
        capacity: slots; a forward that would write past them raises ``ValueError``.
    """

    def __init__(self, n_layers: int, capacity: int):
        super().__init__(layers=[_SequenceLayer(capacity) for _ in range(n_layers)])
        self.capacity = capacity

    @property
    def length(self) -> int:
        """Slots that the next forward sees besides its own tokens."""
        return self.layers[0].length

    def keep(self, start: int, index_K: Tensor) -> None:
        """Keep only ``start + index_K`` of the slots from ``start`` on, moved together.

        Args:
            start: first slot of the tree.
            index_K: int64 ``[K]``, ascending, relative to ``start``: the accepted path.
        """
        for layer in self.layers:
            layer.keep(start, index_K)

    def truncate(self, length: int) -> None:
        """Forget every slot from ``length`` on."""
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot truncate a cache of {self.length} tokens to {length}")
        for layer in self.layers:
            layer.length = length


class _RaggedLayer(CacheLayerMixin):
    """Keys and values of one layer for rows of different lengths: ``[R, H, capacity, hd]``."""

    is_sliding = False

    def __init__(self, owner: RaggedCache):
        super().__init__()
        self.owner = owner

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        rows, capacity = self.owner.rows, self.owner.capacity
        n_heads = key_states.shape[1]
        self.keys = key_states.new_zeros(rows, n_heads, capacity, key_states.shape[-1])
        self.values = value_states.new_zeros(rows, n_heads, capacity, value_states.shape[-1])
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        n_tokens = key_states.shape[2]
        row_B1, slot_BT = self.owner.slots(n_tokens)
        self.keys[row_B1, :, slot_BT] = key_states.transpose(1, 2)
        self.values[row_B1, :, slot_BT] = value_states.transpose(1, 2)
        end = self.owner.longest + n_tokens
        if self.owner.all_selected:
            return self.keys[:, :, :end], self.values[:, :, :end]
        row_B = self.owner.row_B
        return self.keys[row_B, :, :end], self.values[row_B, :, :end]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.owner.longest + query_length, 0

    def get_seq_length(self) -> int:
        return self.owner.longest

    def get_max_length(self) -> int:
        return self.owner.capacity


class RaggedCache(Cache):
    """Preallocated cache of R rows, each with its own length.

    A forward acts on the rows of the last :meth:`select`; padded tokens may be written behind a
    row's true tokens, for :meth:`advance` counts only the true ones and the next write covers
    the rest.
    """

    def __init__(self, n_layers: int, rows: int, capacity: int):
        self.rows, self.capacity = rows, capacity
        super().__init__(layers=[_RaggedLayer(self) for _ in range(n_layers)])
        self.length_R = torch.zeros(rows, dtype=torch.long)
        self.row_B = torch.arange(rows)
        self.longest = 0
        self.all_selected = True

    def select(self, row_B: Tensor) -> None:
        """The next forwards read and write these rows (int64 ``[B]``), in this order."""
        self.length_R = self.length_R.to(row_B.device)
        self.row_B = row_B
        self.longest = int(self.length_R[row_B].max())
        in_order = torch.arange(self.rows, device=row_B.device)
        self.all_selected = row_B.shape[0] == self.rows and bool((row_B == in_order).all())

    def slots(self, n_tokens: int) -> tuple[Tensor, Tensor]:
        """Rows ``[B, 1]`` and slots ``[B, n_tokens]`` of the next write."""
        if self.longest + n_tokens > self.capacity:
            raise ValueError(
                f"the cache holds {self.capacity} tokens a row but {self.longest + n_tokens} "
                "were written; allocate a larger capacity"
            )
        offset_T = torch.arange(n_tokens, device=self.row_B.device)
        return self.row_B[:, None], self.length_R[self.row_B][:, None] + offset_T

    def mask(self, n_tokens: int) -> Tensor:
        """Causal mask of the next forward, bool ``[B, 1, n_tokens, longest + n_tokens]``."""
        _, slot_BT = self.slots(n_tokens)
        key_S = torch.arange(self.longest + n_tokens, device=slot_BT.device)
        return (key_S <= slot_BT[:, :, None])[:, None]

    def advance(self, count_B: Tensor) -> None:
        """Count the true tokens just written for the selected rows (int64 ``[B]``)."""
        self.length_R[self.row_B] += count_B
        self.longest = int(self.length_R[self.row_B].max())

    def clear(self, row_B: Tensor) -> None:
        """Empty these rows, for the next sequences to be written there."""
        self.length_R = self.length_R.to(row_B.device)
        self.length_R[row_B] = 0
        self.longest = int(self.length_R[self.row_B].max())
