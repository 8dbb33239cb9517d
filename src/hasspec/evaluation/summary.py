"""Results of a benchmark as the numbers of its JSON file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import reduce
from operator import add
from typing import Any

from hasspec.evaluation.acceptance import AcceptanceCounts, macro_tau
from hasspec.evaluation.benchmark import PLAIN, Answer, PromptResult
from hasspec.evaluation.bootstrap import speedup_interval
from hasspec.evaluation.exactness import FlipCounts
from hasspec.evaluation.repetition import distinct_n

DISTINCT_N = (1, 2, 3, 4)


def summarise(results: Sequence[PromptResult], *, seed: int = 0) -> dict[str, Any]:
    """``{"plain", "heads", "by_prompts"}`` of the benchmark's JSON file.

    The first two pool all prompts; ``by_prompts`` holds the same for each file. Where several
    files were measured, ``tau_mean_over_files`` of a head is the unweighted mean of their taus.
    docs/benchmark.md describes every key.

    Raises:
        ValueError: no prompt was measured.
    """
    if not results:
        raise ValueError("no prompt was measured to the end, so there is nothing to report")
    names = list(dict.fromkeys(result.set_name for result in results))
    by_prompts = {
        name: _group([result for result in results if result.set_name == name], seed)
        for name in names
    }
    pooled = _group(results, seed)
    for name, head in pooled["heads"].items():
        taus = [group["heads"][name]["tau"] for group in by_prompts.values()]
        head["tau_mean_over_files"] = None if None in taus else sum(taus) / len(taus)
    return {**pooled, "by_prompts": by_prompts}


def per_prompt(results: Sequence[PromptResult]) -> list[dict[str, Any]]:
    """One record a prompt: order, and tokens, forwards, seconds of each variant and turn."""
    return [
        {
            "prompts": result.set_name,
            "id": result.prompt_id,
            "order": result.order,
            "answers": {
                name: [
                    {
                        "tokens": len(answer.token_ids),
                        "forwards": answer.counts.forwards,
                        "seconds": answer.seconds,
                        "finish_reason": answer.finish_reason,
                    }
                    for answer in answers
                ]
                for name, answers in result.answers.items()
            },
        }
        for result in results
    ]


def _group(results: Sequence[PromptResult], seed: int) -> dict[str, Any]:
    variants = list(results[0].answers)
    return {
        "prompts": len(results),
        "plain": _variant(results, PLAIN) if PLAIN in variants else None,
        "heads": {name: _head(results, name, seed) for name in variants if name != PLAIN},
    }


def _variant(results: Sequence[PromptResult], name: str) -> dict[str, Any]:
    answers = [answer for result in results for answer in result.answers[name]]
    tokens = sum(len(answer.token_ids) for answer in answers)
    seconds = sum(answer.seconds for answer in answers)
    draft = sum(answer.draft_seconds for answer in answers)
    verify = sum(answer.verify_seconds for answer in answers)
    return {
        "prompts": len(results),
        "answers": len(answers),
        "tokens": tokens,
        "seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "time": {"draft": draft, "verify": verify, "other": seconds - draft - verify},
        "prefill_seconds": sum(answer.prefill_seconds for answer in answers),
        "distinct_n": {
            str(n): distinct_n([answer.token_ids for answer in answers], n) for n in DISTINCT_N
        },
        "capped": sum(answer.finish_reason in ("length", "context") for answer in answers)
        / len(answers),
        "flips": _flips(answers),
    }


def _head(results: Sequence[PromptResult], name: str, seed: int) -> dict[str, Any]:
    counts_P = [
        reduce(add, (answer.counts for answer in result.answers[name]), AcceptanceCounts())
        for result in results
    ]
    counts = reduce(add, counts_P, AcceptanceCounts())
    compared = PLAIN in results[0].answers
    return {
        "tau": counts.tau,
        "tau_macro": macro_tau(counts_P),
        "alpha": counts.alpha,
        "survival": counts.survival,
        "counts": asdict(counts),
        **_variant(results, name),
        "speedup": _speedup(results, name, seed) if compared else None,
        "identical": _identical(results, name) if compared else None,
    }


def _speedup(results: Sequence[PromptResult], name: str, seed: int) -> dict[str, Any]:
    sides = [
        [sum(measure(answer) for answer in result.answers[variant]) for result in results]
        for variant in (name, PLAIN)
        for measure in (lambda answer: len(answer.token_ids), lambda answer: answer.seconds)
    ]
    interval = speedup_interval(*sides, seed=seed)
    return {
        "median": interval.median,
        "low": interval.low,
        "high": interval.high,
        "significant": interval.differs_from_one,
    }


def _identical(results: Sequence[PromptResult], name: str) -> int:
    return sum(
        all(
            head.token_ids == plain.token_ids
            for head, plain in zip(result.answers[name], result.answers[PLAIN], strict=True)
        )
        for result in results
    )


def _flips(answers: Sequence[Answer]) -> dict[str, Any] | None:
    scored = [answer.flips for answer in answers if answer.flips is not None]
    if not scored:
        return None
    flips = reduce(add, scored, FlipCounts())
    return {**asdict(flips), "per_1000": flips.per_1000}
