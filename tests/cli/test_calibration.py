"""Dtype and threads are chosen by what a measurement says."""

from __future__ import annotations

import pytest
import torch

from hasspec.cli.calibration import faster_dtype, fastest_threads
from hasspec.decoding import Generation, TimeSplit


class Machine:
    """Stands for a decoder on a machine whose speed depends on the threads as given."""

    def __init__(self, seconds: dict[int, float]):
        self.seconds = seconds

    def generate(self, _: object, *, max_new_tokens: int) -> Generation:
        verify = self.seconds[torch.get_num_threads()] * max_new_tokens
        return Generation([1], time=TimeSplit(verify=verify))


@pytest.mark.parametrize(
    ("seconds", "chosen"),
    [
        ({4: 1.0, 2: 1.9}, 4),
        # Not clearly better.
        ({4: 1.0, 2: 0.9}, 4),
        ({4: 9.0, 2: 1.0, 1: 1.7}, 2),
        ({4: 9.0, 2: 3.0, 1: 1.0}, 1),
    ],
)
def test_threads(seconds: dict[int, float], chosen: int) -> None:
    torch.set_num_threads(4)
    assert fastest_threads(Machine(seconds)) == chosen
    assert torch.get_num_threads() == chosen


def test_dtype() -> None:
    assert faster_dtype(torch.device("cpu")) in ("float32", "bfloat16")
    assert faster_dtype(torch.device("cuda")) == "bfloat16"
