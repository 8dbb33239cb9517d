"""Target features of training sequences: computed in process, or read from a disk cache.

The cache is worth its disk where the target's forward dominates a training step: a folder with
``features.bin`` (bfloat16, row-major ``[tokens, D]``) and ``features.json`` (what it was made
from). Its size is ``2 * D`` bytes a token, shown before it is written.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from hasspec.target import Target
from hasspec.training.batches import Batch, Example

_TOKENS_A_FORWARD = 4096


class FeatureSource(Protocol):
    """Where a batch's features come from."""

    def features(self, batch: Batch) -> Tensor:
        """``[B, T, D]`` features of a batch, in the target's dtype, zero where padded."""
        ...


class ComputedFeatures:
    """Runs the target on every batch."""

    def __init__(self, target: Target):
        self._target = target

    def features(self, batch: Batch) -> Tensor:
        # Padding is on the right and attention is causal: no true token sees it.
        with torch.no_grad():
            return self._target.features(batch.token_BT)


class CachedFeatures:
    """Reads features from a cache folder written by :func:`build_cache`."""

    def __init__(self, folder: Path, examples: Sequence[Example], target: Target):
        self._device, self._dtype = target.device, target.dtype
        lengths = [len(e.token_T) for e in examples]
        self._start = np.concatenate([[0], np.cumsum(lengths)])
        shape = (int(self._start[-1]), target.hidden_size)
        expected = shape[0] * shape[1] * 2
        file = folder / "features.bin"
        if file.stat().st_size != expected:
            raise ValueError(
                f"the feature cache {file} has {file.stat().st_size} bytes, expected {expected}; "
                "delete its folder and it is computed again"
            )
        self._rows = np.memmap(file, dtype=np.uint16, mode="r", shape=shape)

    def features(self, batch: Batch) -> Tensor:
        n_batch, longest = batch.token_BT.shape
        feature_BTD = torch.zeros(n_batch, longest, self._rows.shape[1], dtype=torch.bfloat16)
        for row, index in enumerate(batch.index_B):
            stored = self._rows[self._start[index] : self._start[index + 1]]
            feature_BTD[row, : len(stored)] = torch.from_numpy(stored.copy()).view(torch.bfloat16)
        return feature_BTD.to(self._device, self._dtype)


def cache_key(examples: Sequence[Example], target: Target) -> str:
    """Name of the cache of these sequences under this target: a hash of both."""
    digest = hashlib.sha256(f"{target.fingerprint()} {target.dtype}".encode())
    for example in examples:
        digest.update(example.token_T.astype(np.int32).tobytes())
        digest.update(b"|")
    return digest.hexdigest()[:16]


def build_cache(
    folder: Path,
    examples: Sequence[Example],
    target: Target,
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> None:
    """Compute and store the features of all examples; does nothing if they are there.

    Args:
        on_progress: called with (tokens done, tokens in all).
    """
    if (folder / "features.json").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    lengths = np.array([len(e.token_T) for e in examples])
    start = np.concatenate([[0], np.cumsum(lengths)])
    total = int(start[-1])
    partial = folder / f"features.bin.partial-{os.getpid()}"
    rows = np.memmap(partial, dtype=np.uint16, mode="w+", shape=(total, target.hidden_size))
    done = 0
    for group in _groups(lengths):
        longest = int(lengths[group].max())
        token_BT = torch.zeros(len(group), longest, dtype=torch.long)
        for row, index in enumerate(group):
            token_BT[row, : lengths[index]] = torch.from_numpy(examples[index].token_T)
        with torch.inference_mode():
            feature_BTD = target.features(token_BT.to(target.device)).to("cpu", torch.bfloat16)
        for row, index in enumerate(group):
            kept = feature_BTD[row, : lengths[index]].contiguous().view(torch.uint16)
            rows[start[index] : start[index + 1]] = kept.numpy()
        done += int(lengths[group].sum())
        if on_progress:
            on_progress(done, total)
    rows.flush()
    del rows
    os.replace(partial, folder / "features.bin")
    about = {"tokens": total, "hidden_size": target.hidden_size, "dtype": "bfloat16"}
    marker = folder / "features.json.partial"
    marker.write_text(json.dumps({**about, "target": target.name}), encoding="utf-8")
    os.replace(marker, folder / "features.json")


def _groups(length_N: np.ndarray) -> list[np.ndarray]:
    """Indices grouped by like length, about ``_TOKENS_A_FORWARD`` tokens a group."""
    order = np.argsort(length_N, kind="stable")
    groups: list[np.ndarray] = []
    first = 0
    for last in range(1, len(order) + 1):
        full = last == len(order) or (last + 1 - first) * length_N[order[last]] > _TOKENS_A_FORWARD
        if full:
            groups.append(order[first:last])
            first = last
    return groups
