"""Several processes that train one network together, one per GPU, as `torchrun` or `accelerate launch` start them.

Gradients are averaged by torch's DistributedDataParallel, set up through accelerate; a process that was started alone
imports neither. The module does not know networks, batches or files.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from simenv.errors import MissingExtraError

T = TypeVar("T")


def launched() -> bool:
    """Whether a launcher started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def local_place() -> int:
    """This process's number on its machine, 0 where there is only one."""
    return int(os.environ.get("LOCAL_RANK", "0")) if launched() else 0


class Processes:
    """The processes of this training run.

    Args:
        device: where this process computes; decides between gloo (CPU) and nccl (CUDA).
    """

    def __init__(self, device: torch.device) -> None:
        self.accelerator: Any = None
        if launched():
            try:
                from accelerate import Accelerator  # type: ignore[import-untyped]
                from accelerate.utils import DistributedDataParallelKwargs  # type: ignore[import-untyped]
            except ImportError as error:
                raise MissingExtraError("accelerate", "torch") from error
            # a batch of items alone leaves the weights that only read words without a gradient
            parallel = DistributedDataParallelKwargs(find_unused_parameters=True)
            self.accelerator = Accelerator(cpu=device.type == "cpu", kwargs_handlers=[parallel])
        self.count = 1 if self.accelerator is None else int(self.accelerator.num_processes)
        self.place = 0 if self.accelerator is None else int(self.accelerator.process_index)

    @property
    def is_main(self) -> bool:
        """Whether this is the process that prints and writes files."""
        return self.place == 0

    def parallel(self, network: nn.Module, loss: Callable[[Any], tuple[Tensor, int]]) -> Callable[..., Any]:
        """The loss, such that its gradients on `network` are averaged over the processes."""
        if self.accelerator is None:
            return loss
        prepared: Callable[..., Any] = self.accelerator.prepare_model(_Objective(network, loss))
        return prepared

    def share(self, batches: Iterable[T]) -> Iterator[T]:
        """This process's batches: of each `count` neighbours its own, from the front again where the last are fewer."""
        stream = iter(batches)
        while group := list(islice(stream, self.count)):
            yield group[self.place % len(group)]

    def mean(self, value: Tensor) -> Tensor:
        """The mean over the processes."""
        if self.accelerator is None:
            return value
        reduced: Tensor = self.accelerator.reduce(value, reduction="mean")
        return reduced

    def as_main(self, value: T) -> T:
        """What the main process has here; the others' own value is dropped."""
        if self.accelerator is None:
            return value
        from accelerate.utils import broadcast_object_list

        shared: T = broadcast_object_list([value])[0]
        return shared

    def close(self) -> None:
        """Wait for the others and leave."""
        if self.accelerator is not None:
            self.accelerator.wait_for_everyone()
            self.accelerator.end_training()


class _Objective(nn.Module):
    """A loss as a module's forward, where DistributedDataParallel looks for it."""

    def __init__(self, network: nn.Module, loss: Callable[[Any], tuple[Tensor, int]]) -> None:
        super().__init__()
        self.network, self._loss = network, loss

    def forward(self, batch: Any) -> tuple[Tensor, int]:
        return self._loss(batch)
