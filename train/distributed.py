"""Joins the processes that `torchrun` starts into one training, on PyTorch's distributed engine."""

from __future__ import annotations

import contextlib
import inspect
import logging
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from runtime.console import signals
from runtime.console.startup import exit_code
from runtime.errors import UNEXPECTED, DetectorError, InputError, MissingComponentError
from train.model.sync_norm import synchronized

T = TypeVar("T")

_PATIENCE = timedelta(minutes=60)  # rank 0 may score a large validation set while the others wait
_FAILED, _FAILURES = "failed", "failures"  # keys of the store: exit code of the first error, number of errors
_GRACE = 3.0  # seconds in which a rank may end by itself after another one's error


@dataclass(frozen=True)
class World:
    """The processes of one training. Alone, every method returns what it was given.

    Attributes:
        rank: of this process; rank 0 alone writes files.
        size: number of processes.
        local_rank: of this process on its machine, which is the number of its GPU.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """True in the process that writes."""
        return self.rank == 0

    def mean(self, values: Tensor) -> Tensor:
        """Averages a tensor over the ranks; no gradient flows through it."""
        if self.size == 1:
            return values
        total = values.detach().clone()
        dist.all_reduce(total)
        return total / self.size

    def gather(self, value: T) -> list[T]:
        """Collects a value from every rank at rank 0, in the order of the ranks; the others get an empty list."""
        if self.size == 1:
            return [value]
        everyone: list[Any] = [None] * self.size
        dist.gather_object(value, everyone if self.is_main else None)
        return everyone if self.is_main else []

    def gather_everywhere(self, value: T) -> list[T]:
        """Collects a value from every rank at every rank, in the order of the ranks."""
        if self.size == 1:
            return [value]
        everyone: list[Any] = [None] * self.size
        dist.all_gather_object(everyone, value)
        return everyone

    def from_main(self, make: Callable[[], T]) -> T:
        """Has rank 0 make a value and gives it to all."""
        if self.size == 1:
            return make()
        found: list[Any] = [make() if self.is_main else None]
        dist.broadcast_object_list(found)
        value: T = found[0]
        return value

    def check_agreement(self, facts: dict[str, str]) -> None:
        """Raises InputError unless all ranks have the same facts, such as the hash of their data."""
        everyone = self.gather_everywhere(facts)
        for rank, theirs in enumerate(everyone):
            different = [name for name in facts if theirs[name] != everyone[0][name]]
            if different:
                raise InputError(
                    f"rank {rank} of {self.size} differs from rank 0 in {', '.join(different)}; start all ranks with the same"
                    " command, data, code and packages"
                )

    def synchronize_norms(self, model: nn.Module, device: torch.device) -> None:
        """Has batch norm take its statistics from the images of all ranks."""
        if self.size > 1:
            synchronized(model, device)

    def wrap(self, model: nn.Module) -> nn.Module:
        """Returns the model to train with: its gradients are averaged over the ranks, its weights start as rank 0's."""
        if self.size == 1:
            return model
        # Synchronized batch norm keeps its buffers equal by itself. PyTorch 2.13 renamed the option.
        is_new = "forward_sync_buffers" in inspect.signature(DistributedDataParallel.__init__).parameters
        no_sync: dict[str, Any] = {"forward_sync_buffers" if is_new else "broadcast_buffers": False}
        return DistributedDataParallel(model, gradient_as_bucket_view=True, **no_sync)


def world_size() -> int:
    """Returns the number of processes that the launcher says there are, 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextlib.contextmanager
def joined(device: str) -> Iterator[World]:
    """Joins the other processes of this training while the block runs; alone where there are none.

    An error in the block ends all of them within seconds, and the rank that had it first alone reports it.

    Args:
        device: as in `RunOptions`; a GPU has its ranks talk through NCCL, anything else through gloo.
    """
    if world_size() == 1:
        yield World()
        return
    world = World(int(os.environ["RANK"]), world_size(), int(os.environ.get("LOCAL_RANK", "0")))
    on_gpu = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    if on_gpu:
        _choose_gpu(world)
    logging.disable(logging.NOTSET if world.is_main else logging.WARNING)  # what all ranks would say, rank 0 says
    store, _, _ = next(iter(dist.rendezvous("env://")))
    backend = "nccl" if on_gpu else "gloo"
    dist.init_process_group(backend, timeout=_PATIENCE, store=store, rank=world.rank, world_size=world.size)
    ended = threading.Event()
    threading.Thread(target=_watch, args=(store.clone(), ended), name="ranks", daemon=True).start()
    try:
        yield world
        dist.destroy_process_group()
    except BaseException as error:
        _leave(store, world, error)
    finally:
        ended.set()


def _choose_gpu(world: World) -> None:
    if world.local_rank >= torch.cuda.device_count():
        raise MissingComponentError(
            f"rank {world.rank}: this machine has {torch.cuda.device_count()} GPUs, too few for the number of processes;"
            " lower --nproc-per-node of torchrun"
        )
    torch.cuda.set_device(world.local_rank)


def _watch(store: Any, ended: threading.Event) -> None:
    """Ends this process after another rank's error: it may be waiting for that rank where no exception reaches it."""
    code = UNEXPECTED
    while not ended.wait(0.5):
        try:
            if not store.check([_FAILED]):
                continue
            code = int(store.get(_FAILED))
        except (RuntimeError, ValueError):  # the store is gone, and the rank that held it
            pass
        if not ended.wait(_GRACE):
            os._exit(code)
        return


def _leave(store: Any, world: World, error: BaseException) -> NoReturn:
    """Raises what this rank ends with: its own error where it is the first, and no words where another rank has spoken."""
    if isinstance(error, KeyboardInterrupt):
        if world.is_main:
            raise error
        raise SystemExit(exit_code(signals.number_of(error))) from error
    code = error.exit_code if isinstance(error, DetectorError) else UNEXPECTED
    try:
        if store.add(_FAILURES, 1) > 1:
            raise SystemExit(int(store.get(_FAILED))) from error
        store.set(_FAILED, str(code))
    except RuntimeError:  # the store is gone, and the rank that held it
        raise SystemExit(code) from error
    if isinstance(error, dist.DistError) or "gloo" in str(error):
        raise DetectorError(
            f"rank {world.rank} lost another rank, which was killed or cut off; continue from the last checkpoint with --resume"
        ) from error
    raise error
