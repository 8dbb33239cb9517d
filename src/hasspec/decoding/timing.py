"""Where a request's time went."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch


@dataclass
class TimeSplit:
    """Seconds by part of the work; ``other`` is acceptance, bookkeeping and text."""

    prefill: float = 0.0
    draft: float = 0.0
    verify: float = 0.0
    other: float = 0.0

    @property
    def total(self) -> float:
        return self.prefill + self.draft + self.verify + self.other


class Stopwatch:
    """Adds the time between two laps to one part of a :class:`TimeSplit`.

    Work on CUDA is counted where it was asked for as long as laps are taken where the host has
    the device's result in hand, so that the clock itself need not wait.
    """

    def __init__(self, device: torch.device):
        self.split = TimeSplit()
        self._device = device
        self._last = time.perf_counter()

    def lap(self, part: str, *, wait: bool = False) -> None:
        """Count the time since the last lap as ``part``; ``wait`` until the device is done."""
        if wait and self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        setattr(self.split, part, getattr(self.split, part) + now - self._last)
        self._last = now

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out what the caller does with a round."""
        self.lap("other")
        try:
            yield
        finally:
            self._last = time.perf_counter()
