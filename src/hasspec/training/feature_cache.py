"""A disk cache of target features that grows with the data.

Worth its disk where the target's forward dominates a training step. A folder a target holds
*segments*: ``NAME.bin`` (bfloat16, row-major ``[tokens, D]``) and ``NAME.json`` (the sequences in
their order, a length and a checksum each). A segment appears whole or not at all and never changes,
so an interrupted build goes on where it stopped, data that has grown costs only what is new, and
two runs may share a folder.
"""

from __future__ import annotations

import hashlib
import json
import uuid
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hasspec.files import write_atomically
from hasspec.target import Target
from hasspec.training.batches import Batch, Example, collate
from hasspec.training.features import ComputedFeatures

_TOKENS_A_FORWARD = 4096
_TOKENS_A_SEGMENT = 1 << 17


@dataclass(frozen=True)
class StoredRows:
    """Features of one sequence on disk: raw bfloat16 (uint16 ``[T, D]``) and their checksum."""

    mapped_TD: np.ndarray
    checksum: int
    file: Path

    def read(self) -> Tensor:
        """``[T, D]`` bfloat16.

        Raises:
            ValueError: the file has changed since it was written.
        """
        stored_TD = np.array(self.mapped_TD)
        if zlib.crc32(stored_TD) != self.checksum:
            raise ValueError(
                f"the feature cache {self.file} is damaged: its features are not those that were "
                f"written; delete {self.file.with_suffix('.json')} and they are computed again"
            )
        return torch.from_numpy(stored_TD).view(torch.bfloat16)


class FeatureCache:
    """Features of sequences under one target, on disk.

    Args:
        folder: shared by all targets; this one's segments lie in a subfolder of their own.
        target: whose features they are.

    Raises:
        ValueError: a segment is damaged.
    """

    def __init__(self, folder: Path, target: Target):
        self._target = target
        about = f"{target.fingerprint()} {target.dtype}".encode()
        self.folder = folder / hashlib.sha256(about).hexdigest()[:16]
        self._place: dict[str, StoredRows] = {}
        self._known: set[str] = set()
        self._refresh()

    def missing(self, examples: Sequence[Example]) -> list[Example]:
        """Those whose features are not here, each once."""
        wanted = {_digest(example): example for example in examples}
        return [example for digest, example in wanted.items() if digest not in self._place]

    def add(
        self,
        examples: Sequence[Example],
        *,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Compute and store the features that are missing.

        Args:
            on_progress: called with (tokens done, tokens in all).
        """
        missing = self.missing(examples)
        total = sum(len(example.token_T) for example in missing)
        done = 0
        self.folder.mkdir(parents=True, exist_ok=True)
        for segment in _pieces(missing, _TOKENS_A_SEGMENT):
            rows: dict[str, Tensor] = {}
            for group in _groups(segment):
                rows |= self._compute(group)
                done += sum(len(example.token_T) for example in group)
                if on_progress:
                    on_progress(done, total)
            self._write(rows)
        self._refresh()

    def rows(self, example: Example) -> StoredRows:
        """Features of a stored sequence, not yet read."""
        return self._place[_digest(example)]

    def _compute(self, group: Sequence[Example]) -> dict[str, Tensor]:
        batch = collate(group, range(len(group)), self._target.device)
        feature_BTD = ComputedFeatures(self._target).features(batch).to("cpu", torch.bfloat16)
        return {
            _digest(example): feature_BTD[row, : len(example.token_T)]
            for row, example in enumerate(group)
        }

    def _write(self, rows: dict[str, Tensor]) -> None:
        name = uuid.uuid4().hex[:12]
        stored = torch.cat(list(rows.values())).contiguous().view(torch.uint16).numpy()
        write_atomically(self.folder / f"{name}.bin", stored.tobytes())
        sequences, start = {}, 0
        for digest, feature_TD in rows.items():
            length = len(feature_TD)
            sequences[digest] = [length, zlib.crc32(stored[start : start + length])]
            start += length
        # The index comes last: without it the features beside it are not there.
        write_atomically(self.folder / f"{name}.json", json.dumps({"sequences": sequences}))

    def _refresh(self) -> None:
        for index in sorted(self.folder.glob("*.json")):
            if index.name in self._known:
                continue
            sequences = json.loads(index.read_text(encoding="utf-8")).get("sequences")
            if sequences is None:
                raise ValueError(
                    f"the feature cache {index} has no checksums, as versions before 0.1 wrote it; "
                    f"delete {self.folder} and it is computed again"
                )
            shape = (sum(length for length, _ in sequences.values()), self._target.hidden_size)
            file = index.with_suffix(".bin")
            n_bytes = file.stat().st_size if file.is_file() else 0
            if n_bytes != shape[0] * shape[1] * 2:
                raise ValueError(
                    f"the feature cache {file} has {n_bytes} bytes, expected "
                    f"{shape[0] * shape[1] * 2}; delete {index} and it is computed again"
                )
            segment = np.memmap(file, dtype=np.uint16, mode="r", shape=shape)
            start = 0
            for digest, (length, checksum) in sequences.items():
                self._place[digest] = StoredRows(segment[start : start + length], checksum, file)
                start += length
            self._known.add(index.name)


class CachedFeatures:
    """Reads the features of training batches from a :class:`FeatureCache` that holds them all."""

    def __init__(self, cache: FeatureCache, examples: Sequence[Example], target: Target):
        self._device, self._dtype = target.device, target.dtype
        self._width = target.hidden_size
        self._rows = [cache.rows(example) for example in examples]

    def features(self, batch: Batch) -> Tensor:
        """``[B, T, D]`` features of a batch, in the target's dtype, zero where padded."""
        n_batch, longest = batch.token_BT.shape
        feature_BTD = torch.zeros(n_batch, longest, self._width, dtype=torch.bfloat16)
        for place in batch.places:
            stored = self._rows[place.index].read()
            feature_BTD[place.row, place.start : place.start + place.length] = stored
        return feature_BTD.to(self._device, self._dtype)


def _digest(example: Example) -> str:
    token_bytes = example.token_T.astype(np.int32).tobytes()
    return hashlib.blake2b(token_bytes, digest_size=12).hexdigest()


def _pieces(examples: Sequence[Example], n_tokens: int) -> Iterator[list[Example]]:
    """Consecutive stretches of about ``n_tokens`` tokens."""
    piece: list[Example] = []
    size = 0
    for example in examples:
        piece.append(example)
        size += len(example.token_T)
        if size >= n_tokens:
            yield piece
            piece, size = [], 0
    if piece:
        yield piece


def _groups(examples: Sequence[Example]) -> Iterator[list[Example]]:
    """Examples of like length, padded to about ``_TOKENS_A_FORWARD`` tokens a group."""
    group: list[Example] = []
    for example in sorted(examples, key=lambda example: len(example.token_T)):
        if group and (len(group) + 1) * len(example.token_T) > _TOKENS_A_FORWARD:
            yield group
            group = []
        group.append(example)
    if group:
        yield group
