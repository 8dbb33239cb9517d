"""Measure the shipped heads on MT-bench, HumanEval and GSM8K, and print the README's table.

    python benchmarks/three_sets.py EVAL_FOLDER OUT_FOLDER [options of `hasspec bench`]

EVAL_FOLDER holds mt_bench.jsonl, humaneval.jsonl and gsm8k.jsonl (benchmarks/README.md says where
they come from). Each measurement is one `hasspec bench` whose JSON file lands in OUT_FOLDER; one
that is there already is not repeated. Further options go to every measurement: `--limit 10` for a
quick look, `--threads 2`, `--device cuda`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

SETS = {"mt_bench": "MT-bench", "humaneval": "HumanEval", "gsm8k": "GSM8K"}
HEADS = {"HASS": "smollm2-135m-hass", "EAGLE": "smollm2-135m-eagle"}
# The tables' tree is the device's default; 60 nodes are those of the papers, and a chain shows
# conditional acceptance as the papers define it.
MEASUREMENTS = {
    "bf16": ["--dtype", "bfloat16"],
    "bf16-60-nodes": ["--dtype", "bfloat16", "--tree", "static:6x10x60", "--tau-only"],
    "bf16-chain": ["--dtype", "bfloat16", "--tree", "chain:6", "--tau-only"],
    "bf16-sampled": ["--dtype", "bfloat16", "--temperature", "1"],
    "float32": ["--dtype", "float32"],
}


def main(arguments: list[str]) -> None:
    if len(arguments) < 2:
        sys.exit(__doc__)
    eval_folder, out = Path(arguments[0]), Path(arguments[1])
    files = [eval_folder / f"{name}.jsonl" for name in SETS]
    missing = [str(file) for file in files if not file.is_file()]
    if missing:
        sys.exit(f"missing: {', '.join(missing)}; benchmarks/README.md says where they come from")
    out.mkdir(parents=True, exist_ok=True)
    for name, options in MEASUREMENTS.items():
        report = out / f"{name}.json"
        if not report.is_file():
            measure(files, report, [*options, *arguments[2:]])
        print(f"\n### {name}\n")
        print(table(json.loads(report.read_text(encoding="utf-8"))))


def measure(files: list[Path], report: Path, options: list[str]) -> None:
    hasspec = Path(sys.executable).with_name("hasspec")
    command = [str(hasspec), "bench", "smollm2-135m", "--max-new-tokens", "256", "--seed", "0"]
    for name, head in HEADS.items():
        command += ["--head", f"{name}={head}"]
    for file in files:
        command += ["--prompts", str(file)]
    partial = report.with_name(report.name + ".unfinished")
    subprocess.run([*command, *options, "--json", str(partial)], check=True)
    partial.replace(report)


def table(report: dict[str, Any]) -> str:
    """A Markdown table: each head on each set and over all of them."""
    lines = [
        "| prompts | head | τ | α, % | tok/s (plain) | speedup | identical |",
        "|---|---|---|---|---|---|---|",
    ]
    groups = {SETS[Path(path).stem]: group for path, group in report["by_prompts"].items()}
    for label, group in {**groups, "all": report}.items():
        for name, head in group["heads"].items():
            tau = head["tau_mean_over_files"] if label == "all" else head["tau"]
            alpha = " ".join("-" if a is None else f"{100 * a:.0f}" for a in head["alpha"])
            plain = f" ({group['plain']['tokens_per_second']:.1f})" if group["plain"] else ""
            rate = f"{head['tokens_per_second']:.1f}{plain}"
            identical = f"{head['identical']}/{head['prompts']}" if group["plain"] else "-"
            cells = [label, name, f"{tau:.2f}", alpha, rate, speedup(head), identical]
            lines.append(f"| {' | '.join(cells)} |")
    machine, settings = report["machine"], report["settings"]
    lines.append(
        f"\n{machine['accelerator'] or machine['cpu']}, {machine['threads']} threads, "
        f"{machine['dtype']}, tree {settings['tree']}, temperature {settings['temperature']}, "
        f"at most {settings['max_new_tokens']} new tokens; other processes used "
        f'{machine["other_cores"] or 0:.2f} cores. τ of "all" is the mean of the sets.'
    )
    return "\n".join(lines)


def speedup(head: dict[str, Any]) -> str:
    measured = head["speedup"]
    if measured is None:
        return "-"
    if not measured["significant"]:
        return "not significant"
    return f"{measured['median']:.2f}x [{measured['low']:.2f}, {measured['high']:.2f}]"


if __name__ == "__main__":
    main(sys.argv[1:])
