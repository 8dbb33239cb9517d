"""What ran the measurement, and what else ran meanwhile."""

from __future__ import annotations

import os
import platform
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from hasspec.target import Target


def machine_fingerprint(target: Target) -> dict[str, Any]:
    """CPU, cores, threads, library versions, device and dtype of a measurement."""
    device = target.device
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": str(device),
        "accelerator": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "dtype": str(target.dtype).removeprefix("torch."),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: _version(name) for name in ("torch", "transformers", "hasspec")},
    }


class LoadMeter:
    """CPU time that other processes took since this object was made.

    Read from ``/proc/stat``; where that is missing nothing is known, and said.
    """

    def __init__(self, proc_stat: Path = Path("/proc/stat")):
        self._proc_stat = proc_stat
        self._begin = self._read()

    def other_cores(self) -> float | None:
        """Cores that other processes kept busy on average, or None if the system does not say."""
        now = self._read()
        if now is None or self._begin is None:
            return None
        wall, busy, own = (after - before for after, before in zip(now, self._begin, strict=True))
        return max(0.0, (busy - own) / wall) if wall > 0 else None

    def _read(self) -> tuple[float, float, float] | None:
        """Wall, busy (all processes) and own seconds."""
        if not self._proc_stat.is_file():
            return None
        fields = self._proc_stat.read_text(encoding="ascii").split("\n", 1)[0].split()
        user, nice, system, _idle, _iowait, irq, softirq, *_ = map(int, fields[1:])
        ticks = user + nice + system + irq + softirq
        if not ticks:
            return None
        own = os.times()
        return (
            time.monotonic(),
            ticks / os.sysconf("SC_CLK_TCK"),
            own.user + own.system + own.children_user + own.children_system,
        )


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
