"""Acceptance as it will be served: prompts decoded with the engine, on the tree that is meant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from hasspec.decoding import Decoder, Sampling, TreeSpec
from hasspec.draft import DraftHead
from hasspec.evaluation.acceptance import AcceptanceCounts
from hasspec.evaluation.bootstrap import Interval, ratio_interval
from hasspec.target import Target


@dataclass(frozen=True)
class Setting:
    """Acceptance of one tree at one temperature.

    Attributes:
        tau: new tokens ÷ target forwards after the prefill, all prompts together.
        interval: of tau over prompts; None where no prompt took a forward after its prefill.
        alpha: conditional acceptance by depth.
    """

    tree: str
    temperature: float
    tau: float
    interval: Interval | None
    alpha: list[float | None]


@dataclass(frozen=True)
class ServedReport:
    """All settings; the first is the one that heads are chosen by."""

    settings: list[Setting]

    @property
    def tau(self) -> float:
        """Acceptance length of the served tree at the first temperature."""
        return self.settings[0].tau

    @property
    def record(self) -> list[dict[str, Any]]:
        """For a log."""
        return [asdict(setting) for setting in self.settings]


class ServedAcceptance:
    """Decodes fixed prompts with a head, the same way every time.

    Args:
        target: decodes.
        prompts: token ids of each.
        trees: the one that will be served first.
        temperatures: the one that heads are chosen by first.
        new_tokens: most tokens of an answer.
        seed: of the draws at temperatures above 0.
    """

    def __init__(
        self,
        target: Target,
        prompts: Sequence[Sequence[int]],
        trees: Sequence[TreeSpec],
        temperatures: Sequence[float],
        *,
        new_tokens: int = 64,
        seed: int = 0,
    ):
        if not prompts or not trees or not temperatures:
            raise ValueError("acceptance needs a prompt, a tree and a temperature at least")
        self._target, self._prompts, self._trees = target, prompts, trees
        self._temperatures, self._new_tokens, self._seed = temperatures, new_tokens, seed

    def measure(self, head: DraftHead) -> ServedReport:
        """Decode all prompts with every tree at every temperature."""
        return ServedReport(
            [
                self._setting(Decoder(self._target, head, tree=tree), tree, temperature)
                for temperature in self._temperatures
                for tree in self._trees
            ]
        )

    def _setting(self, decoder: Decoder, tree: TreeSpec, temperature: float) -> Setting:
        counts_P = []
        for index, prompt in enumerate(self._prompts):
            sampling = Sampling(temperature=temperature, seed=self._seed + index)
            answer = decoder.generate(prompt, max_new_tokens=self._new_tokens, sampling=sampling)
            counts_P.append(AcceptanceCounts.of(answer.rounds))
        total = sum(counts_P, AcceptanceCounts())
        emitted_P = [counts.emitted for counts in counts_P]
        forwards_P = [counts.forwards for counts in counts_P]
        interval = ratio_interval(emitted_P, forwards_P) if total.forwards else None
        return Setting(str(tree), temperature, total.tau or 1.0, interval, total.alpha)
