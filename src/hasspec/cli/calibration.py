"""Dtype and thread count that suit the machine as it is now."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from hasspec.decoding import Decoder

# Fewer threads must win clearly: trees gain more from threads than the single tokens timed here.
CLEARLY = 0.8


def faster_dtype(device: torch.device) -> str:
    """bfloat16 unless this device multiplies matrices faster in float32 (old CPUs do)."""
    import torch

    if device.type != "cpu":
        return "bfloat16"
    best: dict[torch.dtype, float] = {}
    for kind in (torch.float32, torch.bfloat16):
        # Weights too large for the caches and as many rows as a small tree: like a verification.
        weight, rows = torch.ones(8192, 2048, dtype=kind), torch.ones(12, 2048, dtype=kind)
        laps = []
        for _ in range(6):
            begin = time.perf_counter()
            torch.nn.functional.linear(rows, weight)
            laps.append(time.perf_counter() - begin)
        best[kind] = min(laps)
    return "bfloat16" if best[torch.bfloat16] <= best[torch.float32] else "float32"


def fastest_threads(decoder: Decoder) -> int:
    """Threads with which this machine decodes fastest: torch's number, halved while that helps.

    Where other processes want the cores, each parallel step waits for the thread that was put
    off, and fewer threads can be ten times as fast. The number chosen is left set.
    """
    import torch

    def seconds(threads: int) -> float:
        torch.set_num_threads(threads)
        messages = [{"role": "user", "content": "Hello"}]
        return min(decoder.generate(messages, max_new_tokens=5).time.verify for _ in range(2))

    chosen = torch.get_num_threads()
    best = seconds(chosen)
    while chosen > 1 and (fewer := seconds(chosen // 2)) < CLEARLY * best:
        chosen, best = chosen // 2, fewer
    torch.set_num_threads(chosen)
    return chosen
