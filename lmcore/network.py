"""Networks: what can a stack of weighted sums learn?

Chapter 04 of the book. The module builds, in this order: the weighted sum and the bends
between sums; softmax and cross-entropy, computed so that they never overflow; a number
that knows how it came about, and so can tell how it depends on others; a network of
several layers, forwards and, by hand, backwards; the random numbers that it starts
from; learning by small steps; and a language model made of all this.

Left out: optimizers that are cleverer than plain gradient descent, and everything that
long training needs (``lmcore.optimizer``, ``lmcore.train``, chapter 11).

Papers: Rumelhart, Hinton and Williams, 1986 (backpropagation); Bengio, Ducharme,
Vincent and Jauvin, 2003 (the neural language model); Glorot and Bengio, 2010, and He,
Zhang, Ren and Sun, 2015 (initialisation); Hendrycks and Gimpel, 2016 (GELU).

B is the number of examples, V the number of classes or words.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from . import require

# --- Weighted sums and bends --------------------------------------------------------


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Take weighted sums of the inputs, one for every output.

    Args:
        x: (..., n_in)
        weight: (n_out, n_in): every row holds the weights of one output
        bias: (n_out,), what is added to the sums; nothing if not given

    Returns:
        (..., n_out)

    Raises:
        ValueError: if the shapes do not fit.

    >>> linear(torch.tensor([1.0, 0.0]), torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    tensor([1., 3.])
    """
    if weight.dim() != 2 or x.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"x has width {x.shape[-1]} and weight has shape {tuple(weight.shape)}, "
            "expected (n_out, n_in) with n_in the width of x"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(
            f"bias has shape {tuple(bias.shape)}, expected one number for each of the "
            f"{weight.shape[0]} outputs"
        )
    output = x @ weight.T  # (..., n_in) @ (n_in, n_out)
    return output if bias is None else output + bias


def relu(x: Tensor) -> Tensor:
    """Keep what is positive and set the rest to 0.

    Args:
        x: (...)

    Returns:
        (...)

    >>> relu(torch.tensor([-2.0, 0.0, 3.0]))
    tensor([0., 0., 3.])
    """
    return x.masked_fill(x <= 0, 0.0)


def gelu(x: Tensor) -> Tensor:
    """Multiply each number by the probability that a normal one is smaller.

    ``x · Φ(x)`` with the exact Φ, not one of its approximations. Hendrycks and Gimpel,
    2016, § 2.

    Args:
        x: (...)

    Returns:
        (...)

    >>> gelu(torch.tensor([-1.0, 0.0, 1.0]))
    tensor([-0.1587,  0.0000,  0.8413])
    """
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


# --- Probabilities and surprise -----------------------------------------------------


def softmax(x: Tensor, dim: int = -1) -> Tensor:
    """Turn any numbers into probabilities: positive, and 1 together.

    Args:
        x: (...), the scores, called logits
        dim: the axis that lists the alternatives

    Returns:
        (...), probabilities that sum to 1 along the axis.

    >>> softmax(torch.tensor([[0.0, math.log(3)], [1000.0, 0.0]]))
    tensor([[0.2500, 0.7500],
            [1.0000, 0.0000]])
    """
    # The same shift for all alternatives changes nothing, and now none overflows.
    exponential = torch.exp(x - x.amax(dim=dim, keepdim=True))
    return exponential / exponential.sum(dim=dim, keepdim=True)


def log_softmax(x: Tensor, dim: int = -1) -> Tensor:
    """The logarithms of `softmax`, also of probabilities too small for a number.

    Args:
        x: (...), the logits
        dim: the axis that lists the alternatives

    Returns:
        (...), log-probabilities in nats.

    >>> log_softmax(torch.tensor([0.0, -200.0]))
    tensor([   0., -200.])
    """
    shifted = x - x.amax(dim=dim, keepdim=True)
    return shifted - shifted.exp().sum(dim=dim, keepdim=True).log()


def cross_entropy(logits: Tensor, targets: Tensor, ignore_index: int = -100) -> Tensor:
    """The mean surprise at the right answers.

    Args:
        logits: (..., V), the scores of all classes, not yet probabilities
        targets: (...), the id of the right class, or ``ignore_index``
        ignore_index: stands for a target that does not count, such as padding

    Returns:
        The mean over the targets that count, a scalar in nats; 0 if none does.

    Raises:
        ValueError: if the shapes do not fit or a target is no class.

    >>> logits = torch.tensor([[0.0, math.log(3)], [5.0, 5.0]])
    >>> cross_entropy(logits, torch.tensor([1, -100])), math.log(4 / 3)
    (tensor(0.2877), 0.28768207245178085)
    """
    n_classes = logits.shape[-1]
    if targets.shape != logits.shape[:-1]:
        raise ValueError(
            f"targets {tuple(targets.shape)} must have the shape of logits "
            f"{tuple(logits.shape)} without its last axis"
        )
    counts = targets != ignore_index
    targets = targets[counts]  # (N,)
    if len(targets) and not 0 <= targets.min() <= targets.max() < n_classes:
        raise ValueError(
            f"targets from {targets.min()} to {targets.max()} must lie between 0 and "
            f"{n_classes - 1}, or be ignore_index={ignore_index}"
        )
    log_probs = log_softmax(logits[counts])  # (N, V)
    right = log_probs.gather(-1, targets[:, None])  # (N, 1)
    # At least 1, so that the mean of nothing is 0 and not 0 / 0.
    return -right.sum() / max(len(targets), 1)


# --- Backpropagation, one number at a time ------------------------------------------


class Scalar:
    """A number that knows how it was computed, and so how it depends on others.

    Every operation makes a new `Scalar` that remembers its inputs and the derivative by
    each of them. `backward` then walks from a result back to all the numbers it came
    from, and adds up in ``grad`` how much the result changes when they change.

    Args:
        data: the number

    >>> a, b = Scalar(3.0), Scalar(2.0)
    >>> result = a * b + a  # changes by b + 1 = 3 when a changes by 1
    >>> result.backward()
    >>> result.data, a.grad, b.grad
    (9.0, 3.0, 3.0)
    """

    def __init__(self, data: float) -> None:
        self.data = float(data)
        self.grad = 0.0
        self._inputs: tuple[tuple[Scalar, float], ...] = ()  # each with a derivative

    def __repr__(self) -> str:
        return f"Scalar({self.data}, grad={self.grad})"

    def __add__(self, other: "Scalar | float") -> "Scalar":
        other = _as_scalar(other)
        return _result(self.data + other.data, (self, 1.0), (other, 1.0))

    def __mul__(self, other: "Scalar | float") -> "Scalar":
        other = _as_scalar(other)
        return _result(self.data * other.data, (self, other.data), (other, self.data))

    def __neg__(self) -> "Scalar":
        return self * -1.0

    def __sub__(self, other: "Scalar | float") -> "Scalar":
        return self + -_as_scalar(other)

    def __rsub__(self, other: float) -> "Scalar":
        return -self + other

    __radd__, __rmul__ = __add__, __mul__

    def relu(self) -> "Scalar":
        """`relu` of the number.

        >>> Scalar(-2.0).relu().data
        0.0
        """
        return _result(max(self.data, 0.0), (self, float(self.data > 0)))

    def tanh(self) -> "Scalar":
        """The hyperbolic tangent of the number.

        >>> Scalar(0.0).tanh().data
        0.0
        """
        tanh = math.tanh(self.data)
        return _result(tanh, (self, 1 - tanh**2))

    def exp(self) -> "Scalar":
        """The exponential of the number.

        >>> Scalar(0.0).exp().data
        1.0
        """
        exp = math.exp(self.data)
        return _result(exp, (self, exp))

    def log(self) -> "Scalar":
        """The natural logarithm of the number, which must be more than 0.

        >>> Scalar(1.0).log().data
        0.0
        """
        if self.data <= 0:
            raise ValueError(f"there is no logarithm of {self.data}")
        return _result(math.log(self.data), (self, 1 / self.data))

    def backward(self) -> None:
        """Add to the ``grad`` of every number how much this one depends on it.

        The gradients are added to what is there already: set ``grad`` to 0 before a
        second result is walked through.

        >>> a = Scalar(3.0)
        >>> (a + a).backward()
        >>> a.grad
        2.0
        """
        upstream = {self: 1.0}
        for number in _from_last_to_first(self):
            number.grad += upstream[number]
            for source, derivative in number._inputs:
                # A number may be used along several roads: their effects add up.
                passed = upstream[number] * derivative
                upstream[source] = upstream.get(source, 0.0) + passed


def _as_scalar(number: Scalar | float) -> Scalar:
    return number if isinstance(number, Scalar) else Scalar(number)


def _result(data: float, *inputs: tuple[Scalar, float]) -> Scalar:
    result = Scalar(data)
    result._inputs = inputs
    return result


def _from_last_to_first(result: Scalar) -> list[Scalar]:
    # Each number after all those that use it; a loop, since recursion would run deep.
    order: list[Scalar] = []
    seen: set[Scalar] = set()
    waiting = [(result, False)]
    while waiting:
        number, inputs_done = waiting.pop()
        if inputs_done:
            order.append(number)
        elif number not in seen:
            seen.add(number)
            waiting.append((number, True))
            waiting += [(source, False) for source, _ in number._inputs]
    return order[::-1]


# --- A network of several layers ----------------------------------------------------


def xavier_uniform(
    n_in: int,
    n_out: int,
    generator: torch.Generator,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Draw the first weights of a layer whose bend is like tanh around 0.

    Uniform between ``±√(6 / (n_in + n_out))``, of variance 2 / (n_in + n_out), so that
    neither the numbers on their way forwards nor the gradients on their way back grow
    or shrink from layer to layer. Glorot and Bengio, 2010, eq. (16).

    Args:
        n_in: how many inputs the layer has
        n_out: how many outputs
        generator: draws the weights, on its own device
        dtype: the floating type of the weights

    Returns:
        (n_out, n_in)

    Raises:
        ValueError: if the layer has no input or no output.

    >>> xavier_uniform(4, 2, torch.Generator().manual_seed(1)).abs().max() < 1
    tensor(True)
    """
    require.at_least_one(n_in=n_in, n_out=n_out)
    bound = math.sqrt(6 / (n_in + n_out))
    weight = torch.empty(n_out, n_in, dtype=dtype, device=generator.device)
    return weight.uniform_(-bound, bound, generator=generator)


def kaiming_normal(
    n_in: int,
    n_out: int,
    generator: torch.Generator,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Draw the first weights of a layer that is followed by a ReLU.

    Normal with variance ``2 / n_in``: twice as much as would keep the size of the
    numbers, since the ReLU takes half of them away. He, Zhang, Ren and Sun, 2015,
    eq. (10).

    Args:
        n_in: how many inputs the layer has
        n_out: how many outputs
        generator: draws the weights, on its own device
        dtype: the floating type of the weights

    Returns:
        (n_out, n_in)

    Raises:
        ValueError: if the layer has no input or no output.

    >>> kaiming_normal(4, 2, torch.Generator().manual_seed(1)).shape
    torch.Size([2, 4])
    """
    require.at_least_one(n_in=n_in, n_out=n_out)
    weight = torch.empty(n_out, n_in, dtype=dtype, device=generator.device)
    return weight.normal_(0.0, math.sqrt(2 / n_in), generator=generator)


def init_mlp(
    widths: Sequence[int], generator: torch.Generator, dtype: torch.dtype | None = None
) -> tuple[list[Tensor], list[Tensor]]:
    """Draw the weights of a network with ReLU between its layers.

    Args:
        widths: the number of inputs, of the hidden numbers in each layer between, and
            of outputs
        generator: draws the weights
        dtype: the floating type of weights and biases

    Returns:
        The weights, (n_out, n_in) for every layer, by `kaiming_normal`, and the biases,
        (n_out,) for every layer, all 0.

    Raises:
        ValueError: if there are less than two widths or one is smaller than 1.

    >>> weights, biases = init_mlp([3, 5, 2], torch.Generator().manual_seed(1))
    >>> [tuple(weight.shape) for weight in weights], [len(bias) for bias in biases]
    ([(5, 3), (2, 5)], [5, 2])
    """
    if len(widths) < 2:
        raise ValueError(f"widths={list(widths)} must hold the inputs and the outputs")
    weights = [
        kaiming_normal(n_in, n_out, generator, dtype)
        for n_in, n_out in pairwise(widths)
    ]
    return weights, [weight.new_zeros(len(weight)) for weight in weights]


def mlp_forward(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """Send numbers through layers of weighted sums with a ReLU between them.

    Args:
        x: (B, n_in), one example in every row
        weights: (n_out, n_in) for every layer
        biases: (n_out,) for every layer

    Returns:
        The output of the last layer, (B, n_out), with no ReLU after it, and what each
        layer was given, (B, n_in) for every layer, which `mlp_backward` needs.

    Raises:
        ValueError: if there is no layer or the shapes do not fit.

    >>> weights = [torch.tensor([[1.0], [-1.0]]), torch.tensor([[1.0, 1.0]])]
    >>> biases = [torch.zeros(2), torch.zeros(1)]  # |x|
    >>> output, inputs = mlp_forward(torch.tensor([[3.0], [-2.0]]), weights, biases)
    >>> output.T, inputs[1]
    (tensor([[3., 2.]]), tensor([[3., 0.],
            [0., 2.]]))
    """
    if len(weights) != len(biases) or not weights:
        raise ValueError(f"there are {len(weights)} weights and {len(biases)} biases")
    inputs = [x]
    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        inputs.append(relu(linear(inputs[-1], weight, bias)))  # (B, n_in of the next)
    return linear(inputs[-1], weights[-1], biases[-1]), inputs


def mlp_backward(
    upstream: Tensor, weights: Sequence[Tensor], inputs: Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Find out how the loss depends on all weights, from the last layer to the first.

    Rumelhart, Hinton and Williams, 1986.

    Args:
        upstream: (B, n_out), how the loss changes with the output
        weights: (n_out, n_in) for every layer
        inputs: (B, n_in) for every layer, as `mlp_forward` returned them

    Returns:
        How the loss changes with the weights, (n_out, n_in) for every layer, with the
        biases, (n_out,) for every layer, and with ``x``, (B, n_in).

    Raises:
        ValueError: if the shapes do not fit.

    >>> weights = [torch.tensor([[1.0], [-1.0]]), torch.tensor([[1.0, 1.0]])]
    >>> biases = [torch.zeros(2), torch.zeros(1)]  # |x|
    >>> _, inputs = mlp_forward(torch.tensor([[3.0], [-2.0]]), weights, biases)
    >>> mlp_backward(torch.tensor([[5.0], [7.0]]), weights, inputs)[2].T
    tensor([[ 5., -7.]])
    """
    expected = (len(inputs[-1]), len(weights[-1]))
    if len(weights) != len(inputs) or upstream.shape != expected:
        raise ValueError(
            f"upstream {tuple(upstream.shape)}, {len(weights)} weights and "
            f"{len(inputs)} inputs do not fit: expected {expected} and one input for "
            "each of the weights"
        )
    weight_grads, bias_grads = [], []
    for layer in reversed(range(len(weights))):
        weight_grads.append(upstream.T @ inputs[layer])  # (n_out, B) @ (B, n_in)
        bias_grads.append(upstream.sum(dim=0))  # one bias served all rows
        upstream = upstream @ weights[layer]  # (B, n_out) @ (n_out, n_in)
        if layer > 0:  # what this layer was given came out of a ReLU
            upstream = upstream * (inputs[layer] > 0)
    return weight_grads[::-1], bias_grads[::-1], upstream


# --- Learning -----------------------------------------------------------------------

Loss = Callable[[Tensor, Tensor], Tensor]


def train_step(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    learning_rate: float,
    loss: Loss | None = None,
) -> float:
    """Change all parameters a little, so that the loss of some examples falls.

    Args:
        model: maps the inputs to what the loss compares with the targets
        inputs: (B, ...), the examples
        targets: (B, ...), what is right for them
        learning_rate: how far the parameters go down the gradient
        loss: maps the model's output and the targets to a scalar; `cross_entropy` if
            not given

    Returns:
        The loss before the step.

    Raises:
        ValueError: if the loss is not finite, so that no step would help.

    >>> model = nn.Linear(1, 1, bias=False)
    >>> _ = nn.init.zeros_(model.weight)
    >>> one = torch.ones(1, 1)
    >>> train_step(model, one, 3 * one, 0.25, nn.functional.mse_loss)
    9.0
    >>> model.weight.item()
    1.5
    """
    model.zero_grad()  # or the gradients of the step before would be added
    value = (loss or cross_entropy)(model(inputs), targets)
    if not value.isfinite():
        raise ValueError(f"the loss is {value.item()}: try a smaller learning_rate")
    value.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= learning_rate * parameter.grad
    return value.item()


def train(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    *,
    n_steps: int,
    batch_size: int,
    learning_rate: float,
    generator: torch.Generator,
    loss: Loss | None = None,
) -> list[float]:
    """Learn from examples, a few at a time, drawn at random with replacement.

    Args:
        model: maps the inputs to what the loss compares with the targets
        inputs: (N, ...), all examples
        targets: (N, ...), what is right for them
        n_steps: how many steps are made
        batch_size: B, how many examples each step looks at
        learning_rate: how far the parameters go down the gradient
        generator: draws the examples
        loss: as in `train_step`

    Returns:
        The loss before every step.

    Raises:
        ValueError: if there are no examples or not as many targets, a number is smaller
            than 1, or the loss stops being finite.

    >>> inputs, targets = torch.tensor([[-1.0], [1.0]]), torch.tensor([0, 1])
    >>> options = {"n_steps": 50, "batch_size": 4, "learning_rate": 1.0}
    >>> dice = torch.Generator().manual_seed(1)
    >>> losses = train(nn.Linear(1, 2), inputs, targets, **options, generator=dice)
    >>> losses[-1] < 0.1
    True
    """
    require.at_least_one(n_steps=n_steps, batch_size=batch_size)
    if len(inputs) != len(targets) or len(inputs) == 0:
        raise ValueError(f"there are {len(inputs)} inputs and {len(targets)} targets")
    losses = []
    for _ in tqdm(range(n_steps), unit="step"):
        chosen = torch.randint(
            len(inputs), (batch_size,), generator=generator, device=generator.device
        )
        step = (inputs[chosen], targets[chosen], learning_rate, loss)
        losses.append(train_step(model, *step))
    return losses


# --- The neural probabilistic language model ----------------------------------------


def context_windows(ids: Tensor, n_context: int, begin: int) -> tuple[Tensor, Tensor]:
    """Cut a text into contexts and the token that follows each.

    Args:
        ids: (T,), the tokens of a text
        n_context: how many tokens a context has
        begin: the id that fills the contexts of the first tokens

    Returns:
        The contexts, (T, n_context), and the tokens after them, (T,).

    Raises:
        ValueError: if the ids are no row or a context has less than one token.

    >>> context_windows(torch.tensor([5, 6, 7]), n_context=2, begin=0)
    (tensor([[0, 0],
            [0, 5],
            [5, 6]]), tensor([5, 6, 7]))
    """
    require.at_least_one(n_context=n_context)
    if ids.dim() != 1:
        raise ValueError(f"ids has shape {tuple(ids.shape)}, expected one row")
    padded = torch.cat([ids.new_full((n_context,), begin), ids])
    return padded.unfold(0, n_context, 1)[: len(ids)], ids


class NeuralNGram(nn.Module):
    """A language model that looks back a few tokens, as an n-gram model does.

    The vectors of the last tokens, side by side, go through one hidden layer with tanh
    to a score for every token. Contexts with similar words get similar answers, which
    no table of counts can do. Bengio et al., 2003, § 2, with the direct connections
    from the vectors to the scores as an option.

    The parameters are ``embedding`` (V, C), ``hidden_weight`` (F, n_context · C),
    ``hidden_bias`` (F,), ``output_weight`` (V, F), ``output_bias`` (V,) and, if asked
    for, ``direct_weight`` (V, n_context · C).

    Args:
        n_words: V
        n_context: how many tokens it looks back
        d_model: C, the width of a token's vector
        d_hidden: F, the width of the hidden layer
        generator: draws the first parameters, on its own device
        direct: whether the vectors are also connected to the scores directly
        dtype: the floating type of the parameters

    Raises:
        ValueError: if a size is smaller than 1.

    >>> dice = torch.Generator().manual_seed(1)
    >>> model = NeuralNGram(7, n_context=2, d_model=3, d_hidden=5, generator=dice)
    >>> model(torch.tensor([[0, 5], [5, 6]])).shape
    torch.Size([2, 7])
    """

    def __init__(
        self,
        n_words: int,
        n_context: int,
        d_model: int,
        d_hidden: int,
        *,
        generator: torch.Generator,
        direct: bool = False,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        require.at_least_one(
            n_words=n_words, n_context=n_context, d_model=d_model, d_hidden=d_hidden
        )
        self.n_context = n_context
        n_in = n_context * d_model
        vectors = torch.empty(n_words, d_model, dtype=dtype, device=generator.device)
        self.embedding = nn.Parameter(vectors.normal_(generator=generator))
        hidden = xavier_uniform(n_in, d_hidden, generator, dtype)
        output = xavier_uniform(d_hidden, n_words, generator, dtype)
        self.hidden_weight = nn.Parameter(hidden)
        self.hidden_bias = nn.Parameter(hidden.new_zeros(d_hidden))
        self.output_weight = nn.Parameter(output)
        self.output_bias = nn.Parameter(output.new_zeros(n_words))
        self.direct_weight = None
        if direct:
            weight = xavier_uniform(n_in, n_words, generator, dtype)
            self.direct_weight = nn.Parameter(weight)

    def forward(self, contexts: Tensor) -> Tensor:
        """Score every token as the next one.

        Args:
            contexts: (B, n_context), ids (`context_windows`)

        Returns:
            The logits, (B, V).

        Raises:
            ValueError: if the contexts have another length or hold an id that is not
                between 0 and V - 1.
        """
        if contexts.shape[-1] != self.n_context:
            raise ValueError(
                f"contexts has {contexts.shape[-1]} tokens in a row, "
                f"expected n_context={self.n_context}"
            )
        require.indices("contexts", contexts, n_words=len(self.embedding))
        x = self.embedding[contexts].flatten(-2)  # (B, n_context, C) -> (B, n_in)
        hidden = torch.tanh(linear(x, self.hidden_weight, self.hidden_bias))  # (B, F)
        logits = linear(hidden, self.output_weight, self.output_bias)  # (B, V)
        if self.direct_weight is not None:
            logits = logits + linear(x, self.direct_weight)
        return logits
