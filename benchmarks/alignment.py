"""What alignment steps cost: seconds and peak memory of an optimiser step, by n and length.

    python benchmarks/alignment.py --threads 2 --json alignment.json

Every cell is a fresh process (peak memory is the process's), cells are interleaved ``--repeats``
times, and the median is reported beside the ratio to one alignment step. A step is a whole one:
the target's forward, alignment, losses, gradients, AdamW.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from hasspec import Target
from hasspec.evaluation.report import write_json
from hasspec.training import Trainer, load_recipe
from hasspec.training.batches import example_of
from hasspec.training.features import ComputedFeatures
from hasspec.training.plan import peak_memory

TOKENS_A_STEP = 4096
WARM_UP, MEASURED = 1, 3


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--target", default="smollm2-135m")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 3, 5])
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 2048])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.cell:
        print(json.dumps(measure(options, **json.loads(options.cell))))
        return
    cells = [
        {"length": length, "n_steps": n, "recompute": recompute}
        for length, n, recompute in itertools.product(options.lengths, options.steps, (True, False))
        if n > 1 or not recompute  # one step has nothing to compute again
    ]
    found: list[list[dict]] = [[] for _ in cells]
    for _ in range(options.repeats):
        for cell, results in zip(cells, found, strict=True):
            command = [sys.executable, __file__, *sys.argv[1:], "--cell", json.dumps(cell)]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            results.append(json.loads(output.splitlines()[-1]))
    rows = [
        {**cell, **{key: statistics.median(r[key] for r in results) for key in results[0]}}
        for cell, results in zip(cells, found, strict=True)
    ]
    one = {row["length"]: row for row in rows if row["n_steps"] == 1}
    print("| T | n | recompute | s a step | ÷ n = 1 | peak GiB | ÷ n = 1 |\n" + "|---" * 7 + "|")
    for row in rows:
        base = one.get(row["length"], row)
        print(
            f"| {row['length']} | {row['n_steps']} | {row['recompute']} | {row['seconds']:.2f} | "
            f"{row['seconds'] / base['seconds']:.2f} | {row['peak_gib']:.2f} | "
            f"{row['peak_gib'] / base['peak_gib']:.2f} |"
        )
    if options.json:
        about = {key: str(value) for key, value in vars(options).items()}
        write_json(options.json, {"options": about, "rows": rows, "runs": found})


def measure(options: argparse.Namespace, length: int, n_steps: int, recompute: bool) -> dict:
    """Time and peak memory of optimiser steps in this process."""
    torch.set_num_threads(options.threads)
    target = Target.load(options.target, dtype=options.dtype, device=options.device)
    rng = np.random.default_rng(0)
    batch = TOKENS_A_STEP // length
    examples = [
        example_of(
            SimpleNamespace(
                token_ids=rng.integers(0, target.vocab_size, length).tolist(),
                answer_spans=[(length // 4, length)],
            ),
            length,
        )
        for _ in range(batch)
    ]
    recipe = load_recipe(
        None,
        [
            "precision=bfloat16",
            "objective.top_k=0.1",
            "vocabulary.drafted=8192",
            "checkpoint_minutes=1000",
            f"alignment.steps={n_steps}",
            f"alignment.recompute={str(recompute).lower()}",
            f"optimisation.batch={batch}",
            f"optimisation.steps={WARM_UP + MEASURED}",
        ],
    )
    times: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(target, examples, ComputedFeatures(target), recipe, Path(folder))
        trainer.train(interrupted=lambda: times.append(time.perf_counter()) is not None)
    gaps = [after - before for before, after in itertools.pairwise(times)]
    return {
        "seconds": statistics.median(gaps[WARM_UP - 1 :]),
        "peak_gib": peak_memory(target) / 2**30,
    }


if __name__ == "__main__":
    main()
