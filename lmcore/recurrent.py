"""Recurrence: a network that reads one word after another and keeps notes.

Chapter 05 of the book. The module builds, in this order: one step of the three cells in
use; the loop that carries the state of a cell through a text; the layers made of both,
with the weights of `torch.nn.RNN`, `LSTM` and `GRU`; how far gradients reach back in
time (what clips them is in ``lmcore.optimizer``); a language model; its training on a
long text, chunk by chunk; and a model that labels every word after reading from both
ends.

Left out: dropout, normalisation and residual connections between layers (chapter 09
has the last two), peepholes and projections, and optimizers (chapter 11).

Papers: Elman, 1990; Schuster and Paliwal, 1997 (two directions); Hochreiter and
Schmidhuber, 1997, and Gers, Schmidhuber and Cummins, 2000 (LSTM); Cho et al., 2014
(GRU); Pascanu, Mikolov and Bengio, 2013 (gradients that vanish and explode); Saxe,
McClelland and Ganguli, 2014 (orthogonal weights).

C is the width of what is read, F the width of the hidden state, L the number of layers.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from . import network, require
from . import optimizer as optimizers

State = Tensor | tuple[Tensor, Tensor]  # hidden, or for the LSTM (hidden, cell)

# --- One step of a cell -------------------------------------------------------------


def rnn_step(
    x: Tensor,
    hidden: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
    nonlinearity: str = "tanh",
) -> Tensor:
    """Read one token: mix it with what is remembered, and bend the sum.

    Elman, 1990, with the two biases of `torch.nn.RNNCell`.

    Args:
        x: (..., C), the token
        hidden: (..., F), what is remembered of the tokens before
        weight_ih: (F, C), from the token to the hidden state
        weight_hh: (F, F), from the hidden state to the next one
        bias_ih: (F,), added to what comes from the token
        bias_hh: (F,), added to what comes from the hidden state
        nonlinearity: ``"tanh"`` or ``"relu"``

    Returns:
        The next hidden state, (..., F).

    Raises:
        ValueError: if the shapes do not fit or the nonlinearity is another.

    >>> one = torch.ones(1, 1)
    >>> rnn_step(one, torch.zeros(1, 1), 2 * one, one, nonlinearity="relu")
    tensor([[2.]])
    """
    from_x, from_hidden = _weighted_sums(
        1, x, hidden, weight_ih, weight_hh, bias_ih, bias_hh
    )
    if nonlinearity not in ("tanh", "relu"):
        raise ValueError(f"nonlinearity={nonlinearity!r} must be 'tanh' or 'relu'")
    bend = torch.tanh if nonlinearity == "tanh" else network.relu
    return bend(from_x + from_hidden)


def lstm_step(
    x: Tensor,
    state: tuple[Tensor, Tensor],
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Read one token: forget a part of the cell, write to it, show a part of it.

    The cell is changed by a product and a sum only, so that what it holds, and the
    gradient, can stay for many steps. The rows of weights and biases are four blocks of
    F: input gate i, forget gate f, candidate g, output gate o. Hochreiter and
    Schmidhuber, 1997, with the forget gate of Gers et al., 2000.

    Args:
        x: (..., C), the token
        state: the hidden state and the cell, each (..., F)
        weight_ih: (4 · F, C)
        weight_hh: (4 · F, F)
        bias_ih: (4 · F,)
        bias_hh: (4 · F,)

    Returns:
        The next hidden state and the next cell, each (..., F).

    Raises:
        ValueError: if the state is no pair or the shapes do not fit.

    >>> zero, wide_open = torch.zeros(1, 1), torch.tensor([-99.0, 99.0, 0.0, 99.0])
    >>> weights = torch.zeros(4, 1), torch.zeros(4, 1), wide_open
    >>> lstm_step(zero, (zero, zero + 1), *weights)  # forgets and writes nothing
    (tensor([[0.7616]]), tensor([[1.]]))
    """
    if not isinstance(state, tuple):
        raise ValueError("state must be a pair, the hidden state and the cell")
    hidden, cell = state
    if cell.shape != hidden.shape:
        raise ValueError(
            f"the cell {tuple(cell.shape)} and the hidden state {tuple(hidden.shape)} "
            "must have the same shape"
        )
    from_x, from_hidden = _weighted_sums(
        4, x, hidden, weight_ih, weight_hh, bias_ih, bias_hh
    )
    i, f, g, o = (from_x + from_hidden).chunk(4, dim=-1)  # each (..., F)
    cell = torch.sigmoid(f) * cell + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(cell), cell


def gru_step(
    x: Tensor,
    hidden: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
) -> Tensor:
    """Read one token: keep a part of the hidden state and replace the rest.

    The rows of weights and biases are three blocks of F: reset gate r, update gate z,
    candidate n. Where z is 1 the old state is kept. The reset gate multiplies what the
    recurrent weights and their bias made of the state, as in `torch.nn.GRU` and the
    first version of Cho et al., 2014; the last version of that paper multiplies the
    state itself.

    Args:
        x: (..., C), the token
        hidden: (..., F), what is remembered of the tokens before
        weight_ih: (3 · F, C)
        weight_hh: (3 · F, F)
        bias_ih: (3 · F,)
        bias_hh: (3 · F,)

    Returns:
        The next hidden state, (..., F).

    Raises:
        ValueError: if the shapes do not fit.

    >>> keep = torch.tensor([0.0, 99.0, 0.0])
    >>> weights = torch.zeros(3, 1), torch.zeros(3, 1), keep
    >>> gru_step(torch.ones(1, 1), torch.full((1, 1), 0.5), *weights)
    tensor([[0.5000]])
    """
    from_x, from_hidden = _weighted_sums(
        3, x, hidden, weight_ih, weight_hh, bias_ih, bias_hh
    )
    x_r, x_z, x_n = from_x.chunk(3, dim=-1)  # each (..., F)
    hidden_r, hidden_z, hidden_n = from_hidden.chunk(3, dim=-1)
    reset = torch.sigmoid(x_r + hidden_r)
    update = torch.sigmoid(x_z + hidden_z)
    candidate = torch.tanh(x_n + reset * hidden_n)
    return update * hidden + (1 - update) * candidate


def _weighted_sums(
    n_blocks: int,
    x: Tensor,
    hidden: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
) -> tuple[Tensor, Tensor]:
    if x.shape[:-1] != hidden.shape[:-1]:
        raise ValueError(
            f"x {tuple(x.shape)} and the hidden state {tuple(hidden.shape)} must agree "
            "in all axes but the last"
        )
    n_rows = n_blocks * hidden.shape[-1]
    for name, weight in (("weight_ih", weight_ih), ("weight_hh", weight_hh)):
        if len(weight) != n_rows:
            raise ValueError(
                f"{name} has shape {tuple(weight.shape)}, expected {n_rows} rows: "
                f"{n_blocks} for each of the {hidden.shape[-1]} hidden numbers"
            )
    from_x = network.linear(x, weight_ih, bias_ih)  # (..., n_blocks · F)
    return from_x, network.linear(hidden, weight_hh, bias_hh)


# --- The state on its way through a text --------------------------------------------


def reset_state(state: State, rows: Tensor) -> State:
    """Forget everything in some rows of a batch, where a new document begins.

    Args:
        state: (..., B, F), or a pair of such
        rows: (B,) boolean, True = forget

    Returns:
        The state, with zeros in these rows.

    Raises:
        ValueError: if ``rows`` is not boolean or has another length.

    >>> reset_state(torch.ones(2, 3), torch.tensor([True, False]))
    tensor([[0., 0., 0.],
            [1., 1., 1.]])
    """
    hidden = _hidden(state)
    if rows.dtype != torch.bool or rows.shape != hidden.shape[-2:-1]:
        raise ValueError(
            f"rows is {rows.dtype} of shape {tuple(rows.shape)}, expected one boolean "
            f"for each of the {hidden.shape[-2]} rows of the state"
        )
    # A fill, not a product with zero, so that even NaN is forgotten.
    return _map(lambda part: part.masked_fill(rows[:, None], 0.0), state)


def detach_state(state: State) -> State:
    """Keep what was remembered and forget how it was computed.

    Backpropagation stops here: without it, the graph of every chunk of a text would
    hang on to that of the chunk before.

    Args:
        state: a tensor or a pair

    Returns:
        The same numbers without their history.

    >>> hidden = torch.ones(1, requires_grad=True) * 2
    >>> detach_state(hidden).requires_grad, detach_state((hidden, hidden))[1].item()
    (False, 2.0)
    """
    return _map(Tensor.detach, state)


def unroll(
    step: Callable[[Tensor, State], State],
    x: Tensor,
    state: State,
    begins: Tensor | None = None,
) -> tuple[Tensor, State]:
    """Take one step after another, each from the state that the last one left.

    Args:
        step: maps a token, (B, C), and the state before it to the state after it
        x: (B, T, C), the tokens
        state: (B, F) or a pair of such, the state before the first token
        begins: (B, T) boolean, True where a document begins: the state is forgotten
            before this token is read. Nothing is forgotten if not given.

    Returns:
        The hidden state after every token, (B, T, F), and the state after the last.

    Raises:
        ValueError: if there is no token or ``begins`` does not fit.

    >>> x = torch.tensor([[[1.0], [2.0], [3.0]]])  # (B=1, T=3, C=1)
    >>> output, last = unroll(torch.add, x, torch.zeros(1, 1))
    >>> output.flatten(), last
    (tensor([1., 3., 6.]), tensor([[6.]]))
    """
    if x.dim() != 3 or x.shape[1] == 0:
        raise ValueError(
            f"x has shape {tuple(x.shape)}, expected (B, T, C) with at least one token"
        )
    if begins is not None and begins.shape != x.shape[:2]:
        raise ValueError(
            f"begins has shape {tuple(begins.shape)}, expected one boolean for each of "
            f"the {tuple(x.shape[:2])} tokens of x"
        )
    hidden = []
    for t in range(x.shape[1]):
        if begins is not None:
            state = reset_state(state, begins[:, t])
        state = step(x[:, t], state)
        hidden.append(_hidden(state))
    return torch.stack(hidden, dim=1), state  # T times (B, F) -> (B, T, F)


def _hidden(state: State) -> Tensor:
    return state[0] if isinstance(state, tuple) else state


def _map(function: Callable[..., Tensor], *states: State) -> State:
    # The same for the hidden states and, where there are some, for the cells.
    if isinstance(states[0], tuple):
        return tuple(function(*parts) for parts in zip(*states, strict=True))
    return function(*states)


# --- Layers -------------------------------------------------------------------------


def orthogonal(
    n: int, generator: torch.Generator, dtype: torch.dtype | None = None
) -> Tensor:
    """Draw a matrix that turns vectors and leaves their length as it is.

    As recurrent weights it lets neither the state nor the gradient grow or shrink,
    however often it is applied. Saxe et al., 2014.

    Args:
        n: how many rows and columns
        generator: draws the matrix, on its own device
        dtype: the floating type of the matrix

    Returns:
        (n, n), whose transpose is its inverse.

    Raises:
        ValueError: if ``n`` is smaller than 1.

    >>> matrix = orthogonal(3, torch.Generator().manual_seed(1))
    >>> torch.allclose(matrix @ matrix.T, torch.eye(3), atol=1e-6)
    True
    """
    require.at_least_one(n=n)
    dtype = torch.get_default_dtype() if dtype is None else dtype
    exact = _at_least_single(dtype)  # halves have no decomposition
    normal = torch.empty(n, n, dtype=exact, device=generator.device)
    q, r = torch.linalg.qr(normal.normal_(generator=generator))
    # With these signs every orthogonal matrix is as likely as any other.
    return (q * r.diagonal().sign()).to(dtype)


class _Recurrent(nn.Module):
    # What the layers share: parameters, and the way through depth and directions.

    n_blocks: int  # of the rows of the weights, one for each gate or candidate

    def __init__(
        self,
        d_in: int,
        d_hidden: int,
        n_layers: int = 1,
        *,
        generator: torch.Generator,
        bidirectional: bool = False,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        require.at_least_one(d_in=d_in, d_hidden=d_hidden, n_layers=n_layers)
        self.d_in, self.d_hidden, self.n_layers = d_in, d_hidden, n_layers
        self.bidirectional = bidirectional
        directions = ("", "_reverse") if bidirectional else ("",)
        # The names of torch, so that its weights can be loaded.
        self._suffixes = [
            [f"_l{layer}{direction}" for direction in directions]
            for layer in range(n_layers)
        ]
        for layer, suffixes in enumerate(self._suffixes):
            n_in = d_in if layer == 0 else len(directions) * d_hidden
            for suffix in suffixes:
                self._add_parameters(suffix, n_in, generator, dtype)

    def _add_parameters(
        self,
        suffix: str,
        n_in: int,
        generator: torch.Generator,
        dtype: torch.dtype | None,
    ) -> None:
        blocks = range(self.n_blocks)
        n = self.d_hidden
        weight_ih = [network.xavier_uniform(n_in, n, generator, dtype) for _ in blocks]
        weight_hh = [orthogonal(n, generator, dtype) for _ in blocks]
        bias_ih = self._first_bias(weight_hh[0])  # (n_blocks · F,)
        for name, values in (
            ("weight_ih", torch.cat(weight_ih)),  # (n_blocks · F, n_in)
            ("weight_hh", torch.cat(weight_hh)),  # (n_blocks · F, F)
            ("bias_ih", bias_ih),
            ("bias_hh", torch.zeros_like(bias_ih)),
        ):
            self.register_parameter(name + suffix, nn.Parameter(values))

    def _first_bias(self, weight: Tensor) -> Tensor:
        return weight.new_zeros(self.n_blocks * self.d_hidden)

    def initial_state(self, batch_size: int) -> State:
        """What the layer remembers before it has read anything: zeros.

        Args:
            batch_size: B

        Returns:
            (L, B, F), or (2 · L, B, F) for two directions; for the LSTM a pair of such.
        """
        n_states = sum(len(suffixes) for suffixes in self._suffixes)
        return self.weight_hh_l0.new_zeros(n_states, batch_size, self.d_hidden)

    def forward(
        self, x: Tensor, state: State | None = None, begins: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Read the tokens of a batch, each row a text of its own.

        Args:
            x: (B, T, C), the tokens
            state: the state to start from, as `initial_state` or an earlier call gave
                it; zeros if not given
            begins: (B, T) boolean, True where a document begins: nothing is remembered
                across this border, in either direction. To keep padding out of the
                backward reading, let it be a document of its own.

        Returns:
            The hidden state of the last layer after every token, (B, T, F), or
            (B, T, 2 · F) with the forward direction first; and the state of every layer
            and direction after its last token, which for the backward one is the first
            of the text.

        Raises:
            ValueError: if the shapes do not fit or there is no token.
        """
        if x.dim() != 3 or x.shape[-1] != self.d_in:
            raise ValueError(
                f"x has shape {tuple(x.shape)}, expected (B, T, C) with the layer's "
                f"width C={self.d_in}"
            )
        initial = self.initial_state(len(x))
        state = initial if state is None else state
        _check_state(state, initial)
        last: list[State] = []
        for suffixes in self._suffixes:
            outputs = []
            for suffix in suffixes:
                one = _map(lambda part: part[len(last)], state)
                output, one = self._read(suffix, x, one, begins)
                outputs.append(output)
                last.append(one)
            x = torch.cat(outputs, dim=-1)  # (B, T, F) or (B, T, 2 · F)
        return x, _map(lambda *parts: torch.stack(parts), *last)

    def _read(
        self, suffix: str, x: Tensor, state: State, begins: Tensor | None
    ) -> tuple[Tensor, State]:
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        weights = [self.get_parameter(name + suffix) for name in names]
        step = partial(self._step, weights)
        if not suffix.endswith("_reverse"):
            return unroll(step, x, state, begins)
        if begins is not None:
            # Read backwards, the border is crossed one token earlier in the text.
            never = begins.new_zeros(len(begins), 1)
            begins = torch.cat([begins[:, 1:], never], dim=1).flip(1)
        output, state = unroll(step, x.flip(1), state, begins)
        return output.flip(1), state

    def _step(self, weights: list[Tensor], x: Tensor, state: State) -> State:
        raise NotImplementedError


class RNN(_Recurrent):
    """Layers of the simple cell (`rnn_step`), with the parameters of `torch.nn.RNN`.

    ``load_state_dict`` takes the weights of torch's layer. At first the input weights
    are drawn by `network.xavier_uniform`, the recurrent ones by `orthogonal`, and the
    biases are 0.

    Args:
        d_in: C, the width of what is read
        d_hidden: F, the width of the hidden state
        n_layers: L; each layer reads the hidden states of the layer below
        generator: draws the first parameters, on its own device
        bidirectional: whether every layer also reads from the end to the beginning
        nonlinearity: ``"tanh"`` or ``"relu"``
        dtype: the floating type of the parameters

    Raises:
        ValueError: if a size is smaller than 1 or the nonlinearity is another.

    >>> layer = RNN(3, 5, n_layers=2, generator=torch.Generator().manual_seed(1))
    >>> output, hidden = layer(torch.ones(2, 4, 3))
    >>> output.shape, hidden.shape
    (torch.Size([2, 4, 5]), torch.Size([2, 2, 5]))
    """

    n_blocks = 1

    def __init__(
        self,
        d_in: int,
        d_hidden: int,
        n_layers: int = 1,
        *,
        generator: torch.Generator,
        bidirectional: bool = False,
        nonlinearity: str = "tanh",
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            d_in,
            d_hidden,
            n_layers,
            generator=generator,
            bidirectional=bidirectional,
            dtype=dtype,
        )
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"nonlinearity={nonlinearity!r} must be 'tanh' or 'relu'")
        self.nonlinearity = nonlinearity

    def _step(self, weights: list[Tensor], x: Tensor, state: State) -> State:
        return rnn_step(x, state, *weights, nonlinearity=self.nonlinearity)


class LSTM(_Recurrent):
    """Layers of the cell that gates (`lstm_step`), with the parameters of `torch.nn`.

    As `RNN`, but the state is a pair, the hidden states and the cells, and the biases
    of the forget gates are 1 at first, so that the cell keeps what it holds until it
    learns better (Jozefowicz, Zaremba and Sutskever, 2015).

    Args:
        d_in: C, the width of what is read
        d_hidden: F, the width of the hidden state and of the cell
        n_layers: L; each layer reads the hidden states of the layer below
        generator: draws the first parameters, on its own device
        bidirectional: whether every layer also reads from the end to the beginning
        dtype: the floating type of the parameters

    Raises:
        ValueError: if a size is smaller than 1.

    >>> layer = LSTM(3, 5, generator=torch.Generator().manual_seed(1))
    >>> output, (hidden, cell) = layer(torch.ones(2, 4, 3))
    >>> output.shape, hidden.shape, cell.shape
    (torch.Size([2, 4, 5]), torch.Size([1, 2, 5]), torch.Size([1, 2, 5]))
    """

    n_blocks = 4

    def _first_bias(self, weight: Tensor) -> Tensor:
        i, f, g, o = super()._first_bias(weight).chunk(4)
        return torch.cat([i, f + 1, g, o])

    def initial_state(self, batch_size: int) -> tuple[Tensor, Tensor]:
        """As for `RNN`, but a pair: no hidden state and an empty cell."""
        hidden = super().initial_state(batch_size)
        return hidden, hidden.clone()

    def _step(self, weights: list[Tensor], x: Tensor, state: State) -> State:
        return lstm_step(x, state, *weights)


class GRU(_Recurrent):
    """Layers of the cell with two gates (`gru_step`), parameters as in `torch.nn.GRU`.

    As `RNN`, in sizes, state and first parameters.

    Args:
        d_in: C, the width of what is read
        d_hidden: F, the width of the hidden state
        n_layers: L; each layer reads the hidden states of the layer below
        generator: draws the first parameters, on its own device
        bidirectional: whether every layer also reads from the end to the beginning
        dtype: the floating type of the parameters

    Raises:
        ValueError: if a size is smaller than 1.

    >>> dice = torch.Generator().manual_seed(1)
    >>> layer = GRU(3, 5, bidirectional=True, generator=dice)
    >>> output, hidden = layer(torch.ones(2, 4, 3))
    >>> output.shape, hidden.shape
    (torch.Size([2, 4, 10]), torch.Size([2, 2, 5]))
    """

    n_blocks = 3

    def _step(self, weights: list[Tensor], x: Tensor, state: State) -> State:
        return gru_step(x, state, *weights)


def _check_state(state: State, expected: State) -> None:
    if isinstance(expected, tuple):
        if not isinstance(state, tuple) or len(state) != len(expected):
            raise ValueError("state must be a pair, the hidden states and the cells")
        for part, zeros in zip(state, expected, strict=True):
            _check_state(part, zeros)
    elif isinstance(state, tuple) or state.shape != expected.shape:
        found = "a pair" if isinstance(state, tuple) else tuple(state.shape)
        raise ValueError(
            f"state is {found}, expected one of shape {tuple(expected.shape)}: layers "
            "times directions, B, F"
        )


# --- Gradients through time ---------------------------------------------------------


def gradient_norms(layer: nn.Module, x: Tensor) -> Tensor:
    """Measure how much the last output depends on every token that was read.

    Over many steps the gradient is a product of many factors: it vanishes where they
    are small and explodes where they are large. Pascanu et al., 2013, § 2.

    Args:
        layer: `RNN`, `LSTM` or `GRU`, or a layer of torch with ``batch_first=True``
        x: (B, T, C), the tokens

    Returns:
        (B, T), the length of the gradient of the sum over the last hidden state with
        respect to each token. The layer's own gradients are left as they are.

    >>> layer = RNN(1, 1, nonlinearity="relu", generator=torch.Generator())
    >>> for parameter in layer.parameters():
    ...     _ = nn.init.constant_(parameter, 0.5)
    >>> gradient_norms(layer, torch.ones(1, 4, 1))  # halved with every step back
    tensor([[0.0625, 0.1250, 0.2500, 0.5000]])
    """
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        output, _ = layer(x)
        (gradient,) = torch.autograd.grad(output[:, -1].sum(), x)  # (B, T, C)
    return gradient.norm(dim=-1)


# --- The language model -------------------------------------------------------------


def _layer_of(cell: str) -> type[_Recurrent]:
    layers = {"rnn": RNN, "lstm": LSTM, "gru": GRU}
    if cell not in layers:
        raise ValueError(f"cell={cell!r} must be one of {', '.join(layers)}")
    return layers[cell]


class _WithWords(nn.Module):
    # What the models share: word vectors below a recurrent layer, scores above it.

    def __init__(
        self,
        n_words: int,
        d_model: int,
        layer: _Recurrent,
        n_outputs: int,
        generator: torch.Generator,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        vectors = torch.empty(n_words, d_model, dtype=dtype, device=generator.device)
        self.embedding = nn.Parameter(vectors.normal_(generator=generator))
        self.layer = layer
        n_hidden = layer.d_hidden * (2 if layer.bidirectional else 1)
        output = network.xavier_uniform(n_hidden, n_outputs, generator, dtype)
        self.output_weight = nn.Parameter(output)
        self.output_bias = nn.Parameter(output.new_zeros(n_outputs))

    def _score(
        self, ids: Tensor, state: State | None, begins: Tensor | None
    ) -> tuple[Tensor, State]:
        n_words = len(self.embedding)
        if ids.dim() != 2:
            raise ValueError(f"ids has shape {tuple(ids.shape)}, expected (B, T)")
        require.indices("ids", ids, n_words=n_words)
        x = self.embedding[ids]  # (B, T) -> (B, T, C)
        output, state = self.layer(x, state, begins)  # (B, T, F)
        return network.linear(output, self.output_weight, self.output_bias), state


class RecurrentLM(_WithWords):
    """A language model that remembers what it has read in a state of fixed size.

    The parameters are ``embedding`` (V, C), those of ``layer``, ``output_weight``
    (V, F) and ``output_bias`` (V,).

    Args:
        n_words: V
        d_model: C, the width of a token's vector
        d_hidden: F, the width of the hidden state
        n_layers: L
        cell: ``"rnn"``, ``"lstm"`` or ``"gru"``
        begin_id: the token that begins every document: what was read before it is
            forgotten. None if the whole text is one document.
        generator: draws the first parameters, on its own device
        dtype: the floating type of the parameters

    Raises:
        ValueError: if a size is smaller than 1, the cell is another, or ``begin_id`` is
            no token.

    >>> dice = torch.Generator().manual_seed(1)
    >>> model = RecurrentLM(7, d_model=3, d_hidden=5, cell="gru", generator=dice)
    >>> logits, state = model(torch.tensor([[0, 5, 6], [1, 1, 2]]))
    >>> logits.shape, state.shape
    (torch.Size([2, 3, 7]), torch.Size([1, 2, 5]))
    """

    def __init__(
        self,
        n_words: int,
        d_model: int,
        d_hidden: int,
        n_layers: int = 1,
        *,
        generator: torch.Generator,
        cell: str = "lstm",
        begin_id: int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        require.at_least_one(n_words=n_words, d_model=d_model)
        layer = _layer_of(cell)(
            d_model, d_hidden, n_layers, generator=generator, dtype=dtype
        )
        super().__init__(n_words, d_model, layer, n_words, generator, dtype)
        if begin_id is not None and not 0 <= begin_id < n_words:
            raise ValueError(f"begin_id={begin_id} is not between 0 and {n_words - 1}")
        self.begin_id = begin_id

    def forward(self, ids: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Score every token as the next one, at every place of the text.

        Args:
            ids: (B, T), the tokens
            state: what an earlier call returned, if this text goes on from there

        Returns:
            The logits, (B, T, V), and the state after the last token.

        Raises:
            ValueError: if the shapes do not fit or an id is not between 0 and V - 1.
        """
        begins = None if self.begin_id is None else ids == self.begin_id
        return self._score(ids, state, begins)


@torch.no_grad()
def sample(
    model: nn.Module,
    generator: torch.Generator,
    context: Tensor,
    n_tokens: int,
    temperature: float = 1.0,
) -> Tensor:
    """Write a text, each token drawn with its probability after those before.

    The model reads every token once, so that a token costs the same however long the
    text has become.

    Args:
        model: maps (B, T) ids and a state to logits and the next state
        generator: draws the tokens
        context: (T,), the text to go on with, at least one token
        n_tokens: how many tokens are written
        temperature: divides the logits: below 1 for the likely tokens, above 1 for
            the unlikely ones

    Returns:
        The new tokens, (n_tokens,).

    Raises:
        ValueError: if the context is empty or no row, ``n_tokens`` is negative, or the
            temperature is not positive.

    >>> dice = torch.Generator().manual_seed(1)
    >>> model = RecurrentLM(7, d_model=3, d_hidden=5, generator=dice)
    >>> sample(model, dice, torch.tensor([0, 5]), n_tokens=4).shape
    torch.Size([4])
    """
    if context.dim() != 1 or len(context) == 0:
        raise ValueError(
            f"context has shape {tuple(context.shape)}, expected at least one token"
        )
    require.not_negative(n_tokens=n_tokens)
    require.positive(temperature=temperature)
    tokens, state = [context], None
    for _ in range(n_tokens):
        logits, state = model(tokens[-1][None], state)  # (1, T or 1, V)
        probs = network.softmax(logits[0, -1].float() / temperature)  # (V,)
        tokens.append(torch.multinomial(probs, 1, generator=generator))
    return torch.cat(tokens)[len(context) :]


# --- Training on a long text --------------------------------------------------------


def bptt_batches(
    ids: Tensor, batch_size: int, n_steps: int
) -> list[tuple[Tensor, Tensor]]:
    """Cut a long text into chunks, so that each row goes on where it stopped.

    The text is cut into B long pieces, one for each row, and these into chunks of T
    tokens; the last chunk may be shorter. Less than B tokens at the end of the text,
    which do not fill a row, are not read.

    Args:
        ids: (N,), the tokens of the text
        batch_size: B, how many pieces are read side by side
        n_steps: T, how far gradients reach back at most

    Returns:
        Pairs of inputs and targets, each (B, T). The targets are the tokens that come
        next; the target of the text's last token is -100, which does not count in
        `network.cross_entropy`.

    Raises:
        ValueError: if the ids are no row, there are less than B of them, or a number
            is smaller than 1.

    >>> for inputs, _ in bptt_batches(torch.arange(12), batch_size=2, n_steps=3):
    ...     print(inputs.tolist())
    [[0, 1, 2], [6, 7, 8]]
    [[3, 4, 5], [9, 10, 11]]
    """
    require.at_least_one(batch_size=batch_size, n_steps=n_steps)
    if ids.dim() != 1 or len(ids) < batch_size:
        raise ValueError(
            f"ids has shape {tuple(ids.shape)}, expected one row with at least "
            f"batch_size={batch_size} tokens"
        )
    n_kept = len(ids) // batch_size * batch_size
    following = torch.cat([ids[1:], ids.new_tensor([-100])])
    inputs = ids[:n_kept].view(batch_size, -1)  # (B, N / B)
    targets = following[:n_kept].view(batch_size, -1)
    chunks = zip(inputs.split(n_steps, 1), targets.split(n_steps, 1), strict=True)
    return list(chunks)


def bptt_step(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    state: State | None,
    optimizer: torch.optim.Optimizer,
    max_norm: float = 1.0,
) -> tuple[float, State]:
    """Learn from one chunk of a text, remembering what was read before it.

    Truncated backpropagation through time: the numbers of the state are carried from
    chunk to chunk, but gradients stop at the border. Williams and Peng, 1990.

    Args:
        model: maps (B, T) ids and a state to logits and the next state
        inputs: (B, T), the chunk
        targets: (B, T), the tokens that come next
        state: what the step before returned, or None at the beginning
        optimizer: changes the model's parameters
        max_norm: the length of the gradient at most (`optimizer.clip_gradient_norm`)

    Returns:
        The loss before the step, in nats per token, and the state for the next chunk.

    Raises:
        ValueError: if the loss or the gradient is not finite.

    >>> dice = torch.Generator().manual_seed(1)
    >>> model = RecurrentLM(2, 2, 2, generator=dice)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> chunk = torch.tensor([[0, 1]])
    >>> loss, state = bptt_step(model, chunk, chunk, None, optimizer)
    >>> loss > 0, state[0].requires_grad
    (True, False)
    """
    optimizer.zero_grad()
    logits, state = model(inputs, state)
    loss = network.cross_entropy(logits, targets)
    if not loss.isfinite():
        raise ValueError(f"the loss is {loss.item()}: try a smaller learning rate")
    loss.backward()
    optimizers.clip_gradient_norm(model.parameters(), max_norm)
    optimizer.step()
    return loss.item(), detach_state(state)


def train(
    model: nn.Module,
    chunks: Sequence[tuple[Tensor, Tensor]],
    optimizer: torch.optim.Optimizer,
    max_norm: float = 1.0,
) -> list[float]:
    """Read a text once from beginning to end, and learn from every chunk.

    Args:
        model: maps (B, T) ids and a state to logits and the next state
        chunks: pairs of inputs and targets, in order (`bptt_batches`)
        optimizer: changes the model's parameters
        max_norm: the length of the gradient at most

    Returns:
        The loss before every step, in nats per token.

    Raises:
        ValueError: if the loss or the gradient stops being finite.

    >>> model = RecurrentLM(3, 4, 8, generator=torch.Generator().manual_seed(1))
    >>> optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    >>> chunks = bptt_batches(torch.tensor([0, 1, 2] * 60), batch_size=2, n_steps=3)
    >>> losses = train(model, chunks, optimizer)
    >>> len(losses), losses[-1] < 0.1
    (30, True)
    """
    losses, state = [], None
    for inputs, targets in tqdm(chunks, unit="chunk"):
        loss, state = bptt_step(model, inputs, targets, state, optimizer, max_norm)
        losses.append(loss)
    return losses


@torch.no_grad()
def evaluate(model: nn.Module, chunks: Sequence[tuple[Tensor, Tensor]]) -> float:
    """Measure how much a text surprises the model, which remembers all it has read.

    Args:
        model: maps (B, T) ids and a state to logits and the next state
        chunks: pairs of inputs and targets, in order (`bptt_batches`)

    Returns:
        The mean over all targets that are not -100, in nats per token.

    Raises:
        ValueError: if there is no target.

    >>> model = RecurrentLM(3, 4, 8, generator=torch.Generator().manual_seed(1))
    >>> text = torch.tensor([0, 1, 2] * 4)
    >>> in_one, in_four = (bptt_batches(text, 1, n_steps) for n_steps in (12, 3))
    >>> abs(evaluate(model, in_one) - evaluate(model, in_four)) < 1e-6
    True
    """
    total, n_targets, state = 0.0, 0, None
    for inputs, targets in chunks:
        logits, state = model(inputs, state)
        count = int((targets != -100).sum())
        total += network.cross_entropy(logits, targets).item() * count
        n_targets += count
    if n_targets == 0:
        raise ValueError(f"there is no target in {len(chunks)} chunks")
    return total / n_targets


# --- Reading from both ends ---------------------------------------------------------


def both_ends(output: Tensor, lengths: Tensor | None = None) -> Tensor:
    """Take from each direction what it knew when it had read the whole sentence.

    For the forward half that is after the last token, for the backward half after the
    first. Schuster and Paliwal, 1997.

    Args:
        output: (B, T, 2 · F), of a layer with two directions
        lengths: (B,), how many real tokens each sentence has; T if not given

    Returns:
        (B, 2 · F), one vector for each sentence.

    Raises:
        ValueError: if the width is odd or a length is not between 1 and T.

    >>> output = torch.tensor([[[1.0, 9.0], [2.0, 8.0], [3.0, 7.0]]])  # (1, 3, 2)
    >>> both_ends(output), both_ends(output, torch.tensor([2]))
    (tensor([[3., 9.]]), tensor([[2., 9.]]))
    """
    n_rows, n_tokens, width = output.shape
    if width % 2:
        raise ValueError(f"output has the odd width {width}, expected two directions")
    if lengths is None:
        lengths = torch.full((n_rows,), n_tokens, device=output.device)
    require.lengths(lengths, n_rows, n_tokens)
    forward, backward = output.chunk(2, dim=-1)  # each (B, T, F)
    rows = torch.arange(n_rows, device=output.device)
    return torch.cat([forward[rows, lengths - 1], backward[:, 0]], dim=-1)


class RecurrentTagger(_WithWords):
    """Labels every word of a sentence, having read what stands before and after it.

    The parameters are ``embedding`` (V, C), those of ``layer``, which reads in both
    directions, ``output_weight`` (n_tags, 2 · F) and ``output_bias`` (n_tags,).

    Args:
        n_words: V
        n_tags: how many labels there are
        d_model: C, the width of a word's vector
        d_hidden: F, the width of the hidden state of each direction
        n_layers: L
        cell: ``"rnn"``, ``"lstm"`` or ``"gru"``
        generator: draws the first parameters, on its own device
        dtype: the floating type of the parameters

    Raises:
        ValueError: if a size is smaller than 1 or the cell is another.

    >>> dice = torch.Generator().manual_seed(1)
    >>> tagger = RecurrentTagger(7, n_tags=4, d_model=3, d_hidden=5, generator=dice)
    >>> tagger(torch.tensor([[0, 5, 6], [1, 0, 0]]), torch.tensor([3, 1])).shape
    torch.Size([2, 3, 4])
    """

    def __init__(
        self,
        n_words: int,
        n_tags: int,
        d_model: int,
        d_hidden: int,
        n_layers: int = 1,
        *,
        generator: torch.Generator,
        cell: str = "lstm",
        dtype: torch.dtype | None = None,
    ) -> None:
        require.at_least_one(n_words=n_words, n_tags=n_tags, d_model=d_model)
        options = {"generator": generator, "dtype": dtype, "bidirectional": True}
        layer = _layer_of(cell)(d_model, d_hidden, n_layers, **options)
        super().__init__(n_words, d_model, layer, n_tags, generator, dtype)

    def forward(self, ids: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Score every label for every word.

        Args:
            ids: (B, T), the words of the sentences
            lengths: (B,), how many of them are real; the others are padding, which
                changes nothing before it. All are real if not given.

        Returns:
            The logits, (B, T, n_tags).

        Raises:
            ValueError: if the shapes do not fit, an id is not between 0 and V - 1, or a
                length is not between 1 and T.
        """
        begins = None
        if lengths is not None:
            require.lengths(lengths, *ids.shape)
            # The padding is a document of its own: nobody hears of it.
            begins = torch.arange(ids.shape[1], device=ids.device) == lengths[:, None]
        return self._score(ids, None, begins)[0]


def _at_least_single(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
