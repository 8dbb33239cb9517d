"""Is greedy decoding with a head, in float32, what transformers' own `generate` says?

    python benchmarks/identity.py TARGET HEAD PROMPTS... [--limit N] [--max-new-tokens N]
                                  [--tree SPEC] [--threads N] [--dtype D]

Every turn of every prompt is answered by `generate` and by the head; a conversation goes on with
the answer of `generate`. Ends with exit status 1 if any token differs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator

import torch
from transformers import GenerationConfig

from hasspec.cli.heads import head_folder
from hasspec.data.prompts import Prompt, read_prompts
from hasspec.data.template import ChatTemplate
from hasspec.decoding import Decoder, TreeSpec
from hasspec.draft import load_head
from hasspec.evaluation import Rescorer
from hasspec.target import Target


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare with transformers' generate.")
    parser.add_argument("target")
    parser.add_argument("head")
    parser.add_argument("prompts", nargs="+")
    parser.add_argument("--limit", type=int)
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
    rescorer = Rescorer(target)
    differing = answers = 0
    for file in options.prompts:
        for prompt in read_prompts(file)[: options.limit]:
            for ids, expected in reference(target, prompt, options.max_new_tokens):
                found = decoder.generate(ids, max_new_tokens=options.max_new_tokens).token_ids
                answers += 1
                if found != expected:
                    differing += 1
                    pairs = zip(found, expected, strict=False)
                    place = next((i for i, (a, b) in enumerate(pairs) if a != b), 0)
                    gap = rescorer.gaps(ids, found)[place]
                    print(f"{file} {prompt.prompt_id}: token {place + 1} misses by {gap:.5f}")
        print(f"{file}: {answers - differing} of {answers} answers identical so far", flush=True)
    sys.exit(differing > 0)


def reference(
    target: Target, prompt: Prompt, max_new_tokens: int
) -> Iterator[tuple[list[int], list[int]]]:
    """Prompt ids of each turn and the answer that transformers gives to them."""
    template = ChatTemplate(target)
    # Not the checkpoint's own configuration, which may ask for sampling or penalties.
    settings = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=sorted(target.eos_ids),
        pad_token_id=min(target.eos_ids),
    )
    system = [{"role": "system", "content": prompt.system}] if prompt.system is not None else []
    messages = [*system, {"role": "user", "content": prompt.turns[0]}]
    ids = template.prompt_ids(messages)
    for following in (*prompt.turns[1:], None):
        given = torch.tensor([ids])
        answered = target.model.generate(
            given, attention_mask=torch.ones_like(given), generation_config=settings
        )
        answer = answered[0, len(ids) :].tolist()
        yield ids, answer
        if following is not None:
            ids = [*ids, *answer, *template.continuation(messages, answer, following)]
            messages += [
                {"role": "assistant", "content": template.answer_text(answer)},
                {"role": "user", "content": following},
            ]


if __name__ == "__main__":
    main()
