"""The processes that share a training run: one, or those that ``accelerate launch`` started."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from accelerate import Accelerator

T = TypeVar("T")


class Processes:
    """What training asks of its processes; with one of them, every answer is immediate.

    Each process holds the whole head and target and a share of every batch. ``main`` alone writes
    files and measures.

    Args:
        accelerator: of accelerate, where the run was started by it; None for one process.

    Raises:
        ValueError: accelerate was told to split the head itself (FSDP, DeepSpeed, ...).
    """

    def __init__(self, accelerator: Accelerator | None = None):
        self._accelerator = accelerator
        self.count = accelerator.num_processes if accelerator else 1
        self.index = accelerator.process_index if accelerator else 0
        if self.count > 1 and not str(accelerator.distributed_type).endswith(
            ("MULTI_CPU", "MULTI_GPU")
        ):
            raise ValueError(
                f"accelerate is configured for {accelerator.distributed_type}, which splits what "
                "is trained; a draft head is small and is copied to every process: launch with "
                "--multi_gpu or --cpu. For a target too large for one device, give --device-map"
            )

    @property
    def main(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.index == 0

    def replicate(self, module: nn.Module) -> nn.Module:
        """The module with gradients averaged over processes at every backward."""
        if self.count == 1:
            return module
        return self._accelerator.prepare_model(module)

    def apart(self, module: nn.Module) -> AbstractContextManager:
        """A context whose backwards are not averaged yet: more of the same batch follows."""
        return self._accelerator.no_sync(module) if self.count > 1 else nullcontext()

    def share(self, items: Sequence[T]) -> list[T]:
        """This process's part of the items."""
        return list(items[self.index :: self.count])

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum over processes, the same in all of them."""
        if self.count == 1:
            return tensor
        return self._accelerator.reduce(tensor, reduction="sum")

    def any(self, flag: bool) -> bool:
        """Whether the flag is up in any process."""
        if self.count == 1:
            return flag
        raised = torch.tensor(float(flag), device=self._accelerator.device)
        return bool(self.sum(raised) > 0)

    def from_main(self, make: Callable[[], T]) -> T:
        """What ``make`` returns in the main process, the only one that calls it."""
        if self.count == 1:
            return make()
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([make() if self.main else None])[0]
