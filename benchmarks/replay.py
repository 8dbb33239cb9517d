"""Acceptance of heads on answers that the target wrote: minutes where decoding takes hours.

    hasspec synth smollm2-135m --prompts EVAL/gsm8k.jsonl --out ANSWERS/gsm8k   (once a set)
    python benchmarks/replay.py ANSWERS --head HASS=smollm2-135m-hass --tree static:6x10x60

Every folder in ANSWERS is a token store of one prompt set, written at temperature 0. The rounds are
those of decoding (hasspec.evaluation.replay); no time is measured.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import torch

from hasspec import Target, TreeSpec, load_head
from hasspec.cli.heads import head_folder
from hasspec.data import TokenStore
from hasspec.evaluation import AcceptanceCounts
from hasspec.evaluation.replay import Replay, conversation_features
from hasspec.evaluation.report import write_json


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("answers", type=Path)
    parser.add_argument("--head", action="append", required=True, metavar="NAME=PATH")
    parser.add_argument("--tree", action="append", required=True)
    parser.add_argument("--target", default="smollm2-135m")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--limit", type=int, help="conversations a set")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    target = Target.load(options.target, dtype=options.dtype, device=options.device)
    heads = {
        name: load_head(head_folder(path), target=target)
        for name, path in (named.split("=", 1) for named in options.head)
    }
    replays = {
        (tree, name): Replay(target, head, TreeSpec.parse(tree))
        for tree in options.tree
        for name, head in heads.items()
    }
    counts: dict[tuple[str, str, str], AcceptanceCounts] = {}
    for folder in sorted(path for path in options.answers.iterdir() if path.is_dir()):
        store = TokenStore.open(folder)
        if store.metadata.settings["answers"]["temperature"] != 0:
            raise SystemExit(f"{folder}: replays need answers written at temperature 0")
        for conversation in itertools.islice(store, options.limit):
            feature_TD = conversation_features(target, conversation)
            for (tree, name), replay in replays.items():
                key = (tree, name, folder.name)
                counts.setdefault(key, AcceptanceCounts())
                counts[key] += replay.counts(conversation, feature_TD)
    report = {}
    for tree, name in replays:
        sets = {key[2]: count for key, count in counts.items() if key[:2] == (tree, name)}
        mean = sum(count.tau for count in sets.values()) / len(sets)
        report.setdefault(tree, {})[name] = {
            "tau_mean_over_sets": mean,
            **{set_: {"tau": c.tau, "alpha": c.alpha} for set_, c in sets.items()},
        }
        print(f"{tree}  {name}: tau {mean:.3f}, the mean of")
        for set_, count in sets.items():
            alpha = " ".join(f"{100 * (value or 0):.1f}" for value in count.alpha)
            print(f"    {set_:12} tau {count.tau:.3f}  alpha {alpha}  ({count.forwards} rounds)")
    if options.json:
        write_json(options.json, report)


if __name__ == "__main__":
    main()
