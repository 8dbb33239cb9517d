"""Which head of a run is kept: the one that decoding accepted most of, never the lowest loss."""

from __future__ import annotations

from typing import Any


class Best:
    """The best measured tau so far.

    Args:
        patience: measurements in a row without a better one that end training; 0 never does.
    """

    def __init__(self, patience: int):
        self._patience = patience
        self._kept: dict[str, Any] = {}
        self._misses = 0

    def offer(self, step: int, tokens: int, tau: float, record: list[dict[str, Any]]) -> bool:
        """Note a measurement; True if it is the best yet (the first of equals is)."""
        if self._kept and tau <= self._kept["tau"]:
            self._misses += 1
            return False
        self._misses = 0
        self._kept = {"step": step, "answer_token_passes": tokens, "tau": tau, "served": record}
        return True

    @property
    def step(self) -> int | None:
        """The step of the best head; None before the first measurement."""
        return self._kept.get("step")

    @property
    def exhausted(self) -> bool:
        """Whether training should end early."""
        return 0 < self._patience <= self._misses

    @property
    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, and what is written beside the head."""
        return {**self._kept, "measured_since": self._misses} if self._kept else {}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        if state:
            self._kept = {key: value for key, value in state.items() if key != "measured_since"}
            self._misses = state["measured_since"]
