"""Several processes, one model: every process holds a part of the weights.

Chapter 15 of the book. The module builds, in this order: cutting a tensor into nearly
equal parts; averages over all processes, which data-parallel training needs; the two
places where tensor-parallel layers talk to each other; and the two linear layers that
cut their weights by outputs (columns) and by inputs (rows). A column layer followed by
a row layer needs one sum over all processes on the way forward and one on the way back.

The processes are PyTorch's (`torch.distributed`, gloo or nccl), started by ``torchrun``
or `torch.multiprocessing`. Without them, or with one process, all of this does what its
plain counterpart does.

Left out: overlapping talk with work; pipelines; DDP and FSDP, which PyTorch brings
(``lmcore.train`` uses them).

Papers: Shoeybi et al., 2019 (Megatron-LM); Li et al., 2020 (PyTorch distributed).

"Columns" and "rows" are those of the paper, which multiplies x A. `nn.Linear` keeps Aᵀ,
(F, C): a column of A is a row of its weight.
"""

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional as F

from . import require

Group = dist.ProcessGroup | None  # None = all processes

# --- Parts --------------------------------------------------------------------------


def shard_sizes(n_rows: int, n_parts: int) -> list[int]:
    """Say how large nearly equal parts are; the first ones take what is left over.

    Args:
        n_rows: how many there are to share
        n_parts: how many parts, at least 1

    Returns:
        The sizes, which sum to ``n_rows`` and differ by at most 1.

    Raises:
        ValueError: if there is no part or ``n_rows`` is negative.

    >>> shard_sizes(5, 2)
    [3, 2]
    """
    require.at_least_one(n_parts=n_parts)
    require.not_negative(n_rows=n_rows)
    size, left_over = divmod(n_rows, n_parts)
    return [size + (part < left_over) for part in range(n_parts)]


def shard(x: Tensor, rank: int, world_size: int, dim: int = 0) -> Tensor:
    """Cut out the part of a tensor that belongs to one process.

    Args:
        x: any shape
        rank: which process, from 0
        world_size: how many processes
        dim: the axis that is cut

    Returns:
        A view of the part; all parts side by side are ``x``.

    Raises:
        ValueError: if ``rank`` is not between 0 and ``world_size - 1``.

    >>> shard(torch.arange(5), rank=1, world_size=2)
    tensor([3, 4])
    """
    require.between(0, world_size - 1, rank=rank)
    return x.split(shard_sizes(x.shape[dim], world_size), dim=dim)[rank]


# --- Averages -----------------------------------------------------------------------


def all_reduce_mean(x: Tensor, group: Group = None) -> Tensor:
    """Average a tensor over all processes.

    Args:
        x: the same shape in every process; it stays as it is
        group: the processes; all if not given

    Returns:
        The mean, the same in every process.

    Raises:
        TypeError: if ``x`` is not floating.

    >>> all_reduce_mean(torch.tensor([2.0]))  # one process
    tensor([2.])
    """
    if not x.is_floating_point():
        raise TypeError(f"x has dtype {x.dtype}, expected a floating type")
    return _sum(x.detach(), group) / _world(group)[1]


def average_gradients(model: nn.Module, group: Group = None) -> None:
    """Give every process the mean of all gradients: the heart of data parallelism.

    With equal parts of a batch and a loss that is a mean, the mean of the gradients is
    the gradient of the whole batch. Li et al., 2020, § 3.

    Args:
        model: its gradients are changed in place; a parameter without one counts as 0
            if another process has one, so all processes must have the same model
        group: the processes; all if not given

    >>> layer = nn.Linear(1, 1)
    >>> layer(torch.ones(1, 1)).sum().backward()
    >>> average_gradients(layer)
    >>> layer.weight.grad
    tensor([[1.]])
    """
    for parameter in model.parameters():
        if parameter.requires_grad:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            parameter.grad.copy_(all_reduce_mean(parameter.grad, group))


# --- Where processes talk -----------------------------------------------------------


class _Copy(torch.autograd.Function):
    """Forward nothing happens; backward the gradients of all processes are summed."""

    @staticmethod
    def forward(ctx, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return _sum(gradient, ctx.group), None


class _Reduce(torch.autograd.Function):
    """Forward the parts of all processes are summed; backward nothing happens."""

    @staticmethod
    def forward(ctx, x: Tensor, group: Group) -> Tensor:
        return _sum(x, group)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class _Gather(torch.autograd.Function):
    """Forward all columns are collected; backward each process takes its own."""

    @staticmethod
    def forward(ctx, x: Tensor, n_columns: int, group: Group) -> Tensor:
        ctx.group = group
        rank, world_size = _world(group)
        # Gathering needs equal parts; a sum does not, with zeros elsewhere.
        whole = x.new_zeros(*x.shape[:-1], n_columns)
        shard(whole, rank, world_size, dim=-1).copy_(x)
        return _sum(whole, group)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        return shard(gradient, *_world(ctx.group), dim=-1), None, None


def copy_to_all(x: Tensor, group: Group = None) -> Tensor:
    """Hand the same input to all processes.

    Forward nothing has to be done, as all have it. Backward, each process knows only
    what its part of the layer makes of the input, so the gradients are summed. Shoeybi
    et al., 2019, § 3, f.

    Args:
        x: the same in every process
        group: the processes; all if not given

    Returns:
        ``x``

    >>> copy_to_all(torch.tensor([2.0]))
    tensor([2.])
    """
    return _Copy.apply(x, group)


def sum_from_all(x: Tensor, group: Group = None) -> Tensor:
    """Sum what all processes have computed; backward, each gets the gradient as it is.

    Shoeybi et al., 2019, § 3, g.

    Args:
        x: the same shape in every process; it stays as it is
        group: the processes; all if not given

    Returns:
        The sum, the same in every process.

    >>> sum_from_all(torch.tensor([2.0]))
    tensor([2.])
    """
    return _Reduce.apply(x, group)


def gather_columns(x: Tensor, n_columns: int, group: Group = None) -> Tensor:
    """Put the columns of all processes side by side.

    Args:
        x: (..., the process's `shard` of the columns)
        n_columns: how many columns all processes have together
        group: the processes; all if not given

    Returns:
        (..., n_columns), the same in every process.

    Raises:
        ValueError: if ``x`` has not the number of columns of its process.

    >>> gather_columns(torch.tensor([[1.0, 2.0]]), n_columns=2)
    tensor([[1., 2.]])
    """
    rank, world_size = _world(group)
    require.width("x", x, shard_sizes(n_columns, world_size)[rank])
    return _Gather.apply(x, n_columns, group)


# --- Layers -------------------------------------------------------------------------


class ColumnParallelLinear(nn.Module):
    """A linear layer of which every process computes some of the outputs.

    Every process holds the rows of the weight, and the numbers of the bias, that belong
    to its outputs: ``weight`` (F_rank, C) and ``bias`` (F_rank,). Shoeybi et al., 2019,
    § 3.

    Args:
        linear: the whole layer, the same in every process; its part is copied
        gather_output: whether all outputs are put together; otherwise each process
            goes on with its own, as a `RowParallelLinear` wants them
        group: the processes; all if not given

    >>> layer = ColumnParallelLinear(nn.Linear(4, 2))
    >>> layer(torch.zeros(1, 3, 4)).shape
    torch.Size([1, 3, 2])
    """

    def __init__(
        self, linear: nn.Linear, *, gather_output: bool = False, group: Group = None
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.gather_output, self.group = gather_output, group
        rank, world_size = _world(group)
        self.weight = _part(linear.weight, rank, world_size, dim=0)  # (F_rank, C)
        self.bias = None
        if linear.bias is not None:
            self.bias = _part(linear.bias, rank, world_size, dim=0)  # (F_rank,)

    def forward(self, x: Tensor) -> Tensor:
        """Compute this process's outputs.

        Args:
            x: (..., C), the same in every process

        Returns:
            (..., F_rank), or (..., F) with ``gather_output``.

        Raises:
            ValueError: if the width of ``x`` is not the layer's.
        """
        require.width("x", x, self.in_features)
        output = F.linear(copy_to_all(x, self.group), self.weight, self.bias)
        if self.gather_output:
            return gather_columns(output, self.out_features, self.group)
        return output


class RowParallelLinear(nn.Module):
    """A linear layer of which every process sums over some of the inputs.

    Every process holds the columns of the weight that belong to its inputs, ``weight``
    (F, C_rank). The ``bias`` (F,) is held by all and added once, after the sum. Shoeybi
    et al., 2019, § 3.

    Args:
        linear: the whole layer, the same in every process; its part is copied
        split_input: whether every process gets the whole input and takes its part;
            otherwise it gets the part only, as a `ColumnParallelLinear` gives it
        group: the processes; all if not given

    >>> layer = RowParallelLinear(nn.Linear(4, 2))
    >>> layer(torch.zeros(1, 3, 4)).shape
    torch.Size([1, 3, 2])
    """

    def __init__(
        self, linear: nn.Linear, *, split_input: bool = False, group: Group = None
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.split_input, self.group = split_input, group
        rank, world_size = _world(group)
        self.weight = _part(linear.weight, rank, world_size, dim=1)  # (F, C_rank)
        self.bias = None
        if linear.bias is not None:
            self.bias = nn.Parameter(linear.bias.detach().clone())  # (F,)

    def forward(self, x: Tensor) -> Tensor:
        """Sum over this process's inputs, then over all processes.

        Args:
            x: (..., C_rank), or (..., C) with ``split_input``

        Returns:
            (..., F), the same in every process.

        Raises:
            ValueError: if the width of ``x`` is not what is expected.
        """
        if self.split_input:
            require.width("x", x, self.in_features)
            x = shard(copy_to_all(x, self.group), *_world(self.group), dim=-1)
        require.width("x", x, self.weight.shape[1])
        output = sum_from_all(F.linear(x, self.weight), self.group)
        return output if self.bias is None else output + self.bias


def _world(group: Group) -> tuple[int, int]:
    """This process's number and how many there are; (0, 1) for one alone."""
    if not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    rank = dist.get_rank(group)
    if rank < 0:
        raise ValueError("this process is not one of the group")
    return rank, dist.get_world_size(group)


def _sum(x: Tensor, group: Group) -> Tensor:
    """The sum over all processes, as a new tensor."""
    total = x.clone(memory_format=torch.contiguous_format)
    if _world(group)[1] > 1:
        dist.all_reduce(total, group=group)
    return total


def _part(x: Tensor, rank: int, world_size: int, dim: int) -> nn.Parameter:
    return nn.Parameter(shard(x.detach(), rank, world_size, dim).clone())
