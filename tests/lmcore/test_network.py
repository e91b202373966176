"""Sums, bends and surprises equal those of torch, and gradients those of autograd."""

import math
from functools import partial
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from lmcore import network
from lmcore.network import Scalar

close = partial(torch.testing.assert_close, atol=1e-5, rtol=0.0)
exactly = partial(torch.testing.assert_close, atol=0.0, rtol=0.0)
B, T, V = 4, 3, 5
N_IN, N_OUT = 7, 2
few = settings(max_examples=30)
numbers = st.floats(-3, 3)
either_float = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def dice(device="cpu", seed=1) -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


def assert_equal_with_gradients(ours, theirs, *inputs):
    """Both functions give the same, and the same gradients with respect to all."""
    found, expected = ours(*inputs), theirs(*inputs)
    close(found, expected)
    upstream = torch.randn_like(found)
    found = torch.autograd.grad(found, inputs, upstream)
    expected = torch.autograd.grad(expected, inputs, upstream)
    for one, other in zip(found, expected, strict=True):
        close(one, other)


# --- linear -------------------------------------------------------------------------


def test_a_weighted_sum_worked_by_hand(device):
    weight = torch.tensor([[1.0, 2.0], [3.0, 4.0]], device=device)
    x = torch.tensor([1.0, 0.0], device=device)
    exactly(network.linear(x, weight), torch.tensor([1.0, 3.0], device=device))
    bias = torch.tensor([10.0, 20.0], device=device)
    found = network.linear(x, weight, bias)
    exactly(found, torch.tensor([11.0, 23.0], device=device))


@either_float
@pytest.mark.parametrize("sizes", [(), (B,), (B, T)])
def test_linear_equals_torch(device, dtype, sizes):
    x = torch.randn(*sizes, N_IN, device=device, dtype=dtype, requires_grad=True)
    weight = torch.randn(N_OUT, N_IN, device=device, dtype=dtype, requires_grad=True)
    bias = torch.randn(N_OUT, device=device, dtype=dtype, requires_grad=True)
    assert_equal_with_gradients(network.linear, F.linear, x, weight, bias)
    assert_equal_with_gradients(network.linear, F.linear, x, weight)


def test_weights_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"width 3 .* \(3, 2\)"):
        network.linear(torch.ones(1, 3), torch.ones(3, 2))
    with pytest.raises(ValueError, match=r"\(3,\)"):
        network.linear(torch.ones(1, 3), torch.ones(3))
    with pytest.raises(ValueError, match=r"bias has shape \(3,\)"):
        network.linear(torch.ones(1, 3), torch.ones(2, 3), torch.ones(3))


# --- relu, gelu ---------------------------------------------------------------------


def test_bends_worked_by_hand(device):
    x = torch.tensor([-2.0, 0.0, 1.0], device=device)
    exactly(network.relu(x), torch.tensor([0.0, 0.0, 1.0], device=device))
    # Φ(1) = 0.841345; the approximations give 0.841192 and 0.845796.
    found = network.gelu(x)
    close(found, torch.tensor([-2 * 0.022750, 0.0, 0.841345], device=device))


@either_float
@pytest.mark.parametrize("name", ["relu", "gelu"])
def test_bends_equal_torch(device, dtype, name):
    x = torch.linspace(-6, 6, 41, device=device, dtype=dtype).requires_grad_()
    assert_equal_with_gradients(getattr(network, name), getattr(F, name), x)


def test_relu_ends_infinities_and_shows_what_is_not_a_number():
    found = network.relu(torch.tensor([-math.inf, math.inf, math.nan]))
    assert found[:2].tolist() == [0.0, math.inf]
    assert found[2].isnan()


@given(numbers)
def test_gelu_is_the_number_times_a_probability(number):
    found = network.gelu(torch.tensor(number, dtype=torch.float64)).item()
    normal = (1 + math.erf(number / math.sqrt(2))) / 2
    assert found == pytest.approx(number * normal, abs=1e-12)


# --- softmax, log_softmax -----------------------------------------------------------


def test_probabilities_worked_by_hand(device):
    x = torch.tensor([[0.0, 0.0], [math.log(3), 0.0]], device=device)
    expected = torch.tensor([[0.5, 0.5], [0.75, 0.25]], device=device)
    close(network.softmax(x), expected)
    close(network.log_softmax(x), expected.log())
    close(network.softmax(x, dim=0)[:, 0], torch.tensor([0.25, 0.75], device=device))


@pytest.mark.parametrize("function", ["softmax", "log_softmax"])
def test_large_logits_do_not_overflow(device, function):
    x = torch.tensor([[1000.0, 999.0], [0.0, -1.0], [-1000.0, -1001.0]], device=device)
    expected = torch.tensor([0.7310586, 0.2689414], device=device).expand(3, 2)
    found = getattr(network, function)(x)
    close(found.exp() if function == "log_softmax" else found, expected)
    two = torch.tensor([1000.0, 0.0], device=device)
    close(network.softmax(two), torch.tensor([1.0, 0.0], device=device))


def test_the_logarithm_of_an_unlikely_class_is_finite(device):
    x = torch.tensor([0.0, -200.0], device=device, requires_grad=True)
    found = network.log_softmax(x)
    exactly(found.detach(), torch.tensor([0.0, -200.0], device=device))
    found[1].backward()
    close(x.grad, torch.tensor([-1.0, 1.0], device=device))


@either_float
@pytest.mark.parametrize("dim", [-1, 0, 1])
@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_probabilities_equal_torch(device, dtype, dim, name):
    x = 9 * torch.randn(B, T, V, device=device, dtype=dtype)
    assert_equal_with_gradients(
        partial(getattr(network, name), dim=dim),
        partial(getattr(F, name), dim=dim),
        x.requires_grad_(),
    )


@given(st.lists(st.floats(-1e4, 1e4), min_size=1, max_size=6), st.floats(-1e4, 1e4))
def test_probabilities_sum_to_one_and_do_not_notice_a_shift(logits, shift):
    x = torch.tensor(logits, dtype=torch.float64)
    found = network.softmax(x)
    assert found.sum().item() == pytest.approx(1, abs=1e-9)
    assert found.min() >= 0
    torch.testing.assert_close(network.softmax(x + shift), found, atol=1e-9, rtol=0.0)


def test_what_is_impossible_has_no_probability():
    x = torch.tensor([0.0, -math.inf, 0.0])
    exactly(network.softmax(x), torch.tensor([0.5, 0.0, 0.5]))
    assert network.log_softmax(x)[1] == -math.inf


def test_halves_are_shifted_too():
    x = torch.tensor([200.0, 199.0, 0.0], dtype=torch.bfloat16)
    expected = F.softmax(x.float(), dim=-1)
    torch.testing.assert_close(
        network.softmax(x).float(), expected, atol=4e-3, rtol=0.0
    )


# --- cross_entropy ------------------------------------------------------------------


def test_surprise_worked_by_hand(device):
    logits = torch.tensor([[10.0, 0.0], [0.0, math.log(3)]], device=device)
    right = math.log(1 + math.exp(-10))
    found = network.cross_entropy(logits[:1], torch.tensor([0], device=device))
    close(found, torch.tensor(right, device=device), atol=1e-7)
    found = network.cross_entropy(logits, torch.tensor([0, 1], device=device))
    close(found, torch.tensor((right + math.log(4 / 3)) / 2, device=device))


@either_float
@pytest.mark.parametrize("sizes", [(), (B,), (B, T)])
def test_cross_entropy_equals_torch(device, dtype, sizes):
    logits = 5 * torch.randn(*sizes, V, device=device, dtype=dtype)
    targets = torch.randint(V, sizes, device=device)
    flat = targets.flatten()
    assert_equal_with_gradients(
        lambda x: network.cross_entropy(x, targets),
        lambda x: F.cross_entropy(x.reshape(-1, V), flat),
        logits.requires_grad_(),
    )


@pytest.mark.parametrize("ignore_index", [-100, -1, 0, V + 3])
def test_ignored_targets_do_not_count(device, ignore_index):
    logits = torch.randn(B, T, V, device=device)
    targets = torch.randint(1, V, (B, T), device=device)
    targets[:, 1] = targets[2] = ignore_index
    assert_equal_with_gradients(
        lambda x: network.cross_entropy(x, targets, ignore_index),
        lambda x: F.cross_entropy(
            x.reshape(-1, V), targets.flatten(), ignore_index=ignore_index
        ),
        logits.requires_grad_(),
    )


def test_one_ignored_and_one_counted_target_worked_by_hand():
    logits = torch.tensor([[5.0, 7.0], [0.0, 0.0]])
    found = network.cross_entropy(logits, torch.tensor([-100, 0]))
    close(found, torch.tensor(math.log(2)))


def test_where_nothing_counts_the_loss_is_zero_and_teaches_nothing(device):
    logits = torch.randn(2, V, device=device, requires_grad=True)
    loss = network.cross_entropy(logits, torch.full((2,), -100, device=device))
    assert loss.item() == 0.0
    loss.backward()
    exactly(logits.grad, torch.zeros_like(logits))


def test_random_answers_surprise_by_the_logarithm_of_their_number():
    targets = torch.randint(V, (B, T))
    found = network.cross_entropy(torch.zeros(B, T, V), targets)
    close(found, torch.tensor(math.log(V)))


@pytest.mark.parametrize("wrong", [-1, V])
def test_a_target_that_is_no_class_is_refused(wrong):
    targets = torch.tensor([1, wrong, 2, -100])
    low, high = min(1, wrong), max(2, wrong)
    with pytest.raises(ValueError, match=f"targets from {low} to {high} must"):
        network.cross_entropy(torch.zeros(4, V), targets)


def test_targets_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"\(3, 4\) .* \(4, 3, 5\)"):
        network.cross_entropy(torch.zeros(B, T, V), torch.zeros(T, B).long())


# --- Scalar -------------------------------------------------------------------------


def test_two_roads_add_up():
    a = Scalar(3.0)
    (a + a).backward()
    assert a.grad == 2.0


def test_a_derivative_worked_by_hand():
    # f = (a b + a) b with a = 3, b = 2: by a it is (b + 1) b = 6, by b it is
    # a b + (a b + a) = 15.
    a, b = Scalar(3.0), Scalar(2.0)
    result = (a * b + a) * b
    result.backward()
    assert (result.data, a.grad, b.grad) == (18.0, 6.0, 15.0)
    assert result.grad == 1.0


def expression(a, b):
    """A small network of numbers that uses all operations, and some numbers twice."""
    hidden = (a * b - 2.0 + a).tanh() + (1.5 - b * b).relu()
    return (3 * hidden - (-a).exp() + (hidden * hidden + 1).log()) * (0.5 + hidden)


@given(numbers, numbers)
def test_derivatives_equal_autograd(first, second):
    a, b = Scalar(first), Scalar(second)
    result = expression(a, b)
    result.backward()
    x, y = (
        torch.tensor(n, dtype=torch.float64, requires_grad=True)
        for n in (first, second)
    )
    expected = expression(x, y)
    expected.backward()
    assert result.data == pytest.approx(expected.item(), rel=1e-9, abs=1e-9)
    assert a.grad == pytest.approx(x.grad.item(), rel=1e-9, abs=1e-9)
    assert b.grad == pytest.approx(y.grad.item(), rel=1e-9, abs=1e-9)


def test_gradients_of_two_results_add_up():
    a = Scalar(3.0)
    (a * 2.0).backward()
    (a * 5.0).backward()
    assert a.grad == 7.0
    again = a * 2.0
    again.backward()
    again.backward()
    assert a.grad == 11.0


def test_a_long_chain_does_not_run_too_deep():
    a = Scalar(1.0)
    result = a
    for _ in range(5000):
        result = result + 1.0
    result.backward()
    assert (result.data, a.grad) == (5001.0, 1.0)


def test_many_roads_are_not_walked_one_by_one():
    a = Scalar(1.0)
    result = a
    for _ in range(60):
        result = result + result
    result.backward()
    assert a.grad == 2.0**60


def test_there_is_no_logarithm_of_zero():
    with pytest.raises(ValueError, match=r"logarithm of 0\.0"):
        Scalar(0.0).log()
    assert repr(Scalar(2)) == "Scalar(2.0, grad=0.0)"


# --- xavier_uniform, kaiming_normal, init_mlp ---------------------------------------


def test_the_bound_of_xavier_worked_by_hand(device):
    # √(6 / (4 + 2)) = 1: uniform between -1 and 1, of variance 1/3.
    weights = [network.xavier_uniform(4, 2, dice(device, seed)) for seed in range(2000)]
    drawn = torch.stack(weights)  # (2000, 2, 4)
    assert drawn.shape[1:] == (2, 4)
    assert 0.99 < drawn.abs().max() <= 1
    assert drawn.var().item() == pytest.approx(1 / 3, abs=0.015)
    assert drawn.mean().item() == pytest.approx(0, abs=0.03)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (network.xavier_uniform, nn.init.xavier_uniform_),
        (
            network.kaiming_normal,
            partial(nn.init.kaiming_normal_, nonlinearity="relu"),
        ),
    ],
)
@pytest.mark.parametrize("dtype", [None, torch.float64])
def test_first_weights_equal_those_of_torch(device, ours, theirs, dtype):
    found = ours(N_IN, N_OUT, dice(device), dtype)
    empty = torch.empty(N_OUT, N_IN, device=device, dtype=dtype)
    close(found, theirs(empty, generator=dice(device)))


def test_the_variance_of_kaiming_is_two_over_the_inputs():
    weight = network.kaiming_normal(50, 400, dice())
    assert weight.shape == (400, 50)
    assert weight.var().item() == pytest.approx(2 / 50, rel=0.05)


def test_xavier_keeps_the_size_of_what_goes_through():
    x = torch.randn(200, 300, generator=dice(seed=2))
    out = network.linear(x, network.xavier_uniform(300, 300, dice()))
    assert out.var().item() == pytest.approx(1, rel=0.1)


def test_kaiming_keeps_the_size_through_many_relu_layers():
    x = torch.randn(100, 200, generator=dice(seed=2))
    weights, biases = network.init_mlp([200] * 21, dice())
    _, inputs = network.mlp_forward(x, weights, biases)
    sizes = [layer.square().mean().item() for layer in inputs[1:]]
    assert 0.3 < sizes[-1] < 3


@pytest.mark.parametrize("draw", [network.xavier_uniform, network.kaiming_normal])
def test_a_layer_without_inputs_is_refused(draw):
    with pytest.raises(ValueError, match="n_in=0"):
        draw(0, 2, dice())
    with pytest.raises(ValueError, match="n_out=0"):
        draw(2, 0, dice())


def test_a_network_is_made_of_the_widths_given():
    weights, biases = network.init_mlp([N_IN, 3, 4, N_OUT], dice(), torch.float64)
    assert [tuple(w.shape) for w in weights] == [(3, N_IN), (4, 3), (N_OUT, 4)]
    assert [tuple(b.shape) for b in biases] == [(3,), (4,), (N_OUT,)]
    assert all(w.dtype == torch.float64 for w in [*weights, *biases])
    assert not any(b.any() for b in biases)
    with pytest.raises(ValueError, match=r"widths=\[3\]"):
        network.init_mlp([3], dice())


# --- mlp_forward, mlp_backward ------------------------------------------------------


def test_a_network_for_the_absolute_value_worked_by_hand(device):
    tensor = partial(torch.tensor, device=device)
    weights = [tensor([[1.0], [-1.0]]), tensor([[1.0, 1.0]])]
    biases = [tensor([0.0, 0.0]), tensor([0.5])]
    x = tensor([[3.0], [-2.0], [4.0]])
    output, inputs = network.mlp_forward(x, weights, biases)
    exactly(output, tensor([[3.5], [2.5], [4.5]]))
    exactly(inputs[1], tensor([[3.0, 0.0], [0.0, 2.0], [4.0, 0.0]]))
    upstream = tensor([[5.0], [7.0], [1.0]])
    weight_grads, bias_grads, x_grad = network.mlp_backward(upstream, weights, inputs)
    exactly(x_grad, tensor([[5.0], [-7.0], [1.0]]))
    exactly(bias_grads[1], tensor([13.0]))
    exactly(bias_grads[0], tensor([6.0, 7.0]))
    exactly(weight_grads[1], tensor([[3 * 5.0 + 4 * 1.0, 2 * 7.0]]))
    exactly(weight_grads[0], tensor([[3 * 5.0 + 4 * 1.0], [-2 * 7.0]]))


def test_the_gradient_from_above_passes_an_open_relu_unchanged():
    one = [torch.ones(1, 1), torch.ones(1, 1)]
    zero = [torch.zeros(1), torch.zeros(1)]
    _, inputs = network.mlp_forward(torch.tensor([[2.0]]), one, zero)
    assert network.mlp_backward(torch.tensor([[5.0]]), one, inputs)[2].item() == 5.0


@either_float
@pytest.mark.parametrize("widths", [[N_IN, N_OUT], [N_IN, 6, N_OUT], [N_IN, 6, 3, 5]])
@pytest.mark.parametrize("n_rows", [1, B])
def test_the_backward_pass_equals_autograd(device, dtype, widths, n_rows):
    weights, biases = network.init_mlp(widths, dice(device), dtype)
    biases = [torch.randn_like(bias) for bias in biases]
    leaves = [*weights, *biases, torch.randn(n_rows, N_IN, device=device, dtype=dtype)]
    for leaf in leaves:
        leaf.requires_grad_()
    output, inputs = network.mlp_forward(leaves[-1], weights, biases)
    upstream = torch.randn_like(output)
    found = network.mlp_backward(upstream, weights, inputs)
    expected = torch.autograd.grad(output, leaves, upstream)
    for ours, theirs in zip([*found[0], *found[1], found[2]], expected, strict=True):
        assert ours.shape == theirs.shape
        close(ours, theirs)


def test_the_forward_pass_equals_torch(device):
    widths = [N_IN, 6, 3, N_OUT]
    weights, biases = network.init_mlp(widths, dice(device))
    layers = []
    for (n_in, n_out), weight in zip(pairwise(widths), weights, strict=True):
        layer = nn.Linear(n_in, n_out, bias=False, device=device)
        layer.weight = nn.Parameter(weight)
        layers += [layer, nn.ReLU()]
    x = torch.randn(B, N_IN, device=device)
    close(network.mlp_forward(x, weights, biases)[0], nn.Sequential(*layers[:-1])(x))


@few
@given(st.integers(1, 5), st.lists(st.integers(1, 6), min_size=2, max_size=4))
def test_a_batch_is_its_rows(n_rows, widths):
    weights, biases = network.init_mlp(widths, dice(), torch.float64)
    x = torch.randn(n_rows, widths[0], dtype=torch.float64)
    upstream = torch.randn(n_rows, widths[-1], dtype=torch.float64)
    output, inputs = network.mlp_forward(x, weights, biases)
    whole = network.mlp_backward(upstream, weights, inputs)
    summed = (
        [torch.zeros_like(w) for w in weights],
        [torch.zeros_like(b) for b in biases],
    )
    for row in range(n_rows):
        one = slice(row, row + 1)
        row_output, row_inputs = network.mlp_forward(x[one], weights, biases)
        close(row_output, output[one])
        part = network.mlp_backward(upstream[one], weights, row_inputs)
        close(part[2], whole[2][one])
        for total, grads in zip(summed, part[:2], strict=True):
            for t, g in zip(total, grads, strict=True):
                t += g
    for total, grads in zip(summed, whole[:2], strict=True):
        for t, g in zip(total, grads, strict=True):
            close(t, g)


def test_networks_that_do_not_fit_are_refused():
    weights, biases = network.init_mlp([3, 4, 2], dice())
    with pytest.raises(ValueError, match="2 weights and 1 biases"):
        network.mlp_forward(torch.ones(1, 3), weights, biases[:1])
    with pytest.raises(ValueError, match="0 weights"):
        network.mlp_forward(torch.ones(1, 3), [], [])
    _, inputs = network.mlp_forward(torch.ones(B, 3), weights, biases)
    with pytest.raises(ValueError, match=r"upstream \(3, 2\).*expected \(4, 2\)"):
        network.mlp_backward(torch.ones(3, 2), weights, inputs)
    with pytest.raises(ValueError, match="1 inputs do not fit"):
        network.mlp_backward(torch.ones(B, 2), weights, inputs[1:])


# --- train_step, train --------------------------------------------------------------


def test_a_step_worked_by_hand(device):
    model = nn.Linear(1, 1, bias=False, device=device)
    nn.init.zeros_(model.weight)
    x, y = torch.ones(2, 1, device=device), torch.full((2, 1), 3.0, device=device)
    # The loss (w - 3)² is 9 at w = 0 and falls there by 6 for every 1.
    assert network.train_step(model, x, y, 0.25, F.mse_loss) == 9.0
    assert model.weight.item() == 1.5
    assert network.train_step(model, x, y, 0.25, F.mse_loss) == 2.25


def test_gradients_of_the_step_before_do_not_stay():
    model = nn.Linear(N_IN, V)
    x, y = torch.randn(B, N_IN), torch.randint(V, (B,))
    network.train_step(model, x, y, learning_rate=0.0)
    first = model.weight.grad.clone()
    network.train_step(model, x, y, learning_rate=0.0)
    exactly(model.weight.grad, first)
    assert first.abs().max() > 0


def test_a_step_equals_that_of_torch(device):
    ours, theirs = (nn.Linear(N_IN, V, device=device) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.1)
    x, y = torch.randn(B, N_IN, device=device), torch.randint(V, (B,), device=device)
    for _ in range(3):
        loss = network.train_step(ours, x, y, 0.1)
        optimizer.zero_grad()
        expected = F.cross_entropy(theirs(x), y)
        expected.backward()
        optimizer.step()
        assert loss == pytest.approx(expected.item(), abs=1e-5)
    close(ours.weight, theirs.weight)
    close(ours.bias, theirs.bias)


def test_parameters_that_are_not_used_stay():
    model = nn.ModuleDict({"used": nn.Linear(2, 3), "spare": nn.Linear(2, 3)})
    model.forward = model["used"].forward
    before = model["spare"].weight.clone()
    network.train_step(model, torch.ones(1, 2), torch.tensor([0]), 0.1)
    exactly(model["spare"].weight, before)


def test_a_loss_that_is_not_finite_stops_the_training():
    model = nn.Linear(1, 1)
    x, y = torch.ones(1, 1), torch.full((1, 1), math.inf)
    before = model.weight.clone()
    with pytest.raises(ValueError, match="the loss is inf"):
        network.train_step(model, x, y, 0.1, F.mse_loss)
    exactly(model.weight, before)


def test_training_learns_and_rolls_only_the_dice_it_is_given():
    x = torch.randn(50, 2, generator=dice())
    y = (x[:, 0] > x[:, 1]).long()
    options = {"n_steps": 40, "batch_size": 8, "learning_rate": 1.0}
    runs = []
    for global_seed in (1, 2):
        model = nn.Linear(2, 2)
        nn.init.zeros_(model.weight)
        nn.init.zeros_(model.bias)
        torch.manual_seed(global_seed)
        runs.append(network.train(model, x, y, **options, generator=dice()))
    assert runs[0] == runs[1]
    assert len(runs[0]) == 40
    assert runs[0][0] == pytest.approx(math.log(2), abs=1e-6)
    assert sum(runs[0][-10:]) / 10 < 0.25


def test_training_on_nothing_is_refused():
    options = {"learning_rate": 0.1, "generator": dice()}
    with pytest.raises(ValueError, match="0 inputs"):
        network.train(
            nn.Linear(2, 2),
            torch.ones(0, 2),
            torch.ones(0).long(),
            n_steps=1,
            batch_size=1,
            **options,
        )
    with pytest.raises(ValueError, match="3 inputs and 2 targets"):
        network.train(
            nn.Linear(2, 2),
            torch.ones(3, 2),
            torch.ones(2).long(),
            n_steps=1,
            batch_size=1,
            **options,
        )
    with pytest.raises(ValueError, match="n_steps=0"):
        network.train(
            nn.Linear(2, 2),
            torch.ones(3, 2),
            torch.ones(3).long(),
            n_steps=0,
            batch_size=1,
            **options,
        )


# --- context_windows, NeuralNGram ---------------------------------------------------


def test_windows_worked_by_hand(device):
    ids = torch.tensor([5, 6, 7], device=device)
    contexts, targets = network.context_windows(ids, n_context=2, begin=0)
    assert contexts.tolist() == [[0, 0], [0, 5], [5, 6]]
    assert targets.tolist() == [5, 6, 7]


@given(st.lists(st.integers(1, 9), max_size=9), st.integers(1, 4))
def test_every_token_stands_after_its_context(tokens, n_context):
    contexts, targets = network.context_windows(
        torch.tensor(tokens).long(), n_context, begin=0
    )
    padded = [0] * n_context + tokens
    assert targets.tolist() == tokens
    assert contexts.tolist() == [padded[i : i + n_context] for i in range(len(tokens))]


def test_windows_of_what_is_no_row_are_refused():
    with pytest.raises(ValueError, match=r"shape \(2, 1\)"):
        network.context_windows(torch.ones(2, 1).long(), 1, 0)
    with pytest.raises(ValueError, match="n_context=0"):
        network.context_windows(torch.ones(2).long(), 0, 0)


def neural(device="cpu", **options) -> network.NeuralNGram:
    sizes = {"n_words": V, "n_context": T, "d_model": 2, "d_hidden": 6}
    return network.NeuralNGram(**sizes, generator=dice(device), **options)


@pytest.mark.parametrize("direct", [False, True])
def test_a_neural_n_gram_equals_layers_of_torch(device, direct):
    model = neural(device, direct=direct)
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    contexts = torch.randint(V, (B, T), device=device)
    x = F.embedding(contexts, model.embedding).view(B, T * 2)
    hidden = torch.tanh(F.linear(x, model.hidden_weight, model.hidden_bias))
    expected = F.linear(hidden, model.output_weight, model.output_bias)
    if direct:
        expected = expected + F.linear(x, model.direct_weight)
    assert_equal_with_gradients(
        lambda *_: model(contexts),
        lambda *_: expected,
        *model.parameters(),
    )


def test_the_sizes_of_a_neural_n_gram():
    model = neural(direct=True, dtype=torch.float64)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert shapes == {
        "embedding": (V, 2),
        "hidden_weight": (6, T * 2),
        "hidden_bias": (6,),
        "output_weight": (V, 6),
        "output_bias": (V,),
        "direct_weight": (V, T * 2),
    }
    assert all(p.dtype == torch.float64 for p in model.parameters())
    assert len(list(neural().parameters())) == 5


def test_every_place_of_the_context_has_weights_of_its_own():
    model = neural()
    contexts = torch.tensor([[1, 2, 3], [3, 2, 1]])
    assert not torch.allclose(*model(contexts))
    close(model(contexts)[1:], model(contexts[1:]))


def test_a_neural_n_gram_starts_near_complete_ignorance_and_learns():
    text = torch.tensor([1, 2, 3, 4] * 20)  # after 1 comes 2, after 2 comes 3 …
    contexts, targets = network.context_windows(text, T, begin=0)
    model = neural()
    first = network.cross_entropy(model(contexts), targets).item()
    assert first == pytest.approx(math.log(V), abs=0.7)
    options = {"n_steps": 60, "batch_size": 16, "learning_rate": 0.5}
    network.train(model, contexts, targets, **options, generator=dice())
    assert network.cross_entropy(model(contexts), targets).item() < 0.1
    assert model(contexts).argmax(-1)[1:].tolist() == targets[1:].tolist()


def test_contexts_that_do_not_fit_are_refused():
    model = neural()
    with pytest.raises(ValueError, match=r"2 tokens .* n_context=3"):
        model(torch.zeros(B, 2).long())
    for wrong in (-1, V):
        with pytest.raises(ValueError, match=f"{wrong}.* n_words - 1 = {V - 1}"):
            model(torch.tensor([[0, wrong, 0]]))
    with pytest.raises(ValueError, match="d_hidden=0"):
        network.NeuralNGram(V, T, 2, 0, generator=dice())
