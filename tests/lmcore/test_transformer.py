"""Tests of lmcore.transformer: by hand, against PyTorch, as properties, at the edges.

Sizes differ pairwise wherever that is possible, so that a swapped axis cannot hide.
"""

import dataclasses
import math
import re
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from lmcore import attention, position, transformer
from lmcore.transformer import LayerConfig

close = partial(torch.testing.assert_close, atol=1e-5, rtol=0.0)
B, T, S, C, H, D, N_FF, L = 2, 5, 7, 12, 3, 4, 10, 2
PLAIN = LayerConfig(d_model=C, n_heads=H, d_ff=N_FF)
MODERN = LayerConfig(
    d_model=24,
    n_heads=6,
    d_ff=10,
    n_kv_heads=2,
    feed_forward="swiglu",
    norm="rms",
    bias=False,
)
POSITIONS = ["none", "rope", "alibi"]


def perturbed(module):
    """Move every parameter away from its first value, so that none is 0 or 1."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return module


def assert_same_gradients(ours, oracle, ours_inputs, oracle_inputs):
    """Both outputs have the same gradients for one random upstream gradient."""
    upstream = torch.randn_like(ours)
    gradients, expected = (
        torch.autograd.grad(output, inputs, upstream, retain_graph=True)
        for output, inputs in ((ours, ours_inputs), (oracle, oracle_inputs))
    )
    for gradient, wanted in zip(gradients, expected, strict=True):
        close(gradient, wanted, rtol=1e-5)


def told(kind, config, start, stop, device):
    """What attention is told about the positions start, …, stop - 1."""
    if kind == "rope":
        frequencies = position.rope_frequencies(
            config.d_model // config.n_heads, device=device
        )
        positions = torch.arange(start, stop, device=device)
        turn = partial(
            position.apply_rope, positions=positions, frequencies=frequencies
        )
        return {"rotate": turn}
    if kind == "alibi":
        n_queries = stop - start
        return {
            "bias": position.alibi_bias(config.n_heads, n_queries, stop, device=device)
        }
    return {}


# --- PyTorch's layers with our parameters -------------------------------------------

OUR_NAMES = {
    "self_attn.": "self_attention.heads.",
    "multihead_attn.": "cross_attention.heads.",
    "out_proj.": "project_output.",
    "linear1.": "feed_forward.project_up.",
    "linear2.": "feed_forward.project_down.",
    "norm1.": "around_self_attention.norm.",
}
ENCODER_NAMES = OUR_NAMES | {"norm2.": "around_feed_forward.norm."}
DECODER_NAMES = OUR_NAMES | {
    "norm2.": "around_cross_attention.norm.",
    "norm3.": "around_feed_forward.norm.",
}


def under_our_names(tensors, names):
    """Rename PyTorch's parameters or gradients, and cut its three projections apart."""
    ours = {}
    for name, tensor in tensors.items():
        for theirs, our in names.items():
            name = name.replace(theirs, our)
        name = re.sub(r"(^|coder\.)norm\.", r"\1final_norm.", name)
        if "in_proj_" in name:
            parts = zip(("query", "key", "value"), tensor.chunk(3), strict=True)
            for part, third in parts:
                ours[name.replace("in_proj_", f"project_{part}.")] = third
        else:
            ours[name] = tensor
    return ours


def assert_equal_with_copied_weights(ours, oracle, names, call, inputs):
    """``call(ours)`` equals ``call(oracle)``, as do all gradients.

    ``names`` is a function that gives our names to a dictionary of PyTorch's.
    """
    parameters = names(dict(perturbed(oracle).named_parameters()))
    ours.load_state_dict({name: p.detach() for name, p in parameters.items()})
    output, expected = call(ours), call(oracle)
    close(output, expected)
    upstream = torch.randn_like(output)
    gradients = torch.autograd.grad(output, [*inputs, *ours.parameters()], upstream)
    wanted = torch.autograd.grad(expected, [*inputs, *oracle.parameters()], upstream)
    n_inputs = len(inputs)
    for gradient, want in zip(gradients[:n_inputs], wanted[:n_inputs], strict=True):
        close(gradient, want, rtol=1e-5)
    theirs = (name for name, _ in oracle.named_parameters())
    want_by_name = names(dict(zip(theirs, wanted[n_inputs:], strict=True)))
    for (name, _), gradient in zip(
        ours.named_parameters(), gradients[n_inputs:], strict=True
    ):
        close(gradient, want_by_name.pop(name), rtol=1e-5)
    assert want_by_name == {}


encoder_names = partial(under_our_names, names=ENCODER_NAMES)
decoder_names = partial(under_our_names, names=DECODER_NAMES)


def torch_options(config):
    """The same configuration in PyTorch's words."""
    return {
        "d_model": config.d_model,
        "nhead": config.n_heads,
        "dim_feedforward": config.d_ff,
        "dropout": 0.0,
        "activation": config.feed_forward,
        "layer_norm_eps": config.norm_eps,
        "batch_first": True,
        "norm_first": config.norm_first,
        "bias": config.bias,
    }


# Every option that PyTorch's layers know, in both orders of the norm.
CONFIGS = [
    PLAIN,
    dataclasses.replace(PLAIN, norm_first=False),
    dataclasses.replace(PLAIN, feed_forward="relu", norm_eps=1e-2),
    dataclasses.replace(PLAIN, norm_first=False, feed_forward="relu", bias=False),
    dataclasses.replace(PLAIN, fused=True),
]


# --- LayerNorm and RMSNorm ----------------------------------------------------------


def test_layer_norm_by_hand():
    """Mean 2 and variance 1; then numbers so small that eps decides."""
    norm = transformer.LayerNorm(2)
    close(norm(torch.tensor([[1.0, 3.0]])), torch.tensor([[-1.0, 1.0]]))
    small = 0.001 / math.sqrt(1e-6 + 1e-5)  # 0.3015
    close(norm(torch.tensor([[0.0, 0.002]])), torch.tensor([[-small, small]]))


def test_rms_norm_by_hand():
    """√((9 + 16) / 2) = 3.5355, and no mean is taken away."""
    norm = transformer.RMSNorm(2)
    close(norm(torch.tensor([3.0, 4.0])), torch.tensor([0.848528, 1.131371]))
    small = 0.002 / math.sqrt(2e-6 + 1e-5)  # 0.5774
    close(norm(torch.tensor([0.0, 0.002])), torch.tensor([0.0, small]))


@pytest.mark.parametrize("scale", [1.0, 1e-3, 100.0])
@pytest.mark.parametrize(
    ("ours", "oracle"),
    [
        (transformer.LayerNorm, nn.LayerNorm),
        (partial(transformer.LayerNorm, bias=False), partial(nn.LayerNorm, bias=False)),
        (transformer.RMSNorm, nn.RMSNorm),
    ],
)
@pytest.mark.parametrize("eps", [1e-5, 1e-2])
def test_norms_equal_torch(ours, oracle, eps, scale, device):
    """Forward and backward, for large numbers and for some as small as eps."""
    ours, oracle = ours(C, eps, device=device), oracle(C, eps, device=device)
    perturbed(ours)
    oracle.load_state_dict(ours.state_dict())
    x = (scale * (torch.randn(B, T, C, device=device) + 0.5)).requires_grad_()
    close(ours(x), oracle(x))
    # Gradients of numbers as small as 1/1000 are as large as 1000.
    scaled = [ours(x) * scale, oracle(x) * scale]
    upstream = torch.randn_like(x)
    for ours_input, oracle_input in [
        (x, x),
        *zip(ours.parameters(), oracle.parameters(), strict=True),
    ]:
        gradient, expected = (
            torch.autograd.grad(y, target, upstream, retain_graph=True)[0]
            for y, target in zip(scaled, (ours_input, oracle_input), strict=True)
        )
        close(gradient, expected, rtol=1e-5, atol=1e-5 * max(scale, 1.0))


@given(factor=st.floats(0.1, 100.0), shift=st.floats(-10.0, 10.0))
@settings(max_examples=20)
def test_what_the_norms_do_not_see(factor, shift, device):
    """Both are blind to a factor, LayerNorm to a shift of all numbers as well."""
    x = torch.randn(B, T, C, device=device, dtype=torch.float64)
    options = {"eps": 0.0, "device": device, "dtype": torch.float64}
    layer_norm = perturbed(transformer.LayerNorm(C, **options))
    rms_norm = perturbed(transformer.RMSNorm(C, **options))
    close(layer_norm(factor * x + shift), layer_norm(x))
    close(rms_norm(factor * x), rms_norm(x))


@pytest.mark.parametrize("kind", ["LayerNorm", "RMSNorm"])
def test_norms_take_each_token_alone(kind, device):
    """What happens to token 2 is no business of the others, in no sentence."""
    norm = getattr(transformer, kind)(C, device=device)
    x = torch.randn(B, T, C, device=device)
    expected = norm(x)
    x[0, 2] = 100 * torch.randn(C, device=device)
    others = [0, 1, 3, 4]
    assert torch.equal(norm(x)[:, others], expected[:, others])
    assert torch.equal(norm(x)[1], expected[1])
    close(norm(x[0, 2]), norm(x)[0, 2])


@pytest.mark.parametrize("kind", ["LayerNorm", "RMSNorm"])
def test_norms_of_equal_numbers(kind, device):
    """A token of zeros stays zeros, and its gradient is finite."""
    norm = getattr(transformer, kind)(C, device=device)
    x = torch.zeros(1, C, device=device, requires_grad=True)
    norm(x).sum().backward()
    assert (norm(x) == 0).all()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("kind", ["LayerNorm", "RMSNorm"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_norms_of_another_type(kind, dtype, device):
    """Squares of 1000 do not fit into half precision, the result does."""
    norm = getattr(transformer, kind)(C, device=device, dtype=dtype)
    x = 1000 * torch.randn(B, T, C, device=device)
    expected = getattr(transformer, kind)(C, device=device)(x)
    assert norm(x.to(dtype)).dtype == dtype
    close(norm(x.to(dtype)).float(), expected, atol=3e-2)


# --- FeedForward and SwiGLU ---------------------------------------------------------


def test_feed_forward_by_hand():
    """Widened to (2, -3), bent to (2, 0), narrowed to 5 · 2 + 1."""
    layer = transformer.FeedForward(1, 2, activation="relu")
    layer.load_state_dict(
        {
            "project_up.weight": torch.tensor([[1.0], [-2.0]]),
            "project_up.bias": torch.tensor([1.0, -1.0]),
            "project_down.weight": torch.tensor([[5.0, 7.0]]),
            "project_down.bias": torch.tensor([1.0]),
        }
    )
    close(layer(torch.tensor([[1.0]])), torch.tensor([[11.0]]))


def test_swiglu_by_hand():
    """The gate is 1 and what it lets through is -1: silu(1) · -1, not 1 · silu(-1)."""
    layer = transformer.SwiGLU(1, 1)
    weights = {"project_gate": 1.0, "project_up": -1.0, "project_down": 1.0}
    layer.load_state_dict(
        {f"{name}.weight": torch.tensor([[w]]) for name, w in weights.items()}
    )
    close(layer(torch.tensor([[1.0]])), torch.tensor([[-1 / (1 + math.exp(-1))]]))


@pytest.mark.parametrize(
    ("activation", "oracle"),
    [("relu", nn.ReLU()), ("gelu", nn.GELU()), ("gelu_tanh", nn.GELU("tanh"))],
)
def test_feed_forward_equals_torch(activation, oracle, device):
    layer = transformer.FeedForward(C, N_FF, activation=activation, device=device)
    expected = nn.Sequential(layer.project_up, oracle, layer.project_down)
    x = torch.randn(B, T, C, device=device, requires_grad=True)
    everything = [x, *layer.parameters()]
    close(layer(x), expected(x))
    assert_same_gradients(layer(x), expected(x), everything, everything)


@pytest.mark.parametrize("bias", [True, False])
def test_swiglu_equals_its_formula(bias, device):
    layer = transformer.SwiGLU(C, N_FF, bias=bias, device=device)
    x = torch.randn(B, T, C, device=device, requires_grad=True)
    gate = layer.project_gate(x)
    expected = layer.project_down(gate * torch.sigmoid(gate) * layer.project_up(x))
    everything = [x, *layer.parameters()]
    assert len(everything) == (7 if bias else 4)
    close(layer(x), expected)
    assert_same_gradients(layer(x), expected, everything, everything)


# --- The parts that a configuration asks for ----------------------------------------


def test_config_makes_the_parts():
    kinds = transformer.LayerNorm, transformer.RMSNorm, nn.LayerNorm, nn.RMSNorm
    for kind, norm, fused in zip(
        kinds, ["layer", "rms"] * 2, [False] * 2 + [True] * 2, strict=True
    ):
        config = dataclasses.replace(PLAIN, norm=norm, fused=fused, norm_eps=0.5)
        made = transformer.make_norm(config)
        assert type(made) is kind
        assert made.eps == 0.5
        assert made.weight.shape == (C,)
    assert transformer.make_norm(dataclasses.replace(PLAIN, bias=False)).bias is None
    made = transformer.make_feed_forward(PLAIN)
    assert (type(made), made.activation) == (transformer.FeedForward, "gelu")
    made = transformer.make_feed_forward(MODERN)
    assert type(made) is transformer.SwiGLU
    assert made.project_gate.weight.shape == (10, 24)
    assert made.project_up.bias is None


# --- Attention that knows positions -------------------------------------------------


def test_biased_attention_by_hand():
    """Scores 1 and 0 with a bias of -1 and 0: a draw."""
    output, weights = transformer.biased_attention(
        query=torch.tensor([[1.0]]),
        key=torch.tensor([[1.0], [0.0], [9.0]]),
        value=torch.tensor([[10.0], [20.0], [90.0]]),
        bias=torch.tensor([[-1.0, 0.0, 5.0]]),
        mask=torch.tensor([[True, True, False]]),
    )
    close(weights, torch.tensor([[0.5, 0.5, 0.0]]))
    close(output, torch.tensor([[15.0]]))


def qkv(device):
    shapes = (B, H, T, D), (B, H, S, D), (B, H, S, 6)
    return [torch.randn(*s, device=device, requires_grad=True) for s in shapes]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_three_ways_to_attend(masked, biased, device):
    """With a bias, fused and as in chapter 08: forward, backward, and PyTorch's."""
    everything = qkv(device)
    mask = torch.rand(B, 1, T, S, device=device) < 0.6 if masked else None
    if masked:
        mask[0, 0, 2] = False
    bias = torch.randn(H, T, S, device=device) if biased else None
    wanted = 0.0 if bias is None else bias
    if masked:
        wanted = torch.zeros(B, H, T, S, device=device) + wanted
        wanted = wanted.masked_fill(~mask, -math.inf)
    query, key, value = everything
    scores = query @ key.transpose(-2, -1) / math.sqrt(D) + wanted
    expected = torch.nan_to_num(torch.softmax(scores, dim=-1)) @ value
    fused = transformer.fused_attention(*everything, bias, mask)
    close(fused, expected)
    zeros = torch.zeros(1, device=device) if bias is None else bias
    output, weights = transformer.biased_attention(*everything, zeros, mask)
    close(output, expected)
    close(weights @ value, expected)
    assert_same_gradients(output, fused, everything, everything)
    if not biased:
        plain, plain_weights = attention.scaled_dot_product_attention(*everything, mask)
        close(plain, expected)
        close(plain_weights, weights)
        assert_same_gradients(plain, fused, everything, everything)


def test_dropout_of_attention(device):
    """Both ways to attend drop weights, and the weights returned are those before."""
    query, key, value = qkv(device)
    bias = torch.zeros(T, S, device=device)
    _, weights = transformer.biased_attention(query, key, value, bias)
    dropped, same = transformer.biased_attention(
        query, key, value, bias, dropout_p=0.999
    )
    assert torch.equal(weights, same)
    assert (dropped == 0).float().mean() > 0.9
    fused = transformer.fused_attention(query, key, value, dropout_p=0.999)
    assert (fused == 0).float().mean() > 0.9


def test_without_positions_it_is_chapter_08(device, monkeypatch):
    """Also with a student's layer in the place of ours."""

    class Student(attention.MultiHeadAttention):
        pass

    monkeypatch.setattr(attention, "MultiHeadAttention", Student)
    layer = transformer.PositionalAttention(PLAIN, device)
    assert type(layer.heads) is Student
    x, context = torch.randn(B, T, C), torch.randn(B, S, C)
    mask = torch.rand(B, H, T, S) < 0.5
    inputs = [t.to(device) for t in (x, context, mask)]
    for mine, expected in zip(layer(*inputs), layer.heads(*inputs), strict=True):
        assert torch.equal(mine, expected)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("kind", ["rope", "alibi"])
def test_attention_with_positions_one_pair_at_a_time(kind, fused, device):
    """Grouped heads: every score from its own query and key, turned or biased."""
    config = dataclasses.replace(MODERN, fused=fused)
    layer = transformer.PositionalAttention(config, device)
    heads, n_heads, d_head = layer.heads, 6, 4
    x = torch.randn(B, T, 24, device=device)
    mask = attention.causal_mask(T, device=device)
    output, weights = layer(x, mask=mask, **told(kind, config, 0, T, device))
    query = heads.project_query(x).unflatten(-1, (n_heads, d_head))
    key = heads.project_key(x).unflatten(-1, (2, d_head))
    value = heads.project_value(x).unflatten(-1, (2, d_head))
    slopes = position.alibi_slopes(n_heads)
    wanted_weights = torch.zeros(B, n_heads, T, T, device=device)
    wanted = torch.zeros(B, T, n_heads, d_head, device=device)
    for b, h, t in [
        (b, h, t) for b in range(B) for h in range(n_heads) for t in range(T)
    ]:
        scores = []
        for s in range(t + 1):
            q, k = query[b, t, h], key[b, s, h // 3]
            if kind == "alibi":
                scores.append(q @ k / 2 - slopes[h] * (t - s))
            else:
                pairs = torch.complex(q[:2], q[2:]) * torch.complex(k[:2], -k[2:])
                angles = torch.tensor([t - s, (t - s) / 100], device=device)
                turn = torch.polar(torch.ones_like(angles), angles)
                scores.append((pairs * turn).real.sum() / 2)
        share = torch.softmax(torch.stack(scores), dim=0)
        wanted_weights[b, h, t, : t + 1] = share
        wanted[b, t, h] = share @ value[b, : t + 1, h // 3]
    close(output, heads.project_output(wanted.flatten(-2)))
    assert weights is None if fused else True
    if not fused:
        close(weights, wanted_weights)


@pytest.mark.parametrize("fused", [False, True])
def test_context_is_projected_once(fused, device):
    """With a cache, later calls use the keys and values of the first."""
    layer = transformer.PositionalAttention(
        dataclasses.replace(PLAIN, fused=fused), device
    )
    x, context = (torch.randn(B, n, C, device=device) for n in (T, S))
    mask = attention.padding_mask(torch.tensor([S, 4], device=device))
    expected, _ = layer(x, context, mask)
    cache = attention.KeyValueCache()
    for t in range(T):
        output, _ = layer(x[:, t : t + 1], context, mask, cache)
        close(output, expected[:, t : t + 1])
    assert len(cache) == S
    output, _ = layer(x, torch.zeros_like(context), mask, cache)
    close(output, expected)


# --- Residual -----------------------------------------------------------------------


@pytest.mark.parametrize("norm_first", [True, False])
def test_residual_by_hand(norm_first):
    """The step multiplies by three."""
    residual = transformer.Residual(
        dataclasses.replace(PLAIN, d_model=2, norm_first=norm_first)
    )
    x = torch.tensor([[1.0, 5.0]])
    output = residual(x, lambda y: 3 * y)
    expected = [[1.0 - 3.0, 5.0 + 3.0]] if norm_first else [[-1.0, 1.0]]
    close(output, torch.tensor(expected))
    assert torch.equal(x, torch.tensor([[1.0, 5.0]]))


# --- EncoderLayer and Encoder -------------------------------------------------------


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("masked", [False, True])
def test_encoder_layer_equals_torch(config, masked, device):
    oracle = nn.TransformerEncoderLayer(**torch_options(config), device=device)
    x = torch.randn(B, T, C, device=device, requires_grad=True)
    mask = attention.causal_mask(T, device=device) if masked else None

    def call(layer):
        if layer is oracle:
            return layer(x, src_mask=None if mask is None else ~mask)
        return layer(x, mask)

    ours = transformer.EncoderLayer(config, device)
    assert_equal_with_copied_weights(ours, oracle, encoder_names, call, [x])


@pytest.mark.parametrize("norm_first", [True, False])
def test_encoder_equals_torch(norm_first, device):
    """With padding, where only the real tokens are compared."""
    config = dataclasses.replace(PLAIN, norm_first=norm_first)
    oracle = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(**torch_options(config), device=device),
        num_layers=3,
        norm=nn.LayerNorm(C, device=device) if norm_first else None,
        enable_nested_tensor=False,
    )
    x = torch.randn(B, S, C, device=device, requires_grad=True)
    mask = attention.padding_mask(torch.tensor([S, 3], device=device))

    def call(encoder):
        if encoder is oracle:
            output = encoder(x, src_key_padding_mask=~mask[:, 0, 0])
        else:
            output = encoder(x, mask)
        return output * mask[:, 0, 0, :, None]

    ours = transformer.Encoder(config, 3, device=device)
    assert_equal_with_copied_weights(ours, oracle, encoder_names, call, [x])


def modern_block(x, layer):
    """A causal layer of the Llama kind, written with PyTorch's functions alone."""
    norm = layer.around_self_attention.norm
    heads = layer.self_attention.heads
    normed = F.rms_norm(x, (24,), norm.weight, norm.eps)
    query, key, value = (
        F.linear(normed, getattr(heads, f"project_{part}").weight)
        .unflatten(-1, (-1, 4))
        .transpose(1, 2)
        for part in ("query", "key", "value")
    )
    angles = torch.outer(
        torch.arange(x.shape[1], device=x.device),
        torch.tensor([1.0, 0.01], device=x.device),
    )
    turn = torch.polar(torch.ones_like(angles), angles)

    def turned(y):
        y = torch.complex(y[..., :2], y[..., 2:]) * turn
        return torch.cat([y.real, y.imag], dim=-1)

    looked = F.scaled_dot_product_attention(
        turned(query), turned(key), value, is_causal=True, enable_gqa=True
    )
    looked = looked.transpose(1, 2).flatten(-2)
    x = x + F.linear(looked, heads.project_output.weight)
    norm, network = layer.around_feed_forward.norm, layer.feed_forward
    normed = F.rms_norm(x, (24,), norm.weight, norm.eps)
    hidden = F.silu(F.linear(normed, network.project_gate.weight)) * F.linear(
        normed, network.project_up.weight
    )
    return x + F.linear(hidden, network.project_down.weight)


@pytest.mark.parametrize("fused", [False, True])
def test_modern_decoder_equals_its_formulas(fused, device):
    """RMSNorm, rotary positions, grouped heads, SwiGLU, no biases: two layers."""
    config = dataclasses.replace(MODERN, fused=fused)
    decoder = perturbed(
        transformer.Decoder(config, L, cross_attention=False, device=device)
    )
    x = torch.randn(B, T, 24, device=device, requires_grad=True)
    expected = x
    for layer in decoder.layers:
        expected = modern_block(expected, layer)
    expected = F.rms_norm(expected, (24,), decoder.final_norm.weight, config.norm_eps)
    output = decoder(x, **told("rope", config, 0, T, device))
    close(output, expected)
    everything = [x, *decoder.parameters()]
    assert_same_gradients(output, expected, everything, everything)


@given(lengths=st.lists(st.integers(1, S), min_size=3, max_size=3))
@settings(max_examples=6)
@pytest.mark.parametrize("kind", POSITIONS)
def test_encoder_ignores_padding(kind, lengths, device):
    """A padded text gives what it gives alone, whatever the padding holds."""
    encoder = perturbed(transformer.Encoder(PLAIN, L, device=device))
    x = torch.randn(3, S, C, device=device)
    mask = attention.padding_mask(torch.tensor(lengths, device=device), S)
    output = encoder(x, mask, **told(kind, PLAIN, 0, S, device))
    for row, length in enumerate(lengths):
        alone = encoder(
            x[row : row + 1, :length], **told(kind, PLAIN, 0, length, device)
        )
        close(output[row, :length], alone[0])


@given(seed=st.integers(0, 1000))
@settings(max_examples=6)
def test_encoder_without_positions_knows_no_order(seed, device):
    """Shuffled tokens give shuffled outputs; with positions they do not."""
    encoder = perturbed(transformer.Encoder(PLAIN, L, device=device))
    x = torch.randn(B, T, C, device=device)
    order = torch.tensor([1, 0, 2, 4, 3]).roll(seed).to(device)
    close(encoder(x[:, order]), encoder(x)[:, order])
    for kind in ("rope", "alibi"):
        options = told(kind, PLAIN, 0, T, device)
        shuffled = encoder(x[:, order], **options)
        assert (shuffled - encoder(x, **options)[:, order]).abs().max() > 1e-3


def test_two_layers_go_backwards_and_spare_their_input(device):
    """Nothing that is still needed is written over."""
    x = torch.randn(B, T, C, device=device, requires_grad=True)
    before = x.detach().clone()
    transformer.Encoder(PLAIN, 2, device=device)(x + 0).square().sum().backward()
    assert torch.equal(x, before)
    assert x.grad.isfinite().all()
    stream = before.clone()
    transformer.EncoderLayer(PLAIN, device)(stream)
    assert torch.equal(stream, before)


# --- DecoderLayer and Decoder -------------------------------------------------------


@pytest.mark.parametrize("config", CONFIGS)
def test_decoder_layer_equals_torch(config, device):
    """Causal in its own text, with padding in the context."""
    oracle = nn.TransformerDecoderLayer(**torch_options(config), device=device)
    x = torch.randn(B, T, C, device=device, requires_grad=True)
    context = torch.randn(B, S, C, device=device, requires_grad=True)
    mask = attention.causal_mask(T, device=device)
    context_mask = attention.padding_mask(torch.tensor([S, 3], device=device))

    def call(layer):
        if layer is oracle:
            return layer(
                x,
                context,
                tgt_mask=~mask,
                memory_key_padding_mask=~context_mask[:, 0, 0],
            )
        return layer(x, context, mask, context_mask)

    ours = transformer.DecoderLayer(config, device=device)
    assert_equal_with_copied_weights(ours, oracle, decoder_names, call, [x, context])


@pytest.mark.parametrize("norm_first", [True, False])
def test_decoder_equals_torch(norm_first, device):
    """Without being asked, it lets no token see a later one."""
    config = dataclasses.replace(PLAIN, norm_first=norm_first)
    oracle = nn.TransformerDecoder(
        nn.TransformerDecoderLayer(**torch_options(config), device=device),
        num_layers=3,
        norm=nn.LayerNorm(C, device=device) if norm_first else None,
    )
    x = torch.randn(B, T, C, device=device, requires_grad=True)
    context = torch.randn(B, S, C, device=device, requires_grad=True)
    later = ~attention.causal_mask(T, device=device)

    def call(decoder):
        options = {"tgt_mask": later} if decoder is oracle else {}
        return decoder(x, context, **options)

    ours = transformer.Decoder(config, 3, device=device)
    assert_equal_with_copied_weights(ours, oracle, decoder_names, call, [x, context])


@given(
    kind=st.sampled_from(POSITIONS),
    cross=st.booleans(),
    fused=st.booleans(),
    poked=st.integers(0, T - 1),
)
@settings(max_examples=16)
def test_decoder_is_causal(kind, cross, fused, poked, device):
    """A change at one place changes that place and leaves all places before it."""
    config = dataclasses.replace(PLAIN, fused=fused)
    decoder = perturbed(
        transformer.Decoder(config, L, cross_attention=cross, device=device)
    )
    context = torch.randn(B, S, C, device=device) if cross else None
    x = torch.randn(B, T, C, device=device)
    options = told(kind, config, 0, T, device)
    before = decoder(x, context, **options)
    x[:, poked] += 1 + torch.rand(C, device=device)
    after = decoder(x, context, **options)
    close(after[:, :poked], before[:, :poked], atol=1e-6)
    changes = (after - before).abs().amax(dim=-1)[:, poked:]
    assert (changes > 1e-5).all()


@given(
    chunks=st.lists(st.integers(1, 3), min_size=1, max_size=4),
    kind=st.sampled_from(POSITIONS),
    cross=st.booleans(),
    fused=st.booleans(),
    norm_first=st.booleans(),
    window=st.none() | st.integers(1, 4),
)
@settings(max_examples=20)
def test_cache_equals_no_cache(chunks, kind, cross, fused, norm_first, window, device):
    """A text in pieces of any length gives what it gives at once, grouped heads too."""
    config = dataclasses.replace(MODERN, fused=fused, norm_first=norm_first)
    decoder = perturbed(
        transformer.Decoder(config, L, cross_attention=cross, device=device)
    )
    n_tokens = sum(chunks)
    x = torch.randn(B, n_tokens, 24, device=device)
    context = torch.randn(B, S, 24, device=device) if cross else None
    context_mask = None
    if cross:
        context_mask = attention.padding_mask(torch.tensor([4, S], device=device))

    def mask(n_queries, n_keys):
        if window is None:
            return None
        return attention.sliding_window_mask(n_queries, window, n_keys, device)

    expected = decoder(
        x,
        context,
        mask(n_tokens, n_tokens),
        context_mask,
        **told(kind, config, 0, n_tokens, device),
    )
    cache = transformer.DecoderCache(L)
    for chunk in x.split(chunks, dim=1):
        start, stop = len(cache), len(cache) + chunk.shape[1]
        output = decoder(
            chunk,
            context,
            mask(chunk.shape[1], stop),
            context_mask,
            cache,
            **told(kind, config, start, stop, device),
        )
        close(output, expected[:, start:stop])
        assert len(cache) == stop
    assert [len(kept) for kept in cache.context] == [S if cross else 0] * L


def test_decoder_reads_the_context(device):
    """Another context, another output; hidden parts of it do not count."""
    decoder = transformer.Decoder(PLAIN, L, device=device)
    x, context = (torch.randn(B, n, C, device=device) for n in (T, S))
    mask = attention.padding_mask(torch.tensor([4, 4], device=device), S)
    before = decoder(x, context, context_mask=mask)
    context[:, 4:] = 100.0
    close(decoder(x, context, context_mask=mask), before)
    context[:, 3] += 1 + torch.rand(C, device=device)
    changes = (decoder(x, context, context_mask=mask) - before).abs().amax(dim=-1)
    assert (changes > 1e-5).all()


def test_context_gives_keys_and_the_text_asks(device):
    """The target's lengths decide the output's, the source may be of any other."""
    layer = transformer.DecoderLayer(PLAIN, device=device)
    seen = {}

    def watch(module, inputs, output):
        seen["weights"] = output[1]

    layer.cross_attention.register_forward_hook(watch)
    x, context = (torch.randn(B, n, C, device=device) for n in (T, S))
    assert layer(x, context).shape == (B, T, C)
    assert seen["weights"].shape == (B, H, T, S)


@given(padding=st.integers(0, 4))
@settings(max_examples=6)
@pytest.mark.parametrize("kind", POSITIONS)
def test_padding_on_the_left_changes_nothing(kind, padding, device):
    """Rotary positions and ALiBi know distances only: a text may start anywhere."""
    decoder = perturbed(
        transformer.Decoder(PLAIN, L, cross_attention=False, device=device)
    )
    x = torch.randn(B, T, C, device=device)
    expected = decoder(x, **told(kind, PLAIN, 0, T, device))
    n_tokens = padding + T
    padded = torch.cat([torch.randn(B, padding, C, device=device), x], dim=1)
    real = torch.arange(n_tokens, device=device) >= padding
    output = decoder(padded, mask=real, **told(kind, PLAIN, 0, n_tokens, device))
    close(output[:, padding:], expected)


def test_prefix_decoder(device):
    """With causality off, the mask alone decides: two-way prompt, one-way answer."""
    decoder = perturbed(
        transformer.Decoder(PLAIN, L, cross_attention=False, device=device)
    )
    x = torch.randn(B, T, C, device=device)
    mask = attention.prefix_mask(T, 2, device)
    before = decoder(x, mask=mask, causal=False)
    poked = x.clone()
    poked[:, 1] += 1.0
    assert ((decoder(poked, mask=mask, causal=False) - before)[:, 0] != 0).any()
    close(decoder(poked, mask=mask)[:, 0], decoder(x, mask=mask)[:, 0])
    poked = x.clone()
    poked[:, 3] += 1.0
    close(decoder(poked, mask=mask, causal=False)[:, :3], before[:, :3])


def test_fused_layers_take_the_same_parameters(device):
    """Written under the same names, so that one can be exchanged for the other."""
    fused_config = dataclasses.replace(PLAIN, fused=True)
    ours = perturbed(transformer.Decoder(PLAIN, L, device=device))
    fused = transformer.Decoder(fused_config, L, device=device)
    fused.load_state_dict(ours.state_dict())
    x, context = (torch.randn(B, n, C, device=device) for n in (T, S))
    close(fused(x, context), ours(x, context))


# --- All of them --------------------------------------------------------------------


def test_dropout_works_in_training_only(device):
    """In attention, in the network, around both: each drops something by itself."""
    config = dataclasses.replace(PLAIN, dropout=0.5)
    for kind in (transformer.EncoderLayer, transformer.DecoderLayer):
        layer = kind(config, device=device)
        x = torch.randn(B, T, C, device=device)
        inputs = [x] if kind is transformer.EncoderLayer else [x, x]
        assert not torch.equal(layer(*inputs), layer(*inputs))
        layer.eval()
        assert torch.equal(layer(*inputs), layer(*inputs))
    for fused in (False, True):
        look = transformer.PositionalAttention(
            dataclasses.replace(config, fused=fused), device
        )
        assert not torch.equal(look(x)[0], look(x)[0])
        bias = position.alibi_bias(H, T, device=device)
        assert not torch.equal(look(x, bias=bias)[0], look(x, bias=bias)[0])
        look.eval()
        assert torch.equal(look(x, bias=bias)[0], look(x, bias=bias)[0])
    for part in (transformer.FeedForward, transformer.SwiGLU):
        network = part(C, N_FF, dropout=0.5, device=device)
        assert not torch.equal(network(x), network(x))
    residual = transformer.Residual(config, device)
    dropped = residual(x, torch.ones_like) == x
    assert 0.2 < dropped.float().mean() < 0.8
    behind = transformer.Residual(dataclasses.replace(config, norm_first=False), device)
    assert not torch.equal(behind(x, torch.ones_like), behind(x, torch.ones_like))


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("kind", POSITIONS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_layers_of_another_type(kind, fused, dtype, device):
    """The type is kept, and the result right to the digits that the type has."""
    config = dataclasses.replace(MODERN, fused=fused)
    exact = transformer.Decoder(config, L, cross_attention=False, device=device)
    decoder = transformer.Decoder(
        config, L, cross_attention=False, device=device, dtype=dtype
    )
    decoder.load_state_dict(exact.state_dict())
    x = torch.randn(B, T, 24, device=device)
    options = told(kind, config, 0, T, device)
    output = decoder(x.to(dtype), **options)
    assert output.dtype == dtype
    close(
        output.float(), exact(x, **options), atol=0.1 if dtype.itemsize == 2 else 1e-5
    )


@pytest.mark.parametrize("fused", [False, True])
def test_nothing_is_made_on_another_device(fused):
    """On torch's meta device, where every tensor from elsewhere is an error."""
    config = dataclasses.replace(MODERN, fused=fused)
    encoder = transformer.Encoder(config, L, device="meta")
    decoder = transformer.Decoder(config, L, device="meta")
    source, x = (torch.randn(B, n, 24, device="meta") for n in (S, T))
    cache = transformer.DecoderCache(L)
    for kind in ("rope", "alibi"):
        context = encoder(source, **told(kind, config, 0, S, "meta"))
        start = len(cache)
        options = told(kind, config, start, start + T, "meta")
        output = decoder(x, context, cache=cache, **options)
        assert (output.device.type, output.shape) == ("meta", (B, T, 24))


def test_one_token_and_none(device):
    """A text of a single token, and an empty one."""
    decoder = transformer.Decoder(PLAIN, L, device=device)
    context = torch.randn(B, S, C, device=device)
    one = torch.randn(B, 1, C, device=device)
    assert decoder(one, context).isfinite().all()
    assert decoder(one[:, :0], context).shape == (B, 0, C)


# --- EncoderDecoder -----------------------------------------------------------------

START, STOP, N_SOURCE, N_TARGET = 0, 1, 11, 9


def machine(device, config=PLAIN, *, seed=1, dtype=None):
    generator = torch.Generator(device).manual_seed(seed)
    return transformer.EncoderDecoder(
        config, L, N_SOURCE, N_TARGET, generator=generator, dtype=dtype
    )


def some_ids(n_words, length, device, batch=B):
    return torch.randint(2, n_words, (batch, length), device=device)


def test_shift_right_by_hand():
    targets = torch.tensor([[5, 6, 7], [8, 9, 1]])
    shifted = transformer.shift_right(targets, start=2)
    assert shifted.tolist() == [[2, 5, 6], [2, 8, 9]]
    assert targets.tolist() == [[5, 6, 7], [8, 9, 1]]
    assert transformer.shift_right(targets[:, :1], 2).tolist() == [[2], [2]]


def test_encoder_decoder_equals_torch(device):
    """nn.Transformer with our vectors, positions and final layer round it."""
    model = perturbed(machine(device))
    stacks = {
        "custom_encoder": nn.TransformerEncoder(
            nn.TransformerEncoderLayer(**torch_options(PLAIN), device=device),
            num_layers=L,
            norm=nn.LayerNorm(C, device=device),
            enable_nested_tensor=False,
        ),
        "custom_decoder": nn.TransformerDecoder(
            nn.TransformerDecoderLayer(**torch_options(PLAIN), device=device),
            num_layers=L,
            norm=nn.LayerNorm(C, device=device),
        ),
    }
    oracle = perturbed(nn.Transformer(C, H, **stacks, batch_first=True))
    parameters = dict(oracle.named_parameters())
    of_encoder = {n: p for n, p in parameters.items() if n.startswith("encoder.")}
    of_decoder = {n: p for n, p in parameters.items() if n.startswith("decoder.")}
    taken = encoder_names(of_encoder) | decoder_names(of_decoder)
    model.load_state_dict(
        model.state_dict() | {name: p.detach() for name, p in taken.items()}
    )
    source = some_ids(N_SOURCE, S, device)
    target = some_ids(N_TARGET, T, device)
    mask = attention.padding_mask(torch.tensor([S, 4], device=device))
    table = position.sinusoidal_positions(S, C, device=device)
    expected = model.project_logits(
        oracle(
            model.source_embedding.weight[source] * math.sqrt(C) + table,
            model.target_embedding.weight[target] * math.sqrt(C) + table[:T],
            tgt_mask=~attention.causal_mask(T, device=device),
            src_key_padding_mask=~mask[:, 0, 0],
            memory_key_padding_mask=~mask[:, 0, 0],
        )
    )
    output = model(source, target, mask)
    assert output.shape == (B, T, N_TARGET)
    close(output, expected)
    outer = [model.source_embedding.weight, model.target_embedding.weight]
    outer += list(model.project_logits.parameters())
    assert_same_gradients(output, expected, outer, outer)


def test_first_parameters_come_from_the_generator():
    """Same seed, same model; torch's own dice stay untouched."""
    state = torch.get_rng_state()
    first, second, other = machine("cpu"), machine("cpu"), machine("cpu", seed=2)
    assert torch.equal(torch.get_rng_state(), state)
    source, target = torch.tensor([[3, 4, 5]]), torch.tensor([[0, 2]])
    assert torch.equal(first(source, target), second(source, target))
    assert not torch.equal(first(source, target), other(source, target))


def test_draw_parameters(device):
    """Matrices between the bounds of Xavier, no shift, no scale."""
    layer = perturbed(transformer.EncoderLayer(PLAIN, device))
    transformer.draw_parameters(layer, torch.Generator(device).manual_seed(1))
    for name, parameter in layer.named_parameters():
        if parameter.dim() == 2:
            bound = math.sqrt(6 / sum(parameter.shape))
            assert 0.8 * bound < parameter.abs().max() <= bound
        else:
            wanted = 0.0 if name.endswith("bias") else 1.0
            assert (parameter == wanted).all()


def test_encoder_decoder_by_hand():
    """With weights of zero, the final layer's bias is all that is left."""
    model = machine("cpu")
    with torch.no_grad():
        model.project_logits.weight.zero_()
        model.project_logits.bias.copy_(torch.arange(N_TARGET))
    logits = model(torch.tensor([[3]]), torch.tensor([[0, 4]]))
    close(logits, torch.arange(float(N_TARGET)).expand(1, 2, N_TARGET))
    written = model.translate(torch.tensor([[3]]), START, STOP, max_tokens=3)
    assert written.tolist() == [[8, 8, 8]]


def test_same_word_at_the_same_place(device):
    """Positions go along the text: two equal texts in one batch stay equal."""
    model = machine(device)
    source = some_ids(N_SOURCE, S, device, batch=1).expand(3, S)
    target = some_ids(N_TARGET, T, device, batch=1).expand(3, T)
    logits = model(source, target)
    close(logits[0], logits[2])
    moved = model(source.roll(1, dims=1), target)
    assert (moved - logits).abs().max() > 1e-3


@given(lengths=st.lists(st.integers(1, S), min_size=B, max_size=B))
@settings(max_examples=4)
def test_machine_with_cache_equals_without(lengths, device):
    """Token by token, with positions that go on, and padding in the source."""
    model = perturbed(machine(device))
    source, target = some_ids(N_SOURCE, S, device), some_ids(N_TARGET, T, device)
    mask = attention.padding_mask(torch.tensor(lengths, device=device), S)
    expected = model(source, target, mask)
    context, cache = model.encode(source, mask), transformer.DecoderCache(L)
    for t in range(T):
        logits = model.decode(target[:, t : t + 1], context, mask, cache)
        close(logits, expected[:, t : t + 1])
    for row, length in enumerate(lengths):
        alone = model(source[row : row + 1, :length], target[row : row + 1])
        close(alone[0], expected[row])


@given(lengths=st.lists(st.integers(1, S), min_size=B, max_size=B))
@settings(max_examples=4)
def test_translation_equals_writing_by_hand(lengths, device):
    """Cached, in a padded batch, against whole passes for one text at a time."""
    model = perturbed(machine(device))
    source = some_ids(N_SOURCE, S, device)
    mask = attention.padding_mask(torch.tensor(lengths, device=device), S)
    written = model.translate(source, START, STOP, 6, mask)
    for row, length in enumerate(lengths):
        ids = [START]
        while len(ids) <= 6 and ids[-1] != STOP:
            target = torch.tensor([ids], device=device)
            logits = model(source[row : row + 1, :length], target)
            ids.append(int(logits[0, -1].argmax()))
        found = written[row].tolist()
        expected = ids[1:]
        assert found[: len(expected)] == expected
        assert set(found[len(expected) :]) <= {STOP}


def test_translation_ends(device):
    """A machine that always writes STOP writes it once; none at all if so asked."""
    model = machine(device)
    with torch.no_grad():
        model.project_logits.weight.zero_()
        model.project_logits.bias.zero_()[STOP] = 1.0
    source = some_ids(N_SOURCE, S, device)
    assert model.translate(source, START, STOP, 9).tolist() == [[STOP]] * B
    assert model.translate(source, START, STOP, 0).shape == (B, 0)


def trained(device, n_steps, make_batch):
    """A small machine after training, and its losses, in nats per token."""
    config = LayerConfig(d_model=16, n_heads=2, d_ff=32, fused=True)
    generator = torch.Generator(device).manual_seed(1)
    model = transformer.EncoderDecoder(config, 1, 6, 6, generator=generator)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(n_steps):
        source, read, written = make_batch()
        loss = F.cross_entropy(model(source, read).flatten(0, 1), written.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return model, losses


def test_random_targets_cannot_be_foreseen(device):
    """With the target shifted the loss stays near ln 4; unshifted, it can be copied."""

    def random_batch(shift):
        source, target = (some_ids(6, 4, device, batch=16) for _ in range(2))
        read = transformer.shift_right(target, START) if shift else target
        return source, read, target

    for shift in (True, False):
        _, losses = trained(device, 40, partial(random_batch, shift))
        last = sum(losses[-20:]) / 20
        assert last > math.log(4) - 0.1 if shift else last < 0.5


def test_machine_learns_to_reverse(device):
    """Texts of three letters, written backwards, also those never seen."""

    def batch():
        source = some_ids(6, 3, device, batch=32)
        target = F.pad(source.flip(1), (0, 1), value=STOP)
        return source, transformer.shift_right(target, START), target

    model, _ = trained(device, 100, batch)
    source = torch.cartesian_prod(*[torch.arange(2, 6)] * 3).to(device)
    written = model.translate(source, START, STOP, max_tokens=5)
    expected = F.pad(source.flip(1), (0, 1), value=STOP)
    right = (written[:, :4] == expected).all(dim=1).float().mean()
    assert right > 0.9


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_machine_of_another_type(dtype, device):
    model = machine(device, dtype=dtype)
    source, target = some_ids(N_SOURCE, S, device), some_ids(N_TARGET, T, device)
    assert model(source, target).dtype == dtype


# --- Refusals -----------------------------------------------------------------------


def refused_calls():
    """What is called, which error it raises, and the values that the message names."""
    x, context, narrow = (
        torch.zeros(B, T, C),
        torch.zeros(B, S, C),
        torch.zeros(B, T, 1),
    )
    q, k = torch.zeros(T, D), torch.zeros(S, D)
    numbers = torch.ones(T, S)
    bias = torch.zeros(T, S)
    layer = transformer.DecoderLayer(PLAIN)
    alone = transformer.DecoderLayer(PLAIN, cross_attention=False)
    look = transformer.PositionalAttention(PLAIN)
    square = torch.zeros(T, T)
    decoder, encoder = transformer.Decoder(PLAIN, L), transformer.Encoder(PLAIN, L)
    cache = attention.KeyValueCache()
    look(x, context, cache=cache)
    model = machine("cpu")
    ids = torch.tensor([[3, 4]])
    change = partial(dataclasses.replace, PLAIN)
    dice = torch.Generator()
    return {
        "layer norm": (
            lambda: transformer.LayerNorm(C)(narrow),
            ValueError,
            ["(2, 5, 1)", "12"],
        ),
        "rms norm": (
            lambda: transformer.RMSNorm(C)(narrow),
            ValueError,
            ["(2, 5, 1)", "12"],
        ),
        "feed-forward": (
            lambda: transformer.FeedForward(C, N_FF)(narrow),
            ValueError,
            ["(2, 5, 1)", "12"],
        ),
        "swiglu": (
            lambda: transformer.SwiGLU(C, N_FF)(narrow),
            ValueError,
            ["(2, 5, 1)", "12"],
        ),
        "activation": (
            lambda: transformer.FeedForward(C, N_FF, activation="tanh"),
            ValueError,
            ["activation='tanh'", "relu"],
        ),
        "network": (
            lambda: change(feed_forward="glu"),
            ValueError,
            ["feed_forward='glu'", "swiglu"],
        ),
        "norm": (lambda: change(norm="batch"), ValueError, ["norm='batch'", "rms"]),
        "no width": (lambda: change(d_model=0), ValueError, ["d_model=0"]),
        "no heads": (lambda: change(n_heads=0), ValueError, ["n_heads=0"]),
        "no feed-forward": (lambda: change(d_ff=-1), ValueError, ["d_ff=-1"]),
        "dropout": (lambda: change(dropout=1.5), ValueError, ["dropout=1.5"]),
        "odd heads": (
            lambda: transformer.EncoderLayer(change(n_heads=5)),
            ValueError,
            ["d_model=12", "n_heads=5"],
        ),
        "number mask, biased": (
            lambda: transformer.biased_attention(q, k, k, bias, numbers),
            TypeError,
            ["torch.float32"],
        ),
        "number mask, fused": (
            lambda: transformer.fused_attention(q, k, k, bias, numbers),
            TypeError,
            ["torch.float32"],
        ),
        "turned context": (
            lambda: look(x, context, rotate=lambda y: y),
            ValueError,
            ["rotate", "context"],
        ),
        "another context": (
            lambda: look(x, context[:, :4], cache=cache),
            ValueError,
            ["4", "7"],
        ),
        "wide tokens, biased": (
            lambda: look(narrow, bias=square),
            ValueError,
            ["(2, 5, 1)", "12"],
        ),
        "wide context, cached": (
            lambda: look(x, narrow, cache=attention.KeyValueCache()),
            ValueError,
            ["(2, 5, 1)", "12"],
        ),
        "missing context": (lambda: layer(x), ValueError, ["None", "True"]),
        "context for nobody": (
            lambda: alone(x, context),
            ValueError,
            ["False", "(2, 7, 12)"],
        ),
        "wide tokens, decoder": (
            lambda: decoder(narrow, context),
            ValueError,
            ["(2, 5, 1)", "12"],
        ),
        "wide tokens, encoder": (
            lambda: encoder(narrow),
            ValueError,
            ["(2, 5, 1)", "12"],
        ),
        "no encoder layers": (
            lambda: transformer.Encoder(PLAIN, 0),
            ValueError,
            ["n_layers=0"],
        ),
        "no decoder layers": (
            lambda: transformer.Decoder(PLAIN, 0),
            ValueError,
            ["n_layers=0"],
        ),
        "empty cache": (
            lambda: transformer.DecoderCache(0),
            ValueError,
            ["n_layers=0"],
        ),
        "cache of another model": (
            lambda: decoder(x, context, cache=transformer.DecoderCache(3)),
            ValueError,
            ["3", "2"],
        ),
        "unknown parameter": (
            lambda: transformer.draw_parameters(nn.Conv1d(2, 3, 4), dice),
            ValueError,
            ["weight", "(3, 2, 4)"],
        ),
        "no words": (
            lambda: transformer.EncoderDecoder(PLAIN, L, 0, 9, generator=dice),
            ValueError,
            ["n_source_words=0"],
        ),
        "unknown source": (
            lambda: model(ids + N_SOURCE, ids),
            ValueError,
            ["14", "15", "10"],
        ),
        "unknown target": (lambda: model(ids, -ids), ValueError, ["-4", "-3", "8"]),
        "negative length": (
            lambda: model.translate(ids, START, STOP, -1),
            ValueError,
            ["max_tokens=-1"],
        ),
    }


@pytest.mark.parametrize("name", refused_calls())
def test_refusal_names_the_values(name):
    call, error, values = refused_calls()[name]
    with pytest.raises(error) as caught:
        call()
    for value in values:
        pattern = rf"(?<![\w.]){re.escape(value)}(?![\w])"
        assert re.search(pattern, str(caught.value)), f"{value} not in: {caught.value}"


def test_refused_decoder_leaves_the_cache_alone():
    """A call that fails must not have grown the cache."""
    decoder, cache = transformer.Decoder(PLAIN, L), transformer.DecoderCache(L)
    with pytest.raises(ValueError, match="context"):
        decoder(torch.zeros(B, T, C), cache=cache)
    assert len(cache) == 0
