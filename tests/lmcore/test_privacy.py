"""Tests of lmcore.privacy: by hand, against opacus, as properties, at the edges."""

import copy
import itertools
import math
import re
import warnings
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from lmcore import privacy, transformer
from lmcore.privacy import PrivacyConfig

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # about their own imports
    from opacus.accountants import RDPAccountant
    from opacus.accountants.analysis import rdp as opacus_rdp
    from opacus.accountants.utils import get_noise_multiplier

close = partial(torch.testing.assert_close, atol=1e-5, rtol=0.0)
B, C, N_OUT = 5, 4, 3


class TinyLM(nn.Module):
    """Embedding, one causal layer, logits."""

    def __init__(self, n_words=7, d_model=12, d_ff=10):
        super().__init__()
        config = transformer.LayerConfig(d_model=d_model, n_heads=2, d_ff=d_ff)
        self.embedding = nn.Embedding(n_words, d_model)
        self.decoder = transformer.Decoder(config, 1, cross_attention=False)
        self.project_logits = nn.Linear(d_model, n_words)

    def forward(self, ids):
        return self.project_logits(self.decoder(self.embedding(ids)))


def next_word_loss(model, inputs, targets):
    return F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())


def squared_error(model, inputs, targets):
    return (model(inputs) - targets).square().mean()


def dice(device, seed=1):
    return torch.Generator(device).manual_seed(seed)


# --- DP-SGD -------------------------------------------------------------------------


def test_poisson_batch(device):
    """Everyone at rate 1, nobody at 0; sizes vary like throws of a coin."""
    draw = partial(privacy.poisson_batch, generator=dice(device))
    assert draw(4, 1.0).tolist() == [0, 1, 2, 3]
    assert draw(4, 0.0).tolist() == []
    sizes = torch.tensor([float(len(draw(40, 0.3))) for _ in range(400)])
    assert abs(sizes.mean() - 12) < 0.6
    assert abs(sizes.var() - 40 * 0.3 * 0.7) < 2.0


def test_per_sample_gradients_equal_one_by_one(device):
    """Their mean is the gradient of the batch; each is that of its own sample."""
    model = TinyLM().to(device)
    texts = torch.randint(7, (B, 6), device=device)
    gradients = privacy.per_sample_gradients(
        model, next_word_loss, texts[:, :-1], texts[:, 1:]
    )
    next_word_loss(model, texts[:, :-1], texts[:, 1:]).backward()
    assert list(gradients) == [name for name, _ in model.named_parameters()]
    for name, parameter in model.named_parameters():
        assert gradients[name].shape == (B, *parameter.shape)
        close(gradients[name].mean(dim=0), parameter.grad)
    model.zero_grad()
    next_word_loss(model, texts[2:3, :-1], texts[2:3, 1:]).backward()
    for name, parameter in model.named_parameters():
        close(gradients[name][2], parameter.grad)


def test_frozen_and_unused_parameters(device):
    model = nn.ModuleDict({"used": nn.Linear(C, 1), "idle": nn.Linear(2, 1)})
    model.to(device)["used"].bias.requires_grad_(False)
    gradients = privacy.per_sample_gradients(
        model,
        lambda m, x, y: squared_error(m["used"], x, y),
        torch.randn(B, C, device=device),
        torch.randn(B, 1, device=device),
    )
    assert set(gradients) == {"used.weight", "idle.weight", "idle.bias"}
    assert (gradients["idle.weight"] == 0).all()
    assert (gradients["used.weight"] != 0).all()


def test_clip_by_hand(device):
    """(10, 0) becomes (1, 0), (0, 1) stays: mean (.5, .5). Norm .5 stays .5."""
    gradients = {"w": torch.tensor([[10.0, 0.0], [0.0, 1.0]], device=device)}
    clipped = privacy.clip_per_sample(gradients, 1.0)["w"]
    close(clipped.mean(dim=0).cpu(), torch.tensor([0.5, 0.5]))
    small = {"w": torch.tensor([[0.3, 0.4]], device=device)}
    assert torch.equal(privacy.clip_per_sample(small, 1.0)["w"], small["w"])
    zero = {"w": torch.zeros(2, 3, device=device)}
    assert torch.equal(privacy.clip_per_sample(zero, 1.0)["w"], zero["w"])


def test_length_is_over_all_parameters(device):
    """3 and 4 make 5: both are divided by 5, neither by itself."""
    gradients = {"a": torch.tensor([[[3.0]]]), "b": torch.tensor([4.0])}
    gradients = {name: g.to(device) for name, g in gradients.items()}
    clipped = privacy.clip_per_sample(gradients, 1.0)
    close(clipped["a"].cpu(), torch.tensor([[[0.6]]]))
    close(clipped["b"].cpu(), torch.tensor([0.8]))


@given(max_norm=st.floats(0.01, 100.0), scale=st.floats(1e-3, 1e3))
@settings(max_examples=20)
def test_clipped_lengths(max_norm, scale):
    gradients = {"a": scale * torch.randn(B, 3, 2), "b": scale * torch.randn(B)}
    clipped = privacy.clip_per_sample(gradients, max_norm)
    together = torch.cat([clipped["a"].flatten(1), clipped["b"][:, None]], dim=1)
    before = torch.cat([gradients["a"].flatten(1), gradients["b"][:, None]], dim=1)
    wanted = before.norm(dim=1).clamp_max(max_norm)
    close(together.norm(dim=1), wanted, rtol=1e-5)
    close(torch.cosine_similarity(together, before), torch.ones(B))


def test_noise_belongs_to_the_sum(device):
    """σ = 1, C = 2, 10 expected: deviation .2 for any batch, also an empty one."""
    config = PrivacyConfig(2.0, noise_multiplier=1.0, expected_batch_size=10)
    for n_samples in (0, 10, 13):
        gradients = {"w": torch.zeros(n_samples, 200, 100, device=device)}
        noise = privacy.private_gradient(gradients, config, dice(device))["w"]
        assert noise.shape == (200, 100)
        assert abs(noise.std() - 0.2) < 0.005
        assert abs(noise.mean()) < 0.005


def test_noise_is_drawn_for_each_parameter(device):
    config = PrivacyConfig(1.0, 1.0, 1)
    gradients = {name: torch.zeros(1, 50, device=device) for name in "ab"}
    noise = privacy.private_gradient(gradients, config, dice(device))
    again = privacy.private_gradient(gradients, config, dice(device))
    assert not torch.equal(noise["a"], noise["b"])
    assert torch.equal(noise["a"], again["a"])


def test_divides_by_the_expected_size(device):
    """Three were drawn, four were expected."""
    config = PrivacyConfig(1.0, noise_multiplier=0.0, expected_batch_size=4)
    gradients = {"w": torch.ones(3, 1, device=device)}
    private = privacy.private_gradient(gradients, config, dice(device))["w"]
    close(private.cpu(), torch.tensor([0.75]))


def test_step_without_noise_is_sgd(device):
    """With a bound that nothing reaches; gradients left behind play no part."""
    model = nn.Linear(C, N_OUT).to(device)
    plain = copy.deepcopy(model)
    x, y = torch.randn(B, C, device=device), torch.randn(B, N_OUT, device=device)
    config = PrivacyConfig(1e6, noise_multiplier=0.0, expected_batch_size=B)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (model, plain)]
    model.weight.grad = torch.ones_like(model.weight)
    for _ in range(2):
        privacy.dp_sgd_step(
            model, optimizers[0], squared_error, x, y, config, dice(device)
        )
        optimizers[1].zero_grad()
        squared_error(plain, x, y).backward()
        optimizers[1].step()
    close(model.weight, plain.weight)
    close(model.bias, plain.bias)
    # Nothing is left for a later backward() to add to.
    assert model.weight.grad is None
    assert model.bias.grad is None


def test_one_sample_moves_the_step_by_no_more_than_the_bound(device):
    """Same noise, one sample more: the difference is at most lr · C / expected."""
    model = nn.Linear(C, N_OUT).to(device)
    x, y = 100 * torch.randn(B, C, device=device), torch.randn(B, N_OUT, device=device)
    config = PrivacyConfig(0.5, noise_multiplier=1.0, expected_batch_size=4)
    moved = []
    for n in (B, B - 1, 0):
        copied = copy.deepcopy(model)
        optimizer = torch.optim.SGD(copied.parameters(), lr=2.0)
        privacy.dp_sgd_step(
            copied, optimizer, squared_error, x[:n], y[:n], config, dice(device)
        )
        moved.append(torch.cat([p.detach().flatten() for p in copied.parameters()]))
    assert (moved[0] - moved[1]).norm() <= 2.0 * 0.5 / 4 + 1e-5
    assert (moved[0] - moved[1]).norm() > 0.9 * 2.0 * 0.5 / 4
    assert (
        moved[2] - torch.cat([p.detach().flatten() for p in model.parameters()])
    ).any()


def test_private_training_learns(device):
    """A line through noise, with ε of a few."""
    x = torch.randn(200, 2, device=device)
    y = x @ torch.tensor([[2.0], [-1.0]], device=device)
    model = nn.Linear(2, 1).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    config = PrivacyConfig(1.0, noise_multiplier=2.0, expected_batch_size=20)
    draw = dice(device)
    before = squared_error(model, x, y)
    for _ in range(40):
        rows = privacy.poisson_batch(200, 0.1, draw)
        privacy.dp_sgd_step(
            model, optimizer, squared_error, x[rows], y[rows], config, draw
        )
    assert squared_error(model, x, y) < 0.2 * before
    assert 1 < privacy.epsilon_spent(0.1, 2.0, 40, 1e-4) < 4


# --- The accountant -----------------------------------------------------------------

RATES, NOISES = [1e-4, 0.01, 0.3, 1.0], [0.5, 1.0, 4.0]


def divergence_by_integration(q, sigma, order):
    """ln E[(mixture / N(0, σ²))^α] / (α - 1) on a fine grid."""
    low, high = -12 * sigma - 5, order + 12 * sigma + 5
    z = torch.linspace(low, high, 400_001, dtype=torch.float64)
    log_base = -(z**2) / (2 * sigma**2) - math.log(sigma * math.sqrt(2 * math.pi))
    log_ratio = torch.log(1 - q + q * torch.exp((2 * z - 1) / (2 * sigma**2)))
    log_terms = log_base + order * log_ratio + math.log(z[1] - z[0])
    return (torch.logsumexp(log_terms, dim=0) / (order - 1)).item()


def test_divergence_by_hand():
    """α = 2: ln((1-q)² + 2q(1-q) + q² e^(1/σ²)); without sampling α / 2σ²."""
    q, sigma = 0.25, 2.0
    expected = math.log(0.75**2 + 2 * 0.25 * 0.75 + 0.25**2 * math.exp(1 / 4))
    assert privacy.renyi_divergence(q, sigma, 2) == pytest.approx(expected)
    assert privacy.renyi_divergence(1.0, sigma, 5) == pytest.approx(5 / 8)
    assert privacy.renyi_divergence(0.0, sigma, 5) == 0
    assert privacy.renyi_divergence(0.1, 0.0, 5) == math.inf


@pytest.mark.parametrize(
    ("q", "sigma"), list(itertools.product([0.01, 0.3], [1.0, 4.0]))
)
@pytest.mark.parametrize("order", [2, 3, 7])
def test_divergence_equals_the_integral(q, sigma, order):
    expected = divergence_by_integration(q, sigma, order)
    ours = privacy.renyi_divergence(q, sigma, order)
    assert ours == pytest.approx(expected, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize(("q", "sigma"), list(itertools.product(RATES, NOISES)))
def test_divergence_equals_opacus(q, sigma):
    orders = list(privacy.ORDERS)
    expected = opacus_rdp.compute_rdp(
        q=q, noise_multiplier=sigma, steps=1, orders=orders
    )
    ours = [privacy.renyi_divergence(q, sigma, order) for order in orders]
    assert ours == pytest.approx(list(expected), rel=1e-7, abs=1e-12)


@pytest.mark.parametrize(("q", "sigma"), list(itertools.product(RATES, NOISES)))
@pytest.mark.parametrize(("n_steps", "delta"), [(1, 1e-3), (1000, 1e-5)])
def test_epsilon_equals_opacus(q, sigma, n_steps, delta):
    """With the same orders to the digit; with theirs, of tenths, at most 15 % more."""
    accountant = RDPAccountant()
    accountant.history = [(sigma, q, n_steps)]
    ours = privacy.epsilon_spent(q, sigma, n_steps, delta)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that an order is the last one
        same = accountant.get_epsilon(delta, alphas=list(privacy.ORDERS))
        theirs = accountant.get_epsilon(delta)
    assert ours == pytest.approx(max(same, 0.0), rel=1e-7, abs=1e-10)
    if theirs < 10:
        assert ours <= 1.15 * theirs


def test_what_sets_the_price():
    spent = partial(privacy.epsilon_spent, 0.01, 1.0, 500, 1e-5)
    base = spent()
    assert privacy.epsilon_spent(0.01, 1.0, 1000, 1e-5) > base
    assert privacy.epsilon_spent(0.01, 1.5, 500, 1e-5) < base
    assert privacy.epsilon_spent(0.005, 1.0, 500, 1e-5) < base
    assert privacy.epsilon_spent(0.01, 1.0, 500, 1e-4) < base
    assert spent(orders=[2, 3]) >= base
    assert privacy.epsilon_spent(0.01, 1.0, 0, 1e-5) == 0
    assert privacy.epsilon_spent(0.0, 1.0, 500, 1e-5) == 0
    assert privacy.epsilon_spent(0.01, 0.0, 500, 1e-5) == math.inf


@pytest.mark.parametrize(("epsilon", "q"), [(0.5, 0.01), (2.0, 0.01), (8.0, 0.2)])
def test_noise_for_epsilon(epsilon, q):
    """Enough, and a thousandth less would not be; opacus finds nearly the same."""
    sigma = privacy.noise_for_epsilon(epsilon, q, 300, 1e-5)
    assert privacy.epsilon_spent(q, sigma, 300, 1e-5) <= epsilon
    assert privacy.epsilon_spent(q, sigma - 0.001, 300, 1e-5) > epsilon
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = get_noise_multiplier(
            target_epsilon=epsilon,
            target_delta=1e-5,
            sample_rate=q,
            steps=300,
            accountant="rdp",
        )
    assert sigma == pytest.approx(theirs, rel=0.02)


# --- Federated averaging ------------------------------------------------------------


def test_average_by_hand(device):
    """3 samples at 1 and 1 sample at 5: (3 + 5) / 4."""
    states = [{"w": torch.tensor([v], device=device)} for v in (1.0, 5.0)]
    weighted = privacy.federated_average(states, [3, 1])
    close(weighted["w"].cpu(), torch.tensor([2.0]))
    close(privacy.federated_average(states)["w"].cpu(), torch.tensor([3.0]))
    close(privacy.federated_average(states, [0, 7])["w"].cpu(), torch.tensor([5.0]))


def test_order_of_the_clients_does_not_matter(device):
    states = [nn.Linear(C, N_OUT).to(device).state_dict() for _ in range(4)]
    counts = [5.0, 1.0, 3.0, 2.0]
    average = privacy.federated_average(states, counts)
    back = privacy.federated_average(states[::-1], counts[::-1])
    for name, tensor in average.items():
        close(tensor, back[name])
        share = sum(c * s[name] for c, s in zip(counts, states, strict=True))
        close(tensor, share / 11)
    same = privacy.federated_average([states[0]] * 2)
    close(same["weight"], states[0]["weight"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int64, torch.float64])
def test_average_keeps_the_type(dtype, device):
    states = [{"n": torch.tensor([v], dtype=dtype, device=device)} for v in (3, 6, 6)]
    average = privacy.federated_average(states)["n"]
    assert average.dtype == dtype
    assert average.item() == 5


def test_one_step_each_is_one_step_on_all(device):
    """One step of SGD per client, averaged by samples, is a step on all the data."""
    model = nn.Linear(C, N_OUT).to(device)
    central = copy.deepcopy(model)
    x, y = torch.randn(12, C, device=device), torch.randn(12, N_OUT, device=device)
    clients = list(zip(x.split([6, 1, 3, 2]), y.split([6, 1, 3, 2]), strict=True))

    def step(model, data):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        squared_error(model, *data).backward()
        optimizer.step()
        return len(data[0])

    for _ in range(3):
        privacy.federated_round(model, clients, step)
        step(central, (x, y))
        central.zero_grad()
    close(model.weight, central.weight)
    close(model.bias, central.bias)


def test_four_clients_learn_what_none_has(device):
    """Each client sees one input only; the average knows all four."""
    model = nn.Linear(4, 1).to(device)
    truth = torch.tensor([[1.0], [-2.0], [3.0], [0.5]], device=device)
    clients = []
    for i in range(4):
        x = torch.zeros(8, 4, device=device)
        x[:, i] = torch.randn(8, device=device)
        clients.append((x, x @ truth))

    def train(model, data):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
        for _ in range(10):
            optimizer.zero_grad()
            squared_error(model, *data).backward()
            optimizer.step()
        return len(data[0])

    for _ in range(40):
        privacy.federated_round(model, clients, train)
    close(model.weight.detach().T, truth, atol=0.1)


# --- Membership ---------------------------------------------------------------------


def test_text_losses_equal_cross_entropy(device):
    model = TinyLM().to(device)
    ids = torch.randint(7, (B, 6), device=device)
    padded = ids.clone()
    padded[1, 4:] = -100
    losses = privacy.text_losses(model, padded)
    assert not losses.requires_grad
    for row, n in [(0, 6), (1, 4), (4, 6)]:
        text = ids[row : row + 1, :n]
        expected = next_word_loss(model, text[:, :-1], text[:, 1:])
        close(losses[row], expected.detach())


@pytest.mark.parametrize(
    ("members", "others", "auc"),
    [
        ([0.1, 0.2], [1.0, 2.0], 1.0),
        ([3.0], [1.0, 2.0], 0.0),
        ([1.0, 3.0], [2.0], 0.5),
        ([1.0], [1.0], 0.5),
        ([1.0, 1.0], [1.0, 2.0], 0.75),
    ],
)
def test_membership_by_hand(members, others, auc):
    got = privacy.membership_inference(torch.tensor(members), torch.tensor(others))
    assert got == auc


@given(
    members=st.lists(st.integers(0, 5), min_size=1, max_size=8),
    others=st.lists(st.integers(0, 5), min_size=1, max_size=8),
    share=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
)
def test_membership_equals_brute_force(members, others, share):
    a, b = torch.tensor(members).float(), torch.tensor(others).float()
    wins = [(m < o) + 0.5 * (m == o) for m in members for o in others]
    auc = privacy.membership_inference(a, b)
    assert auc == pytest.approx(sum(wins) / len(wins))
    assert auc + privacy.membership_inference(b, a) == pytest.approx(1.0)
    found = [
        sum(m < t for m in members) / len(members)
        for t in range(8)
        if sum(o < t for o in others) <= share * len(others)
    ]
    assert privacy.members_found(a, b, share) == pytest.approx(max(found))


def test_overfitted_model_gives_its_members_away(device):
    """Few texts learned by heart against many texts learned in general."""
    texts = torch.randint(7, (400, 7), generator=dice("cpu"))
    texts[:, 1::2] = (texts[:, 0:-1:2] + 1) % 7  # every second token can be known
    texts = texts.to(device)
    few, many, outside = texts[:16], texts[:300], texts[300:]

    def auc(members, n_steps):
        torch.manual_seed(1)
        model = TinyLM(7, 24, 48).to(device)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        draw = dice("cpu")
        for _ in range(n_steps):
            rows = torch.randint(len(members), (32,), generator=draw).to(device)
            batch = members[rows]
            optimizer.zero_grad()
            next_word_loss(model, batch[:, :-1], batch[:, 1:]).backward()
            optimizer.step()
        model.eval()
        losses = [privacy.text_losses(model, group) for group in (members, outside)]
        return privacy.membership_inference(*losses), privacy.members_found(*losses)

    overfitted, found = auc(few, 120)
    general, _ = auc(many, 60)
    assert overfitted > 0.95, (overfitted, general)
    assert found > 0.5
    assert general < 0.65, (overfitted, general)


# --- Refusals -----------------------------------------------------------------------

W = {"w": torch.ones(2, 3)}
ONE, BAD = torch.ones(1), torch.tensor([math.nan])


@pytest.mark.parametrize(
    ("call", "values"),
    [
        (lambda: PrivacyConfig(0.0, 1.0, 4), ["max_norm=0.0"]),
        (lambda: PrivacyConfig(1.0, -1.0, 4), ["noise_multiplier=-1.0"]),
        (lambda: PrivacyConfig(1.0, 1.0, 0), ["expected_batch_size=0"]),
        (lambda: privacy.poisson_batch(3, 1.5, torch.Generator()), ["1.5"]),
        (
            lambda: privacy.per_sample_gradients(nn.ReLU(), squared_error, ONE, W["w"]),
            ["1 inputs", "2 targets"],
        ),
        (lambda: privacy.clip_per_sample(W, -1.0), ["max_norm=-1.0"]),
        (lambda: privacy.clip_per_sample({**W, "v": ONE}, 1.0), ["'w': 2", "'v': 1"]),
        (lambda: privacy.renyi_divergence(-0.1, 1.0, 2), ["sampling_rate=-0.1"]),
        (lambda: privacy.renyi_divergence(0.1, -1.0, 2), ["noise_multiplier=-1.0"]),
        (lambda: privacy.renyi_divergence(0.1, 1.0, 1), ["order=1"]),
        (lambda: privacy.renyi_divergence(0.1, 1.0, 2.5), ["order=2.5"]),
        (lambda: privacy.epsilon_spent(0.1, 1.0, -1, 1e-5), ["n_steps=-1"]),
        (lambda: privacy.epsilon_spent(0.1, 1.0, 1, 0.0), ["delta=0.0"]),
        (lambda: privacy.epsilon_spent(0.1, 1.0, 1, 0.1, []), ["orders"]),
        (lambda: privacy.noise_for_epsilon(0.0, 0.1, 1, 1e-5), ["epsilon=0.0"]),
        (lambda: privacy.noise_for_epsilon(1e-3, 1.0, 10**7, 1e-5), ["epsilon=0.001"]),
        (lambda: privacy.federated_average([]), ["0 clients"]),
        (lambda: privacy.federated_average([W], [1, 2]), ["2 numbers for 1"]),
        (lambda: privacy.federated_average([W, W], [1, -1]), ["[1, -1]"]),
        (lambda: privacy.federated_average([W, W], [0, 0]), ["[0, 0]"]),
        (lambda: privacy.federated_average([W, {"w": ONE}]), ["client 1", "'w'"]),
        (lambda: privacy.federated_average([W, {"v": ONE}]), ["client 1", "'v'"]),
        (lambda: privacy.text_losses(nn.ReLU(), torch.ones(2, 1)), ["(2, 1)"]),
        (lambda: privacy.membership_inference(ONE, ONE[:0]), ["(0,)"]),
        (lambda: privacy.membership_inference(BAD, ONE), ["NaN"]),
        (lambda: privacy.members_found(ONE, ONE, 1.5), ["false_alarms=1.5"]),
    ],
)
def test_refusal_names_the_values(call, values):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        call()
    for value in values:
        assert re.search(re.escape(value), str(caught.value)), str(caught.value)
