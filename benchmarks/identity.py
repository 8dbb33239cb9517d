"""Is greedy decoding with a head, in float32, what transformers' own `generate` says?

    python benchmarks/identity.py TARGET HEAD PROMPTS... [--out FILE] [--limit N] [--batch N]
                                  [--max-new-tokens N] [--tree SPEC] [--threads N] [--dtype D]

Every turn of every prompt is answered by `generate` and by the head; a conversation goes on with
the answer of `generate`. To save hours, `generate` answers several prompts at a time, padded on the
left; an answer that differs is asked for again alone, and that one decides. With --out every
outcome is a line of FILE, and a prompt that is there already is not asked again.
Ends with exit status 1 if any token differs.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from transformers import GenerationConfig

from hasspec.cli.heads import head_folder
from hasspec.data.prompts import Prompt, read_prompts
from hasspec.data.template import ChatTemplate
from hasspec.decoding import Decoder, TreeSpec
from hasspec.draft import load_head
from hasspec.evaluation import Rescorer
from hasspec.files import write_atomically
from hasspec.target import Target


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare with transformers' generate.")
    parser.add_argument("target")
    parser.add_argument("head")
    parser.add_argument("prompts", nargs="+")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--max-new-tokens", type=int, default=256)
    parser.add_argument("--tree", default="default")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    target = Target.load(options.target, dtype=options.dtype)
    head = load_head(head_folder(options.head), target=target)
    decoder = Decoder(target, head, tree=TreeSpec.parse(options.tree))
    comparison = Comparison(target, decoder, options.max_new_tokens)
    outcomes = _earlier(options.out)
    for file in options.prompts:
        asked = read_prompts(file)[: options.limit]
        done = {(line["file"], line["prompt"]) for line in outcomes}
        asked = [prompt for prompt in asked if (Path(file).name, prompt.prompt_id) not in done]
        for first in range(0, len(asked), options.batch):
            for outcome in comparison.run(asked[first : first + options.batch]):
                outcomes.append({"file": Path(file).name, **outcome})
                if not outcome["identical"]:
                    print(outcomes[-1])
            if options.out:
                lines = "".join(json.dumps(outcome) + "\n" for outcome in outcomes)
                write_atomically(options.out, lines)
            same = sum(outcome["identical"] for outcome in outcomes)
            print(f"{Path(file).name}: {same} of {len(outcomes)} answers identical", flush=True)
    sys.exit(any(not outcome["identical"] for outcome in outcomes))


def _earlier(out: Path | None) -> list[dict]:
    if out is None or not out.is_file():
        return []
    return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]


class Comparison:
    """Asks transformers and the decoder the same."""

    def __init__(self, target: Target, decoder: Decoder, max_new_tokens: int):
        self._target, self._decoder = target, decoder
        self._max_new_tokens = max_new_tokens
        self._template = ChatTemplate(target)
        self._rescorer = Rescorer(target)
        # Not the checkpoint's own configuration, which may ask for sampling or penalties.
        self._settings = GenerationConfig(
            do_sample=False,
            max_new_tokens=max_new_tokens,
            eos_token_id=sorted(target.eos_ids),
            pad_token_id=min(target.eos_ids),
        )

    def run(self, prompts: Sequence[Prompt]) -> Iterator[dict]:
        """Outcomes of some prompts, prompt after prompt and turn after turn."""
        by_prompt: list[list[dict]] = [[] for _ in prompts]
        messages = [_opening(prompt) for prompt in prompts]
        ids = [self._template.prompt_ids(opening) for opening in messages]
        answers: list[list[int]] = [[] for _ in prompts]
        for turn in range(max(len(prompt.turns) for prompt in prompts)):
            here = [index for index, prompt in enumerate(prompts) if turn < len(prompt.turns)]
            for index in here:
                if turn:
                    said, heard = prompts[index].turns[turn], answers[index]
                    ids[index] += heard + self._template.continuation(messages[index], heard, said)
                    messages[index] += [
                        {"role": "assistant", "content": self._template.answer_text(heard)},
                        {"role": "user", "content": said},
                    ]
            given = self._generate([ids[index] for index in here])
            for index, answer in zip(here, given, strict=True):
                outcome, answers[index] = self._compare(ids[index], answer)
                about = {"prompt": prompts[index].prompt_id, "turn": turn + 1}
                by_prompt[index].append({**about, **outcome})
        for outcomes in by_prompt:
            yield from outcomes

    def _compare(self, ids: list[int], expected: list[int]) -> tuple[dict, list[int]]:
        found = self._decoder.generate(ids, max_new_tokens=self._max_new_tokens).token_ids
        alone = found != expected
        if alone:
            expected = self._generate([ids])[0]
        outcome = {"identical": found == expected, "tokens": len(expected), "asked_alone": alone}
        if found != expected:
            pairs = zip(found, expected, strict=False)
            place = next((i for i, (a, b) in enumerate(pairs) if a != b), 0)
            outcome["first_difference"] = place + 1
            outcome["logits_missed_by"] = float(self._rescorer.gaps(ids, found)[place])
        return outcome, expected

    def _generate(self, prompts: Sequence[list[int]]) -> list[list[int]]:
        longest = max(len(ids) for ids in prompts)
        pad = min(self._target.eos_ids)
        ids_BT = torch.tensor([[pad] * (longest - len(ids)) + ids for ids in prompts])
        seen_BT = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts])
        answered_BT = self._target.model.generate(
            ids_BT, attention_mask=seen_BT, generation_config=self._settings
        )
        return [self._until_end(answer) for answer in answered_BT[:, longest:].tolist()]

    def _until_end(self, answer: list[int]) -> list[int]:
        for index, token in enumerate(answer):
            if token in self._target.eos_ids:
                return answer[: index + 1]
        return answer


def _opening(prompt: Prompt) -> list[dict[str, str]]:
    system = [{"role": "system", "content": prompt.system}] if prompt.system is not None else []
    return [*system, {"role": "user", "content": prompt.turns[0]}]


if __name__ == "__main__":
    main()
