"""distinct-n by hand."""

from __future__ import annotations

from hasspec.evaluation.repetition import distinct_n


def test_distinct_n() -> None:
    loop, fresh = [1, 2, 1, 2, 1], [1, 2, 3]
    assert distinct_n([loop], 1) == 2 / 5
    assert distinct_n([loop], 2) == 2 / 4
    # The same bigram in two answers is no repetition.
    assert distinct_n([loop, fresh], 2) == 4 / 6
    assert distinct_n([fresh], 4) is None
