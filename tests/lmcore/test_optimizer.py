"""Tests of lmcore.optimizer against torch.optim, by hand, and by property."""

import copy
import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lmcore import optimizer as optimizers

few = settings(max_examples=20)


def exactly(found, expected):
    torch.testing.assert_close(found, expected, atol=0, rtol=0)


def one_parameter(value, gradient):
    parameter = nn.Parameter(torch.tensor([value], dtype=torch.float64))
    parameter.grad = torch.tensor([gradient], dtype=torch.float64)
    return parameter


# --- SGD, Adam, AdamW ---------------------------------------------------------------

PAIRS = {
    "sgd": (optimizers.SGD, torch.optim.SGD, {"lr": 0.1}),
    "momentum": (optimizers.SGD, torch.optim.SGD, {"lr": 0.05, "momentum": 0.9}),
    "decayed": (
        optimizers.SGD,
        torch.optim.SGD,
        {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.1},
    ),
    "nesterov": (
        optimizers.SGD,
        torch.optim.SGD,
        {"lr": 0.05, "momentum": 0.8, "nesterov": True, "weight_decay": 0.01},
    ),
    "adam": (optimizers.Adam, torch.optim.Adam, {"lr": 0.01}),
    "adam, decayed": (
        optimizers.Adam,
        torch.optim.Adam,
        {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.1},
    ),
    "adamw": (optimizers.AdamW, torch.optim.AdamW, {"lr": 0.01}),
    "adamw, other": (
        optimizers.AdamW,
        torch.optim.AdamW,
        {"lr": 0.02, "betas": (0.7, 0.9), "eps": 1e-2, "weight_decay": 0.3},
    ),
}


def trained(make, options, device, dtype=torch.float32, n_steps=100):
    """The parameters of a small network after training at a rate that falls."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))
    model.to(device, dtype)
    groups = optimizers.decay_groups(model, options.get("weight_decay", 0.0))
    optimizer = make(groups, **options)
    inputs = torch.randn(n_steps, 4, 3).to(device, dtype)
    for step, x in enumerate(inputs):
        for group in optimizer.param_groups:
            group["lr"] = options["lr"] * (1 - step / n_steps)
        optimizer.zero_grad()
        (model(x) - x[:, :2].sin()).square().mean().backward()
        optimizer.step()
    return list(model.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", PAIRS)
def test_equals_torch_over_many_steps(name, dtype, device):
    ours, theirs, options = PAIRS[name]
    found = trained(ours, options, device, dtype)
    expected = trained(theirs, options, device, dtype)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", PAIRS)
def test_halves_stay_halves(name, device):
    ours, _, options = PAIRS[name]
    for parameter in trained(ours, options, device, torch.bfloat16, n_steps=3):
        assert parameter.dtype == torch.bfloat16
        assert parameter.isfinite().all()


def test_decay_is_beside_the_step_and_first():
    """Coupled it would be .9, after the step .891."""
    parameter = one_parameter(1.0, 1.0)
    optimizers.AdamW([parameter], lr=0.1, weight_decay=0.1).step()
    assert parameter.item() == pytest.approx(0.89, abs=1e-8)
    parameter = one_parameter(1.0, 1.0)
    optimizers.Adam([parameter], lr=0.1, weight_decay=0.1).step()
    assert parameter.item() == pytest.approx(0.9, abs=1e-8)


def test_eps_comes_after_the_correction():
    """With a gradient as small as eps half of the step is left."""
    parameter = one_parameter(0.0, 1e-3)
    optimizers.Adam([parameter], lr=1.0, eps=1e-3).step()
    assert parameter.item() == pytest.approx(-0.5, abs=1e-9)


def test_a_new_rate_counts_for_all_of_the_velocity():
    """The velocity holds 1, then 1.9: the second step is .01 · 1.9."""
    parameter = one_parameter(0.0, 1.0)
    optimizer = optimizers.SGD([parameter], lr=0.1, momentum=0.9)
    optimizer.step()
    optimizer.param_groups[0]["lr"] = 0.01
    optimizer.step()
    assert parameter.item() == pytest.approx(-0.1 - 0.019)


@pytest.mark.parametrize("name", PAIRS)
def test_state_can_be_saved_and_loaded(name):
    """Two steps, saved, and two more equal four."""
    make, _, options = PAIRS[name]
    gradients = torch.randn(4, 3)
    parameter, other = (nn.Parameter(torch.ones(3)) for _ in range(2))
    optimizer = make([parameter], **options)
    for gradient in gradients[:2]:
        parameter.grad = gradient.clone()
        optimizer.step()
    other.data.copy_(parameter.data)
    loaded = make([other], **options)
    loaded.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for gradient in gradients[2:]:
        parameter.grad, other.grad = gradient.clone(), gradient.clone()
        optimizer.step()
        loaded.step()
    exactly(parameter, other)


def test_gradients_stay_and_missing_ones_are_left_out():
    used, unused = one_parameter(1.0, 2.0), one_parameter(1.0, 0.0)
    unused.grad = None
    for make, _, options in PAIRS.values():
        make([used, unused], **options).step()
        assert unused.item() == 1.0
        assert used.grad.item() == 2.0


def test_a_closure_is_called_with_gradients_on():
    parameter = one_parameter(1.0, 0.0)
    optimizer = optimizers.SGD([parameter], lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = parameter.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 1.0
    assert parameter.item() == pytest.approx(0.8)


# --- Muon ---------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(4, 7), (7, 4), (5, 5), (2, 3, 4), (2, 2, 5, 3)])
def test_orthogonalized_values_are_near_one(shape, device):
    matrix = torch.randn(shape, device=device)
    found = optimizers.orthogonalize(matrix)
    left, values, right = torch.linalg.svd(found, full_matrices=False)
    assert values.min() > 0.5
    assert values.max() < 1.3
    # The directions are those of the matrix: what is left of it is diagonal.
    inside = left.mT @ matrix @ right.mT
    rest = inside - torch.diag_embed(inside.diagonal(dim1=-2, dim2=-1))
    assert rest.abs().max() < 1e-4


def test_orthogonalize_by_hand():
    """A matrix with one singular value: the polynomial, five times, from 1."""
    value = 1.0
    for _ in range(5):
        value = 3.4445 * value - 4.7750 * value**3 + 2.0315 * value**5
    found = optimizers.orthogonalize(torch.tensor([[0.0, 5.0]]))
    torch.testing.assert_close(found, torch.tensor([[0.0, value]]))


def test_muon_by_hand(device):
    """Nesterov's gradient, orthogonal; tall matrices move √(rows / columns) more."""
    gradient = torch.randn(8, 2, device=device)
    parameter = nn.Parameter(torch.ones(8, 2, device=device))
    optimizer = optimizers.Muon([parameter], lr=0.1, momentum=0.9, weight_decay=0.5)
    parameter.grad = gradient.clone()
    optimizer.step()
    mixed = 0.1 * gradient + 0.9 * (0.1 * gradient)
    step = optimizers.orthogonalize(mixed)
    torch.testing.assert_close(parameter.detach(), 0.95 - 0.1 * 2 * step)
    exactly(parameter.grad, gradient)


# --- decay_groups -------------------------------------------------------------------


def test_only_matrices_shrink():
    model = nn.Sequential(nn.Embedding(5, 3), nn.LayerNorm(3), nn.Linear(3, 5))
    model[2].weight = model[0].weight  # tied: once
    model[1].bias.requires_grad_(False)
    shrinking, others = optimizers.decay_groups(model, 0.3)
    assert shrinking["weight_decay"] == 0.3
    assert others["weight_decay"] == 0.0
    assert [id(p) for p in shrinking["params"]] == [id(model[0].weight)]
    assert [id(p) for p in others["params"]] == [id(model[1].weight), id(model[2].bias)]


# --- Schedules ----------------------------------------------------------------------


def test_warmup_cosine_by_hand():
    rates = [optimizers.warmup_cosine(i, 1.0, 4, 10) for i in range(5)]
    assert rates == [0.25, 0.5, 0.75, 1.0, 1.0]
    found = [optimizers.warmup_cosine(i, 3.0, 2, 10, 1.0) for i in (2, 4, 6, 8, 10)]
    half = math.sqrt(0.5)
    assert found == pytest.approx([3.0, 2 + half, 2.0, 2 - half, 1.0])
    for late in (10, 11, 100):
        assert optimizers.warmup_cosine(late, 3.0, 2, 10, 1.0) == 1.0
    assert optimizers.warmup_cosine(0, 1.0, 0, 2) == 1.0


def test_warmup_cosine_equals_torch():
    """Without warm-up torch has the same curve."""
    optimizer = torch.optim.SGD([one_parameter(0.0, 0.0)], lr=0.7)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 9, eta_min=0.1)
    for step in range(9):
        found = optimizers.warmup_cosine(step, 0.7, 0, 9, 0.1)
        assert found == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()


SCHEDULES = [optimizers.warmup_cosine, optimizers.warmup_stable_decay]


@pytest.mark.parametrize("schedule", SCHEDULES)
@given(n_warmup=st.integers(0, 20), more=st.integers(1, 30), minimum=st.floats(0, 2))
@few
def test_schedules_rise_then_fall(schedule, n_warmup, more, minimum):
    n_steps = n_warmup + more
    rates = [
        schedule(step, 2.0, n_warmup, n_steps, minimum) for step in range(n_steps + 2)
    ]
    warm, rest = rates[:n_warmup], rates[n_warmup:]
    assert warm == sorted(warm)
    assert rest == sorted(rest, reverse=True)
    assert max(rates) == pytest.approx(2.0)
    assert rates[-1] == rates[-2] == pytest.approx(minimum)
    assert all(rate > 0 for rate in rates[:-2])


def test_warmup_stable_decay_by_hand():
    rates = [optimizers.warmup_stable_decay(i, 4.0, 2, 8, 0.0, 0.5) for i in range(10)]
    assert rates == [2.0, 4.0, 4.0, 4.0, 4.0, 3.0, 2.0, 1.0, 0.0, 0.0]


# --- clip_gradient_norm -------------------------------------------------------------
def parameters_with_gradients(*gradients):
    parameters = [nn.Parameter(torch.zeros_like(g)) for g in gradients]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.clone()
    return parameters


def test_the_gradient_of_all_parameters_is_clipped_together(device):
    gradients = torch.tensor([3.0], device=device), torch.tensor([[4.0]], device=device)
    parameters = parameters_with_gradients(*gradients)
    assert optimizers.clip_gradient_norm(parameters, 1.0) == pytest.approx(5.0)
    torch.testing.assert_close(parameters[0].grad, gradients[0] / 5)
    torch.testing.assert_close(parameters[1].grad, gradients[1] / 5)


def test_a_short_gradient_is_left_as_it_is():
    (parameter,) = parameters_with_gradients(torch.tensor([0.3, 0.4]))
    assert optimizers.clip_gradient_norm([parameter], 1.0) == pytest.approx(0.5)
    exactly(parameter.grad, torch.tensor([0.3, 0.4]))


@few
@given(st.floats(0.1, 10), st.floats(0.1, 10))
def test_clipping_equals_torch(size, max_norm):
    gradients = size * torch.randn(3, 2), size * torch.randn(4)
    ours, theirs = (parameters_with_gradients(*gradients) for _ in range(2))
    found = optimizers.clip_gradient_norm(ours, max_norm)
    expected = nn.utils.clip_grad_norm_(theirs, max_norm)
    assert found == pytest.approx(expected.item(), rel=1e-5)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.grad, other.grad, atol=1e-5, rtol=1e-5)


def test_parameters_without_gradient_do_not_count():
    unused = nn.Parameter(torch.ones(2))
    assert optimizers.clip_gradient_norm([unused], 1.0) == 0.0
    (zero,) = parameters_with_gradients(torch.zeros(2))
    assert optimizers.clip_gradient_norm(iter([unused, zero]), 1.0) == 0.0
    exactly(zero.grad, torch.zeros(2))


def test_a_gradient_of_halves_is_measured_exactly():
    (parameter,) = parameters_with_gradients(torch.ones(10_000, dtype=torch.bfloat16))
    assert optimizers.clip_gradient_norm([parameter], 1000.0) == pytest.approx(100.0)


def test_a_gradient_that_is_not_finite_is_refused():
    for wrong in (math.nan, math.inf):
        parameters = parameters_with_gradients(torch.tensor([1.0, wrong]))
        with pytest.raises(ValueError, match=f"length {wrong}"):
            optimizers.clip_gradient_norm(parameters, 1.0)
    for wrong in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match=f"max_norm={wrong}"):
            optimizers.clip_gradient_norm([], wrong)


# --- Refusals -----------------------------------------------------------------------

REFUSED = {
    "negative rate": (lambda p: optimizers.SGD(p, lr=-1.0), "lr=-1.0"),
    "nan": (lambda p: optimizers.AdamW(p, lr=math.nan), "lr=nan"),
    "momentum": (lambda p: optimizers.SGD(p, momentum=-0.5), "momentum=-0.5"),
    "nesterov": (lambda p: optimizers.SGD(p, nesterov=True), "momentum=0.0"),
    "betas": (lambda p: optimizers.Adam(p, betas=(0.9, 1.0)), "(0.9, 1.0)"),
    "eps": (lambda p: optimizers.AdamW(p, eps=-1e-8), "eps=-1e-08"),
    "decay": (lambda p: optimizers.AdamW(p, weight_decay=-0.1), "weight_decay=-0.1"),
    "muon": (lambda p: optimizers.Muon(p), "(3,)"),
    "no matrix": (lambda p: optimizers.orthogonalize(p[0]), "(3,)"),
    "nothing learns": (lambda p: optimizers.decay_groups(nn.ReLU(), 0.1), "ReLU"),
    "negative step": (lambda p: optimizers.warmup_cosine(-1, 1.0, 2, 9), "step=-1"),
    "long warm-up": (lambda p: optimizers.warmup_cosine(0, 1.0, 9, 9), "n_warmup=9"),
    "high minimum": (
        lambda p: optimizers.warmup_cosine(0, 1.0, 2, 9, 2.0),
        "minimum=2.0",
    ),
    "no decay": (
        lambda p: optimizers.warmup_stable_decay(0, 1.0, 2, 9, decay=0.0),
        "decay=0.0",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusal_names_the_value(name):
    call, value = REFUSED[name]
    with pytest.raises(ValueError, match=re.escape(value)):
        call([nn.Parameter(torch.zeros(3))])
