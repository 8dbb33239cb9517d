"""What decoding gives back."""

from __future__ import annotations

from dataclasses import dataclass, field

from hasspec.decoding.timing import TimeSplit


@dataclass(frozen=True)
class Round:
    """One target forward and what came of it.

    Attributes:
        token_ids: tokens emitted, already cut at the end of the answer.
        accepted: draft tokens that verification accepted, before any cut.
        tree_depth: levels of the tree below its root.
        tree_nodes: nodes verified, the root included.
        is_prefill: the forward over the prompt, which yields the first token.
        cut: the answer's end fell inside this round.
        text: new text; an incomplete character or a possible stop string is held back.
    """

    token_ids: list[int]
    accepted: int
    tree_depth: int
    tree_nodes: int
    is_prefill: bool = False
    cut: bool = False
    text: str = ""


@dataclass
class Generation:
    """A finished answer.

    Attributes:
        finish_reason: ``"eos"``, ``"stop"`` (a stop string), ``"length"`` (max_new_tokens) or
            ``"context"`` (the target's longest sequence).
    """

    prompt_ids: list[int]
    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: str = ""
    rounds: list[Round] = field(default_factory=list)
    time: TimeSplit = field(default_factory=TimeSplit)

    @property
    def tau(self) -> float:
        """Tokens a target forward after the prefill, the bonus token counted."""
        forwards = [r for r in self.rounds if not r.is_prefill]
        return sum(len(r.token_ids) for r in forwards) / max(len(forwards), 1)
