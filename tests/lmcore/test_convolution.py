"""Windows slide as those of torch do, see what they should, and never the future."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from lmcore import convolution, network, recurrent

close = partial(torch.testing.assert_close, atol=1e-5, rtol=0.0)
exactly = partial(torch.testing.assert_close, atol=0.0, rtol=0.0)
B, T, C, F, V, K = 2, 8, 3, 5, 7, 4
few = settings(max_examples=12)
either_float = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
dilations = st.lists(st.integers(1, 4), max_size=3)


def dice(device="cpu", seed=1) -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


def column(*numbers: float) -> torch.Tensor:
    """A text of tokens of one number."""
    return torch.tensor(numbers)[None, :, None]


def assert_equal_with_gradients(found, expected, ours, theirs):
    close(found, expected)
    upstream = torch.randn_like(found)
    found = torch.autograd.grad(found, ours, upstream)
    expected = torch.autograd.grad(expected, theirs, upstream)
    for one, other in zip(found, expected, strict=True):
        close(one, other)


# --- windows, conv1d ----------------------------------------------------------------


def test_windows_worked_by_hand(device):
    x = torch.arange(10.0, device=device).view(1, 5, 2)
    found = convolution.windows(x, width=2, dilation=2)
    assert found.shape == (1, 3, 2, 2)
    expected = torch.tensor([[2.0, 6.0], [3.0, 7.0]], device=device)
    exactly(found[0, 1], expected)  # tokens 1 and 3
    assert convolution.windows(x, width=5).shape == (1, 1, 2, 5)


def test_the_kernel_slides_as_it_is_written(device):
    x = column(1.0, 2.0, 3.0).to(device)
    weight = torch.tensor([[[1.0, 0.0]]], device=device)
    # Turned round it would give 2, 3.
    exactly(convolution.conv1d(x, weight), column(1.0, 2.0).to(device))
    bias = torch.tensor([10.0], device=device)
    exactly(convolution.conv1d(x, weight, bias), column(11.0, 12.0).to(device))


def test_two_channels_and_two_filters_worked_by_hand():
    x = torch.tensor([[[1.0, 10.0], [2.0, 20.0], [3.0, 30.0]]])
    weight = torch.tensor([[[1.0, -1.0], [0.0, 2.0]], [[0.0, 0.0], [1.0, 1.0]]])
    # Filter 0: x0 - x0' + 2 x1'; filter 1: x1 + x1', where ' is the next token.
    exactly(convolution.conv1d(x, weight), torch.tensor([[[39.0, 30], [59, 50]]]))


def test_the_window_slides_over_time():
    x, weight = torch.randn(1, 2, C), torch.randn(F, C, 1)
    assert convolution.conv1d(x, weight).shape == (1, 2, F)
    assert convolution.conv1d(x, torch.randn(F, C, 2)).shape == (1, 1, F)


@either_float
@pytest.mark.parametrize("width", [1, 2, 3])
@pytest.mark.parametrize("dilation", [1, 3])
@pytest.mark.parametrize("stride", [1, 2])
def test_convolution_equals_torch(device, dtype, width, dilation, stride):
    theirs = nn.Conv1d(
        C, F, width, stride, dilation=dilation, device=device, dtype=dtype
    )
    x = torch.randn(B, T, C, device=device, dtype=dtype, requires_grad=True)
    inputs = [x, theirs.weight, theirs.bias]
    found = convolution.conv1d(*inputs, dilation, stride)
    expected = theirs(x.transpose(1, 2)).transpose(1, 2)
    assert_equal_with_gradients(found, expected, inputs, inputs)
    found = convolution.conv1d(x, theirs.weight, None, dilation, stride)
    close(found, expected - theirs.bias)


@few
@given(st.integers(1, 4), st.integers(1, 3), st.integers(0, 3))
def test_what_is_shifted_is_found_later(width, dilation, shift):
    n_tokens = (width - 1) * dilation + 5
    x, weight = torch.randn(B, n_tokens, C), torch.randn(F, C, width)
    whole = convolution.conv1d(x, weight, None, dilation)
    close(convolution.conv1d(x[:, shift:], weight, None, dilation), whole[:, shift:])


def test_windows_that_do_not_fit_are_refused():
    x = torch.ones(B, T, C)
    with pytest.raises(ValueError, match=r"\(2, 8, 3\).* 9 tokens .* width=5"):
        convolution.windows(x, width=5, dilation=2)
    with pytest.raises(ValueError, match=r"\(8, 3\)"):
        convolution.windows(x[0], width=2)
    for name in ("width", "dilation", "stride"):
        options = {"width": 1, name: 0}
        with pytest.raises(ValueError, match=f"{name}=0"):
            convolution.windows(x, **options)
    with pytest.raises(ValueError, match=r"width 3 .* \(5, 2, 2\)"):
        convolution.conv1d(x, torch.ones(F, 2, 2))
    with pytest.raises(ValueError, match=r"\(5, 3\)"):
        convolution.conv1d(x, torch.ones(F, C))
    with pytest.raises(ValueError, match=r"bias has shape \(2,\)"):
        convolution.conv1d(x, torch.ones(F, C, 1), torch.ones(2))


# --- causal_conv1d ------------------------------------------------------------------


def test_only_the_token_and_those_before_worked_by_hand(device):
    x = column(1.0, 2.0, 3.0, 4.0).to(device)
    weight = torch.tensor([[[100.0, 10.0, 1.0]]], device=device)
    found = convolution.causal_conv1d(x, weight)
    exactly(found, column(1.0, 12.0, 123.0, 234.0).to(device))
    found = convolution.causal_conv1d(x, weight[..., 1:], dilation=2)
    exactly(found, column(1.0, 2.0, 13.0, 24.0).to(device))


def test_the_padding_reaches_as_far_as_the_spread_kernel():
    # k = 3, d = 2: four zeros on the left, so that the last of six tokens sees 1, 3, 5.
    x, weight = column(*[1.0] * 6), torch.ones(1, 1, 3)
    found = convolution.causal_conv1d(x, weight, dilation=2)
    exactly(found, column(1.0, 1.0, 2.0, 2.0, 3.0, 3.0))


def test_a_kernel_of_one_token_keeps_the_length():
    x, weight = torch.randn(B, 4, C), torch.randn(F, C, 1)
    found = convolution.causal_conv1d(x, weight)
    assert found.shape == (B, 4, F)
    close(found, x @ weight[..., 0].T)


@either_float
@pytest.mark.parametrize("width", [1, 2, 3])
@pytest.mark.parametrize("dilation", [1, 2, 5])
def test_causal_convolution_equals_torch_padded_on_both_sides(
    device, dtype, width, dilation
):
    n_before = (width - 1) * dilation
    theirs = nn.Conv1d(
        C, F, width, dilation=dilation, padding=n_before, device=device, dtype=dtype
    )
    x = torch.randn(B, T, C, device=device, dtype=dtype, requires_grad=True)
    inputs = [x, theirs.weight, theirs.bias]
    found = convolution.causal_conv1d(*inputs, dilation)
    expected = theirs(x.transpose(1, 2)).transpose(1, 2)[:, :T]
    assert_equal_with_gradients(found, expected, inputs, inputs)


@few
@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 7), st.data())
def test_a_token_is_heard_by_itself_and_later_ones(width, dilation, n_tokens, data):
    x, weight = torch.randn(1, n_tokens, C), torch.rand(F, C, width) + 0.1
    t = data.draw(st.integers(0, n_tokens - 1))
    poked = x.clone()
    poked[:, t] += 1.0
    before, after = (
        convolution.causal_conv1d(text, weight, None, dilation) for text in (x, poked)
    )
    changed = (before != after).any(dim=-1)[0].nonzero().flatten().tolist()
    hears = [t + tap * dilation for tap in range(width)]
    assert changed == [place for place in hears if place < n_tokens]


def test_a_causal_convolution_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="dilation=0"):
        convolution.causal_conv1d(torch.ones(B, T, C), torch.ones(F, C, 2), dilation=0)
    with pytest.raises(ValueError, match=r"width 3 .* \(5, 4, 2\)"):
        convolution.causal_conv1d(torch.ones(B, T, C), torch.ones(F, 4, 2))
    with pytest.raises(ValueError, match="at least the 2 tokens"):
        convolution.causal_conv1d(torch.ones(B, 0, C), torch.ones(F, C, 2))


# --- receptive_field ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("kernel_width", "each", "expected"),
    [
        (2, [1, 2, 4], 8),  # counting k or the 1 in every layer gives 15 or 10
        (3, [1], 3),
        (3, [1, 1], 5),
        (3, [1, 2, 4, 8], 31),
        (1, [1, 2, 4], 1),
        (5, [], 1),
    ],
)
def test_receptive_fields_worked_by_hand(kernel_width, each, expected):
    assert convolution.receptive_field(kernel_width, each) == expected


@few
@given(st.integers(1, 4), dilations)
def test_an_impulse_reaches_exactly_as_far(kernel_width, each):
    field = convolution.receptive_field(kernel_width, each)
    x = torch.zeros(1, field + 3, 1, dtype=torch.float64)
    x[0, 0] = 1.0
    for dilation in each:
        weight = torch.ones(1, 1, kernel_width, dtype=torch.float64)
        x = convolution.causal_conv1d(x, weight, None, dilation)
    reached = x.flatten().nonzero().flatten()
    assert reached.max() == field - 1


def test_a_layer_that_sees_nothing_is_refused():
    with pytest.raises(ValueError, match="kernel_width=0"):
        convolution.receptive_field(0, [1])
    with pytest.raises(ValueError, match="dilation=0"):
        convolution.receptive_field(2, [1, 0])


# --- max_over_time ------------------------------------------------------------------


def test_the_axis_that_disappears_is_time(device):
    x = torch.tensor([[[1.0, 9.0, -5.0], [4.0, 2.0, -3.0]]], device=device)
    found = convolution.max_over_time(x)  # (1, T=2, 3)
    exactly(found, torch.tensor([[4.0, 9.0, -3.0]], device=device))


def test_what_is_masked_does_not_count_even_if_all_else_is_negative(device):
    x = torch.tensor([[[-1.0], [-2.0], [7.0]], [[5.0], [-4.0], [0.0]]], device=device)
    mask = torch.tensor([[True, True, False], [False, True, False]], device=device)
    found = convolution.max_over_time(x, mask)
    exactly(found, torch.tensor([[-1.0], [-4.0]], device=device))


@either_float
def test_the_maximum_equals_torch(device, dtype):
    x = torch.randn(B, T, F, device=device, dtype=dtype, requires_grad=True)
    expected = functional.adaptive_max_pool1d(x.transpose(1, 2), 1)[..., 0]
    assert_equal_with_gradients(convolution.max_over_time(x), expected, [x], [x])


@few
@given(st.permutations(range(5)))
def test_the_order_of_the_answers_does_not_matter(order):
    x = torch.randn(B, 5, F)
    exactly(convolution.max_over_time(x[:, order]), convolution.max_over_time(x))


def test_the_maximum_of_nothing_is_refused():
    x = torch.ones(B, 3, F)
    with pytest.raises(ValueError, match=r"\(2, 0, 5\)"):
        convolution.max_over_time(x[:, :0])
    mask = torch.tensor([[True, False, False], [False, False, False]])
    with pytest.raises(ValueError, match=r"rows \[1\]"):
        convolution.max_over_time(x, mask)
    with pytest.raises(ValueError, match=r"shape \(3, 2\)"):
        convolution.max_over_time(x, torch.ones(3, 2).bool())
    with pytest.raises(ValueError, match="float32"):
        convolution.max_over_time(x, torch.ones(2, 3))


# --- TextCNN ------------------------------------------------------------------------


def classifier(device="cpu", kernel_widths=(2, 3), **options) -> convolution.TextCNN:
    return convolution.TextCNN(
        V, K, C, F, kernel_widths, generator=dice(device), **options
    )


@either_float
def test_a_classifier_equals_layers_of_torch(device, dtype):
    ours = classifier(device, dtype=dtype)
    options = {"device": device, "dtype": dtype}
    embedding = nn.Embedding(V, C, **options)
    convolutions = [nn.Conv1d(C, F, width, **options) for width in (2, 3)]
    output = nn.Linear(2 * F, K, **options)
    theirs = [embedding.weight, *(one.weight for one in convolutions)]
    theirs += [*(one.bias for one in convolutions), output.weight, output.bias]
    own = [ours.embedding, *ours.kernel_weights, *ours.kernel_biases]
    own += [ours.output_weight, ours.output_bias]
    with torch.no_grad():
        for parameter, other in zip(own, theirs, strict=True):
            parameter.copy_(other)
    ids = torch.randint(V, (B, T), device=device)
    x = embedding(ids).transpose(1, 2)
    features = [one(x).relu().amax(-1) for one in convolutions]
    expected = output(torch.cat(features, dim=-1))
    assert_equal_with_gradients(ours(ids), expected, own, theirs)


def test_the_sizes_of_a_classifier():
    model = classifier(dtype=torch.float64)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert shapes == {
        "embedding": (V, C),
        "kernel_weights.0": (F, C, 2),
        "kernel_weights.1": (F, C, 3),
        "kernel_biases.0": (F,),
        "kernel_biases.1": (F,),
        "output_weight": (K, 2 * F),
        "output_bias": (K,),
    }
    assert all(p.dtype == torch.float64 for p in model.parameters())
    features = model.features(torch.randint(V, (B, T)))
    assert features.shape == (B, 2 * F)  # one number for each filter
    assert (features >= 0).all()


def test_a_text_shorter_than_the_widest_kernel_is_filled_with_zeros():
    model = classifier(kernel_widths=(1, 3))
    ids = torch.randint(V, (B, 2))
    x = functional.pad(model.embedding[ids], (0, 0, 0, 1))  # (B, 3, C)
    only = convolution.conv1d(x, model.kernel_weights[1], model.kernel_biases[1])
    close(model.features(ids)[:, F:], only.relu()[:, 0])
    assert model(ids[:, :1]).shape == (B, K)


@few
@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.integers(0, 4))
def test_a_padded_batch_is_its_texts_alone(lengths, n_more):
    model = classifier(kernel_widths=(1, 2, 4))
    with torch.no_grad():
        for bias in model.kernel_biases:
            bias.normal_()  # a window of padding alone would answer with its bias
    ids = torch.randint(V, (len(lengths), max(lengths) + n_more))
    found = model(ids, torch.tensor(lengths))
    for row, length in enumerate(lengths):
        close(found[row : row + 1], model(ids[row : row + 1, :length]))


@few
@given(st.integers(0, 3), st.integers(0, 3))
def test_a_pattern_is_found_wherever_it_stands(n_before, n_after):
    model = classifier(kernel_widths=(2,))
    with torch.no_grad():
        model.embedding[0] = 0.0
    pattern = torch.tensor([3, 5])
    one = torch.cat([torch.zeros(n_before), pattern, torch.zeros(n_after)]).long()
    other = torch.cat([torch.zeros(n_after), pattern, torch.zeros(n_before)]).long()
    if n_before and n_after:  # the same windows, at other places
        close(model(one[None]), model(other[None]))
    cut = model.embedding[pattern].T.flatten()  # (C · 2,)
    score = network.linear(cut, model.kernel_weights[0].flatten(1))
    assert (model.features(one[None])[0] >= score.relu() - 1e-5).all()


def test_a_classifier_learns_a_pattern_of_two_words():
    ids = torch.randint(V, (256, 6), generator=dice())
    labels = ((ids[:, :-1] == 1) & (ids[:, 1:] == 2)).any(dim=1).long()
    ids[::2, 2], ids[::2, 3], labels[::2] = 1, 2, 1
    model = convolution.TextCNN(V, 2, 6, 8, (2,), generator=dice())
    losses = network.train(
        model,
        ids,
        labels,
        n_steps=120,
        batch_size=64,
        learning_rate=0.3,
        generator=dice(),
    )
    assert losses[-1] < 0.15
    right = model(torch.tensor([[0, 1, 2, 0], [0, 2, 1, 0], [1, 3, 2, 4]])).argmax(-1)
    assert right.tolist() == [1, 0, 0]


def test_texts_that_do_not_fit_are_refused():
    model, ids = classifier(), torch.zeros(B, T).long()
    for wrong in (-1, V):
        with pytest.raises(ValueError, match=f"{wrong}.* n_words - 1 = {V - 1}"):
            model(torch.tensor([[0, wrong]]))
    for lengths in ([0, 1], [1, T + 1], [1, 1, 1]):
        with pytest.raises(ValueError, match="lengths="):
            model(ids, torch.tensor(lengths))
    for shape in [(B,), (B, 0)]:
        with pytest.raises(ValueError, match="at least one token"):
            model(torch.zeros(shape).long())
    with pytest.raises(ValueError, match=r"kernel_widths=\(\)"):
        classifier(kernel_widths=())
    with pytest.raises(ValueError, match="kernel_width=0"):
        classifier(kernel_widths=(2, 0))
    with pytest.raises(ValueError, match="n_classes=0"):
        convolution.TextCNN(V, 0, C, F, generator=dice())


# --- CausalConvBlock ----------------------------------------------------------------


def block(device="cpu", kernel_width=3, dilation=2, **options):
    return convolution.CausalConvBlock(
        C, kernel_width, dilation, generator=dice(device), **options
    )


@either_float
def test_a_block_equals_layers_of_torch(device, dtype):
    ours = block(device, dtype=dtype)
    for parameter in ours.parameters():
        nn.init.normal_(parameter)
    options = {"device": device, "dtype": dtype}
    norm, output = nn.LayerNorm(C, **options), nn.Linear(C, C, **options)
    conv = nn.Conv1d(C, C, 3, dilation=2, padding=4, **options)
    theirs = [p for layer in (norm, conv, output) for p in layer.parameters()]
    own = list(ours.parameters())
    with torch.no_grad():
        for parameter, other in zip(theirs, own, strict=True):
            parameter.copy_(other)
    x = torch.randn(B, T, C, **options, requires_grad=True)
    hidden = conv(norm(x).transpose(1, 2)).transpose(1, 2)[:, :T]
    expected = x + output(hidden.relu())
    assert_equal_with_gradients(ours(x), expected, [x, *own], [x, *theirs])


def test_the_sizes_of_a_block():
    shapes = {name: tuple(p.shape) for name, p in block().named_parameters()}
    assert shapes == {
        "norm_weight": (C,),
        "norm_bias": (C,),
        "conv_weight": (C, C, 3),
        "conv_bias": (C,),
        "output_weight": (C, C),
        "output_bias": (C,),
    }


@few
@given(st.integers(1, 3), st.integers(1, 3), st.integers(2, 7))
def test_the_last_token_changes_nothing_before_it(kernel_width, dilation, n_tokens):
    model = block(kernel_width=kernel_width, dilation=dilation)
    x = torch.randn(B, n_tokens, C)
    poked = x.clone()
    poked[:, -1] = torch.tensor([50.0, -3.0, 0.0])
    exactly(model(x)[:, :-1], model(poked)[:, :-1])


def test_tokens_that_do_not_fit_a_block_are_refused():
    for shape in [(B, T, 4), (T, C), (B, 0, C)]:
        with pytest.raises(ValueError, match=rf"{shape[-2]}, {shape[-1]}\).* C={C}"):
            block()(torch.ones(shape))
    for name in ("kernel_width", "dilation"):
        with pytest.raises(ValueError, match=f"{name}=0"):
            block(**{name: 0})


# --- ConvLM -------------------------------------------------------------------------


def language_model(
    device="cpu", kernel_width=3, dilations=(1, 2), **options
) -> convolution.ConvLM:
    return convolution.ConvLM(
        V, C, kernel_width, dilations, generator=dice(device), **options
    )


def test_a_language_model_is_its_blocks(device):
    model = language_model(device)
    ids = torch.randint(V, (B, T), device=device)
    x = functional.embedding(ids, model.embedding)
    for one in model.blocks:
        x = one(x)
    x = functional.layer_norm(x, (C,), model.norm_weight, model.norm_bias)
    expected = functional.linear(x, model.output_weight, model.output_bias)
    logits, seen = model(ids)
    own = list(model.parameters())
    assert_equal_with_gradients(logits, expected, own, own)
    exactly(seen, ids[:, -6:])
    assert [one.dilation for one in model.blocks] == [1, 2]


@few
@given(st.integers(1, 3), dilations, st.data())
def test_a_token_is_heard_in_the_receptive_field_and_nowhere_else(
    kernel_width, each, data
):
    model = language_model("cpu", kernel_width, each, dtype=torch.float64)
    n_tokens = model.receptive_field + 2
    ids = torch.randint(V, (1, n_tokens))
    t = data.draw(st.integers(0, n_tokens - 1))
    poked = ids.clone()
    poked[:, t] = (ids[:, t] + 1) % V
    changed = (model(ids)[0] != model(poked)[0]).any(dim=-1)[0]
    assert not changed[:t].any()
    assert changed[t]
    assert not changed[t + model.receptive_field :].any()


def test_the_receptive_field_is_used_to_its_end():
    model = language_model(dilations=(1, 2, 4), dtype=torch.float64)
    assert model.receptive_field == 15
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    ids = torch.randint(V, (64, 16))
    poked = ids.clone()
    poked[:, 1] = (ids[:, 1] + 1) % V
    assert (model(ids)[0][:, 15] != model(poked)[0][:, 15]).any()
    poked[:, 0] = (ids[:, 0] + 1) % V
    exactly(
        model(poked)[0][:, 15],
        model(torch.cat([ids[:, :1], poked[:, 1:]], 1))[0][:, 15],
    )


@few
@given(
    st.integers(1, 3), dilations, st.lists(st.integers(1, 5), min_size=1, max_size=4)
)
def test_chunks_with_what_was_seen_equal_the_whole(kernel_width, each, lengths):
    model = language_model("cpu", kernel_width, each)
    ids = torch.randint(V, (B, sum(lengths)))
    logits, seen = [], None
    for chunk in ids.split(lengths, dim=1):
        chunk_logits, seen = model(chunk, seen)
        logits.append(chunk_logits)
        assert seen.shape[1] < model.receptive_field
    close(torch.cat(logits, dim=1), model(ids)[0])


def test_a_text_does_not_hear_the_others():
    model = language_model()
    ids = torch.randint(V, (2, 3))
    both, _ = model(ids)
    for row in range(2):
        close(both[row : row + 1], model(ids[row : row + 1])[0])
    ids[1] = (ids[1] + 1) % V
    exactly(model(ids)[0][0], both[0])


def test_random_tokens_cannot_be_predicted():
    # Were somebody peeking, the loss would fall far below ln V.
    generator = dice()
    model = convolution.ConvLM(V, 16, 2, (1,), generator=generator)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    losses = []
    for _ in range(200):
        ids = torch.randint(V, (16, 9), generator=generator)
        step = (ids[:, :-1], ids[:, 1:], None, optimizer)
        losses.append(recurrent.bptt_step(model, *step)[0])
    assert sum(losses[-50:]) / 50 > math.log(V) - 0.05


def test_training_learns_what_stands_in_the_window_and_no_more():
    # Every token repeats the one three places before it; the first three are random.
    ids = torch.randint(V, (48, 3), generator=dice()).repeat(1, 4)
    chunks = [(ids[:, :-1], ids[:, 1:])] * 60
    surprise = {}
    for name, each in [("three", (1, 1)), ("two", (1,))]:
        model = convolution.ConvLM(V, 16, 2, each, generator=dice())
        optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
        for inputs, targets in chunks:
            recurrent.bptt_step(model, inputs, targets, None, optimizer)
        surprise[name] = recurrent.evaluate(model, chunks[:1])
    known = math.log(V) * 2 / 11  # two of eleven targets are random
    assert surprise["three"] < known + 0.2
    assert surprise["two"] > known + 0.5


def test_the_tools_of_recurrence_work_on_windows_too(device):
    model = language_model(device)
    text = torch.randint(V, (13,), device=device)
    whole = network.cross_entropy(model(text[None, :-1])[0][0], text[1:]).item()
    for n_steps in (1, 4, 13):
        chunks = recurrent.bptt_batches(text, 1, n_steps)
        assert recurrent.evaluate(model, chunks) == pytest.approx(whole, abs=1e-5)
    drawn = recurrent.sample(model, dice(device), text[:2], 12)
    again, generator = text[:2], dice(device)
    for _ in range(12):
        probs = model(again[None])[0][0, -1].softmax(-1)
        again = torch.cat([again, torch.multinomial(probs, 1, generator=generator)])
    assert drawn.tolist() == again[2:].tolist()


def test_only_the_dice_given_are_rolled(device):
    before = torch.get_rng_state()
    one, same = language_model(device), language_model(device)
    classifier(device)
    assert torch.equal(torch.get_rng_state(), before)
    for (name, parameter), other in zip(
        one.named_parameters(), same.parameters(), strict=True
    ):
        assert torch.equal(parameter, other), name
        assert parameter.device.type == device.type


@pytest.mark.parametrize("make", [classifier, language_model])
def test_halves_work_too(make):
    model = make(dtype=torch.bfloat16)
    ids = torch.randint(V, (B, T))
    found = model(ids)
    exact = model.float()(ids)
    if make is language_model:
        found, exact = found[0], exact[0]
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), exact, atol=8e-2, rtol=0.0)


def test_ids_that_do_not_fit_are_refused():
    model = language_model()
    for wrong in (-1, V):
        with pytest.raises(ValueError, match=f"{wrong}.* n_words - 1 = {V - 1}"):
            model(torch.tensor([[0, wrong]]))
    with pytest.raises(ValueError, match=r"\(3,\)"):
        model(torch.tensor([0, 1, 2]))
    with pytest.raises(ValueError, match=r"seen has shape \(1, 2\).* 2 rows"):
        model(torch.zeros(2, 2).long(), torch.zeros(1, 2).long())
    with pytest.raises(ValueError, match="dilation=0"):
        language_model(dilations=(1, 0))
    with pytest.raises(ValueError, match="d_model=0"):
        convolution.ConvLM(V, 0, generator=dice())
