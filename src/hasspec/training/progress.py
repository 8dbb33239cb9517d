"""What a step of training reports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from hasspec.training.step import Sums
from hasspec.training.validation import ChainAcceptance


class Served(Protocol):
    """Acceptance measured by decoding, as :class:`hasspec.evaluation.served.ServedAcceptance`."""

    @property
    def tau(self) -> float:
        """What the best head is chosen by."""
        ...

    @property
    def record(self) -> list[dict[str, Any]]:
        """Everything measured, for the log."""
        ...


@dataclass(frozen=True)
class Progress:
    """What one logged step reports; losses and accuracies per alignment step, per token.

    ``held_out`` and ``served`` are there at the steps that measure them, see ``validation`` in the
    recipe; ``served_share`` is the part of the time so far that went into ``served``.
    """

    step: int
    steps: int
    loss: float
    accuracy: list[float]
    tokens_per_second: float
    seconds_left: float
    record: dict[str, Any]
    held_out: ChainAcceptance | None = None
    served: Served | None = None
    served_share: float = 0.0


def log_record(
    step: int,
    tokens: int,
    rate: float,
    loss: float,
    sums: Sums,
    held_out: ChainAcceptance | None,
    served: Served | None,
) -> dict[str, Any]:
    """The line of metrics.jsonl of one step: nothing in it depends on how fast it went."""
    count_n = sums["count"].clamp(min=1)
    mean = {name: (sum_n / count_n).tolist() for name, sum_n in sums.items() if name != "count"}
    accuracy = mean.pop("hit")
    record = {
        "step": step,
        "tokens": tokens,
        "loss": loss,
        **mean,
        "accuracy": accuracy,
        "lr": rate,
    }
    if held_out:
        record["held_out"] = held_out.record
    if served:
        record["served"] = served.record
    return record
