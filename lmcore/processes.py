"""Several processes that train one model: DDP and FSDP under ``torchrun``.

Chapter 11 of the book, last part. The module builds, in this order: the team that
``torchrun`` started, or a team of one; sums over the team; and a model that the team
shares, copied (DDP) or in parts (FSDP).

Left out: tensor parallelism (``lmcore.parallel``, chapter 15), and everything that
PyTorch does itself: the averaging of gradients and the sharding of parameters.

Papers: Li et al., 2020 (DDP); Rajbhandari et al., 2020, and Zhao et al., 2023 (FSDP).
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

PARALLEL = ("ddp", "fsdp")


@dataclass(frozen=True)
class Team:
    """Which of how many processes this one is, and on which device it works.

    >>> Team().is_first
    True
    """

    rank: int = 0  # which process, from 0
    n_ranks: int = 1  # how many processes
    device: torch.device = torch.device("cpu")  # noqa: RUF009 it never changes

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that prints and writes."""
        return self.rank == 0

    def sum(self, number: Tensor) -> Tensor:
        """Add up a tensor over all processes; each gets the sum."""
        if self.n_ranks == 1:
            return number
        total = number.detach().clone()
        distributed.all_reduce(total)
        return total

    def agree(self, number: float) -> float:
        """Give every process the number that the first one has."""
        if self.n_ranks == 1:
            return number
        shared = torch.tensor(number, dtype=torch.float64, device=self.device)
        distributed.broadcast(shared, src=0)
        return shared.item()

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.n_ranks > 1:
            distributed.barrier()


def current_team(device: torch.device | str = "cpu") -> Team:
    """Describe this process: one of many if `torch.distributed` is up, or alone.

    Args:
        device: where it works

    Returns:
        Its team.

    >>> current_team().n_ranks
    1
    """
    device = torch.device(device)
    if distributed.is_available() and distributed.is_initialized():
        return Team(distributed.get_rank(), distributed.get_world_size(), device)
    return Team(device=device)


@contextmanager
def join_team(device: torch.device | str = "cpu") -> Iterator[Team]:
    """Find the other processes that ``torchrun`` started, and part in the end.

    Started without ``torchrun`` the process works alone, so that one script does for
    one processor, one GPU and many.

    Args:
        device: what to work on. Of ``"cuda"``, every process takes the GPU of its
            number on this machine.

    Returns:
        A context manager that gives the team.

    >>> with join_team() as team:
    ...     team.rank, team.n_ranks
    (0, 1)
    """
    device = torch.device(device)
    if "RANK" not in os.environ or distributed.is_initialized():
        yield current_team(device)
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield current_team(device)
    finally:
        distributed.destroy_process_group()


def copy_to_team(model: nn.Module, device: torch.device) -> DistributedDataParallel:
    """Give every process the whole model; gradients are averaged after each step.

    All copies begin with the parameters of the first process.

    Args:
        model: on the device of this process
        device: that device

    Returns:
        The model to be called in training; the parameters are those of ``model``.

    >>> store = distributed.HashStore()
    >>> distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    >>> model = nn.Linear(2, 1)
    >>> copy_to_team(model, torch.device("cpu")).module is model
    True
    >>> distributed.destroy_process_group()
    """
    devices = [device] if device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=devices)


def shard_over_team(model: nn.Module, team: Team) -> None:
    """Give every process a part of every parameter, in place.

    A layer is put together when it is needed and taken apart afterwards. Layers are the
    members of the model's `nn.ModuleList`; the rest is one more part. The parameters
    become DTensors, so that an optimizer must be made after this.

    Args:
        model: on the device of this process, with the same parameters everywhere
        team: the processes that share it

    >>> store = distributed.HashStore()
    >>> distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    >>> model = nn.Linear(2, 1)
    >>> shard_over_team(model, current_team())
    >>> type(model.weight.data).__name__
    'DTensor'
    >>> distributed.destroy_process_group()
    """
    mesh = init_device_mesh(team.device.type, (team.n_ranks,))
    for module in reversed(list(model.modules())):  # inner layers first
        if isinstance(module, nn.ModuleList):
            for layer in module:
                fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
