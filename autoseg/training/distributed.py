"""Several processes, one GPU each. torchrun starts them; here rank and world size come in, means go out."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import distributed, nn

from autoseg.errors import SettingError


@dataclass(frozen=True, kw_only=True)
class World:
    rank: int
    size: int
    local_rank: int

    @property
    def is_first(self) -> bool:
        return self.rank == 0


def read_world() -> World:
    """What torchrun says in the environment; one process if it says nothing."""
    return World(
        rank=int(os.environ.get("RANK", "0")),
        size=int(os.environ.get("WORLD_SIZE", "1")),
        local_rank=int(os.environ.get("LOCAL_RANK", "0")),
    )


@contextmanager
def joined_world(world: World, device: torch.device) -> Iterator[None]:
    """Join the process group (NCCL on GPUs, Gloo on CPUs) and leave it at the end."""
    if world.size == 1 or distributed.is_initialized():
        yield
        return
    # The first process validates a finished fold alone while the others wait for it here.
    backend = "nccl" if device.type == "cuda" else "gloo"
    distributed.init_process_group(backend, rank=world.rank, world_size=world.size, timeout=timedelta(days=1))
    try:
        yield
    finally:
        distributed.destroy_process_group()


def wrap(network: nn.Module, world: World, device: torch.device) -> nn.Module:
    """Average gradients over processes."""
    if world.size == 1:
        return network
    ids = [device.index] if device.type == "cuda" else None
    # The coarsest deep-supervision head has weight 0 and so no gradient in a network of three or more outputs.
    return nn.parallel.DistributedDataParallel(network, device_ids=ids, find_unused_parameters=True)


def world_device(device: torch.device, world: World) -> torch.device:
    """The GPU of this process: with several processes, the one of its local rank.

    Raises:
        SettingError: more processes than GPUs.
    """
    if device.type != "cuda":
        return device
    if world.size > 1:
        if world.local_rank >= torch.cuda.device_count():
            raise SettingError(
                f"process {world.local_rank} has no GPU: this machine shows {torch.cuda.device_count()}",
                hint="start as many processes as GPUs: torchrun --nproc_per_node",
            )
        device = torch.device("cuda", world.local_rank)
    torch.cuda.set_device(device)
    return device


def total(tensor: torch.Tensor, world: World) -> torch.Tensor:
    """The sum over all processes; without a group, the tensor itself."""
    if world.size > 1:
        distributed.all_reduce(tensor)
    return tensor


def agree(value: float, world: World, device: torch.device) -> float:
    """The first process's value, for decisions (when to stop) that all must take alike."""
    if world.size == 1:
        return value
    tensor = torch.tensor([value], dtype=torch.float64, device=device)
    distributed.broadcast(tensor, src=0)
    return float(tensor.item())


def local_share(batch_size: int, world: World) -> tuple[int, int]:
    """(first sample, samples) of this process: equal shares, rounded up, so that gradients weigh alike."""
    share = -(-batch_size // world.size)
    return world.rank * share, share
