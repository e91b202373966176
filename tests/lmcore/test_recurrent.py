"""Cells and layers equal those of torch, and nothing is forgotten or leaks in time."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lmcore import network, recurrent

close = partial(torch.testing.assert_close, atol=1e-5, rtol=0.0)
exactly = partial(torch.testing.assert_close, atol=0.0, rtol=0.0)
B, T, C, F, L, V = 2, 4, 3, 5, 2, 7
few = settings(max_examples=10)
either_float = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
CELLS = ["rnn", "lstm", "gru"]
each_cell = pytest.mark.parametrize("cell", CELLS)
LAYERS = {"rnn": recurrent.RNN, "lstm": recurrent.LSTM, "gru": recurrent.GRU}
STEPS = {
    "rnn": recurrent.rnn_step,
    "lstm": recurrent.lstm_step,
    "gru": recurrent.gru_step,
}
TORCH_CELLS = {"rnn": nn.RNNCell, "lstm": nn.LSTMCell, "gru": nn.GRUCell}
TORCH_LAYERS = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}
N_BLOCKS = {"rnn": 1, "lstm": 4, "gru": 3}


def dice(device="cpu", seed=1) -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


def layer_of(cell, device="cpu", n_layers=L, seed=1, **options):
    return LAYERS[cell](C, F, n_layers, generator=dice(device, seed), **options)


def pair(x: float, hidden: float) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor([[float(x)]]), torch.tensor([[float(hidden)]])


def parts(state) -> tuple[torch.Tensor, ...]:
    return state if isinstance(state, tuple) else (state,)


def random_state(cell, *sizes, **options):
    hidden = torch.randn(*sizes, F, **options)
    return (hidden, torch.randn(*sizes, F, **options)) if cell == "lstm" else hidden


def assert_equal_with_gradients(found, expected, ours, theirs):
    """Several results are the same, and so are their gradients."""
    for one, other in zip(found, expected, strict=True):
        close(one, other)
    upstream = [torch.randn_like(one) for one in found]
    found = torch.autograd.grad(found, ours, upstream)
    expected = torch.autograd.grad(expected, theirs, upstream)
    for one, other in zip(found, expected, strict=True):
        close(one, other)


# --- rnn_step -----------------------------------------------------------------------


def test_a_simple_step_worked_by_hand(device):
    # C = 2, F = 1: 2·1 + 3·(-1) + 0.5 from the token, -1·0.25 + 1 from the state.
    x, hidden = torch.tensor([[1.0, -1.0]]), torch.tensor([[0.25]])
    weights = [torch.tensor([[2.0, 3.0]]), torch.tensor([[-1.0]])]
    weights += [torch.tensor([0.5]), torch.tensor([1.0])]
    inputs = [tensor.to(device) for tensor in (x, hidden, *weights)]
    found = recurrent.rnn_step(*inputs)
    close(found, torch.tensor([[math.tanh(0.25)]], device=device))
    found = recurrent.rnn_step(*inputs, nonlinearity="relu")
    exactly(found, torch.tensor([[0.25]], device=device))


def test_another_nonlinearity_is_refused():
    weights = torch.ones(1, 1), torch.ones(1, 1)
    with pytest.raises(ValueError, match="nonlinearity='gelu'"):
        recurrent.rnn_step(*pair(1, 1), *weights, nonlinearity="gelu")
    with pytest.raises(ValueError, match="nonlinearity='gelu'"):
        recurrent.RNN(C, F, generator=dice(), nonlinearity="gelu")


# --- lstm_step ----------------------------------------------------------------------


def lstm_of_one(gates: list[float], cell: float) -> tuple[float, float]:
    x, hidden = pair(0, 0)
    zero = torch.zeros(4, 1)
    hidden, found = recurrent.lstm_step(
        x, (hidden, torch.tensor([[cell]])), zero, zero, torch.tensor(gates)
    )
    return hidden.item(), found.item()


def test_a_cell_that_forgets_and_writes_nothing_worked_by_hand():
    # i = -10, f = 10, g = 0, o = 10. Gates in another order give a cell of 0.00005, and
    # without the second tanh the hidden state would be 1.
    hidden, cell = lstm_of_one([-10.0, 10.0, 0.0, 10.0], cell=1.0)
    assert cell == pytest.approx(0.9999546, abs=1e-6)
    assert hidden == pytest.approx(math.tanh(0.9999546) * 0.9999546, abs=1e-6)


def test_every_gate_worked_by_hand():
    def sigmoid(number):
        return 1 / (1 + math.exp(-number))

    hidden, cell = lstm_of_one([1.0, -2.0, 0.5, 3.0], cell=2.0)
    expected = sigmoid(-2) * 2 + sigmoid(1) * math.tanh(0.5)
    assert cell == pytest.approx(expected, abs=1e-6)
    assert hidden == pytest.approx(sigmoid(3) * math.tanh(expected), abs=1e-6)


def test_the_cell_is_unbounded_and_what_it_shows_is_not():
    hidden, cell = lstm_of_one([99.0, 99.0, 99.0, 99.0], cell=5.0)
    assert cell == pytest.approx(6.0)
    assert hidden == pytest.approx(math.tanh(6), abs=1e-6)
    assert hidden < 1


def test_a_state_that_is_no_pair_is_refused():
    x, hidden = pair(0, 0)
    zero = torch.zeros(4, 1)
    with pytest.raises(ValueError, match="pair"):
        recurrent.lstm_step(x, hidden, zero, zero)
    with pytest.raises(ValueError, match=r"cell \(1, 2\) .* \(1, 1\)"):
        recurrent.lstm_step(x, (hidden, torch.zeros(1, 2)), zero, zero)


# --- gru_step -----------------------------------------------------------------------


def gru_of_one(weight_hh, bias_ih, bias_hh, hidden=1.0) -> float:
    x, hidden = pair(0, hidden)
    weights = [torch.tensor(numbers) for numbers in (bias_ih, bias_hh)]
    found = recurrent.gru_step(
        x, hidden, torch.zeros(3, 1), torch.tensor(weight_hh)[:, None], *weights
    )
    return found.item()


def test_the_reset_gate_multiplies_what_the_weights_made_of_the_state():
    # r = 0.5, z = 0, W_hn h + b_hn = 1 + 2: tanh(1.5) = 0.9051. To reset the state
    # before the weights would give tanh(0.5 + 2) = 0.9866.
    found = gru_of_one([0.0, 0.0, 1.0], [0.0, -99.0, 0.0], [0.0, 0.0, 2.0])
    assert found == pytest.approx(math.tanh(1.5), abs=1e-6)


def test_where_the_update_gate_is_one_the_state_is_kept():
    keep, candidate = 1 / (1 + math.exp(-10)), math.tanh(-3)
    found = gru_of_one([0.0, 0.0, 0.0], [0.0, 10.0, -3.0], [0.0, 0.0, 0.0], hidden=0.5)
    assert found == pytest.approx(keep * 0.5 + (1 - keep) * candidate, abs=1e-6)
    assert found == pytest.approx(0.5, abs=1e-3)


def test_the_two_biases_are_not_one():
    # r = 0 and z = 0: the bias of the state is reset, that of the token is not.
    gates = [-99.0, -99.0]
    assert gru_of_one([0.0] * 3, [*gates, 0.0], [0.0, 0.0, 1.0]) == 0.0
    found = gru_of_one([0.0] * 3, [*gates, 1.0], [0.0, 0.0, 0.0])
    assert found == pytest.approx(math.tanh(1), abs=1e-6)


# --- all three steps ----------------------------------------------------------------


@each_cell
@either_float
@pytest.mark.parametrize("bias", [True, False])
def test_a_step_equals_torch(device, cell, dtype, bias):
    theirs = TORCH_CELLS[cell](C, F, bias=bias, device=device, dtype=dtype)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter)
    options = {"device": device, "dtype": dtype, "requires_grad": True}
    x, state = torch.randn(B, C, **options), random_state(cell, B, **options)
    weights = list(theirs.parameters())
    found = parts(STEPS[cell](x, state, *weights))
    inputs = [x, *parts(state), *weights]
    assert_equal_with_gradients(found, parts(theirs(x, state)), inputs, inputs)


@each_cell
def test_a_step_takes_any_axes_in_front(cell):
    weights = layer_of(cell, n_layers=1).parameters()
    x, state = torch.randn(B, T, C), random_state(cell, B, T)
    weights = list(weights)
    found = parts(STEPS[cell](x, state, *weights))
    one = x[1, 2], tuple(part[1, 2] for part in parts(state))
    alone = STEPS[cell](one[0], one[1] if cell == "lstm" else one[1][0], *weights)
    for whole, part in zip(found, parts(alone), strict=True):
        close(whole[1, 2], part)


@each_cell
def test_weights_of_another_size_are_refused(cell):
    n, step = N_BLOCKS[cell], STEPS[cell]
    x, state = torch.ones(B, C), random_state(cell, B)
    weight_ih, weight_hh = torch.ones(n * F, C), torch.ones(n * F, F)
    with pytest.raises(ValueError, match=rf"weight_ih .*\({n * F + 1}, 3\)"):
        step(x, state, torch.ones(n * F + 1, C), weight_hh)
    with pytest.raises(ValueError, match=rf"weight_hh .*\(2, 5\), expected {n * F} "):
        step(x, state, weight_ih, torch.ones(2, F))
    with pytest.raises(ValueError, match="width 4"):
        step(torch.ones(B, 4), state, weight_ih, weight_hh)
    with pytest.raises(ValueError, match=r"bias has shape \(1,\)"):
        step(x, state, weight_ih, weight_hh, torch.ones(1))
    with pytest.raises(ValueError, match=r"\(1, 3\) .* \(2, 5\)"):
        step(torch.ones(1, C), state, weight_ih, weight_hh)


# --- reset_state, detach_state, unroll ----------------------------------------------


def test_some_rows_are_forgotten(device):
    rows = torch.tensor([True, False], device=device)
    hidden = torch.ones(L, B, F, device=device)
    expected = torch.stack([torch.zeros(L, F), torch.ones(L, F)], dim=1).to(device)
    exactly(recurrent.reset_state(hidden, rows), expected)
    found = recurrent.reset_state((hidden, 2 * hidden), rows)
    exactly(found[0], expected)
    exactly(found[1], 2 * expected)


def test_even_what_is_not_a_number_is_forgotten():
    state = torch.tensor([[math.nan], [math.inf]])
    exactly(recurrent.reset_state(state, torch.ones(2).bool()), torch.zeros(2, 1))


def test_rows_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"\(3,\).* 2 rows"):
        recurrent.reset_state(torch.ones(B, F), torch.ones(3).bool())
    with pytest.raises(ValueError, match="int64"):
        recurrent.reset_state(torch.ones(B, F), torch.ones(B).long())


def test_a_detached_state_has_no_history():
    state = torch.ones(B, F, requires_grad=True) * 3
    found = recurrent.detach_state((state, state))
    assert isinstance(found, tuple)
    for part in (*found, recurrent.detach_state(state)):
        assert part.grad_fn is None
        exactly(part, state.detach())


def test_every_step_starts_from_the_one_before():
    x = torch.tensor([[[1.0], [0.0], [2.0]], [[5.0], [1.0], [1.0]]])
    output, last = recurrent.unroll(torch.add, x, torch.tensor([[10.0], [0.0]]))
    exactly(output[..., 0], torch.tensor([[11.0, 11.0, 13.0], [5.0, 6.0, 7.0]]))
    exactly(last, output[:, -1])


def test_a_new_document_starts_from_nothing():
    x = torch.ones(2, 4, 1)
    begins = torch.tensor([[False, False, True, False], [True, False, False, True]])
    output, _ = recurrent.unroll(torch.add, x, torch.full((2, 1), 10.0), begins)
    exactly(
        output[..., 0], torch.tensor([[11.0, 12.0, 1.0, 2.0], [1.0, 2.0, 3.0, 1.0]])
    )


def test_a_text_without_tokens_is_refused():
    with pytest.raises(ValueError, match=r"\(2, 0, 3\)"):
        recurrent.unroll(torch.add, torch.ones(2, 0, 3), torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"\(2, 3\)"):
        recurrent.unroll(torch.add, torch.ones(2, 3), torch.ones(2, 3))
    x, begins = torch.ones(B, T, C), torch.ones(T, B).bool()
    with pytest.raises(ValueError, match=r"begins has shape \(4, 2\)"):
        recurrent.unroll(torch.add, x, torch.ones(B, C), begins)


# --- orthogonal ---------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_lengths_are_kept(device, n, dtype):
    matrix = recurrent.orthogonal(n, dice(device), dtype)
    assert (matrix.dtype, matrix.device.type) == (dtype, device.type)
    close(matrix @ matrix.T, torch.eye(n, dtype=dtype, device=device))


def test_an_orthogonal_matrix_may_turn_and_mirror():
    drawn = [recurrent.orthogonal(2, dice(seed=seed)) for seed in range(400)]
    determinants = torch.stack(drawn).det()
    close(determinants.abs(), torch.ones(400))
    assert 150 < (determinants > 0).sum() < 250
    assert torch.stack(drawn).mean(dim=0).abs().max() < 0.15


def test_halves_are_orthogonal_too():
    matrix = recurrent.orthogonal(8, dice(), torch.bfloat16)
    assert matrix.dtype == torch.bfloat16
    torch.testing.assert_close(
        matrix.float() @ matrix.float().T, torch.eye(8), atol=2e-2, rtol=0.0
    )
    with pytest.raises(ValueError, match="n=0"):
        recurrent.orthogonal(0, dice())


# --- RNN, LSTM, GRU -----------------------------------------------------------------


@each_cell
@either_float
@pytest.mark.parametrize("n_layers", [1, 3])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_layer_equals_torch_forwards_and_backwards(
    device, cell, dtype, n_layers, bidirectional
):
    options = {"device": device, "dtype": dtype}
    theirs = TORCH_LAYERS[cell](
        C, F, n_layers, bidirectional=bidirectional, batch_first=True, **options
    )
    ours = layer_of(cell, device, n_layers, bidirectional=bidirectional, dtype=dtype)
    ours.load_state_dict(theirs.state_dict())  # the same names and shapes
    n_states = n_layers * (2 if bidirectional else 1)
    options["requires_grad"] = True
    x, state = (
        torch.randn(B, T, C, **options),
        random_state(cell, n_states, B, **options),
    )
    for start in (None, state):
        found, expected = ours(x, start), theirs(x, start)
        inputs = [x] if start is None else [x, *parts(start)]
        names = [name for name, _ in theirs.named_parameters()]
        assert_equal_with_gradients(
            [found[0], *parts(found[1])],
            [expected[0], *parts(expected[1])],
            [*inputs, *(ours.get_parameter(name) for name in names)],
            [*inputs, *(theirs.get_parameter(name) for name in names)],
        )


def test_a_layer_with_relu_equals_torch(device):
    theirs = nn.RNN(C, F, L, nonlinearity="relu", batch_first=True, device=device)
    ours = layer_of("rnn", device, nonlinearity="relu")
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(B, T, C, device=device)
    close(ours(x), theirs(x))


@each_cell
def test_torch_takes_our_weights(cell):
    ours = layer_of(cell, bidirectional=True)
    theirs = TORCH_LAYERS[cell](C, F, L, bidirectional=True, batch_first=True)
    theirs.load_state_dict(ours.state_dict())
    assert list(ours.state_dict()) == list(theirs.state_dict())
    x = torch.randn(B, T, C)
    close(ours(x)[0], theirs(x)[0])


@each_cell
def test_step_two_remembers_step_one(cell):
    layer = layer_of(cell, n_layers=1)
    x = torch.zeros(2, 2, C)
    x[1, 0] = 1.0  # the second row differs in its first token only
    output, _ = layer(x)
    assert (output[0, 1] - output[1, 1]).abs().max() > 1e-3


@each_cell
@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_row_does_not_hear_the_others(cell, bidirectional):
    layer = layer_of(cell, bidirectional=bidirectional)
    x = torch.randn(2, 3, C)
    both, state = layer(x)
    for row in range(2):
        alone, own = layer(x[row : row + 1])
        close(both[row : row + 1], alone)
        for whole, part in zip(parts(state), parts(own), strict=True):
            close(whole[:, row : row + 1], part)
    x[1] = 99.0
    exactly(layer(x)[0][0], both[0])


@few
@given(st.sampled_from(CELLS), st.integers(1, 6), st.data())
def test_what_comes_later_changes_nothing_before(cell, n_tokens, data):
    layer = layer_of(cell)
    x = torch.randn(B, n_tokens, C)
    t = data.draw(st.integers(0, n_tokens - 1))
    poked = x.clone()
    poked[:, t] += 1.0
    before, after = layer(x)[0], layer(poked)[0]
    exactly(before[:, :t], after[:, :t])
    assert (before[:, t:] != after[:, t:]).any(dim=-1).all()


@few
@given(st.sampled_from(CELLS), st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_chunks_with_the_state_carried_equal_the_whole(cell, lengths):
    layer = layer_of(cell)
    x = torch.randn(B, sum(lengths), C)
    outputs, state = [], None
    for chunk in x.split(lengths, dim=1):
        output, state = layer(chunk, state)
        outputs.append(output)
    whole, last = layer(x)
    close(torch.cat(outputs, dim=1), whole)
    for one, other in zip(parts(state), parts(last), strict=True):
        close(one, other)


@few
@given(
    st.sampled_from(CELLS),
    st.booleans(),
    st.lists(st.integers(1, 3), min_size=2, max_size=4),
)
def test_documents_side_by_side_equal_documents_alone(cell, bidirectional, lengths):
    layer = layer_of(cell, bidirectional=bidirectional)
    x = torch.randn(1, sum(lengths), C)
    documents = x.split(lengths, dim=1)
    begins = torch.cat([torch.arange(n) == 0 for n in lengths])[None]
    together, _ = layer(x, begins=begins)
    alone = [layer(document)[0] for document in documents]
    close(together, torch.cat(alone, dim=1))
    with_a_state, _ = layer(x, layer(x)[1], begins=begins)
    if not bidirectional:
        exactly(with_a_state, together)


@each_cell
def test_padding_as_a_document_equals_packed_sequences_of_torch(cell):
    theirs = TORCH_LAYERS[cell](C, F, L, bidirectional=True, batch_first=True)
    ours = layer_of(cell, bidirectional=True)
    ours.load_state_dict(theirs.state_dict())
    x, lengths = torch.randn(3, T, C), torch.tensor([2, 4, 1])
    packed = nn.utils.rnn.pack_padded_sequence(
        x, lengths, batch_first=True, enforce_sorted=False
    )
    expected, _ = nn.utils.rnn.pad_packed_sequence(theirs(packed)[0], True)
    found, _ = ours(x, begins=torch.arange(T) == lengths[:, None])
    for row, length in enumerate(lengths):
        close(found[row, :length], expected[row, :length])


def test_the_first_parameters(device):
    layer = layer_of("lstm", device, dtype=torch.float64)
    assert layer.weight_ih_l1.shape == (4 * F, F)
    assert all(parameter.device.type == device.type for parameter in layer.parameters())
    for block in layer.weight_hh_l0.chunk(4):
        close(block @ block.T, torch.eye(F, dtype=torch.float64, device=device))
    assert layer.weight_ih_l0.abs().max() <= math.sqrt(6 / (C + F))
    bias = torch.zeros(4, F, dtype=torch.float64, device=device)
    exactly(layer.bias_hh_l1.detach(), bias.flatten())
    bias[1] = 1.0  # the forget gate
    exactly(layer.bias_ih_l1.detach(), bias.flatten())
    for cell in ("rnn", "gru"):
        assert layer_of(cell).bias_ih_l0.abs().sum() == 0


@each_cell
def test_only_the_dice_given_are_rolled(cell):
    before = torch.get_rng_state()
    one, same, other = (layer_of(cell, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    for name, parameter in one.named_parameters():
        assert torch.equal(parameter, same.get_parameter(name))
    assert not torch.equal(one.weight_hh_l0, other.weight_hh_l0)


@each_cell
def test_halves_read_too(cell):
    layer = layer_of(cell, dtype=torch.bfloat16)
    x = torch.randn(B, T, C, dtype=torch.bfloat16)
    output, _ = layer(x)
    assert output.dtype == torch.bfloat16
    exact, _ = layer.float()(x.float())
    torch.testing.assert_close(output.float(), exact, atol=5e-2, rtol=0.0)


@each_cell
def test_a_batch_without_rows_is_read(cell):
    output, _ = layer_of(cell)(torch.ones(0, T, C))
    assert output.shape == (0, T, F)


@each_cell
def test_what_does_not_fit_the_layer_is_refused(cell):
    layer = layer_of(cell)
    with pytest.raises(ValueError, match=rf"\(2, 4, 4\).* C={C}"):
        layer(torch.ones(B, T, 4))
    with pytest.raises(ValueError, match=rf"\(4, {C}\)"):
        layer(torch.ones(T, C))
    with pytest.raises(ValueError, match=r"\(2, 0, 3\)"):
        layer(torch.ones(B, 0, C))
    with pytest.raises(ValueError, match=r"\(1, 2, 5\).* \(2, 2, 5\)"):
        layer(torch.ones(B, T, C), random_state(cell, 1, B))
    for sizes, name in [((0, F), "d_in=0"), ((C, 0), "d_hidden=0")]:
        with pytest.raises(ValueError, match=name):
            LAYERS[cell](*sizes, generator=dice())
    with pytest.raises(ValueError, match="n_layers=0"):
        layer_of(cell, n_layers=0)


def test_the_state_of_another_cell_is_refused():
    x, hidden = torch.ones(B, T, C), torch.zeros(L, B, F)
    with pytest.raises(ValueError, match="a pair"):
        layer_of("lstm")(x, hidden)
    with pytest.raises(ValueError, match="a pair"):
        layer_of("lstm")(x, (hidden, hidden, hidden))
    with pytest.raises(ValueError, match="is a pair"):
        layer_of("gru")(x, (hidden, hidden))


# --- gradient_norms -----------------------------------------------------------------


def test_a_gradient_that_halves_with_every_step_worked_by_hand(device):
    layer = recurrent.RNN(1, 1, nonlinearity="relu", generator=dice(device))
    with torch.no_grad():
        layer.weight_ih_l0.fill_(3.0)
        layer.weight_hh_l0.fill_(0.5)
    found = recurrent.gradient_norms(layer, torch.ones(2, 3, 1, device=device))
    close(found, torch.tensor([[0.75, 1.5, 3.0]], device=device).expand(2, 3))


@each_cell
def test_gradient_norms_equal_those_of_torch(cell):
    theirs = TORCH_LAYERS[cell](C, F, L, batch_first=True)
    ours = layer_of(cell)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(B, T, C)
    found = recurrent.gradient_norms(ours, x)
    close(found, recurrent.gradient_norms(theirs, x))
    jacobian = torch.autograd.functional.jacobian(lambda x: ours(x)[0][:, -1].sum(), x)
    close(found, jacobian.pow(2).sum(-1).sqrt())


def test_measuring_gradients_leaves_none_behind():
    layer, x = layer_of("gru"), torch.randn(B, T, C)
    with torch.no_grad():
        found = recurrent.gradient_norms(layer, x)
    assert found.shape == (B, T)
    assert not x.requires_grad
    assert all(parameter.grad is None for parameter in layer.parameters())


@pytest.mark.parametrize(("size", "grows"), [(0.5, False), (2.0, True)])
def test_gradients_vanish_and_explode_and_orthogonal_weights_keep_them(size, grows):
    layer = layer_of("rnn", n_layers=1, nonlinearity="relu")
    with torch.no_grad():
        layer.weight_hh_l0.copy_(torch.eye(F))
        layer.weight_ih_l0.abs_()
    x = torch.rand(1, 30, C)
    steady = recurrent.gradient_norms(layer, x)[0]
    assert steady[0].item() == pytest.approx(steady[-1].item(), rel=1e-4)
    with torch.no_grad():
        layer.weight_hh_l0.mul_(size)
    found = recurrent.gradient_norms(layer, x)[0]
    ratio = (found[0] / found[-1]).item()
    assert ratio == pytest.approx(size**29, rel=1e-3)
    assert (ratio > 1) == grows


# --- RecurrentLM --------------------------------------------------------------------


def language_model(cell="lstm", device="cpu", **options) -> recurrent.RecurrentLM:
    generator = dice(device)
    return recurrent.RecurrentLM(V, C, F, L, cell=cell, generator=generator, **options)


class TorchLM(nn.Module):
    """The same model from layers of torch."""

    def __init__(self, cell, device):
        super().__init__()
        self.embedding = nn.Embedding(V, C, device=device)
        self.layer = TORCH_LAYERS[cell](C, F, L, batch_first=True, device=device)
        self.output = nn.Linear(F, V, device=device)

    def forward(self, ids, state=None):
        output, state = self.layer(self.embedding(ids), state)
        return self.output(output), state


@each_cell
def test_a_language_model_equals_layers_of_torch(device, cell):
    ours, theirs = language_model(cell, device), TorchLM(cell, device)
    ours.layer.load_state_dict(theirs.layer.state_dict())
    others = [theirs.embedding.weight, theirs.output.weight, theirs.output.bias]
    own = [ours.embedding, ours.output_weight, ours.output_bias]
    with torch.no_grad():
        for parameter, other in zip(own, others, strict=True):
            parameter.copy_(other)
    ids = torch.randint(V, (B, T), device=device)
    found, expected = ours(ids), theirs(ids)
    assert_equal_with_gradients(
        [found[0], *parts(found[1])], [expected[0], *parts(expected[1])], own, others
    )


def test_the_sizes_of_a_language_model():
    model = language_model("gru", dtype=torch.float64)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert shapes["embedding"] == (V, C)
    assert shapes["output_weight"] == (V, F)
    assert shapes["output_bias"] == (V,)
    assert shapes["layer.weight_ih_l1"] == (3 * F, F)
    assert all(p.dtype == torch.float64 for p in model.parameters())


@few
@given(st.sampled_from(CELLS), st.integers(1, 6), st.data())
def test_a_language_model_does_not_see_the_future(cell, n_tokens, data):
    model = language_model(cell)
    ids = torch.randint(V, (B, n_tokens))
    t = data.draw(st.integers(0, n_tokens - 1))
    poked = ids.clone()
    poked[:, t] = (ids[:, t] + 1) % V
    exactly(model(ids)[0][:, :t], model(poked)[0][:, :t])


@each_cell
def test_nothing_is_remembered_of_the_document_before(cell):
    model = language_model(cell, begin_id=0)
    first, other, second = [0, 3, 1], [0, 2, 2], [0, 5, 4]
    together, _ = model(torch.tensor([[*first, *second], [*other, *second]]))
    exactly(together[0, 3:], together[1, 3:])
    alone, _ = model(torch.tensor([second]))
    close(together[:1, 3:], alone)
    forgetful, _ = language_model(cell)(torch.tensor([[*first, *second]]))
    assert (forgetful[0, 3:] - alone[0]).abs().max() > 1e-3
    _, state = model(torch.tensor([first]))
    carried, _ = model(torch.tensor([second]), state)
    close(carried, alone)


@each_cell
def test_what_a_model_writes_depends_on_the_dice_and_all_it_wrote(device, cell):
    model = language_model(cell, device)
    context = torch.tensor([1, 2], device=device)
    before = torch.get_rng_state()
    found = recurrent.sample(model, dice(device), context, 20)
    assert torch.equal(torch.get_rng_state(), before)
    assert found.shape == (20,)
    assert found.tolist() == recurrent.sample(model, dice(device), context, 20).tolist()
    assert (
        found.tolist() != recurrent.sample(model, dice(device, 2), context, 20).tolist()
    )
    # The same dice, but the whole text read anew for every token.
    text, generator = context, dice(device)
    for _ in range(20):
        probs = model(text[None])[0][0, -1].softmax(-1)
        text = torch.cat([text, torch.multinomial(probs, 1, generator=generator)])
    assert found.tolist() == text[2:].tolist()


def test_tokens_are_drawn_with_their_probability():
    model = language_model("rnn")
    with torch.no_grad():
        model.output_weight.zero_()
        model.output_bias.copy_(torch.tensor([0.9, 0.1, *[1e-9] * (V - 2)]).log())
    drawn = recurrent.sample(model, dice(), torch.tensor([0]), 400)
    assert (drawn == 0).float().mean().item() == pytest.approx(0.9, abs=0.05)
    # At T = 0.5 probabilities are squared: 0.81 to 0.01.
    drawn = recurrent.sample(model, dice(), torch.tensor([0]), 400, temperature=0.5)
    assert (drawn == 0).float().mean().item() == pytest.approx(0.988, abs=0.02)
    assert recurrent.sample(model, dice(), torch.tensor([0]), 0).tolist() == []


def test_a_model_does_not_write_from_nothing():
    model = language_model()
    with pytest.raises(ValueError, match=r"\(0,\)"):
        recurrent.sample(model, dice(), torch.empty(0).long(), 3)
    with pytest.raises(ValueError, match="temperature=0"):
        recurrent.sample(model, dice(), torch.tensor([1]), 3, temperature=0)
    with pytest.raises(ValueError, match="n_tokens=-1"):
        recurrent.sample(model, dice(), torch.tensor([1]), -1)


def test_ids_and_cells_that_do_not_fit_are_refused():
    for wrong in (-1, V):
        with pytest.raises(ValueError, match=f"{wrong}.* n_words - 1 = {V - 1}"):
            language_model()(torch.tensor([[0, wrong]]))
    with pytest.raises(ValueError, match=r"\(3,\)"):
        language_model()(torch.tensor([0, 1, 2]))
    with pytest.raises(ValueError, match="cell='elman'"):
        language_model("elman")
    with pytest.raises(ValueError, match=f"begin_id={V}"):
        language_model(begin_id=V)
    with pytest.raises(ValueError, match="d_model=0"):
        recurrent.RecurrentLM(V, 0, F, generator=dice())


# --- bptt_batches, bptt_step, train, evaluate ---------------------------------------


def test_rows_go_on_where_they_stopped_worked_by_hand(device):
    batches = recurrent.bptt_batches(torch.arange(12, device=device), 2, 3)
    found = [(inputs.tolist(), targets.tolist()) for inputs, targets in batches]
    assert found == [
        ([[0, 1, 2], [6, 7, 8]], [[1, 2, 3], [7, 8, 9]]),
        ([[3, 4, 5], [9, 10, 11]], [[4, 5, 6], [10, 11, -100]]),
    ]


@settings(max_examples=30)
@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 7))
def test_every_token_is_read_once_and_before_its_target(n_tokens, batch_size, n_steps):
    if n_tokens < batch_size:
        n_tokens += batch_size
    text = torch.arange(n_tokens)
    batches = recurrent.bptt_batches(text, batch_size, n_steps)
    rows = torch.cat([inputs for inputs, _ in batches], dim=1)
    targets = torch.cat([targets for _, targets in batches], dim=1)
    n_kept = n_tokens // batch_size * batch_size
    assert rows.flatten().tolist() == text[:n_kept].tolist()
    counted = targets != -100
    assert (targets[counted] == rows[counted] + 1).all()
    assert (~counted).sum() == (n_kept == n_tokens)
    assert all(inputs.shape == (batch_size, n_steps) for inputs, _ in batches[:-1])
    assert 1 <= batches[-1][0].shape[1] <= n_steps


def test_a_text_too_short_for_its_rows_is_refused():
    with pytest.raises(ValueError, match=r"\(3,\).* batch_size=4"):
        recurrent.bptt_batches(torch.arange(3), 4, 1)
    with pytest.raises(ValueError, match=r"\(2, 3\)"):
        recurrent.bptt_batches(torch.ones(2, 3).long(), 1, 1)
    with pytest.raises(ValueError, match="n_steps=0"):
        recurrent.bptt_batches(torch.arange(3), 1, 0)
    with pytest.raises(ValueError, match="batch_size=0"):
        recurrent.bptt_batches(torch.arange(3), 0, 1)


def gradient_descent(model, learning_rate=0.1) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=learning_rate)


@each_cell
def test_the_state_is_carried_into_the_next_chunk_and_its_graph_is_not(cell):
    model = language_model(cell)
    ids = torch.randint(V, (B, 2 * T + 1))
    chunk, following = ids[:, :T], ids[:, 1 : T + 1]
    optimizer = gradient_descent(model)
    loss, state = recurrent.bptt_step(model, chunk, following, None, optimizer)
    assert all(part.grad_fn is None for part in parts(state))
    assert any(part.abs().max() > 0 for part in parts(state))
    # A second step would raise if the graph of the first one hung on.
    chunk, following = ids[:, T : 2 * T], ids[:, T + 1 :]
    expected = network.cross_entropy(model(chunk, state)[0], following).item()
    found, _ = recurrent.bptt_step(model, chunk, following, state, optimizer)
    assert found == pytest.approx(expected, abs=1e-6)
    fresh = network.cross_entropy(model(chunk)[0], following).item()
    assert abs(fresh - found) > 1e-4
    assert loss > 0


def test_a_step_goes_down_the_clipped_gradient():
    model = language_model()
    ids = torch.randint(V, (B, T + 1))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    loss = network.cross_entropy(model(ids[:, :-1])[0], ids[:, 1:])
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    norm = math.sqrt(sum(float(g.pow(2).sum()) for g in gradients))
    assert norm > 0.01
    optimizer = gradient_descent(model)
    found, _ = recurrent.bptt_step(
        model, ids[:, :-1], ids[:, 1:], None, optimizer, max_norm=0.01
    )
    assert found == pytest.approx(loss.item(), abs=1e-6)
    for (name, parameter), gradient in zip(
        model.named_parameters(), gradients, strict=True
    ):
        close(
            parameter.detach(), before[name] - 0.1 * 0.01 / norm * gradient, atol=1e-6
        )


def test_gradients_of_the_step_before_do_not_stay():
    model = language_model()
    ids = torch.randint(V, (B, T + 1))
    still = gradient_descent(model, learning_rate=0.0)
    for _ in range(2):
        recurrent.bptt_step(model, ids[:, :-1], ids[:, 1:], None, still, max_norm=99.0)
    loss = network.cross_entropy(model(ids[:, :-1])[0], ids[:, 1:])
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        close(parameter.grad, gradient)


def test_a_loss_that_is_not_finite_stops_the_training():
    model = language_model()
    with torch.no_grad():
        model.output_bias[0] = math.nan
    chunks = recurrent.bptt_batches(torch.arange(V), 1, 3)
    with pytest.raises(ValueError, match="loss is nan"):
        recurrent.train(model, chunks, gradient_descent(model))


@each_cell
def test_training_reads_on_where_the_last_chunk_stopped(cell):
    model = language_model(cell)
    text = torch.randint(V, (2 * T + 3,))
    chunks = recurrent.bptt_batches(text, 1, T)
    found = recurrent.train(model, chunks, gradient_descent(model, learning_rate=0.0))
    logits = model(text[None, :-1])[0][0].split(T)
    expected = [
        network.cross_entropy(one, other).item()
        for one, other in zip(logits, text[1:].split(T), strict=True)
    ]
    assert found == pytest.approx(expected, abs=1e-5)


@each_cell
def test_training_learns_what_only_memory_can_know(cell):
    # Whether 1 or 2 comes after a 0, only the token before it tells.
    text = torch.tensor([1, 0, 2, 0] * 120)
    generator = dice()
    model = recurrent.RecurrentLM(3, 4, 12, cell=cell, generator=generator)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    chunks = recurrent.bptt_batches(text, batch_size=8, n_steps=10)
    first = recurrent.evaluate(model, chunks)
    losses = [
        loss for _ in range(6) for loss in recurrent.train(model, chunks, optimizer)
    ]
    assert losses[0] == pytest.approx(first, abs=0.3)
    assert recurrent.evaluate(model, chunks) < 0.2  # one token alone: 0.35 at best


@each_cell
@given(n_steps=st.integers(1, 12))
@few
def test_a_text_in_chunks_surprises_as_much_as_in_one(cell, n_steps):
    model = language_model(cell)
    text = torch.randint(V, (11,))
    whole = network.cross_entropy(model(text[None, :-1])[0][0], text[1:]).item()
    found = recurrent.evaluate(model, recurrent.bptt_batches(text, 1, n_steps))
    assert found == pytest.approx(whole, abs=1e-5)


def test_where_there_is_no_target_there_is_no_surprise():
    model = language_model()
    with pytest.raises(ValueError, match="no target in 1 chunk"):
        recurrent.evaluate(model, recurrent.bptt_batches(torch.tensor([1]), 1, 1))
    with pytest.raises(ValueError, match="no target in 0 chunk"):
        recurrent.evaluate(model, [])


# --- both_ends, RecurrentTagger -----------------------------------------------------


def test_each_direction_is_asked_when_it_has_read_everything(device):
    output = torch.arange(2 * 3 * 4.0, device=device).view(2, 3, 4)
    found = recurrent.both_ends(output)
    exactly(found, torch.tensor([[8.0, 9, 2, 3], [20, 21, 14, 15]], device=device))
    found = recurrent.both_ends(output, torch.tensor([1, 2], device=device))
    exactly(found, torch.tensor([[0.0, 1, 2, 3], [16, 17, 14, 15]], device=device))


@each_cell
def test_both_ends_are_the_last_states_of_the_layer(cell):
    layer = layer_of(cell, n_layers=1, bidirectional=True)
    x = torch.randn(B, T, C)
    output, state = layer(x)
    found = recurrent.both_ends(output)
    exactly(found, torch.cat(list(parts(state)[0]), dim=-1))
    x[:, 0] += 1.0  # the backward half hears of the first token
    changed = recurrent.both_ends(layer(x)[0])
    assert ((changed - found)[:, F:].abs() > 1e-6).any(dim=-1).all()


def test_ends_that_are_not_there_are_refused():
    output = torch.ones(B, T, 2 * F)
    for lengths in ([0, 1], [1, T + 1], [1]):
        with pytest.raises(ValueError, match=rf"lengths=\[{lengths[0]}.* 1 and {T}"):
            recurrent.both_ends(output, torch.tensor(lengths))
    with pytest.raises(ValueError, match="odd width 5"):
        recurrent.both_ends(torch.ones(B, T, 5))


def tagger(cell="lstm", n_layers=L) -> recurrent.RecurrentTagger:
    return recurrent.RecurrentTagger(V, 4, C, F, n_layers, cell=cell, generator=dice())


@each_cell
def test_a_tagger_reads_from_both_ends(cell):
    model = tagger(cell, n_layers=1)
    ids = torch.tensor([[1, 2, 3, 4]])
    logits = model(ids)
    assert logits.shape == (1, 4, 4)
    for t in (0, 3):
        poked = ids.clone()
        poked[0, t] = 6
        assert ((model(poked) - logits).abs() > 1e-7).any(dim=-1).all()
    output, _ = model.layer(nn.functional.embedding(ids, model.embedding))
    expected = nn.functional.linear(output, model.output_weight, model.output_bias)
    close(logits, expected)


@few
@given(st.sampled_from(CELLS), st.lists(st.integers(1, 5), min_size=1, max_size=4))
def test_sentences_in_a_padded_batch_are_tagged_as_alone(cell, lengths):
    model = tagger(cell)
    ids = torch.randint(V, (len(lengths), max(lengths) + 1))
    found = model(ids, torch.tensor(lengths))
    for row, length in enumerate(lengths):
        alone = model(ids[row : row + 1, :length])
        close(found[row : row + 1, :length], alone)


def test_a_tagger_learns_what_only_the_next_word_tells():
    ids = torch.randint(2, V, (64, 6), generator=dice())
    tags = (ids.roll(-1, dims=1) % 2).long()
    tags[:, -1] = -100  # nothing comes after the last word
    model = tagger("gru", n_layers=1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(40):
        optimizer.zero_grad()
        network.cross_entropy(model(ids), tags).backward()
        optimizer.step()
    right = model(ids).argmax(-1) == tags
    assert right[:, :-1].float().mean() > 0.95


def test_sentences_that_do_not_fit_are_refused():
    model, ids = tagger(), torch.zeros(B, T).long()
    for lengths in ([0, 1], [1, T + 1], [1, 1, 1]):
        with pytest.raises(ValueError, match="lengths="):
            model(ids, torch.tensor(lengths))
    with pytest.raises(ValueError, match=f"{V} must|to {V}"):
        model(ids + V)
    with pytest.raises(ValueError, match="n_tags=0"):
        recurrent.RecurrentTagger(V, 0, C, F, generator=dice())
