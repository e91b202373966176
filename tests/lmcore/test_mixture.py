"""Tests of lmcore.mixture: by hand, against transformers' Mixtral, at the edges."""

from functools import partial

import pytest
import torch

from lmcore import mixture, transformer

close = partial(torch.testing.assert_close, atol=1e-5, rtol=0.0)
N, C, E, N_FF = 11, 6, 4, 10
CONFIG = transformer.LayerConfig(
    d_model=C, n_heads=1, d_ff=N_FF, feed_forward="swiglu", bias=False
)


def test_router_by_hand():
    """Logits 2, 0, 1: experts 0 and 2 share by softmax(2, 1) = .7311, .2689."""
    router = mixture.TopKRouter(1, 3, top_k=2)
    with torch.no_grad():
        router.project_experts.weight.copy_(torch.tensor([[2.0], [0.0], [1.0]]))
    shares, chosen, probabilities = router(torch.ones(1, 1))
    assert chosen.tolist() == [[0, 2]]
    close(shares, torch.tensor([[0.731059, 0.268941]]))
    close(probabilities, torch.tensor([[0.665241, 0.090031, 0.244728]]))


@pytest.mark.parametrize("top_k", [1, 2, E])
def test_shares_sum_to_one(top_k, device):
    router = mixture.TopKRouter(C, E, top_k, device=device)
    shares, chosen, probabilities = router(torch.randn(2, N, C, device=device))
    assert shares.shape == chosen.shape == (2, N, top_k)
    close(shares.sum(-1), torch.ones(2, N, device=device))
    close(probabilities.sum(-1), torch.ones(2, N, device=device))
    assert (shares.diff(dim=-1) <= 0).all()


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_mixture_equals_one_token_at_a_time(top_k, device):
    layer = mixture.MixtureOfExperts(CONFIG, E, top_k, device=device)
    x = torch.randn(2, N, C, device=device)
    output = layer(x)
    shares, chosen, _ = layer.router(x)
    for b in range(2):
        for t in range(N):
            said = [layer.experts[e](x[b, t]) for e in chosen[b, t].tolist()]
            expected = sum(s * y for s, y in zip(shares[b, t], said, strict=True))
            close(output[b, t], expected)


def test_all_experts_are_the_dense_mixture(device):
    """With K = E the output is the sum over all, weighted by the softmax."""
    layer = mixture.MixtureOfExperts(CONFIG, E, E, device=device)
    x = torch.randn(N, C, device=device, requires_grad=True)
    probabilities = torch.softmax(layer.router.project_experts(x), dim=-1)
    said = torch.stack([expert(x) for expert in layer.experts], dim=-1)  # (N, C, E)
    expected = (said * probabilities[:, None]).sum(dim=-1)
    close(layer(x), expected)
    upstream = torch.randn(N, C, device=device)
    everything = [x, *layer.parameters()]
    gradients, wanted = (
        torch.autograd.grad(y, everything, upstream, retain_graph=True)
        for y in (layer(x), expected)
    )
    for gradient, want in zip(gradients, wanted, strict=True):
        close(gradient, want)


def test_identical_experts_change_nothing(device):
    """Two visits of experts that do nothing add up to the token itself."""
    layer = mixture.MixtureOfExperts(CONFIG, E, 2, device=device)
    layer.experts = torch.nn.ModuleList(torch.nn.Identity() for _ in range(E))
    x = torch.randn(2, N, C, device=device)
    close(layer(x), x)


@pytest.mark.parametrize("top_k", [1, 2])
def test_mixture_equals_mixtral(top_k, device):
    """Router and experts of one layer of transformers' Mixtral: forward, backward."""
    mixtral = pytest.importorskip("transformers.models.mixtral.modeling_mixtral")
    config = mixtral.MixtralConfig(
        hidden_size=C,
        intermediate_size=N_FF,
        num_local_experts=E,
        num_experts_per_tok=top_k,
        num_attention_heads=1,
        experts_implementation="eager",
    )
    oracle = mixtral.MixtralSparseMoeBlock(config).to(device)
    ours = mixture.MixtureOfExperts(CONFIG, E, top_k, device=device)
    with torch.no_grad():
        for parameter in oracle.parameters():
            parameter.normal_(std=0.5)
        ours.router.project_experts.weight.copy_(oracle.gate.weight)
        for e, expert in enumerate(ours.experts):
            gate, up = oracle.experts.gate_up_proj[e].chunk(2)
            expert.project_gate.weight.copy_(gate)
            expert.project_up.weight.copy_(up)
            expert.project_down.weight.copy_(oracle.experts.down_proj[e])
    x = torch.randn(2, N, C, device=device, requires_grad=True)
    expected = oracle(x)
    expected = expected[0] if isinstance(expected, tuple) else expected
    close(ours(x), expected)
    upstream = torch.randn_like(x)
    for our, their in (
        (x, x),
        (ours.router.project_experts.weight, oracle.gate.weight),
    ):
        gradient = torch.autograd.grad(ours(x), our, upstream)[0]
        want = torch.autograd.grad(expected, their, upstream, retain_graph=True)[0]
        close(gradient, want)
    _, chosen, probabilities = ours.router(x.flatten(0, 1))
    logits = ours.router.project_experts(x.flatten(0, 1))
    theirs = mixtral.load_balancing_loss_func((logits,), E, top_k)
    close(top_k * mixture.load_balancing_loss(probabilities, chosen), theirs)


def test_load_balancing_by_hand():
    """All to one of two with .9: 2 · (1 · .9 + 0 · .1) = 1.8; balanced: 1."""
    loss = mixture.load_balancing_loss
    collapsed = torch.tensor([[0.9, 0.1]]).repeat(4, 1)
    close(loss(collapsed, torch.zeros(4, 1, dtype=torch.int64)), torch.tensor(1.8))
    balanced = torch.tensor([[0.9, 0.1], [0.1, 0.9]])
    close(loss(balanced, torch.tensor([[0], [1]])), torch.tensor(1.0))
    # Two visits each: the shares of the visits are .5, .25 and .25.
    probabilities = torch.tensor([[0.6, 0.3, 0.1], [0.6, 0.1, 0.3]])
    two = loss(probabilities, torch.tensor([[0, 1], [0, 2]]))
    close(two, torch.tensor(3 * (0.5 * 0.6 + 0.25 * 0.2 + 0.25 * 0.2)))


def test_load_balancing_pushes_towards_balance():
    logits = torch.tensor([[2.0, 0.0]]).repeat(3, 1).requires_grad_()
    chosen = logits.topk(1).indices
    mixture.load_balancing_loss(torch.softmax(logits, -1), chosen).backward()
    assert (logits.grad[:, 0] > 0).all()
    assert (logits.grad[:, 1] < 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_mixture_in_another_type(dtype, device):
    layer = mixture.MixtureOfExperts(CONFIG, E, 2, device=device, dtype=dtype)
    output = layer(torch.randn(N, C, device=device, dtype=dtype))
    assert output.dtype == dtype
    assert layer.routing[0].dtype == torch.promote_types(dtype, torch.float32)
    output.sum().backward()


def test_idle_experts_and_no_tokens(device):
    """An expert that nobody visits does no harm, and no token at all neither."""
    layer = mixture.MixtureOfExperts(CONFIG, E, 1, device=device)
    x = torch.randn(1, C, device=device)
    layer(x).sum().backward()
    assert all(p.grad.isfinite().all() for p in layer.parameters())
    assert layer(x[:0]).shape == (0, C)


def test_mixture_refuses():
    for build in (
        partial(mixture.TopKRouter, C),
        partial(mixture.MixtureOfExperts, CONFIG),
    ):
        with pytest.raises(
            ValueError, match="top_k=5 must lie between 1 and n_experts=4"
        ):
            build(E, 5)
    with pytest.raises(ValueError, match=r"x has shape \(2, 3\), expected width 6"):
        mixture.MixtureOfExperts(CONFIG, E)(torch.zeros(2, 3))
    loss = mixture.load_balancing_loss
    one = torch.ones(2, 1)
    with pytest.raises(ValueError, match="must tell of the same tokens"):
        loss(one, torch.zeros(3, 1, dtype=torch.int64))
    with pytest.raises(ValueError, match="chosen from 0 to 1 must lie between 0 and 0"):
        loss(one, torch.tensor([[0], [1]]))
