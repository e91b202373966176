"""Tests of lmcore.compress: by hand, against PyTorch, as properties, at the edges."""

import copy
import math
import re
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from lmcore import compress, transformer

close = partial(torch.testing.assert_close, atol=1e-5, rtol=0.0)
B, T, C, N_FF, V = 2, 5, 12, 10, 7


class TinyLM(nn.Module):
    """Embedding, one causal layer, logits."""

    def __init__(self, n_words=V, d_model=C, d_ff=N_FF, n_layers=1):
        super().__init__()
        config = transformer.LayerConfig(d_model=d_model, n_heads=2, d_ff=d_ff)
        self.embedding = nn.Embedding(n_words, d_model)
        self.decoder = transformer.Decoder(config, n_layers, cross_attention=False)
        self.project_logits = nn.Linear(d_model, n_words)

    def forward(self, ids):
        return self.project_logits(self.decoder(self.embedding(ids)))


def chains(n_words, n_texts, length, device, sharpness=2.0):
    """Texts in which every word is drawn according to the word before."""
    dice = torch.Generator(device).manual_seed(5)
    table = torch.randn(n_words, n_words, generator=dice, device=device)
    table = torch.softmax(sharpness * table, dim=-1)
    shape = (n_texts, 1)
    words = [torch.randint(n_words, shape, generator=dice, device=device)]
    for _ in range(length - 1):
        words.append(torch.multinomial(table[words[-1][:, 0]], 1, generator=dice))
    return torch.cat(words, dim=1)


def next_word_loss(model, texts):
    with torch.no_grad():
        logits = model(texts[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1), texts[:, 1:].flatten()).item()


def train(model, texts, n_steps, loss=None, lr=0.01, batch=32):
    """Same seed, same batches, whatever the model and the loss."""
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    dice = torch.Generator().manual_seed(3)
    for _ in range(n_steps):
        rows = torch.randint(len(texts), (batch,), generator=dice).to(texts.device)
        inputs, targets = texts[rows, :-1], texts[rows, 1:]
        logits = model(inputs)
        if loss is None:
            value = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        else:
            value = loss(logits, inputs, targets)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    return model


# --- Memory -------------------------------------------------------------------------


def test_memory_by_hand():
    """12 weights and 4 shifts of 4 bytes; a shared weight counts once."""
    layer = nn.Linear(3, 4)
    assert compress.memory_bytes(layer) == 64
    assert compress.memory_bytes(nn.Sequential(layer, layer)) == 64
    assert compress.memory_bytes(copy.deepcopy(layer).half()) == 32
    assert compress.memory_bytes(compress.Int8Linear(layer)) == 12 + 16 + 16
    assert compress.memory_bytes(nn.ReLU()) == 0


def test_cache_bytes_equal_a_real_cache(device):
    config = transformer.LayerConfig(d_model=12, n_heads=6, d_ff=8, n_kv_heads=3)
    decoder = transformer.Decoder(config, 2, cross_attention=False, device=device)
    cache = transformer.DecoderCache(2)
    decoder(torch.zeros(4, 5, 12, device=device), cache=cache)
    held = sum(
        t.numel() * t.element_size() for c in cache.text for t in (c.key, c.value)
    )
    assert compress.kv_cache_bytes(2, 3, 2, 5, n_texts=4, bytes_per_number=4) == held


# --- Whole numbers ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "values", "scale"),
    [
        ([-1.0, 0.5, 1.0], [-127, 64, 127], 1 / 127),
        ([0.0, 0.0], [0, 0], 1.0),
        ([500.0, 500.0], [127, 127], 500 / 127),
        ([-254.0, 1.2], [-127, 1], 2.0),
        ([], [], 1.0),
    ],
)
def test_quantize_by_hand(x, values, scale, device):
    got, got_scale = compress.quantize_int8(torch.tensor(x, device=device))
    assert got.dtype == torch.int8
    assert got.tolist() == values
    close(got_scale.cpu(), torch.tensor(scale))


def test_each_row_has_its_scale(device):
    """A row of 1s beside a row of 100s keeps its digits, and a row of 0s stays 0."""
    x = torch.tensor([[1.0, 0.3, 0.1], [100.0, 7.0, 3.0], [0.0] * 3], device=device)
    values, scale = compress.quantize_int8(x, dim=1)
    assert values.shape == (3, 3)
    assert scale.shape == (3, 1)
    back = compress.dequantize(values, scale)
    assert (back - x)[0].abs().max() <= 0.5 / 127 + 1e-6
    assert back[2].tolist() == [0.0] * 3
    columns = compress.quantize_int8(x.T, dim=0)
    close(columns[0], values.T)
    close(columns[1], scale.T)


@given(
    numbers=st.lists(st.floats(-1e30, 1e30), min_size=1, max_size=9),
    factor=st.sampled_from([1.0, 1e-30, 1e-3, 1e3]),
)
def test_error_is_at_most_half_a_scale(numbers, factor):
    x = factor * torch.tensor(numbers)
    values, scale = compress.quantize_int8(x)
    error = (compress.dequantize(values, scale) - x).abs().max()
    assert error <= 0.5001 * scale
    assert values.min() >= -127
    mirrored, _ = compress.quantize_int8(-x)
    assert torch.equal(mirrored, -values)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_quantize_other_types(dtype, device):
    x = torch.randn(C, N_FF, device=device).to(dtype)
    values, scale = compress.quantize_int8(x, dim=1)
    wanted, _ = compress.quantize_int8(x.float(), dim=1)
    assert torch.equal(values, wanted)
    back = compress.dequantize(values, scale, dtype)
    assert back.dtype == dtype


def test_sums_of_products_do_not_overflow(device):
    whole = partial(torch.randint, -127, 128, dtype=torch.int8, device=device)
    x, weight = whole((B, T, 300)), whole((N_FF, 300))
    expected = x.cpu().long() @ weight.cpu().long().T
    product = compress.int8_matmul(x, weight)
    assert product.dtype == torch.int32
    assert torch.equal(product.cpu().long(), expected)
    full = torch.full((1, 2000), 127, dtype=torch.int8, device=device)
    assert compress.int8_matmul(full, full).item() == 2000 * 127 * 127


# --- Int8Linear ---------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
def test_int8_linear_is_linear_with_its_weights(bias, device):
    linear = nn.Linear(C, N_FF, bias=bias, device=device)
    layer = compress.Int8Linear(linear)
    x = torch.randn(B, T, C, device=device)
    close(layer(x), F.linear(x, layer.weight, linear.bias))
    half_scale = linear.weight.abs().amax(dim=1, keepdim=True) / 254
    assert ((layer.weight - linear.weight).abs() <= half_scale + 1e-7).all()
    assert list(layer.parameters()) == []
    with torch.no_grad():
        linear.weight.zero_()
    assert layer.weight.abs().max() > 0, "the copy is the layer's own"


def test_int8_linear_with_whole_inputs(device):
    """Each token has its own scale: a large neighbour costs it no digits."""
    linear = nn.Linear(C, N_FF, device=device)
    layer = compress.Int8Linear(linear, quantize_input=True)
    x = torch.randn(B, T, C, device=device)
    alone = layer(x)
    values, scale = compress.quantize_int8(x, dim=-1)
    exact = compress.dequantize(values, scale, torch.float64)
    exact = exact @ layer.weight.double().T + linear.bias.double()
    close(alone.double(), exact)
    x = torch.cat([x, 1000 * x], dim=1)
    close(layer(x)[:, :T], alone)
    assert (alone - linear(x[:, :T])).abs().max() < 0.05


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("quantize_input", [False, True])
def test_int8_linear_of_another_type(dtype, quantize_input, device):
    linear = nn.Linear(C, N_FF, device=device, dtype=dtype)
    layer = compress.Int8Linear(linear, quantize_input=quantize_input)
    x = torch.randn(B, C, device=device, dtype=dtype)
    output = layer(x)
    assert output.dtype == dtype
    close(output, linear(x), atol=0.05)


def test_int8_gradient_reaches_the_input(device):
    """So that an adapter below can be trained, as in QLoRA."""
    layer = compress.Int8Linear(nn.Linear(C, N_FF, device=device))
    x = torch.randn(C, device=device, requires_grad=True)
    layer(x).sum().backward()
    close(x.grad, layer.weight.sum(dim=0))


def test_quantize_model_replaces_linear_layers(device):
    model = TinyLM().to(device)
    before = copy.deepcopy(model.state_dict())
    small = compress.quantize_model(model, skip=["project_logits"])
    kinds = {name: type(m) for name, m in small.named_modules()}
    linear = [n for n, m in model.named_modules() if type(m) is nn.Linear]
    assert len(linear) == 7
    for name in linear:
        skipped = name == "project_logits"
        assert kinds[name] is (nn.Linear if skipped else compress.Int8Linear)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), "the model itself was changed"
    assert compress.memory_bytes(small) < 0.6 * compress.memory_bytes(model)
    again = compress.quantize_model(TinyLM().to(device), skip=["project_logits"])
    again.load_state_dict(small.state_dict())
    ids = torch.tensor([[1, 2, 3]], device=device)
    assert torch.equal(again(ids), small(ids))


@pytest.mark.parametrize("quantize_input", [False, True])
def test_int8_model_within_one_percent_of_the_loss(quantize_input, device):
    texts = chains(20, 200, 13, device)
    model = train(TinyLM(20, 32, 64, 2).to(device), texts, 60)
    loss = next_word_loss(model, texts)
    assert loss < 0.8 * math.log(20)
    small = compress.quantize_model(model, quantize_input=quantize_input)
    assert abs(next_word_loss(small, texts) / loss - 1) < 0.01


# --- Pruning ------------------------------------------------------------------------


@given(
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    sparsity=st.floats(0.0, 1.0),
    few=st.booleans(),
)
def test_masks_drop_the_smallest(sizes, sparsity, few):
    """Exactly as many as asked, also with ties, and none larger than one kept."""
    weights = [torch.randn(n, 3) for n in sizes]
    if few:
        weights = [w.sign() for w in weights]
    masks = compress.prune_masks(weights, sparsity)
    kept = torch.cat([m.flatten() for m in masks])
    size = torch.cat([w.abs().flatten() for w in weights])
    assert (~kept).sum() == round(sparsity * len(size))
    assert [m.shape for m in masks] == [w.shape for w in weights]
    if 0 < kept.sum() < len(kept):
        assert size[~kept].max() <= size[kept].min()


def test_masks_equal_torch(device):
    from torch.nn.utils import prune

    weight = torch.randn(C, N_FF, device=device)
    expected = prune.L1Unstructured(40).compute_mask(weight, torch.ones_like(weight))
    (mask,) = compress.prune_masks([weight], 40 / weight.numel())
    assert torch.equal(mask, expected.bool())


def test_prune_by_hand(device):
    """One threshold for both layers: the first loses three weights, the second one."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)).to(device)
    weights = [[[0.1, -0.2], [0.3, 4.0]], [[-5.0, 6.0], [0.25, 7.0]]]
    biases = [[0.01, -0.02], [0.0, 0.03]]
    with torch.no_grad():
        for layer, weight, bias in zip(model, weights, biases, strict=True):
            layer.weight.copy_(torch.tensor(weight))
            layer.bias.copy_(torch.tensor(bias))
    masks = compress.magnitude_prune(model, 0.5)
    assert masks["0.weight"].tolist() == [[False, False], [False, True]]
    close(model[0].weight.detach().cpu(), torch.tensor([[0.0, 0.0], [0.0, 4.0]]))
    close(model[1].weight.detach().cpu(), torch.tensor([[-5.0, 6.0], [0.0, 7.0]]))
    close(model[0].bias.detach().cpu(), torch.tensor(biases[0]))
    assert list(masks) == ["0.weight", "1.weight"]


def test_pruned_weights_stay_zero_in_training(device):
    model = TinyLM().to(device)
    masks = compress.magnitude_prune(model, 0.5)
    assert set(masks) == {n for n in masks if "embedding" not in n and "norm" not in n}
    assert len(masks) == 7
    ids = torch.randint(V, (B, T), device=device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(ids).square().sum().backward()
    optimizer.step()
    compress.apply_masks(model, masks)
    for name, mask in masks.items():
        weight = model.get_parameter(name)
        assert (weight[~mask] == 0).all()
        assert (weight[mask] != 0).all()


def test_tied_weights_are_pruned_once(device):
    model = TinyLM().to(device)
    model.project_logits.weight = model.embedding.weight
    masks = compress.magnitude_prune(model, 1.0)
    assert len(masks) == 7
    assert (model.project_logits.weight == 0).all()


def test_pruning_curve_of_a_trained_model(device):
    """A tenth costs nearly nothing, everything costs everything."""
    texts = chains(20, 200, 13, device)
    model = train(TinyLM(20, 32, 64, 2).to(device), texts, 60)
    before = next_word_loss(model, texts)
    measure = partial(next_word_loss, texts=texts)
    sparsities = [0.0, 0.1, 0.5, 0.9, 1.0]
    curve = compress.pruning_curve(model, sparsities, measure)
    assert [sparsity for sparsity, _ in curve] == sparsities
    losses = [loss for _, loss in curve]
    assert losses[0] == before
    assert losses[1] < 1.02 * before
    assert losses[1] < losses[2] < losses[3]
    assert losses[4] > math.log(20) - 0.5
    assert next_word_loss(model, texts) == before


# --- Distillation -------------------------------------------------------------------


def test_distillation_by_hand():
    """p = softmax(0, 1) and its mirror: KL .4621, with T² = 4 1.8485."""
    student, teacher = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    p = 1 / (1 + math.exp(-1))
    kl = p * math.log(p / (1 - p)) + (1 - p) * math.log((1 - p) / p)
    loss = partial(compress.distillation_loss, student, teacher, temperature=2.0)
    close(loss(), torch.tensor(4 * kl))
    hard = math.log(1 + math.exp(-2))
    close(loss(torch.tensor([0]), soft_weight=0.0), torch.tensor(hard))
    mixed = loss(torch.tensor([0]), soft_weight=0.25)
    close(mixed, torch.tensor(0.25 * 4 * kl + 0.75 * hard))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("soft_weight", [0.0, 0.3, 1.0])
def test_distillation_equals_torch(temperature, soft_weight, device):
    """KLDivLoss with T² over the places that count, forward and backward."""
    student = torch.randn(B, T, V, device=device, requires_grad=True)
    teacher = torch.randn(B, T, V, device=device, requires_grad=True)
    targets = torch.randint(V, (B, T), device=device)
    targets[0, 2:] = -100
    loss = compress.distillation_loss(
        student, teacher, targets, temperature=temperature, soft_weight=soft_weight
    )
    counts = targets != -100
    expected = soft_weight * temperature**2 * F.kl_div(
        F.log_softmax(student[counts] / temperature, dim=-1),
        F.softmax(teacher[counts] / temperature, dim=-1),
        reduction="batchmean",
    ) + (1 - soft_weight) * F.cross_entropy(student[counts], targets[counts])
    close(loss, expected)
    (wanted,) = torch.autograd.grad(expected, student, retain_graph=True)
    loss.backward()
    close(student.grad, wanted)
    assert teacher.grad is None


def test_gradient_keeps_its_size(device):
    """For large T the gradient is that of half the squared distance, over V."""
    student = torch.randn(3, V, device=device, dtype=torch.float64)
    teacher = torch.randn(3, V, device=device, dtype=torch.float64)
    student, teacher = (x - x.mean(dim=-1, keepdim=True) for x in (student, teacher))
    student.requires_grad_()
    loss = compress.distillation_loss(student, teacher, temperature=1000.0)
    (gradient,) = torch.autograd.grad(loss, student)
    close(gradient, ((student - teacher) / V / 3).detach(), atol=1e-3)


def test_equal_logits_cost_nothing(device):
    logits = torch.randn(B, T, V, device=device)
    loss = compress.distillation_loss(logits, logits + 3.0, temperature=2.0)
    close(loss, torch.zeros_like(loss))
    half = compress.distillation_loss(logits.bfloat16(), logits.bfloat16())
    assert half.dtype == torch.float32
    certain = torch.tensor([[0.0, -1e4]], device=device)
    assert compress.distillation_loss(certain, certain) == 0
    assert compress.distillation_loss(certain, -certain).isfinite()


def test_distillation_beats_training_alone(device):
    """Same student, same batches, same steps, few texts: the teacher knows more."""
    texts = chains(20, 640, 13, device)
    few, many, held_out = texts[:16], texts[:512], texts[512:]
    teacher = train(TinyLM(20, 32, 64, 1).to(device), many, 100)
    torch.manual_seed(1)
    student = TinyLM(20, 16, 16).to(device)
    alone = train(copy.deepcopy(student), few, 100)

    def from_teacher(logits, inputs, targets):
        with torch.no_grad():
            wanted = teacher(inputs)
        return compress.distillation_loss(
            logits, wanted, targets, temperature=2.0, soft_weight=0.9
        )

    taught = train(copy.deepcopy(student), few, 100, from_teacher)
    losses = [next_word_loss(m, held_out) for m in (teacher, taught, alone)]
    assert losses[1] < losses[2] - 0.1, losses
    assert losses[0] < losses[2], losses


# --- Refusals -----------------------------------------------------------------------


def refused_calls():
    """What is called, which error it raises, and the values that the message names."""
    numbers, whole = torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.int8)
    layer = nn.Linear(3, 2)
    lossy = partial(compress.distillation_loss, numbers, numbers)
    return {
        "negative cache": (
            lambda: compress.kv_cache_bytes(2, 3, 4, -5),
            ValueError,
            ["-5"],
        ),
        "whole numbers": (
            lambda: compress.quantize_int8(whole),
            TypeError,
            ["torch.int8"],
        ),
        "not a number": (
            lambda: compress.quantize_int8(torch.tensor([math.nan, 1.0, math.inf])),
            ValueError,
            ["(3,)", "2"],
        ),
        "dequantize floats": (
            lambda: compress.dequantize(numbers, torch.ones(1)),
            TypeError,
            ["torch.float32"],
        ),
        "matmul floats": (
            lambda: compress.int8_matmul(whole, numbers),
            TypeError,
            ["weight", "torch.float32"],
        ),
        "matmul widths": (
            lambda: compress.int8_matmul(whole, whole[:, :2]),
            ValueError,
            ["(2, 3)", "2"],
        ),
        "wide input": (
            lambda: compress.Int8Linear(layer)(torch.zeros(1, 4)),
            ValueError,
            ["(1, 4)", "3"],
        ),
        "nothing to quantise": (
            lambda: compress.quantize_model(nn.ReLU()),
            ValueError,
            ["ReLU"],
        ),
        "all skipped": (
            lambda: compress.quantize_model(nn.Sequential(layer), skip=["0"]),
            ValueError,
            ["Sequential"],
        ),
        "unknown skip": (
            lambda: compress.quantize_model(nn.Sequential(layer), skip=["1"]),
            ValueError,
            ["'1'", "'0'"],
        ),
        "sparsity": (
            lambda: compress.magnitude_prune(layer, 1.5),
            ValueError,
            ["sparsity=1.5"],
        ),
        "no weights": (lambda: compress.prune_masks([], 0.5), ValueError, []),
        "nothing to prune": (
            lambda: compress.magnitude_prune(nn.ReLU(), 0.5),
            ValueError,
            ["ReLU"],
        ),
        "mask of another": (
            lambda: compress.apply_masks(layer, {"weight": whole.bool().T}),
            ValueError,
            ["(3, 2)", "(2, 3)"],
        ),
        "two vocabularies": (
            lambda: compress.distillation_loss(numbers, numbers[:, :2]),
            ValueError,
            ["(2, 3)", "(2, 2)"],
        ),
        "targets": (
            lambda: lossy(torch.zeros(3, dtype=torch.long)),
            ValueError,
            ["(3,)", "(2,)"],
        ),
        "temperature": (lambda: lossy(temperature=0.0), ValueError, ["temperature=0"]),
        "weight": (lambda: lossy(soft_weight=-0.5), ValueError, ["soft_weight=-0.5"]),
    }


@pytest.mark.parametrize("name", refused_calls())
def test_refusal_names_the_values(name):
    call, error, values = refused_calls()[name]
    with pytest.raises(error) as caught:
        call()
    for value in values:
        assert re.search(re.escape(value), str(caught.value)), str(caught.value)
