"""Plain decoding against heads on the same prompts, interleaved, in one engine."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch

from hasspec.data.prompts import Prompt, read_prompts
from hasspec.data.template import ChatTemplate
from hasspec.decoding import Decoder, Generation, Sampling, TreeSpec
from hasspec.draft import DraftHead
from hasspec.evaluation.acceptance import AcceptanceCounts
from hasspec.evaluation.exactness import NEAR_TIE, FlipCounts, Rescorer
from hasspec.target import Target

PLAIN = "plain"
WARM_UP_TOKENS = 16


@dataclass(frozen=True)
class BenchmarkSettings:
    """What is measured.

    Attributes:
        max_new_tokens: cap of one answer.
        sampling: of every variant; its seed is varied by prompt and turn, alike for all variants.
        tree: draft tree, None for the device's default.
        draft_vocab: draft from the head's frequent tokens or from the full vocabulary.
        seed: of the order of the variants.
        tau_only: leave plain decoding out: acceptance only, no speedup and no identity.
        rescore: dtype of the re-scoring of greedy answers ("same", "float32"), or None for none.
        near_tie: logits within which a token that is not the argmax counts as a tie.
    """

    max_new_tokens: int = 256
    sampling: Sampling = field(default_factory=Sampling)
    tree: TreeSpec | None = None
    draft_vocab: Literal["head", "full"] = "head"
    seed: int = 0
    tau_only: bool = False
    rescore: str | None = None
    near_tie: float = NEAR_TIE


@dataclass(frozen=True)
class PromptSet:
    """Prompts of one file."""

    name: str
    prompts: Sequence[Prompt]

    @classmethod
    def read(cls, path: Path | str, limit: int | None = None) -> PromptSet:
        """The first ``limit`` prompts of a JSONL file (:func:`hasspec.data.read_prompts`)."""
        return cls(str(path), read_prompts(path)[:limit])

    @property
    def n_turns(self) -> int:
        return sum(len(prompt.turns) for prompt in self.prompts)


@dataclass(frozen=True)
class Answer:
    """One variant's answer to one turn. Times are wall seconds; ``seconds`` is all of it."""

    token_ids: list[int]
    finish_reason: str
    counts: AcceptanceCounts
    seconds: float
    prefill_seconds: float
    draft_seconds: float
    verify_seconds: float
    flips: FlipCounts | None = None


@dataclass(frozen=True)
class PromptResult:
    """Every variant's answers to one prompt.

    Attributes:
        set_name: file of the prompt.
        prompt_id: its id there.
        order: for each turn, the variants in the order in which they decoded it.
        answers: for each variant, one answer a turn.
    """

    set_name: str
    prompt_id: str
    order: list[list[str]]
    answers: dict[str, list[Answer]]


class Benchmark:
    """Runs prompts through plain decoding and heads.

    Each turn is decoded by every variant before the next turn begins, in a fresh random order, so
    that a machine that grows slower or faster does so for all. All variants see the same prompt:
    a conversation goes on with plain decoding's answers (the first head's if ``tau_only``).

    Raises:
        ValueError: a head named ``plain``, nothing to run, or a target without a chat template.
    """

    def __init__(
        self, target: Target, heads: Mapping[str, DraftHead], settings: BenchmarkSettings
    ) -> None:
        if PLAIN in heads:
            raise ValueError(f"no head may be named {PLAIN!r}: plain decoding is; rename it")
        if settings.tau_only and not heads:
            raise ValueError("nothing to measure: without plain decoding at least one head is due")
        self.settings = settings
        self._target = target
        self._template = ChatTemplate(target)
        self._rescorer = Rescorer(target, settings.rescore) if settings.rescore else None
        self._decoders: dict[str, Decoder] = {}
        if not settings.tau_only:
            self._decoders[PLAIN] = Decoder(target)
        for name, head in heads.items():
            self._decoders[name] = Decoder(
                target, head, tree=settings.tree, draft_vocab=settings.draft_vocab
            )

    @property
    def variants(self) -> list[str]:
        """Plain decoding, if it runs, and the heads in the order given."""
        return list(self._decoders)

    def run(
        self,
        sets: Sequence[PromptSet],
        on_turn: Callable[[PromptSet, dict[str, Answer]], None] = lambda _set, _answers: None,
    ) -> list[PromptResult]:
        """Measure all prompts; Ctrl-C ends it after the last whole prompt.

        Args:
            sets: what to ask; the first prompt also serves to warm up, uncounted.
            on_turn: told of each decoded turn.
        """
        results: list[PromptResult] = []
        shuffler = random.Random(self.settings.seed)
        try:
            self._warm_up(sets[0].prompts[0])
            for prompt_set in sets:
                for prompt in prompt_set.prompts:
                    results.append(self._converse(prompt_set, prompt, shuffler, on_turn))
        except KeyboardInterrupt:
            return results
        return results

    def _warm_up(self, prompt: Prompt) -> None:
        prompt_ids = self._template.prompt_ids(_messages(prompt))
        for decoder in self._decoders.values():
            n_tokens = min(WARM_UP_TOKENS, self.settings.max_new_tokens)
            decoder.generate(prompt_ids, max_new_tokens=n_tokens, sampling=self.settings.sampling)

    def _converse(
        self,
        prompt_set: PromptSet,
        prompt: Prompt,
        shuffler: random.Random,
        on_turn: Callable[[PromptSet, dict[str, Answer]], None],
    ) -> PromptResult:
        orders: list[list[str]] = []
        answers: dict[str, list[Answer]] = {name: [] for name in self.variants}
        messages = _messages(prompt)
        prompt_ids = self._template.prompt_ids(messages)
        for turn, user in enumerate(prompt.turns):
            if turn:
                heard = answers[self.variants[0]][-1].token_ids
                prompt_ids = [
                    *prompt_ids,
                    *heard,
                    *self._template.continuation(messages, heard, user),
                ]
                messages += [
                    {"role": "assistant", "content": self._template.answer_text(heard)},
                    {"role": "user", "content": user},
                ]
            order = shuffler.sample(self.variants, len(self.variants))
            try:
                answered = self._decode(prompt_ids, order, _seed(self.settings, prompt, turn))
            except ValueError as error:
                where = f"{prompt_set.name}, prompt {prompt.prompt_id}, turn {turn + 1}"
                raise ValueError(f"{where}: {error}") from error
            orders.append(order)
            for name in self.variants:
                answers[name].append(answered[name])
            on_turn(prompt_set, answered)
        return PromptResult(prompt_set.name, prompt.prompt_id, orders, answers)

    def _decode(self, prompt_ids: list[int], order: list[str], seed: int) -> dict[str, Answer]:
        sampling = replace(self.settings.sampling, seed=seed)
        answered: dict[str, Answer] = {}
        for name in order:
            self._synchronize()
            begin = time.perf_counter()
            generation = self._decoders[name].generate(
                prompt_ids, max_new_tokens=self.settings.max_new_tokens, sampling=sampling
            )
            self._synchronize()
            answered[name] = _answer(generation, time.perf_counter() - begin)
        # After the clock has stopped for all: scoring between two timed runs would favour one.
        return self._scored(prompt_ids, answered)

    def _scored(self, prompt_ids: list[int], answered: dict[str, Answer]) -> dict[str, Answer]:
        if self._rescorer is None:
            return answered
        flips: dict[tuple[int, ...], FlipCounts] = {}
        for answer in answered.values():
            key = tuple(answer.token_ids)
            if key not in flips:
                gap_T = self._rescorer.gaps(prompt_ids, answer.token_ids)
                flips[key] = FlipCounts.of(gap_T, self.settings.near_tie)
        return {
            name: replace(answer, flips=flips[tuple(answer.token_ids)])
            for name, answer in answered.items()
        }

    def _synchronize(self) -> None:
        if self._target.device.type == "cuda":
            torch.cuda.synchronize(self._target.device)


def _messages(prompt: Prompt) -> list[dict[str, str]]:
    system = [{"role": "system", "content": prompt.system}] if prompt.system is not None else []
    return [*system, {"role": "user", "content": prompt.turns[0]}]


def _seed(settings: BenchmarkSettings, prompt: Prompt, turn: int) -> int:
    # Each answer its own noise, the same for every variant and in every run.
    drawn = random.Random(f"{settings.sampling.seed} {prompt.source} {prompt.prompt_id} {turn}")
    return drawn.getrandbits(31)


def _answer(generation: Generation, seconds: float) -> Answer:
    return Answer(
        token_ids=generation.token_ids,
        finish_reason=generation.finish_reason,
        counts=AcceptanceCounts.of(generation.rounds),
        seconds=seconds,
        prefill_seconds=generation.time.prefill,
        draft_seconds=generation.time.draft,
        verify_seconds=generation.time.verify,
    )
