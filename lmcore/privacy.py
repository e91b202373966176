"""Privacy: learn from many people without keeping what any one of them said.

Chapter 18 of the book. The module builds, in this order: training in which one text can
change little and noise hides the rest (DP-SGD); what that costs in privacy, counted
over all steps; training where the data is, with only models sent round; and an attack
that measures what a model gives away.

Left out: secure random numbers and secure aggregation, which a real deployment needs,
and tighter accountants: fractional orders of the Rényi divergence alone would find an
ε up to 15 % smaller where it is below 10, and far smaller where it says nothing anyway.

Papers: Abadi et al., 2016 (DP-SGD); Mironov, 2017, and Mironov, Talwar and Zhang, 2019
(the accountant); Balle et al., 2020 (from Rényi divergence to ε); McMahan et al., 2017
(federated averaging); Yeom et al., 2018, and Carlini et al., 2022 (membership).
"""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import require

Gradients = dict[str, Tensor]  # by the name of the parameter, (B, and its shape)
Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]  # of a model on a batch, a scalar

# --- DP-SGD -------------------------------------------------------------------------


@dataclass(frozen=True)
class PrivacyConfig:
    """How much one sample may count, and how much noise hides it.

    >>> PrivacyConfig(max_norm=1.0, noise_multiplier=1.1, expected_batch_size=16)
    PrivacyConfig(max_norm=1.0, noise_multiplier=1.1, expected_batch_size=16)
    """

    max_norm: float  # C, the length at which a sample's gradient is cut
    noise_multiplier: float  # σ: the noise on the sum has the deviation σ · C
    expected_batch_size: float  # sampling rate times number of samples

    def __post_init__(self) -> None:
        require.positive(max_norm=self.max_norm)
        require.positive(expected_batch_size=self.expected_batch_size)
        require.not_negative(noise_multiplier=self.noise_multiplier)


def poisson_batch(
    n_samples: int, sampling_rate: float, generator: torch.Generator
) -> Tensor:
    """Draw a batch in which every sample is, or is not, by a throw of its own.

    The size of the batch varies; it can be 0. The accountant counts on this way of
    drawing. Abadi et al., 2016, § 2.2.

    Args:
        n_samples: how many samples there are
        sampling_rate: how likely each is drawn, between 0 and 1
        generator: draws the batch, on its own device

    Returns:
        The numbers of the samples drawn, in order.

    Raises:
        ValueError: if ``sampling_rate`` is not between 0 and 1.

    >>> poisson_batch(3, 1.0, torch.Generator())
    tensor([0, 1, 2])
    """
    require.between(0, 1, sampling_rate=sampling_rate)
    throws = torch.rand(n_samples, generator=generator, device=generator.device)
    return (throws < sampling_rate).nonzero()[:, 0]


def per_sample_gradients(
    model: nn.Module, loss: Loss, inputs: Tensor, targets: Tensor
) -> Gradients:
    """Compute the gradient of every sample by itself, one after another.

    Args:
        model: its parameters' own ``grad`` stay as they are
        loss: called with the model and a batch of one
        inputs: (B, ...)
        targets: (B, ...)

    Returns:
        For the parameters that are trained, by name, (B, ...); 0 where a parameter
        plays no part.

    Raises:
        ValueError: if inputs and targets differ in number.

    >>> def loss(model, x, y): return ((model(x) - y) ** 2).mean()
    >>> x = torch.tensor([[1.0], [0.0]])
    >>> layer = nn.Linear(1, 1)
    >>> per_sample_gradients(layer, loss, x, layer(x).detach() + 1)["weight"].flatten()
    tensor([-2.,  0.])
    """
    if len(inputs) != len(targets):
        raise ValueError(f"there are {len(inputs)} inputs and {len(targets)} targets")
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    gradients = {
        name: p.new_zeros(len(inputs), *p.shape) for name, p in trained.items()
    }
    for i in range(len(inputs)):
        one = loss(model, inputs[i : i + 1], targets[i : i + 1])
        found = torch.autograd.grad(one, list(trained.values()), allow_unused=True)
        for name, gradient in zip(trained, found, strict=True):
            if gradient is not None:
                gradients[name][i] = gradient
    return gradients


def clip_per_sample(gradients: Mapping[str, Tensor], max_norm: float) -> Gradients:
    """Shorten every sample's gradient to a length, and leave shorter ones alone.

    The length is taken over all parameters of a sample together. Abadi et al., 2016,
    alg. 1.

    Args:
        gradients: by name, (B, ...)
        max_norm: C, the greatest length

    Returns:
        The same shapes; a sample whose gradient was longer now has the length C.

    Raises:
        ValueError: if ``max_norm`` is not positive, or the numbers of samples differ.

    >>> clip_per_sample({"w": torch.tensor([[10.0, 0.0], [0.0, 0.5]])}, max_norm=1.0)
    {'w': tensor([[1.0000, 0.0000],
            [0.0000, 0.5000]])}
    """
    require.positive(max_norm=max_norm)
    sizes = {name: len(gradient) for name, gradient in gradients.items()}
    if len(set(sizes.values())) != 1:
        raise ValueError(f"expected the same number of samples everywhere, got {sizes}")
    # A parameter that is a single number has no second axis of its own.
    rows = [g[..., None].flatten(1).float() for g in gradients.values()]
    norms = torch.linalg.vector_norm(torch.cat(rows, dim=1), dim=1)  # (B,)
    factor = (max_norm / norms.clamp_min(1e-12)).clamp_max(1.0)
    return {
        name: g * factor.to(g.dtype).view(-1, *[1] * (g.dim() - 1))
        for name, g in gradients.items()
    }


def private_gradient(
    gradients: Mapping[str, Tensor], config: PrivacyConfig, generator: torch.Generator
) -> Gradients:
    """Clip, sum, add noise once, and divide by the batch size that was expected.

    One sample changes the sum by at most C, so noise of σ · C belongs to the sum. The
    true size of the batch would tell whether somebody was in it.

    Args:
        gradients: by name, (B, ...); B may be 0
        config: how much to clip and how much noise
        generator: draws the noise, on its own device

    Returns:
        One gradient by name, in the parameter's shape.

    Raises:
        ValueError: as `clip_per_sample`.

    >>> quiet = PrivacyConfig(1.0, noise_multiplier=0.0, expected_batch_size=2)
    >>> gradients = {"w": torch.tensor([[10.0, 0.0], [0.0, 1.0]])}
    >>> private_gradient(gradients, quiet, torch.Generator())
    {'w': tensor([0.5000, 0.5000])}
    """
    std = config.noise_multiplier * config.max_norm
    private = {}
    for name, clipped in clip_per_sample(gradients, config.max_norm).items():
        noise = torch.randn(
            clipped.shape[1:], generator=generator, device=generator.device
        )
        total = clipped.sum(dim=0) + std * noise.to(clipped)
        private[name] = total / config.expected_batch_size
    return private


def dp_sgd_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: Loss,
    inputs: Tensor,
    targets: Tensor,
    config: PrivacyConfig,
    generator: torch.Generator,
) -> None:
    """Take one step of training that hides every single sample.

    Any optimizer will do: what it makes of a private gradient is as private. Layers
    that mix the samples of a batch (batch norm) are not allowed. Abadi et al., 2016,
    alg. 1.

    Args:
        model: changed in place by the optimizer
        optimizer: steps on the model's parameters
        loss: called with the model and a batch of one
        inputs: (B, ...), from `poisson_batch`; B may be 0
        targets: (B, ...)
        config: how much to clip and how much noise
        generator: draws the noise, on its own device

    Raises:
        ValueError: if inputs and targets differ in number, or the model has no
            parameter to train.

    >>> layer = nn.Linear(1, 1)
    >>> optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    >>> def loss(model, x, y): return ((model(x) - y) ** 2).mean()
    >>> config, dice = PrivacyConfig(1.0, 1.0, 2), torch.Generator().manual_seed(1)
    >>> x = torch.ones(2, 1)
    >>> dp_sgd_step(layer, optimizer, loss, x, x, config, dice)
    """
    gradients = per_sample_gradients(model, loss, inputs, targets)
    for name, gradient in private_gradient(gradients, config, generator).items():
        model.get_parameter(name).grad = gradient
    optimizer.step()
    optimizer.zero_grad()


# --- What it costs ------------------------------------------------------------------

# Orders of the Rényi divergence that are tried; the best one counts.
ORDERS = (*range(2, 65), 80, 96, 128, 192, 256, 384, 512)


def renyi_divergence(
    sampling_rate: float, noise_multiplier: float, order: int
) -> float:
    """Bound how differently one step behaves with and without one sample.

    The Rényi divergence of whole order α ≥ 2 between N(0, σ²) and the mixture
    (1 - q) N(0, σ²) + q N(1, σ²): the logarithm of
    ``Σ_k C(α, k) (1 - q)^(α-k) q^k exp(k (k - 1) / 2σ²)`` over α - 1, summed in
    logarithms, since the terms are huge. Mironov, Talwar and Zhang, 2019, § 3.3.

    Args:
        sampling_rate: q, how likely a sample is in the batch
        noise_multiplier: σ
        order: α, a whole number of at least 2

    Returns:
        The divergence, in nats; infinite without noise.

    Raises:
        ValueError: if q is not between 0 and 1, σ is negative, or α is not whole or
            less than 2.

    >>> renyi_divergence(1.0, noise_multiplier=2.0, order=3)
    0.375
    """
    require.between(0, 1, sampling_rate=sampling_rate)
    require.not_negative(noise_multiplier=noise_multiplier)
    if order < 2 or order != int(order):
        raise ValueError(f"order={order} must be a whole number of at least 2")
    if sampling_rate == 0:
        return 0.0
    if noise_multiplier == 0:
        return math.inf
    if sampling_rate == 1:
        return order / (2 * noise_multiplier**2)
    logs = [
        _log_choose(order, k)
        + (order - k) * math.log1p(-sampling_rate)
        + k * math.log(sampling_rate)
        + k * (k - 1) / (2 * noise_multiplier**2)
        for k in range(order + 1)
    ]
    largest = max(logs)
    log_sum = largest + math.log(math.fsum(math.exp(x - largest) for x in logs))
    return max(log_sum, 0.0) / (order - 1)


def epsilon_spent(
    sampling_rate: float,
    noise_multiplier: float,
    n_steps: int,
    delta: float,
    orders: Sequence[int] = ORDERS,
) -> float:
    """Count the privacy that all steps of training have cost.

    Divergences of the same order add up over the steps. Each order gives a bound
    ``ε = n · ρ_α + ln(1 - 1/α) - ln(δ α) / (α - 1)``, and the least counts. It says:
    whatever is done with the model, with or without your text the chance of any
    outcome differs at most by the factor e^ε, but for a probability δ. Balle et al.,
    2020, theorem 21.

    Args:
        sampling_rate: q, how likely a sample is in a batch (`poisson_batch`)
        noise_multiplier: σ
        n_steps: how many steps were taken
        delta: δ, between 0 and 1, well below one in the number of samples
        orders: the orders tried

    Returns:
        ε, at least 0; infinite without noise, 0 without a step.

    Raises:
        ValueError: if a number is out of its range or there are no orders.

    >>> round(epsilon_spent(0.01, noise_multiplier=1.0, n_steps=1000, delta=1e-5), 2)
    2.11
    """
    require.not_negative(n_steps=n_steps)
    if not 0 < delta < 1:
        raise ValueError(f"delta={delta} must lie between 0 and 1")
    if not orders:
        raise ValueError("orders is empty: expected at least one")
    bounds = []
    for order in orders:
        divergence = renyi_divergence(sampling_rate, noise_multiplier, order)
        if n_steps == 0 or sampling_rate == 0:
            return 0.0
        price_of_delta = math.log(delta * order) / (order - 1)
        bounds.append(n_steps * divergence + math.log1p(-1 / order) - price_of_delta)
    return max(min(bounds), 0.0)


def noise_for_epsilon(
    epsilon: float, sampling_rate: float, n_steps: int, delta: float
) -> float:
    """Find the least noise that stays within a budget.

    Args:
        epsilon: the budget, positive
        sampling_rate: q
        n_steps: how many steps will be taken
        delta: δ

    Returns:
        σ, to 3 digits behind the point, rounded up.

    Raises:
        ValueError: if a number is out of its range, or noise of 1000 is not enough.

    >>> noise_for_epsilon(2.0, sampling_rate=0.01, n_steps=1000, delta=1e-5)
    1.023
    """
    require.positive(epsilon=epsilon)

    def is_enough(thousandths: int) -> bool:
        spent = epsilon_spent(sampling_rate, thousandths / 1000, n_steps, delta)
        return spent <= epsilon

    too_little, enough = 0, 1_000_000
    if is_enough(too_little):
        return 0.0
    if not is_enough(enough):
        raise ValueError(f"epsilon={epsilon} is out of reach, even with noise of 1000")
    while enough - too_little > 1:
        middle = (too_little + enough) // 2
        if is_enough(middle):
            enough = middle
        else:
            too_little = middle
    return enough / 1000


# --- Data that stays where it is ----------------------------------------------------


def federated_average(
    states: Sequence[Mapping[str, Tensor]], n_samples: Sequence[float] | None = None
) -> dict[str, Tensor]:
    """Average the models of those who took part, weighted by their numbers of samples.

    McMahan et al., 2017, alg. 1.

    Args:
        states: one ``state_dict`` per client that took part, at least one
        n_samples: how many samples each has; all count the same if not given

    Returns:
        The averaged state. Whole numbers, such as counters, are rounded.

    Raises:
        ValueError: if there is no client, names, shapes or numbers differ, or the
            numbers of samples are negative or all 0.

    >>> states = [{"w": torch.tensor([1.0])}, {"w": torch.tensor([4.0])}]
    >>> federated_average(states, n_samples=[200, 100])
    {'w': tensor([2.])}
    """
    counts = [1.0] * len(states) if n_samples is None else list(n_samples)
    _check_clients(states, counts)
    average = {}
    for name, first in states[0].items():
        stacked = torch.stack([state[name].double() for state in states])  # (n, ...)
        share = torch.tensor(counts, dtype=torch.float64, device=first.device)
        mean = torch.tensordot(share / share.sum(), stacked, dims=1)
        average[name] = (mean if first.is_floating_point() else mean.round()).to(first)
    return average


def federated_round(
    model: nn.Module,
    clients: Sequence,
    train: Callable[..., float],
) -> None:
    """Let every client train a copy of the model on its own data, and average.

    Args:
        model: changed in place, to the average
        clients: the data of those who take part
        train: trains a copy in place on one client's data and returns how many samples
            that was

    Raises:
        ValueError: as `federated_average`.

    >>> layer = nn.Linear(1, 1)
    >>> def train(model, value): return model.weight.data.fill_(value) and 1
    >>> federated_round(layer, [1.0, 3.0], train)
    >>> layer.weight.item()
    2.0
    """
    states, n_samples = [], []
    for data in clients:
        local = copy.deepcopy(model)
        n_samples.append(float(train(local, data)))
        states.append(local.state_dict())
    model.load_state_dict(federated_average(states, n_samples))


# --- What a model gives away --------------------------------------------------------


@torch.no_grad()
def text_losses(model: nn.Module, ids: Tensor, ignore_index: int = -100) -> Tensor:
    """Measure how well a language model knows each text.

    Args:
        model: from ids (B, T) to logits (B, T, V); should be in eval mode
        ids: (B, T) with T ≥ 2
        ignore_index: targets that do not count; fed to the model as token 0

    Returns:
        The mean loss of every text, (B,), in nats per token; NaN if no token counts.

    Raises:
        ValueError: if the texts have fewer than 2 tokens.

    >>> class Even(nn.Module):
    ...     def forward(self, ids): return torch.zeros(*ids.shape, 10)
    >>> text_losses(Even(), torch.tensor([[1, 2, 3]]))
    tensor([2.3026])
    """
    if ids.dim() != 2 or ids.shape[1] < 2:
        raise ValueError(f"ids have shape {tuple(ids.shape)}, expected (B, T), T ≥ 2")
    inputs = ids.masked_fill(ids == ignore_index, 0)[:, :-1]
    logits = model(inputs)  # (B, T-1, V)
    targets = ids[:, 1:]
    losses = F.cross_entropy(
        logits.transpose(1, 2).float(),
        targets,
        ignore_index=ignore_index,
        reduction="none",
    )  # (B, T-1)
    return losses.sum(dim=1) / (targets != ignore_index).sum(dim=1)


def membership_inference(member_losses: Tensor, other_losses: Tensor) -> float:
    """Guess who was in the training data: those on whom the loss is low.

    Args:
        member_losses: (N,), the losses of texts that the model was trained on
        other_losses: (M,), of texts of the same kind that it was not trained on

    Returns:
        The area under the curve (AUC): how likely a random member has a lower loss than
        a random other; a tie counts half. 0.5 = nothing leaks, 1 = everyone is found.

    Raises:
        ValueError: if one of the two is empty or holds NaN.

    >>> membership_inference(torch.tensor([0.1, 0.2]), torch.tensor([1.0, 0.2]))
    0.875
    """
    _check_losses(member_losses, other_losses)
    others = other_losses.double().flatten().sort().values
    members = member_losses.double().flatten()
    not_above = torch.searchsorted(others, members, right=True)
    below = torch.searchsorted(others, members, right=False)
    wins = len(others) - not_above + 0.5 * (not_above - below)  # (N,)
    return (wins.sum() / (len(members) * len(others))).item()


def members_found(
    member_losses: Tensor, other_losses: Tensor, false_alarms: float = 0.01
) -> float:
    """Share of members that are found when few others may be accused.

    An attack can be right about a few people and useless on average, so that the AUC
    hides it. Carlini et al., 2022, § III.

    Args:
        member_losses: (N,)
        other_losses: (M,)
        false_alarms: the largest share of others taken for members, between 0 and 1

    Returns:
        The share of members below the largest threshold that keeps to it.

    Raises:
        ValueError: if one of the two is empty or holds NaN, or ``false_alarms`` is not
            between 0 and 1.

    >>> members_found(torch.tensor([0.1, 0.6]), torch.tensor([0.5, 0.7]), 0.5)
    1.0
    """
    _check_losses(member_losses, other_losses)
    require.between(0, 1, false_alarms=false_alarms)
    others = other_losses.double().flatten().sort().values
    allowed = math.floor(false_alarms * len(others) + 1e-9)
    if allowed == len(others):
        return 1.0
    # Accused is who lies below the first other that must not be accused.
    found = member_losses.double().flatten() < others[allowed]
    return found.double().mean().item()


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def _check_clients(
    states: Sequence[Mapping[str, Tensor]], counts: Sequence[float]
) -> None:
    if not states:
        raise ValueError("there are 0 clients: nothing can be averaged")
    if len(counts) != len(states):
        raise ValueError(
            f"n_samples has {len(counts)} numbers for {len(states)} clients"
        )
    if not min(counts) >= 0 or not sum(counts) > 0:
        raise ValueError(f"n_samples={counts} must not be negative nor all 0")
    shapes = [{name: t.shape for name, t in state.items()} for state in states]
    for number, shape in enumerate(shapes):
        if shape != shapes[0]:
            odd = sorted(name for name, _ in shape.items() ^ shapes[0].items())
            raise ValueError(f"client {number} differs from client 0 in {odd}")


def _check_losses(*groups: Tensor) -> None:
    for losses in groups:
        if losses.numel() == 0 or losses.isnan().any():
            raise ValueError(
                f"losses of shape {tuple(losses.shape)} are empty or hold NaN"
            )
