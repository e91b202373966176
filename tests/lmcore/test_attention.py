"""Tests of lmcore.attention: by hand, against PyTorch, as properties, at the edges.

Sizes differ pairwise wherever that is possible, so that a swapped axis cannot hide.
"""

import math
import re
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lmcore import attention

close = partial(torch.testing.assert_close, atol=1e-5, rtol=0.0)
B, H, T, S, D, DV = 2, 3, 5, 7, 4, 6
small = st.integers(1, 9)


def inputs(device, *, dtype=torch.float32, sizes=(B, H, T, S, D, DV)):
    """A query, a key and a value that want gradients."""
    b, h, t, s, d, dv = sizes
    return [
        torch.randn(b, h, n, width, device=device, dtype=dtype, requires_grad=True)
        for n, width in ((t, d), (s, d), (s, dv))
    ]


def assert_same_gradients(ours, oracle, ours_inputs, oracle_inputs):
    """Both outputs have the same gradients for one random upstream gradient."""
    upstream = torch.randn_like(ours)
    gradients = torch.autograd.grad(ours, ours_inputs, upstream, retain_graph=True)
    oracle_gradients = torch.autograd.grad(
        oracle, oracle_inputs, upstream, retain_graph=True
    )
    for gradient, expected in zip(gradients, oracle_gradients, strict=True):
        close(gradient, expected, rtol=1e-5)


def some_mask(name, device):
    """A mask for T queries and S keys in which every query may look at some key."""
    if name == "none":
        return None
    if name == "causal":
        return attention.causal_mask(T, S, device)
    if name == "window":
        return attention.sliding_window_mask(T, 3, S, device)
    if name == "padding":
        return attention.padding_mask(torch.tensor([S, 4], device=device))
    mask = torch.rand(B, H, T, S, device=device) < 0.4
    return mask | attention.sliding_window_mask(T, 1, S, device)


MASKS = ["none", "causal", "window", "padding", "random"]


# --- additive_score -----------------------------------------------------------------


def test_additive_score_by_hand():
    """Hidden layer tanh(q + 2k, k), then three times the first minus the second."""
    score = attention.additive_score(
        query=torch.tensor([[1.0], [0.0]]),
        key=torch.tensor([[0.0], [0.5], [-1.0]]),
        w_query=torch.tensor([[1.0], [0.0]]),
        w_key=torch.tensor([[2.0], [1.0]]),
        w_score=torch.tensor([3.0, -1.0]),
    )
    tanh = math.tanh
    expected = [
        [3 * tanh(1), 3 * tanh(2) - tanh(0.5), 3 * tanh(-1) - tanh(-1)],
        [0.0, 3 * tanh(1) - tanh(0.5), 3 * tanh(-2) - tanh(-1)],
    ]
    close(score, torch.tensor(expected))


def test_additive_score_equals_one_pair_at_a_time(device):
    """Batched, with widths of their own for query, key and hidden layer."""
    d_query, d_key, d_hidden = 4, 6, 8
    query = torch.randn(B, T, d_query, device=device, requires_grad=True)
    key = torch.randn(B, S, d_key, device=device, requires_grad=True)
    w_query = torch.randn(d_hidden, d_query, device=device, requires_grad=True)
    w_key = torch.randn(d_hidden, d_key, device=device, requires_grad=True)
    w_score = torch.randn(d_hidden, device=device, requires_grad=True)
    everything = (query, key, w_query, w_key, w_score)
    pairs = [
        w_score
        @ torch.tanh(F.linear(query[b, t], w_query) + F.linear(key[b, s], w_key))
        for b in range(B)
        for t in range(T)
        for s in range(S)
    ]
    expected = torch.stack(pairs).reshape(B, T, S)
    score = attention.additive_score(*everything)
    close(score, expected)
    assert_same_gradients(score, expected, everything, everything)


# --- scaled_dot_product_attention ---------------------------------------------------


def test_attention_by_hand():
    """The score is 4 / √4 = 2 for the first key and 0 for the second."""
    output, weights = attention.scaled_dot_product_attention(
        query=torch.tensor([[2.0, 0.0, 0.0, 0.0]]),
        key=torch.tensor([[2.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]),
        value=torch.tensor([[1.0, 10.0, 0.0], [0.0, 20.0, 5.0]]),
    )
    first = math.exp(2) / (math.exp(2) + 1)  # 0.8808
    close(weights, torch.tensor([[first, 1 - first]]))
    close(output, torch.tensor([[first, 20 - 10 * first, 5 * (1 - first)]]))


def test_masked_keys_take_no_share():
    """Of three keys, two fit alike and the best is hidden: half and half remains."""
    _, weights = attention.scaled_dot_product_attention(
        query=torch.ones(1, 1),
        key=torch.tensor([[0.0], [0.0], [math.log(2)]]),
        value=torch.zeros(3, 2),
        mask=torch.tensor([[True, True, False]]),
    )
    close(weights, torch.tensor([[0.5, 0.5, 0.0]]))


@pytest.mark.parametrize("mask_name", MASKS)
def test_attention_equals_torch(device, mask_name):
    """Forward and backward, with every kind of mask."""
    query, key, value = inputs(device)
    mask = some_mask(mask_name, device)
    output, weights = attention.scaled_dot_product_attention(query, key, value, mask)
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    close(output, expected)
    everything = (query, key, value)
    assert_same_gradients(output, expected, everything, everything)
    close(weights @ value, expected)
    assert_same_gradients(weights @ value, expected, everything, everything)


def test_grouped_attention_equals_torch(device):
    """Neighbouring query heads share a key head, as torch's ``enable_gqa`` means it."""
    n_heads, n_kv_heads = 6, 2
    query = torch.randn(3, n_heads, T, D, device=device, requires_grad=True)
    key = torch.randn(3, n_kv_heads, S, D, device=device, requires_grad=True)
    value = torch.randn(3, n_kv_heads, S, 8, device=device, requires_grad=True)
    output, _ = attention.scaled_dot_product_attention(
        query,
        attention.repeat_kv_heads(key, n_heads // n_kv_heads),
        attention.repeat_kv_heads(value, n_heads // n_kv_heads),
    )
    expected = F.scaled_dot_product_attention(query, key, value, enable_gqa=True)
    close(output, expected)
    everything = (query, key, value)
    assert_same_gradients(output, expected, everything, everything)


@pytest.mark.parametrize("mask_name", MASKS)
def test_gradients_equal_finite_differences(mask_name):
    """In double precision, on the CPU."""
    everything = inputs("cpu", dtype=torch.float64, sizes=(B, H, T, S, 1, 2))
    mask = some_mask(mask_name, "cpu")
    assert torch.autograd.gradcheck(
        lambda *qkv: attention.scaled_dot_product_attention(*qkv, mask), everything
    )


@given(n_queries=small, n_keys=small, data=st.data())
def test_weights_share_out_one_unit(n_queries, n_keys, data, device):
    """Rows sum to 1 over the allowed keys; rows without an allowed key are zero."""
    rows = st.lists(st.booleans(), min_size=n_keys, max_size=n_keys)
    mask = data.draw(st.lists(rows, min_size=n_queries, max_size=n_queries))
    mask = torch.tensor(mask, device=device)
    query = 5 * torch.randn(n_queries, 3, device=device)
    key, value = torch.randn(2, n_keys, 3, device=device)
    output, weights = attention.scaled_dot_product_attention(query, key, value, mask)
    close(weights.sum(dim=-1), mask.any(dim=-1).float())
    assert (weights >= 0).all()
    assert (weights[~mask] == 0).all()
    assert (output[~mask.any(dim=-1)] == 0).all()


@given(n_queries=small, n_keys=small)
def test_order_of_keys_does_not_matter(n_queries, n_keys, device):
    """Attention without a mask knows a set, not a text."""
    query = torch.randn(n_queries, 3, device=device)
    key, value = torch.randn(2, n_keys, 3, device=device)
    order = torch.randperm(n_keys).to(device)
    output, weights = attention.scaled_dot_product_attention(query, key, value)
    shuffled = attention.scaled_dot_product_attention(query, key[order], value[order])
    close(shuffled[0], output)
    close(shuffled[1], weights[:, order])


@given(factor=st.floats(0.1, 10.0), shift=st.floats(-5.0, 5.0))
def test_what_the_weights_do_not_see(factor, shift, device):
    """A factor that moves from query to key, and one vector added to all keys."""
    query, key, value = (x.double() for x in inputs(device))
    output, weights = attention.scaled_dot_product_attention(query, key, value)
    changed, changed_weights = attention.scaled_dot_product_attention(
        query * factor, key / factor + shift * torch.ones_like(key[..., :1, :]), value
    )
    close(changed_weights, weights)
    close(changed, output)


@given(lengths=st.lists(st.integers(1, S), min_size=B, max_size=B))
def test_masks_combine(lengths, device):
    """Weights under two masks are those under the first, shared out again."""
    query, key, value = inputs(device)
    causal = attention.causal_mask(T, S, device)
    padding = attention.padding_mask(torch.tensor(lengths, device=device), S)
    _, causal_weights = attention.scaled_dot_product_attention(
        query, key, value, causal
    )
    output, weights = attention.scaled_dot_product_attention(
        query, key, value, causal & padding
    )
    expected = causal_weights * padding
    expected = expected / expected.sum(dim=-1, keepdim=True)
    close(weights, expected)
    close(output, expected @ value)


@given(lengths=st.lists(st.integers(0, S), min_size=B, max_size=B))
def test_padding_changes_nothing(lengths, device):
    """A padded sentence gives what it gives alone, whatever the padding is."""
    query, key, value = (x.detach() for x in inputs(device))
    mask = attention.padding_mask(torch.tensor(lengths, device=device), S)
    for row, length in enumerate(lengths):
        key[row, :, length:], value[row, :, length:] = math.nan, math.inf
    output, weights = attention.scaled_dot_product_attention(query, key, value, mask)
    for row, length in enumerate(lengths):
        alone, alone_weights = attention.scaled_dot_product_attention(
            query[row], key[row, :, :length], value[row, :, :length]
        )
        close(output[row], alone)
        close(weights[row, ..., :length], alone_weights)
        assert (weights[row, ..., length:] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_a_query_that_may_look_nowhere_gets_zeros(device, dtype):
    """Output, weights and gradients are zeros; the other queries are as before."""
    query, key, value = inputs(device, dtype=dtype)
    mask = torch.ones(T, S, dtype=torch.bool, device=device)
    mask[2] = False
    output, weights = attention.scaled_dot_product_attention(query, key, value, mask)
    assert (output[..., 2, :] == 0).all()
    assert (weights[..., 2, :] == 0).all()
    output.sum().backward()
    assert (query.grad[..., 2, :] == 0).all()
    assert all(x.grad.isfinite().all() for x in (query, key, value))
    others = [0, 1, 3, 4]
    expected, _ = attention.scaled_dot_product_attention(
        query[..., others, :], key, value
    )
    torch.testing.assert_close(output[..., others, :], expected)


def test_hidden_nan_reaches_neither_output_nor_gradients(device):
    """Zero times NaN is NaN, so a zero weight alone does not keep it out."""
    query, key, value = inputs(device)
    with torch.no_grad():
        key[..., 3:, :], value[..., 3:, :] = math.nan, math.inf
    mask = torch.arange(S, device=device) < 3
    output, _ = attention.scaled_dot_product_attention(
        query, key, value, mask.expand(T, S)
    )
    output.square().sum().backward()
    assert output.isfinite().all()
    for x in (query, key, value):
        assert x.grad.isfinite().all()
    assert (key.grad[..., 3:, :] == 0).all()


@pytest.mark.parametrize("shape", [(), (S,), (T, 1), (1, S), (H, 1, S), (B, 1, T, 1)])
def test_masks_broadcast(device, shape):
    """A mask of fewer or shorter axes means the same as the mask written out."""
    query, key, value = inputs(device)
    mask = torch.rand(shape, device=device) < 0.6
    output, weights = attention.scaled_dot_product_attention(query, key, value, mask)
    expected, expected_weights = attention.scaled_dot_product_attention(
        query, key, value, mask.expand(B, H, T, S)
    )
    close(output, expected)
    close(weights, expected_weights)


def test_one_token_looks_at_itself(device):
    query, key, value = inputs(device, sizes=(2, 3, 1, 1, 4, 5))
    output, weights = attention.scaled_dot_product_attention(query, key, value)
    close(output, value)
    close(weights, torch.ones(2, 3, 1, 1, device=device))


def test_no_keys_give_zeros(device):
    query, key, value = inputs(device, sizes=(2, 3, 5, 0, 4, 6))
    output, weights = attention.scaled_dot_product_attention(query, key, value)
    close(output, torch.zeros(2, 3, 5, 6, device=device))
    assert weights.shape == (2, 3, 5, 0)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [
        (torch.float16, 4e-3),
        (torch.bfloat16, 3e-2),
        (torch.float32, 1e-5),
        (torch.float64, 1e-12),
    ],
)
def test_every_floating_type(device, dtype, tolerance):
    """The type is kept, and the result is right to the digits that the type has."""
    query, key, value = (x.detach() for x in inputs(device, dtype=torch.float64))
    mask = attention.causal_mask(T, S, device)
    expected, _ = attention.scaled_dot_product_attention(query, key, value, mask)
    narrow = [x.to(dtype) for x in (query, key, value)]
    output, weights = attention.scaled_dot_product_attention(*narrow, mask)
    blocks = attention.online_softmax_attention(*narrow, causal=True, block_size=2)
    assert output.dtype == weights.dtype == blocks.dtype == dtype
    close(output.double(), expected, atol=tolerance)
    close(blocks.double(), expected, atol=tolerance)


def test_half_precision_does_not_overflow(device):
    """60 · 60 · 64 is more than float16 holds, 60 · 60 · 64 / √64 is not."""
    query = torch.full((1, 64), 60.0, dtype=torch.float16, device=device)
    key = torch.cat([query, -query])
    value = torch.tensor([[1.0], [2.0]], dtype=torch.float16, device=device)
    output, _ = attention.scaled_dot_product_attention(query, key, value)
    blocks = attention.online_softmax_attention(query, key, value, block_size=1)
    assert output.item() == blocks.item() == 1.0


def test_dropout_drops_weights_and_keeps_the_mean(device):
    """With one value of 1 per key, an output counts the weights that were kept."""
    n_queries, n_keys, share = 300, 500, 0.25
    query = torch.zeros(n_queries, 2, device=device)
    key = torch.zeros(n_keys, 2, device=device)
    value = torch.eye(n_keys, device=device)
    output, weights = attention.scaled_dot_product_attention(
        query, key, value, dropout_p=share
    )
    close(weights, torch.full((n_queries, n_keys), 1 / n_keys, device=device))
    kept = output != 0
    assert abs(kept.float().mean().item() - (1 - share)) < 0.01
    close(output[kept] * n_keys, torch.full_like(output[kept], 1 / (1 - share)))


def test_without_dropout_nothing_is_random(device):
    query, key, value = inputs(device)
    first, _ = attention.scaled_dot_product_attention(query, key, value)
    second, _ = attention.scaled_dot_product_attention(query, key, value)
    assert torch.equal(first, second)


# --- Masks --------------------------------------------------------------------------


@given(n_queries=small, n_earlier=st.integers(0, 9))
def test_causal_mask_is_a_triangle(n_queries, n_earlier, device):
    n_keys = n_queries + n_earlier
    mask = attention.causal_mask(n_queries, n_keys, device)
    ones = torch.ones(n_queries, n_keys, dtype=torch.bool, device=device)
    assert torch.equal(mask, ones.tril(n_earlier))
    if n_earlier == 0:
        assert torch.equal(mask, attention.causal_mask(n_queries, device=device))


@given(n_queries=small, n_earlier=st.integers(0, 9), window=st.integers(1, 20))
def test_sliding_window_mask_counts_the_token_itself(
    n_queries, n_earlier, window, device
):
    n_keys = n_queries + n_earlier
    mask = attention.sliding_window_mask(n_queries, window, n_keys, device)
    expected = [
        [max(0, last + 1 - window) <= key <= last for key in range(n_keys)]
        for last in range(n_earlier, n_keys)
    ]
    assert mask.tolist() == expected
    assert mask.device == torch.zeros(0, device=device).device


@given(n_tokens=small, data=st.data())
def test_prefix_mask_hides_the_answer_from_the_prompt(n_tokens, data, device):
    prefix = data.draw(st.integers(0, n_tokens))
    mask = attention.prefix_mask(n_tokens, prefix, device)
    expected = [
        [key < prefix or key <= query for key in range(n_tokens)]
        for query in range(n_tokens)
    ]
    assert mask.tolist() == expected
    assert mask.device == torch.zeros(0, device=device).device


@given(lengths=st.lists(st.integers(0, 9), min_size=1, max_size=5), extra=small)
def test_padding_mask_shows_the_real_tokens(lengths, extra, device):
    n_keys = max(lengths) + extra
    tensor = torch.tensor(lengths, device=device)
    mask = attention.padding_mask(tensor, n_keys)
    assert mask.shape == (len(lengths), 1, 1, n_keys)
    rows = [[True] * length + [False] * (n_keys - length) for length in lengths]
    assert mask[:, 0, 0].tolist() == rows
    assert torch.equal(attention.padding_mask(tensor), mask[..., : max(lengths)])


def test_masks_with_nothing_left_out():
    """The longest and the shortest window and prefix."""
    causal = attention.causal_mask(5)
    assert torch.equal(attention.sliding_window_mask(5, 5), causal)
    assert torch.equal(attention.prefix_mask(5, 0), causal)
    assert torch.equal(attention.prefix_mask(5, 1), causal)
    assert attention.prefix_mask(5, 5).all()
    assert torch.equal(attention.sliding_window_mask(5, 1), torch.eye(5).bool())


# --- Heads --------------------------------------------------------------------------


def test_split_heads_by_hand():
    """Two tokens of six numbers, three heads of two."""
    x = torch.tensor([[[1, 2, 3, 4, 5, 6], [7, 8, 9, 10, 11, 12]]])
    heads = attention.split_heads(x, 3)
    assert heads.tolist() == [[[[1, 2], [7, 8]], [[3, 4], [9, 10]], [[5, 6], [11, 12]]]]


@given(batch=small, n_tokens=small, n_heads=small, d_head=small)
def test_split_and_merge_undo_each_other(batch, n_tokens, n_heads, d_head):
    x = torch.randn(batch, n_tokens, n_heads * d_head)
    heads = attention.split_heads(x, n_heads)
    assert heads.shape == (batch, n_heads, n_tokens, d_head)
    for head in range(n_heads):
        slice_of_width = x[..., head * d_head : (head + 1) * d_head]
        assert torch.equal(heads[:, head], slice_of_width)
    assert torch.equal(attention.merge_heads(heads), x)


@given(n_kv_heads=small, n_repeats=small)
def test_neighbouring_query_heads_share_a_key_head(n_kv_heads, n_repeats):
    x = torch.randn(2, n_kv_heads, 5, 3)
    repeated = attention.repeat_kv_heads(x, n_repeats)
    assert repeated.shape == (2, n_kv_heads * n_repeats, 5, 3)
    for head in range(n_kv_heads * n_repeats):
        assert torch.equal(repeated[:, head], x[:, head // n_repeats])


# --- MultiHeadAttention -------------------------------------------------------------

C, N_HEADS, D_CONTEXT = 12, 3, 10


def torch_twin(ours, d_context):
    """torch's layer with the same weights as ours, and where it keeps which of them."""
    bias = ours.project_query.bias is not None
    device = ours.project_query.weight.device
    d_model = ours.project_query.in_features
    twin = nn.MultiheadAttention(
        d_model,
        ours.n_heads,
        bias=bias,
        kdim=d_context,
        vdim=d_context,
        batch_first=True,
        device=device,
    )

    def parameters(of):
        """The tensors of the twin (or their gradients) under our names."""
        if twin.in_proj_weight is not None:
            weights = of(twin.in_proj_weight).chunk(3)
        else:
            separate = twin.q_proj_weight, twin.k_proj_weight, twin.v_proj_weight
            weights = map(of, separate)
        names = ["project_query", "project_key", "project_value"]
        found = {f"{name}.weight": w for name, w in zip(names, weights, strict=True)}
        found["project_output.weight"] = of(twin.out_proj.weight)
        if bias:
            biases = of(twin.in_proj_bias).chunk(3)
            found |= {f"{name}.bias": b for name, b in zip(names, biases, strict=True)}
            found["project_output.bias"] = of(twin.out_proj.bias)
        return found

    with torch.no_grad():
        for name, tensor in parameters(lambda parameter: parameter).items():
            tensor.copy_(ours.get_parameter(name))
    return twin, parameters


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("mask_name", ["none", "causal", "padding"])
@pytest.mark.parametrize("d_context", [None, C, D_CONTEXT])
def test_layer_equals_torch(device, d_context, mask_name, bias):
    """Self-attention, and cross-attention to a context of the same or another width."""
    ours = attention.MultiHeadAttention(
        C, N_HEADS, d_context=d_context, bias=bias, device=device
    )
    with torch.no_grad():  # torch starts biases at zero, which would hide them
        for parameter in ours.parameters():
            parameter.normal_(std=0.5)
    twin, twin_parameters = torch_twin(ours, d_context)
    n_tokens = S if d_context is None else T
    x = torch.randn(B, n_tokens, C, device=device, requires_grad=True)
    context = None
    if d_context is not None:
        context = torch.randn(B, S, d_context, device=device, requires_grad=True)
    mask = forbidden = padding = None
    if mask_name == "causal":
        mask = attention.causal_mask(n_tokens, S, device)
        forbidden = ~mask  # torch's layer marks what is forbidden
    elif mask_name == "padding":
        mask = attention.padding_mask(torch.tensor([4, S], device=device))
        padding = ~mask[:, 0, 0]

    output, weights = ours(x, context, mask)
    source = x if context is None else context
    expected, expected_weights = twin(
        x,
        source,
        source,
        attn_mask=forbidden,
        key_padding_mask=padding,
        average_attn_weights=False,
    )
    close(output, expected)
    close(weights, expected_weights)

    tokens = [x] if context is None else [x, context]
    assert_same_gradients(output, expected, tokens, tokens)
    upstream = torch.randn_like(ours(x, context, mask)[0])
    ours(x, context, mask)[0].backward(upstream)
    twin(x, source, source, attn_mask=forbidden, key_padding_mask=padding)[0].backward(
        upstream
    )
    for name, gradient in twin_parameters(lambda parameter: parameter.grad).items():
        close(ours.get_parameter(name).grad, gradient, rtol=1e-5)


def grouped_layer(device, **options):
    """Six query heads of width 4, two key and value heads."""
    return attention.MultiHeadAttention(
        24, n_heads=6, n_kv_heads=2, device=device, **options
    )


def test_grouped_layer_equals_torch(device):
    """Our projections, then torch's own grouped attention."""
    layer = grouped_layer(device)
    x = torch.randn(3, T, 24, device=device, requires_grad=True)
    output, weights = layer(x, mask=attention.causal_mask(T, device=device))
    query, key, value = (
        project(x).view(3, T, n_heads, D).transpose(1, 2)
        for project, n_heads in (
            (layer.project_query, 6),
            (layer.project_key, 2),
            (layer.project_value, 2),
        )
    )
    expected = F.scaled_dot_product_attention(
        query, key, value, is_causal=True, enable_gqa=True
    )
    expected = layer.project_output(expected.transpose(1, 2).reshape(3, T, 24))
    assert weights.shape == (3, 6, T, T)
    close(output, expected)
    everything = [x, *layer.parameters()]
    assert_same_gradients(output, expected, everything, everything)


def test_parameters_are_the_documented_ones():
    layer = attention.MultiHeadAttention(24, 6, 2, d_context=10)
    shapes = {name: tuple(p.shape) for name, p in layer.state_dict().items()}
    assert shapes == {
        "project_query.weight": (24, 24),
        "project_query.bias": (24,),
        "project_key.weight": (8, 10),
        "project_key.bias": (8,),
        "project_value.weight": (8, 10),
        "project_value.bias": (8,),
        "project_output.weight": (24, 24),
        "project_output.bias": (24,),
    }
    without = attention.MultiHeadAttention(24, 6, 2, bias=False)
    assert not [name for name in without.state_dict() if name.endswith("bias")]


def test_one_head_is_plain_attention(device):
    layer = attention.MultiHeadAttention(C, 1, device=device)
    x = torch.randn(B, T, C, device=device)
    output, weights = layer(x)
    plain, plain_weights = attention.scaled_dot_product_attention(
        layer.project_query(x), layer.project_key(x), layer.project_value(x)
    )
    close(output, layer.project_output(plain))
    close(weights[:, 0], plain_weights)


@given(at=st.integers(0, T - 1))
def test_the_past_does_not_see_the_future(at, device):
    """A change at one token reaches it and what follows, and nothing before it."""
    layer = grouped_layer(device)
    x = torch.randn(B, T, 24, device=device)
    changed = x.clone()
    changed[:, at] += torch.randn(B, 24, device=device)
    mask = attention.causal_mask(T, device=device)
    before, after = layer(x, mask=mask)[0], layer(changed, mask=mask)[0]
    close(after[:, :at], before[:, :at], atol=1e-6)
    moved = (after[:, at:] - before[:, at:]).abs().amax(dim=(0, 2))
    assert (moved > 1e-6).all()


@given(
    chunks=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    window=st.none() | st.integers(1, 6),
)
def test_cache_equals_reading_everything_again(chunks, window, device):
    """However the text is cut, with a causal mask and with a window."""

    def mask(n_queries, n_keys):
        if window is None:
            return attention.causal_mask(n_queries, n_keys, device)
        return attention.sliding_window_mask(n_queries, window, n_keys, device)

    layer = grouped_layer(device)
    x = torch.randn(B, sum(chunks), 24, device=device)
    expected, expected_weights = layer(x, mask=mask(sum(chunks), sum(chunks)))
    cache = attention.KeyValueCache()
    assert len(cache) == 0
    for chunk in x.split(chunks, dim=1):
        start, stop = len(cache), len(cache) + chunk.shape[1]
        output, weights = layer(chunk, mask=mask(chunk.shape[1], stop), cache=cache)
        close(output, expected[:, start:stop])
        close(weights, expected_weights[:, :, start:stop, :stop])
        assert len(cache) == stop
    assert cache.key.shape == cache.value.shape == (B, 2, sum(chunks), D)


@pytest.mark.parametrize("filler", [1000.0, math.nan])
def test_layer_padding_changes_nothing(device, filler):
    """Sentences of different lengths in one batch give what each gives alone."""
    layer = grouped_layer(device)
    lengths = torch.tensor([3, T, 1], device=device)
    x = torch.randn(3, T, 24, device=device)
    for row, length in enumerate(lengths):
        x[row, length:] = filler
    causal = attention.causal_mask(T, device=device)
    output, _ = layer(x, mask=causal & attention.padding_mask(lengths))
    for row, length in enumerate(lengths.tolist()):
        alone, _ = layer(x[row, :length], mask=causal[:length, :length])
        close(output[row, :length], alone)


def test_layer_with_an_empty_sentence(device):
    """Who may look nowhere gets the output projection's bias and finite gradients."""
    layer = grouped_layer(device)
    x = torch.randn(B, T, 24, device=device, requires_grad=True)
    mask = attention.padding_mask(torch.tensor([0, T], device=device))
    output, weights = layer(x, mask=mask)
    close(output[0], layer.project_output.bias.expand(T, 24))
    assert (weights[0] == 0).all()
    output.sum().backward()
    assert all(p.grad.isfinite().all() for p in [x, *layer.parameters()])


def test_layer_drops_out_only_in_training(device):
    layer = grouped_layer(device, dropout=0.5)
    x = torch.randn(B, T, 24, device=device)
    assert not torch.equal(layer(x)[0], layer(x)[0])
    layer.eval()
    assert torch.equal(layer(x)[0], layer(x)[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_layer_of_another_type(device, dtype):
    layer = grouped_layer(device, dtype=dtype)
    output, weights = layer(torch.randn(B, T, 24, device=device, dtype=dtype))
    assert output.dtype == weights.dtype == dtype
    close(weights.sum(-1), torch.ones_like(weights.sum(-1)), atol=2e-2)


def test_layer_uses_the_functions_of_its_module(monkeypatch):
    """What a student puts into the module is what the layer runs on."""
    called = []

    def watched(name):
        original = getattr(attention, name)

        def function(*args, **kwargs):
            called.append(name)
            return original(*args, **kwargs)

        return function

    names = ["split_heads", "scaled_dot_product_attention", "merge_heads"]
    for name in names:
        monkeypatch.setattr(attention, name, watched(name))
    attention.MultiHeadAttention(C, N_HEADS)(torch.randn(B, T, C))
    assert sorted(set(called)) == sorted(names)


def test_nothing_is_made_on_another_device():
    """On torch's meta device, where every tensor from elsewhere is an error."""
    layer = grouped_layer("meta")
    x = torch.randn(B, T, 24, device="meta")
    cache = attention.KeyValueCache()
    for n_keys in (T, 2 * T):
        mask = attention.sliding_window_mask(T, 3, n_keys, "meta")
        output, weights = layer(x, mask=mask, cache=cache)
    prefix = attention.prefix_mask(T, 2, "meta")
    query, key, value = inputs("meta", sizes=(B, H, T, T, D, DV))
    plain, _ = attention.scaled_dot_product_attention(query, key, value, prefix)
    blocks = attention.online_softmax_attention(
        query, key, value, window=2, block_size=3
    )
    assert output.shape == (B, T, 24)
    assert weights.shape == (B, 6, T, 2 * T)
    assert plain.shape == blocks.shape == (B, H, T, DV)
    assert {t.device.type for t in (output, weights, plain, blocks)} == {"meta"}


# --- online_softmax_attention -------------------------------------------------------


def test_online_softmax_by_hand():
    """The larger score comes second: what was summed before has to shrink."""
    output = attention.online_softmax_attention(
        query=torch.tensor([[1.0]]),
        key=torch.tensor([[0.0], [1.0]]),
        value=torch.tensor([[1.0], [0.0]]),
        block_size=1,
    )
    close(output, torch.tensor([[1 / (1 + math.e)]]))  # 0.2689


def full_attention(query, key, value, causal, window):
    """The same, with all the weights held at once."""
    n_queries, n_keys = query.shape[-2], key.shape[-2]
    mask = None
    if window is not None:
        mask = attention.sliding_window_mask(n_queries, window, n_keys, query.device)
    elif causal:
        mask = attention.causal_mask(n_queries, n_keys, query.device)
    return attention.scaled_dot_product_attention(query, key, value, mask)[0]


@given(
    n_queries=small,
    n_earlier=st.integers(0, 9),
    causal=st.booleans(),
    window=st.none() | st.integers(1, 20),
    block_size=st.integers(1, 20),
    scale=st.sampled_from([0.1, 1.0, 30.0, 1000.0]),
)
def test_blocks_equal_full(
    n_queries, n_earlier, causal, window, block_size, scale, device
):
    """Forward and backward, for any cut into blocks and scores of any size."""
    sizes = (2, 3, n_queries, n_queries + n_earlier, 4, 5)
    query, key, value = inputs(device, dtype=torch.float64, sizes=sizes)
    options = {"causal": causal, "window": window}
    blocks = attention.online_softmax_attention(
        scale * query, key, value, block_size=block_size, **options
    )
    full = full_attention(scale * query, key, value, **options)
    close(blocks, full, atol=1e-9)
    everything = (query, key, value)
    assert_same_gradients(blocks, full, everything, everything)


@pytest.mark.parametrize("block_size", [1, 2, 3, S, 100])
@pytest.mark.parametrize("mask_name", ["none", "causal", "window"])
def test_blocks_equal_torch(device, block_size, mask_name):
    query, key, value = inputs(device)
    output = attention.online_softmax_attention(
        query,
        key,
        value,
        causal=mask_name == "causal",
        window=3 if mask_name == "window" else None,
        block_size=block_size,
    )
    mask = some_mask(mask_name, device)
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    close(output, expected)
    everything = (query, key, value)
    assert_same_gradients(output, expected, everything, everything)


@pytest.mark.parametrize("causal", [True, False])
def test_blocks_broadcast_over_the_batch(device, causal):
    """Keys and values without a batch serve every query of the batch."""
    query, key, value = inputs(device)
    output = attention.online_softmax_attention(
        query, key[0, 0], value[:, :1], causal=causal, block_size=2
    )
    close(output, full_attention(query, key[0, 0], value[:, :1], causal, None))


def test_blocks_without_keys_give_zeros(device):
    query, key, value = inputs(device, sizes=(2, 3, 5, 0, 4, 6))
    output = attention.online_softmax_attention(query, key, value)
    close(output, torch.zeros(2, 3, 5, 6, device=device))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_many_blocks_lose_no_digits(device, dtype):
    """A running sum in half precision would stop growing after some hundred terms."""
    query, key = (
        torch.randn(2, 11, 8, device=device),
        torch.randn(2, 2000, 8).to(device),
    )
    value = torch.randn(2, 2000, 5).to(device) + 1
    query, key, value = (x.to(dtype) for x in (query, key, value))
    exact = full_attention(*(x.double() for x in (query, key, value)), False, None)
    output = attention.online_softmax_attention(query, key, value, block_size=1)
    close(output.double(), exact, atol=8 * torch.finfo(dtype).eps)


class LiveMemory(TorchDispatchMode):
    """Measures the memory of the tensors that exist at once while it is active.

    ``largest`` is the largest single tensor, ``peak`` all of them together, in bytes.
    Tensors that were there before do not count.
    """

    def __init__(self, *existing):
        super().__init__()
        self.known = {tensor.untyped_storage().data_ptr() for tensor in existing}
        self.alive = {}
        self.largest = self.peak = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves(result) if isinstance(x, torch.Tensor)]
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in self.known:
                self.largest = max(self.largest, storage.nbytes())
                self.alive[StorageWeakRef(storage)] = storage.nbytes()
        self.alive = {ref: n for ref, n in self.alive.items() if not ref.expired()}
        self.peak = max(self.peak, sum(self.alive.values()))
        return result


@pytest.mark.parametrize("options", [{}, {"causal": True}, {"window": 100}])
def test_blocks_never_hold_all_weights(device, options):
    """Neither as one matrix nor as blocks that are kept; full attention does."""
    n_queries, n_keys, block_size, width = 300, 4000, 20, 6
    everything = [
        torch.randn(n, width, device=device) for n in (n_queries, n_keys, n_keys)
    ]
    all_weights = n_queries * n_keys * everything[0].element_size()
    with LiveMemory(*everything) as of_blocks:
        attention.online_softmax_attention(
            *everything, block_size=block_size, **options
        )
    assert of_blocks.largest < all_weights / 20
    assert of_blocks.peak < all_weights / 10
    with LiveMemory(*everything) as of_full:
        attention.scaled_dot_product_attention(*everything)
    assert of_full.largest >= all_weights


# --- Refusals -----------------------------------------------------------------------


def refused_calls():
    """What is called, which error it raises, and the values that the message names."""
    q, k, v = torch.zeros(5, 4), torch.zeros(7, 4), torch.zeros(7, 6)
    batched = torch.zeros(2, 5, 4), torch.zeros(2, 7, 4), torch.zeros(2, 7, 6)
    full, online = (
        attention.scaled_dot_product_attention,
        attention.online_softmax_attention,
    )
    layer = attention.MultiHeadAttention(12, 3, d_context=10)
    x, context = torch.zeros(2, 5, 12), torch.zeros(2, 7, 10)
    cache = attention.KeyValueCache()
    lengths = torch.tensor([3, 9])
    allowed = torch.ones(5, 7).bool()
    return {
        "key width": (lambda: full(q, k[:, :3], v), ValueError, ["4", "3"]),
        "number of values": (lambda: full(q, k, v[:6]), ValueError, ["7", "6"]),
        "number mask": (
            lambda: full(q, k, v, 1 - allowed.int()),
            TypeError,
            ["torch.int32"],
        ),
        "float mask": (
            lambda: full(q, k, v, allowed.float()),
            TypeError,
            ["torch.float32"],
        ),
        "transposed mask": (
            lambda: full(q, k, v, allowed.T),
            ValueError,
            ["(7, 5)", "(5, 7)"],
        ),
        "mask of a layer for three axes": (
            lambda: full(*batched, attention.padding_mask(torch.tensor([7, 3]))),
            ValueError,
            ["(2, 1, 1, 7)", "(2, 5, 7)"],
        ),
        "dropout": (lambda: full(q, k, v, None, 1.5), ValueError, ["1.5"]),
        "fewer keys": (lambda: attention.causal_mask(5, 3), ValueError, ["5", "3"]),
        "negative text": (lambda: attention.causal_mask(-2), ValueError, ["-2"]),
        "fewer keys, window": (
            lambda: attention.sliding_window_mask(5, 2, 3),
            ValueError,
            ["5", "3"],
        ),
        "empty window": (
            lambda: attention.sliding_window_mask(5, 0),
            ValueError,
            ["window=0"],
        ),
        "long prefix": (lambda: attention.prefix_mask(5, 6), ValueError, ["6", "5"]),
        "negative prefix": (lambda: attention.prefix_mask(5, -1), ValueError, ["-1"]),
        "long sentence": (
            lambda: attention.padding_mask(lengths, 8),
            ValueError,
            ["[3, 9]", "8"],
        ),
        "negative length": (
            lambda: attention.padding_mask(-lengths, 8),
            ValueError,
            ["[-3, -9]"],
        ),
        "odd heads": (
            lambda: attention.split_heads(x, 5),
            ValueError,
            ["d_model=12", "n_heads=5"],
        ),
        "no heads": (lambda: attention.split_heads(x, 0), ValueError, ["n_heads=0"]),
        "odd layer": (
            lambda: attention.MultiHeadAttention(100, 12),
            ValueError,
            ["d_model=100", "n_heads=12"],
        ),
        "odd groups": (
            lambda: attention.MultiHeadAttention(24, 6, 4),
            ValueError,
            ["n_heads=6", "n_kv_heads=4"],
        ),
        "no groups": (
            lambda: attention.MultiHeadAttention(24, 6, 0),
            ValueError,
            ["n_kv_heads=0"],
        ),
        "wide tokens": (lambda: layer(context, context), ValueError, ["10", "12"]),
        "wide context": (lambda: layer(x, x), ValueError, ["12", "10"]),
        "missing context": (lambda: layer(x), ValueError, ["12", "10"]),
        "cache of a context": (
            lambda: layer(x, context, cache=cache),
            ValueError,
            ["cache", "context"],
        ),
        "online key width": (lambda: online(q, k[:, :3], v), ValueError, ["4", "3"]),
        "online number of values": (
            lambda: online(q, k, v[:6]),
            ValueError,
            ["7", "6"],
        ),
        "empty block": (
            lambda: online(q, k, v, block_size=0),
            ValueError,
            ["block_size=0"],
        ),
        "online empty window": (
            lambda: online(q, k, v, window=0),
            ValueError,
            ["window=0"],
        ),
        "online fewer keys": (
            lambda: online(q, k[:3], v[:3], causal=True),
            ValueError,
            ["3", "5"],
        ),
        "online fewer keys, window": (
            lambda: online(q, k[:3], v[:3], window=2),
            ValueError,
            ["3", "5"],
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


def test_refused_layer_leaves_the_cache_alone():
    """A call that fails must not have grown the cache."""
    layer, cache = grouped_layer("cpu"), attention.KeyValueCache()
    with pytest.raises(ValueError, match="width"):
        layer(torch.zeros(2, 5, 23), cache=cache)
    assert len(cache) == 0
