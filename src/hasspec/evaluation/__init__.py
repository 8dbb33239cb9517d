"""Measuring: acceptance, speed against plain decoding, exactness."""

from hasspec.evaluation.acceptance import AcceptanceCounts, macro_tau
from hasspec.evaluation.benchmark import Benchmark, BenchmarkSettings, PromptSet
from hasspec.evaluation.bootstrap import Interval, speedup_interval
from hasspec.evaluation.exactness import FlipCounts, Rescorer
from hasspec.evaluation.summary import summarise

__all__ = [
    "AcceptanceCounts",
    "Benchmark",
    "BenchmarkSettings",
    "FlipCounts",
    "Interval",
    "PromptSet",
    "Rescorer",
    "macro_tau",
    "speedup_interval",
    "summarise",
]
