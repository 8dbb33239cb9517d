"""The machine's description, and other processes' load from made-up /proc/stat files."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from hasspec.evaluation.machine import LoadMeter, machine_fingerprint
from hasspec.target import Target


def test_fingerprint_names_machine_and_versions(tiny_target: Target) -> None:
    fingerprint = machine_fingerprint(tiny_target)
    assert json.loads(json.dumps(fingerprint)) == fingerprint
    assert fingerprint["cpu"]
    assert fingerprint["cores"] == os.cpu_count()
    assert (fingerprint["device"], fingerprint["dtype"]) == ("cpu", "float32")
    assert fingerprint["accelerator"] is None
    for package in ("torch", "transformers", "hasspec"):
        assert fingerprint[package][0].isdigit()


def test_load_counts_what_others_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hertz = os.sysconf("SC_CLK_TCK")
    stat = tmp_path / "stat"

    def set_state(wall: float, busy: float, own: float) -> None:
        stat.write_text(f"cpu {int(busy * hertz)} 0 0 99999 5 0 0 0 0 0\ncpu0 1 2 3\n")
        monkeypatch.setattr("time.monotonic", lambda: wall)
        monkeypatch.setattr("os.times", lambda: os.times_result((own, 0.0, 0.0, 0.0, wall)))

    set_state(wall=100, busy=1000, own=10)
    meter = LoadMeter(stat)
    set_state(wall=110, busy=1018, own=25)
    # 18 s of the cores' time in 10 s, 15 of them our own.
    assert meter.other_cores() == pytest.approx(0.3)
    set_state(wall=110, busy=1012, own=25)
    assert meter.other_cores() == 0.0


def test_unknown_load_is_none(tmp_path: Path) -> None:
    assert LoadMeter(tmp_path / "missing").other_cores() is None
    empty = tmp_path / "stat"
    empty.write_text("cpu 0 0 0 0 0 0 0 0 0 0\n")
    assert LoadMeter(empty).other_cores() is None
