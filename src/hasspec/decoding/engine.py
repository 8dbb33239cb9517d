"""The decoder: prompts in, rounds or a whole answer out."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import torch

from hasspec.decoding.drafting import Drafter
from hasspec.decoding.result import Generation, Round
from hasspec.decoding.sampling import Sampler, Sampling
from hasspec.decoding.session import Session
from hasspec.decoding.text import AnswerText
from hasspec.decoding.timing import Stopwatch
from hasspec.decoding.tree import TreeSpec
from hasspec.draft import DraftHead, DraftVocabulary
from hasspec.target import Target

Prompt = str | Sequence[int] | Sequence[Mapping[str, Any]]


class Decoder:
    """Decodes with a target and, optionally, a draft head. The output is the target's own.

    Without a head, decoding is plain and runs through the same loop.

    Args:
        target: the model whose text is wanted.
        head: its draft head.
        tree: size of the draft tree; by default one that suits the device.
        draft_vocab: ``"head"`` drafts from the frequent tokens that the head names (all, if it
            names none), ``"full"`` from the whole vocabulary. Neither changes the output.

    Raises:
        ValueError: the head does not fit the target.
    """

    def __init__(
        self,
        target: Target,
        head: DraftHead | None = None,
        *,
        tree: TreeSpec | None = None,
        draft_vocab: Literal["head", "full"] = "head",
    ):
        if draft_vocab not in ("head", "full"):
            raise ValueError(f"draft_vocab must be 'head' or 'full', got {draft_vocab!r}")
        self.target, self.head = target, head
        self.tree = tree or TreeSpec.default(target.device)
        self._vocabulary: DraftVocabulary | None = None
        if head is not None:
            _check_head(head, target)
            ids_N = head.draft_vocab_N if draft_vocab == "head" else None
            self._vocabulary = DraftVocabulary(target, ids_N)

    def generate(
        self,
        prompt: Prompt,
        *,
        max_new_tokens: int = 256,
        sampling: Sampling = Sampling(),
        stop: Sequence[str] = (),
    ) -> Generation:
        """Decode a whole answer; the arguments are those of :meth:`stream`."""
        generation = Generation([])
        for _ in self.stream(
            prompt, max_new_tokens=max_new_tokens, sampling=sampling, stop=stop, into=generation
        ):
            pass
        return generation

    def stream(
        self,
        prompt: Prompt,
        *,
        max_new_tokens: int = 256,
        sampling: Sampling = Sampling(),
        stop: Sequence[str] = (),
        into: Generation | None = None,
    ) -> Iterator[Round]:
        """Decode round by round.

        Args:
            prompt: raw text, chat messages (``[{"role": .., "content": ..}]``) or token ids.
            max_new_tokens: most tokens of the answer.
            sampling: temperature 0 (greedy) by default.
            stop: strings that end the answer; its text ends before them.
            into: filled with the whole answer while the rounds are read.

        Returns:
            One round a target forward; the first is the prefill. Their texts add up to the
            answer's.

        Raises:
            ValueError: empty prompt, prompt too long for the target, or invalid limits; raised
                here, before the first round.
        """
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
        generation = Generation([]) if into is None else into
        generation.prompt_ids = self._encode(prompt)
        text = AnswerText(self.target.tokenizer, stop)
        return self._run(generation, max_new_tokens, sampling, text)

    def _run(
        self, generation: Generation, max_new_tokens: int, sampling: Sampling, text: AnswerText
    ) -> Iterator[Round]:
        prompt_ids = generation.prompt_ids
        limit = min(self.target.max_length, len(prompt_ids) + max_new_tokens)
        stopwatch = Stopwatch(self.target.device)
        generation.time = stopwatch.split
        with torch.inference_mode():
            session = self._session(prompt_ids, Sampler(sampling), limit, stopwatch)
            emitted, depth, nodes, accepted = session.prefill(), 0, 1, 0
        while True:
            reason, kept = self._ending(emitted, text, limit, session, max_new_tokens)
            result = Round(
                token_ids=emitted[:kept],
                accepted=accepted,
                tree_depth=depth,
                tree_nodes=nodes,
                is_prefill=not generation.rounds,
                cut=bool(reason),
                text=text.take(final=bool(reason)),
            )
            generation.rounds.append(result)
            generation.token_ids += result.token_ids
            generation.text += result.text
            generation.finish_reason = reason
            with stopwatch.paused():
                yield result
            if reason:
                return
            with torch.inference_mode():
                emitted, tree, accepted = session.round()
            depth, nodes = max(tree.depth_N), len(tree)

    def _ending(
        self, emitted: list[int], text: AnswerText, limit: int, session: Session, max_new: int
    ) -> tuple[str, int]:
        """Why the answer ends in this round ("" if it does not), and the tokens it keeps."""
        reason, kept = "", len(emitted)
        for count, token in enumerate(emitted, start=1):
            if token in self.target.eos_ids:
                reason, kept = "eos", count
                break
        stopped_after = text.push(emitted[:kept])
        if stopped_after is not None:
            return "stop", stopped_after
        if not reason and len(session.token_ids) >= limit:
            reason = "length" if len(session.token_ids) - session.n_prompt >= max_new else "context"
        return reason, kept

    def _session(
        self, prompt_ids: list[int], sampler: Sampler, limit: int, stopwatch: Stopwatch
    ) -> Session:
        if self.head is None or self._vocabulary is None:
            plain = TreeSpec(0, 1, 1)
            return Session(self.target, prompt_ids, sampler, limit, plain, None, stopwatch)
        drafter = Drafter(self.target, self.head, self._vocabulary, limit, self.tree)
        return Session(self.target, prompt_ids, sampler, limit, self.tree, drafter, stopwatch)

    def _encode(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, str):
            if self.target.tokenizer is None:
                raise ValueError("this target has no tokenizer; give the prompt as token ids")
            ids = list(self.target.tokenizer(prompt)["input_ids"])
        elif prompt and isinstance(prompt[0], Mapping):
            ids = self.target.encode_chat(prompt)
        else:
            ids = [int(token) for token in prompt]
        if not ids:
            raise ValueError("the prompt is empty; give at least one token")
        outside = [token for token in ids if not 0 <= token < self.target.vocab_size]
        if outside:
            raise ValueError(
                f"prompt token {outside[0]} is outside the target's vocabulary of "
                f"{self.target.vocab_size}"
            )
        if len(ids) >= self.target.max_length:
            raise ValueError(
                f"the prompt has {len(ids)} tokens, but target {self.target.name!r} takes at most "
                f"{self.target.max_length} for prompt and answer together; shorten the prompt"
            )
        return ids


def _check_head(head: DraftHead, target: Target) -> None:
    shapes = (
        ("hidden size", head.config.hidden_size, target.hidden_size),
        ("vocabulary", head.config.vocab_size, target.vocab_size),
        ("dtype", head.fc.weight.dtype, target.dtype),
        ("device", head.fc.weight.device, target.device),
    )
    for name, found, expected in shapes:
        if found != expected:
            raise ValueError(
                f"the head's {name} is {found}, that of target {target.name!r} is {expected}; "
                "load the head for this target with hasspec.load_head(path, target=target)"
            )
    trained_for = head.metadata.get("target_fingerprint")
    if trained_for and trained_for != target.fingerprint():
        warnings.warn(
            f"the head was trained for other weights than those of target {target.name!r} "
            f"(fingerprint {trained_for}, here {target.fingerprint()}): the output is still the "
            "target's, but few draft tokens will be accepted",
            stacklevel=3,
        )
