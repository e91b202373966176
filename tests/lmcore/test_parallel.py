"""Tests of lmcore.parallel: by hand in one process, and in two that really talk.

The two processes are started once, by the fixture ``two``, with this file as their
program; each runs `work` and saves what it got.
"""

import os
import re
import subprocess
import sys
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import distributed, nn

from lmcore import parallel

close = partial(torch.testing.assert_close, atol=1e-5, rtol=0.0)
B, T, C, N_FF, N_OUT = 2, 3, 7, 5, 9  # odd, so that two processes cannot share evenly


def layers(bias=True):
    torch.manual_seed(3)
    return nn.Linear(C, N_FF, bias=bias), nn.Linear(N_FF, N_OUT, bias=bias)


def inputs():
    torch.manual_seed(4)
    x, upstream = torch.randn(B, T, C), torch.randn(B, T, N_OUT)
    return x.requires_grad_(), upstream


def network(first, second, x, upstream):
    """Two layers with a bend between: output and all gradients."""
    y = second(torch.tanh(first(x)))
    parameters = [*first.parameters(), *second.parameters()]
    gradients = torch.autograd.grad(y, [x, *parameters], upstream)
    return [y.detach(), *gradients]


def work():
    """What each of the two processes computes, as a dictionary of plain tensors."""
    rank = distributed.get_rank()
    got = {"mean": parallel.all_reduce_mean(torch.tensor([1.0 + 2 * rank]))}
    untouched = torch.tensor([float(rank)])
    parallel.all_reduce_mean(untouched)
    got["untouched"] = untouched
    for bias in (True, False):
        first, second = layers(bias)
        column = parallel.ColumnParallelLinear(first)
        row = parallel.RowParallelLinear(second)
        got[f"pair {bias}"] = network(column, row, *inputs())
        column = parallel.ColumnParallelLinear(first, gather_output=True)
        row = parallel.RowParallelLinear(second, split_input=True)
        got[f"alone {bias}"] = network(column, row, *inputs())
    # Data parallel: each process has one of the two texts.
    first, second = layers()
    model = nn.Sequential(first, nn.Tanh(), second)
    x, upstream = inputs()
    (model(x[rank]) * upstream[rank]).sum().backward()
    first.bias.grad = None if rank == 0 else first.bias.grad
    parallel.average_gradients(model)
    got["data parallel"] = [p.grad for p in model.parameters()]
    got["sizes"] = [list(layer.weight.shape) for layer in (column, row)]
    # Two groups of one process each: nobody hears of the other.
    own = [distributed.new_group([number]) for number in range(2)][rank]
    got["own mean"] = parallel.all_reduce_mean(torch.tensor([float(rank)]), own)
    first, second = layers()
    column = parallel.ColumnParallelLinear(first, gather_output=True, group=own)
    row = parallel.RowParallelLinear(second, split_input=True, group=own)
    got["own layers"] = network(column, row, *inputs())
    first.weight.grad = torch.full_like(first.weight, float(rank))
    parallel.average_gradients(first, own)
    got["own gradient"] = first.weight.grad
    try:
        parallel.gather_columns(torch.zeros(1, 4), n_columns=5)
    except ValueError as error:
        got["refusal"] = str(error)
    return got


def main(rank, folder):
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
    )
    torch.save(work(), f"{folder}/{rank}.pt")
    distributed.barrier()
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What the two processes got."""
    folder = tmp_path_factory.mktemp("two")
    root = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__]
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(folder)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=120)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert [process.returncode for process in processes] == [0, 0], said
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


# --- Parts --------------------------------------------------------------------------


@given(n_rows=st.integers(0, 30), n_parts=st.integers(1, 8))
def test_parts_are_whole(n_rows, n_parts):
    sizes = parallel.shard_sizes(n_rows, n_parts)
    assert len(sizes) == n_parts
    assert max(sizes) - min(sizes) <= 1
    x = torch.randn(2, n_rows, 3)
    parts = [parallel.shard(x, rank, n_parts, dim=1) for rank in range(n_parts)]
    assert [part.shape[1] for part in parts] == sizes
    assert torch.equal(torch.cat(parts, dim=1), x)


def test_parts_by_hand(device):
    assert parallel.shard_sizes(5, 2) == [3, 2]
    x = torch.arange(10, device=device).view(2, 5)
    assert parallel.shard(x, 0, 2, dim=-1).tolist() == [[0, 1, 2], [5, 6, 7]]
    assert parallel.shard(x, 1, 2).tolist() == [[5, 6, 7, 8, 9]]
    assert parallel.shard(x, 2, 3).shape == (0, 5)


# --- One process --------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_process_is_the_plain_layer(bias, together, dtype, device):
    first, second = (layer.to(device, dtype) for layer in layers(bias))
    x, upstream = (t.detach().to(device, dtype) for t in inputs())
    x.requires_grad_()
    column = parallel.ColumnParallelLinear(first, gather_output=together)
    row = parallel.RowParallelLinear(second, split_input=together)
    got = network(column, row, x, upstream)
    for ours, expected in zip(got, network(first, second, x, upstream), strict=True):
        assert ours.dtype == dtype
        close(ours, expected, atol=1e-5 if dtype == torch.float32 else 5e-2)
    with torch.no_grad():
        column.weight.zero_()
    assert first.weight.abs().max() > 0, "the part is the layer's own"


def test_one_process_averages_itself(device):
    x = torch.randn(3, device=device, requires_grad=True)
    mean = parallel.all_reduce_mean(x)
    close(mean, x.detach())
    assert mean.data_ptr() != x.data_ptr()
    assert not mean.requires_grad


# --- Two processes ------------------------------------------------------------------


def test_mean_of_two(two):
    """1 and 3 make 2, in both; what was averaged stays."""
    for rank, got in enumerate(two):
        assert got["mean"].tolist() == [2.0]
        assert got["untouched"].tolist() == [float(rank)]


def test_a_group_keeps_to_itself(two):
    """A group of one is a process alone, though there is another one."""
    first, second = layers()
    expected = network(first, second, *inputs())
    for rank, got in enumerate(two):
        assert got["own mean"].tolist() == [float(rank)]
        assert got["own gradient"].unique().tolist() == [float(rank)]
        for ours, want in zip(got["own layers"], expected, strict=True):
            close(ours, want)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["pair", "alone"])
def test_two_processes_equal_one(two, kind, bias):
    """Output, gradient of the input, and the parts of all parameters' gradients."""
    expected = network(*layers(bias), *inputs())
    for rank, got in enumerate(two):
        cut = partial(parallel.shard, rank=rank, world_size=2)
        y, x, *parameters = expected
        if bias:
            weight1, bias1, weight2, bias2 = parameters
            wanted = [cut(weight1), cut(bias1), cut(weight2, dim=1), bias2]
        else:
            weight1, weight2 = parameters
            wanted = [cut(weight1), cut(weight2, dim=1)]
        for ours, want in zip(got[f"{kind} {bias}"], [y, x, *wanted], strict=True):
            close(ours, want)


def test_each_holds_its_part(two):
    """5 hidden numbers are 3 + 2; the bias follows its outputs, or is whole."""
    assert two[0]["sizes"] == [[3, C], [N_OUT, 3]]
    assert two[1]["sizes"] == [[2, C], [N_OUT, 2]]


def test_data_parallel_is_the_mean(two):
    """The mean of both texts' gradients; where one has none, it counts as 0."""
    first, second = layers()
    model = nn.Sequential(first, nn.Tanh(), second)
    x, upstream = inputs()
    y = (model(x) * upstream).flatten(1).sum(dim=1)  # one loss per text
    of_each = [
        torch.autograd.grad(loss, model.parameters(), retain_graph=True) for loss in y
    ]
    wanted = [(a + b) / 2 for a, b in zip(*of_each, strict=True)]
    wanted[1] = of_each[1][1] / 2
    for got in two:
        for gradient, want in zip(got["data parallel"], wanted, strict=True):
            close(gradient, want)


def test_refusal_of_wrong_columns(two):
    """Four columns are refused by the process that has 3 of 5, and by that with 2."""
    assert "width 3" in two[0]["refusal"]
    assert "width 2" in two[1]["refusal"]


# --- Refusals -----------------------------------------------------------------------

LINEAR, NARROW = nn.Linear(C, N_FF), torch.zeros(2, 4)


@pytest.mark.parametrize(
    ("call", "error", "values"),
    [
        (lambda: parallel.shard_sizes(5, 0), ValueError, ["n_parts=0"]),
        (lambda: parallel.shard_sizes(-5, 1), ValueError, ["n_rows=-5"]),
        (lambda: parallel.shard(NARROW, 2, 2), ValueError, ["rank=2", "1"]),
        (lambda: parallel.shard(NARROW, -1, 2), ValueError, ["rank=-1"]),
        (lambda: parallel.all_reduce_mean(torch.ones(1).long()), TypeError, ["int64"]),
        (lambda: parallel.gather_columns(NARROW, 5), ValueError, ["(2, 4)", "5"]),
        (
            lambda: parallel.ColumnParallelLinear(LINEAR)(NARROW),
            ValueError,
            ["(2, 4)", "7"],
        ),
        (
            lambda: parallel.RowParallelLinear(LINEAR)(NARROW),
            ValueError,
            ["(2, 4)", "7"],
        ),
        (
            lambda: parallel.RowParallelLinear(LINEAR, split_input=True)(NARROW),
            ValueError,
            ["(2, 4)", "7"],
        ),
    ],
)
def test_refusal_names_the_values(call, error, values):
    with pytest.raises(error) as caught:
        call()
    for value in values:
        assert re.search(re.escape(value), str(caught.value)), str(caught.value)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
