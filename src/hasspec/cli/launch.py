"""How a training command was started: alone or by ``accelerate launch``, and who else is told."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from accelerate import Accelerator

    from hasspec.training.processes import Processes


@dataclass(frozen=True)
class Launch:
    """Processes of the run, the device of this one, and accelerate where it is needed."""

    processes: Processes
    device: str
    accelerator: Accelerator | None

    @classmethod
    def of(
        cls, device: str, trackers: Sequence[str], out: Path, device_map: str | None = None
    ) -> Launch:
        """Find out how this process was started.

        Args:
            device: that the user asked for; launched processes take their own GPU of that kind.
            trackers: names that accelerate knows.
            out: folder of the head; trackers with files write into its run.
            device_map: as for :meth:`hasspec.target.Target.load`.

        Raises:
            ValueError: an unknown tracker, or one that is not installed; a device map in several
                processes, which would all take the same devices.
        """
        import torch

        from hasspec.training.processes import Processes

        launched = torch.distributed.is_torchelastic_launched()
        if not launched and not trackers:
            return cls(Processes(), device, None)
        if launched and device_map is not None:
            raise ValueError(
                "--device-map spreads one target over all devices, and every launched process "
                "would do so: start without accelerate launch, or leave --device-map out"
            )
        from accelerate import Accelerator

        accelerator = Accelerator(
            cpu=device == "cpu", log_with=list(trackers) or None, project_dir=str(out / "run")
        )
        found = {str(getattr(tracker, "name", tracker)) for tracker in accelerator.log_with}
        missing = sorted(set(trackers) - found)
        if missing:
            raise ValueError(
                f"the tracker {', '.join(missing)} is not installed; install its package, or leave "
                "--tracker out (metrics.jsonl and `hasspec report` have everything)"
            )
        own = str(accelerator.device) if accelerator.num_processes > 1 else device
        return cls(Processes(accelerator), own, accelerator)

    @contextmanager
    def tracked(self, config: dict[str, Any]) -> Iterator[Callable[[dict[str, Any]], None]]:
        """A function that sends lines of metrics.jsonl to the trackers.

        Args:
            config: of the run; nested values by dotted names.
        """
        if self.accelerator is None or not self.accelerator.log_with:
            yield lambda record: None
            return
        self.accelerator.init_trackers("hasspec", config=dict(_flat(config, keep=str)))
        try:
            yield lambda record: self.accelerator.log(
                dict(_flat(record, keep=None)), step=record["step"]
            )
        finally:
            self.accelerator.end_training()


def _flat(
    value: Any, name: str = "", *, keep: Callable[[Any], Any] | None
) -> Iterator[tuple[str, Any]]:
    """Numbers in nested lists and mappings by dotted names; others through ``keep``, if any."""
    if isinstance(value, dict):
        parts = value.items()
    elif isinstance(value, (list, tuple)):
        parts = enumerate(value, 1)
    else:
        if isinstance(value, (int, float)):
            yield name, value
        elif keep and value is not None:
            yield name, keep(value)
        return
    for key, part in parts:
        yield from _flat(part, f"{name}.{key}" if name else str(key), keep=keep)
