"""Optimizers: what to do with a gradient, once there is one.

Chapter 11 of the book. The module builds, in this order: plain gradient descent and
its momentum; Adam, which gives every number a step of its own; AdamW, which shrinks
the weights beside that step and not within it; Muon, for matrices only; which
parameters shall shrink and which shall not; how large the step is at which time; and
the limit to the length of the gradient.

Left out: AMSGrad, schedules that look at the loss, and everything fused. PyTorch's own
``torch.optim`` has them; the classes here have its form and can stand in its place.

Papers: Polyak, 1964, and Nesterov, 1983 (momentum); Kingma and Ba, 2015 (Adam);
Loshchilov and Hutter, 2017 (cosine) and 2019 (AdamW); Pascanu, Mikolov and Bengio, 2013
(clipping); Jordan et al., 2024 (Muon).
"""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from . import require

Closure = Callable[[], Tensor]  # computes the loss and its gradient once more


class _Optimizer(torch.optim.Optimizer):
    # The walk over all parameters; what happens to one of them is `_update`.

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Tensor | None:
        """Change every parameter that has a gradient, once.

        Args:
            closure: computes the loss and its gradient before the step, if given

        Returns:
            What the closure returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(
                        parameter, parameter.grad, self.state[parameter], group
                    )
        return loss

    def _update(
        self, parameter: Tensor, gradient: Tensor, state: dict, group: dict
    ) -> None:
        raise NotImplementedError


# --- Gradient descent ---------------------------------------------------------------


class SGD(_Optimizer):
    """Go against the gradient, or against a running sum of gradients.

    ``velocity ← momentum · velocity + gradient``, ``parameter ← parameter - lr ·
    velocity``. The velocity holds gradients, not steps: a new learning rate counts from
    the next step on for all of it. As `torch.optim.SGD`.

    Args:
        params: parameters, or groups of them as in `torch.optim`
        lr: the learning rate
        momentum: how much of the velocity stays; 0 = plain gradient descent
        weight_decay: this times the parameter is added to its gradient
        nesterov: look ahead: go against ``gradient + momentum · velocity``. Sutskever
            et al., 2013, § 2.

    Raises:
        ValueError: if a number is negative, or ``nesterov`` comes without momentum.

    >>> parameter = nn.Parameter(torch.tensor([1.0]))
    >>> optimizer = SGD([parameter], lr=0.1, momentum=0.9)
    >>> for _ in range(2):
    ...     parameter.grad = torch.ones(1)
    ...     optimizer.step()
    ...     print(round(parameter.item(), 4))
    0.9
    0.71
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict],
        lr: float = 1e-3,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        *,
        nesterov: bool = False,
    ) -> None:
        require.not_negative(lr=lr, momentum=momentum, weight_decay=weight_decay)
        if nesterov and momentum == 0:
            raise ValueError(f"nesterov needs momentum={momentum} to be more than 0")
        options = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
        }
        super().__init__(params, options)

    def _update(
        self, parameter: Tensor, gradient: Tensor, state: dict, group: dict
    ) -> None:
        momentum = group["momentum"]
        if group["weight_decay"]:
            gradient = gradient + group["weight_decay"] * parameter
        if momentum:
            if "velocity" not in state:
                state["velocity"] = torch.zeros_like(parameter)
            velocity = state["velocity"].mul_(momentum).add_(gradient)
            gradient = gradient + momentum * velocity if group["nesterov"] else velocity
        parameter.add_(gradient, alpha=-group["lr"])


# --- A step of its own for every number ---------------------------------------------


class Adam(_Optimizer):
    """Divide the running mean of gradients by the root of that of their squares.

    Every number moves by about ``lr`` a step, whether its gradients are large or small.
    Both means begin at 0 and are therefore divided by what they lack in the first
    steps, ``1 - betaᵗ`` with t = 1 in the first step, before ``eps`` is added. Kingma
    and Ba, 2015, alg. 1. As `torch.optim.Adam`.

    Args:
        params: parameters, or groups of them as in `torch.optim`
        lr: the learning rate
        betas: how much of the mean of gradients, and of squares, stays at each step
        eps: keeps the division away from 0
        weight_decay: this times the parameter is added to its gradient, and so divided
            like it. `AdamW` is what you want instead.

    Raises:
        ValueError: if a number is negative or a beta is not in [0, 1).

    >>> parameter = nn.Parameter(torch.tensor([1.0, 1.0]))
    >>> optimizer = Adam([parameter], lr=0.1)
    >>> parameter.grad = torch.tensor([100.0, -0.001])
    >>> optimizer.step()
    >>> parameter.detach()
    tensor([0.9000, 1.1000])
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        require.not_negative(lr=lr, eps=eps, weight_decay=weight_decay)
        for beta in betas:
            if not 0 <= beta < 1:
                raise ValueError(f"betas={betas} must both lie in [0, 1)")
        options = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, options)

    def _update(
        self, parameter: Tensor, gradient: Tensor, state: dict, group: dict
    ) -> None:
        if group["weight_decay"]:
            gradient = gradient + group["weight_decay"] * parameter
        self._move(parameter, gradient, state, group)

    def _move(
        self, parameter: Tensor, gradient: Tensor, state: dict, group: dict
    ) -> None:
        if not state:
            state["step"] = 0
            state["mean"] = torch.zeros_like(parameter)
            state["square"] = torch.zeros_like(parameter)
        state["step"] += 1
        beta_mean, beta_square = group["betas"]
        mean = state["mean"].lerp_(gradient, 1 - beta_mean)
        square = state["square"].mul_(beta_square)
        square.addcmul_(gradient, gradient, value=1 - beta_square)
        mean_lacks = 1 - beta_mean ** state["step"]
        root_lacks = math.sqrt(1 - beta_square ** state["step"])
        # The step is mean / mean_lacks over sqrt(square) / root_lacks + eps; what is
        # only a number is joined first, which saves a walk over the tensor.
        size = square.sqrt().add_(group["eps"] * root_lacks)
        rate = group["lr"] * root_lacks / mean_lacks
        parameter.addcdiv_(mean, size, value=-rate)


class AdamW(Adam):
    """`Adam` with weights that shrink beside the step, not within the gradient.

    ``parameter ← parameter · (1 - lr · weight_decay)`` first, then the step of `Adam`.
    So all weights shrink alike, however large their gradients are. Loshchilov and
    Hutter, 2019, alg. 2. As `torch.optim.AdamW`.

    Args:
        params: parameters, or groups of them as in `torch.optim` (`decay_groups`)
        lr: the learning rate
        betas: how much of the mean of gradients, and of squares, stays at each step
        eps: keeps the division away from 0
        weight_decay: the share that goes in each step is this times ``lr``

    Raises:
        ValueError: if a number is negative or a beta is not in [0, 1).

    >>> parameter = nn.Parameter(torch.tensor([1.0]))
    >>> optimizer = AdamW([parameter], lr=0.1, weight_decay=0.1)
    >>> parameter.grad = torch.ones(1)
    >>> optimizer.step()
    >>> parameter.detach()
    tensor([0.8900])
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay)

    def _update(
        self, parameter: Tensor, gradient: Tensor, state: dict, group: dict
    ) -> None:
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        self._move(parameter, gradient, state, group)


# --- Matrices as matrices -----------------------------------------------------------


def orthogonalize(matrix: Tensor, n_steps: int = 5) -> Tensor:
    """Bring all singular values of a matrix near 1, and leave its directions.

    A few steps of a polynomial instead of a decomposition: each maps every singular
    value s to ``a s + b s³ + c s⁵``, which drives all of them into about 0.7 … 1.2.
    Jordan et al., 2024.

    Args:
        matrix: (..., rows, columns)
        n_steps: how often the polynomial is applied

    Returns:
        A matrix of the same shape and type.

    Raises:
        ValueError: if there is no matrix.

    >>> values = torch.linalg.svdvals(orthogonalize(torch.tensor([[9.0, 0], [0, 0.3]])))
    >>> bool((values > 0.6).all() and (values < 1.3).all())
    True
    """
    if matrix.dim() < 2:
        raise ValueError(f"shape {tuple(matrix.shape)} is no matrix")
    a, b, c = 3.4445, -4.7750, 2.0315  # the paper's: steep at 0, level near 1
    wide = matrix if matrix.shape[-2] <= matrix.shape[-1] else matrix.mT
    wide = wide / (wide.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    stack = wide.reshape(-1, *wide.shape[-2:])  # (N, rows, columns), rows ≤ columns
    for _ in range(n_steps):
        square = stack @ stack.mT
        factor = torch.baddbmm(square, square, square, beta=b, alpha=c)  # b S + c S S
        stack = torch.baddbmm(stack, factor, stack, beta=a)  # (a + b S + c S S) X
    wide = stack.view_as(wide)
    return wide if matrix.shape[-2] <= matrix.shape[-1] else wide.mT


class Muon(_Optimizer):
    """Momentum whose step turns every matrix alike in all directions.

    `SGD` with Nesterov's momentum, the step of every matrix passed through
    `orthogonalize`. For the matrices inside the layers only: vectors, embeddings and
    the output layer stay with `AdamW`. Jordan et al., 2024.

    Args:
        params: matrices, or groups of them as in `torch.optim`
        lr: the learning rate, about ten times that of `AdamW`
        momentum: how much of the velocity stays
        weight_decay: the share that goes in each step is this times ``lr``

    Raises:
        ValueError: if a number is negative or a parameter is no matrix.

    >>> matrix = nn.Parameter(torch.zeros(2, 2))
    >>> optimizer = Muon([matrix], lr=0.1)
    >>> matrix.grad = torch.tensor([[9.0, 0.0], [0.0, 0.3]])
    >>> optimizer.step()
    >>> bool((matrix.diagonal() < -0.06).all())
    True
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict],
        lr: float = 0.02,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ) -> None:
        require.not_negative(lr=lr, momentum=momentum, weight_decay=weight_decay)
        options = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(params, options)
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.dim() != 2:
                    shape = tuple(parameter.shape)
                    raise ValueError(f"a parameter of shape {shape} is no matrix")

    def _update(
        self, parameter: Tensor, gradient: Tensor, state: dict, group: dict
    ) -> None:
        _turn(parameter, gradient, state, group)


class MuonAdamW(AdamW):
    """`Muon` for the matrices inside the layers of a model, `AdamW` for all the rest.

    The matrices inside are the weights of the linear layers in an `nn.ModuleList`.

    Args:
        model: whose parameters are to learn
        matrix_lr: the learning rate of `Muon`
        lr: the learning rate of `AdamW`
        betas: those of `AdamW`
        eps: that of `AdamW`
        weight_decay: for tensors of two dimensions or more
        momentum: that of `Muon`

    Raises:
        ValueError: if a number is out of its range or nothing in the model learns.

    >>> layers = nn.ModuleList([nn.Linear(4, 4)])
    >>> model = nn.ModuleDict({"embedding": nn.Embedding(9, 4), "layers": layers})
    >>> [group["lr"] for group in MuonAdamW(model, matrix_lr=0.05).param_groups]
    [0.001, 0.001, 0.05]
    """

    def __init__(
        self,
        model: nn.Module,
        matrix_lr: float = 0.02,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        momentum: float = 0.95,
    ) -> None:
        require.not_negative(matrix_lr=matrix_lr, momentum=momentum)
        inside = {
            id(layer.weight)
            for stack in model.modules()
            if isinstance(stack, nn.ModuleList)
            for layer in stack.modules()
            if isinstance(layer, nn.Linear)
        }
        shrinking, others = decay_groups(model, weight_decay)
        matrices = [p for p in shrinking["params"] if id(p) in inside]
        shrinking["params"] = [p for p in shrinking["params"] if id(p) not in inside]
        turning = {
            "params": matrices,
            "lr": matrix_lr,
            "weight_decay": weight_decay,
            "momentum": momentum,
        }
        groups = [{**group, "momentum": None} for group in (shrinking, others)]
        super().__init__([*groups, turning], lr, betas, eps, weight_decay)

    def _update(
        self, parameter: Tensor, gradient: Tensor, state: dict, group: dict
    ) -> None:
        if group["momentum"] is None:
            super()._update(parameter, gradient, state, group)
        else:
            _turn(parameter, gradient, state, group)


def _turn(parameter: Tensor, gradient: Tensor, state: dict, group: dict) -> None:
    # The step of Muon for one matrix.
    momentum = group["momentum"]
    if "velocity" not in state:
        state["velocity"] = torch.zeros_like(parameter)
    velocity = state["velocity"].lerp_(gradient, 1 - momentum)
    step = orthogonalize(gradient.lerp(velocity, momentum))
    # A tall matrix gives longer outputs; so that all change alike, it moves more.
    rows, columns = parameter.shape
    size = math.sqrt(max(1.0, rows / columns))
    parameter.mul_(1 - group["lr"] * group["weight_decay"])
    parameter.add_(step, alpha=-group["lr"] * size)


# --- Which parameters shrink --------------------------------------------------------


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Sort the parameters: matrices shrink; scales and shifts, which are vectors, not.

    A norm's scale of 1 is no large weight that should be pulled to 0.

    Args:
        model: whose parameters that learn are sorted, each of them once
        weight_decay: for tensors of two dimensions or more

    Returns:
        Two groups for an optimizer, the second with ``weight_decay`` 0.

    Raises:
        ValueError: if the weight decay is negative or nothing in the model learns.

    >>> model = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3))
    >>> [(len(group["params"]), group["weight_decay"])
    ...  for group in decay_groups(model, 0.1)]
    [(1, 0.1), (3, 0.0)]
    """
    require.not_negative(weight_decay=weight_decay)
    learning = [p for p in model.parameters() if p.requires_grad]
    if not learning:
        raise ValueError(f"{type(model).__name__} has no parameter that learns")
    return [
        {
            "params": [p for p in learning if p.dim() >= 2],
            "weight_decay": weight_decay,
        },
        {"params": [p for p in learning if p.dim() < 2], "weight_decay": 0.0},
    ]


# --- How large a step ---------------------------------------------------------------


def warmup_cosine(
    step: float, peak: float, n_warmup: float, n_steps: float, minimum: float = 0.0
) -> float:
    """Learning rate: up in a straight line, then down along half a cosine.

    Step i of the warm-up, counted from 0, has ``peak · (i + 1) / n_warmup``, so that
    the first step is not wasted and the last of the warm-up has the peak. The cosine
    begins at the step after the warm-up with the peak and reaches the minimum at
    ``n_steps``, where the rate stays. Loshchilov and Hutter, 2017, without restarts.

    Args:
        step: which step, counted from 0; a fraction of a step is one, too
        peak: the largest learning rate
        n_warmup: how many steps the warm-up has
        n_steps: how many steps there are
        minimum: the learning rate at the end

    Returns:
        The learning rate of this step.

    Raises:
        ValueError: if the step or the warm-up is negative, the warm-up is longer than
            the training, or the minimum is not between 0 and the peak.

    >>> [warmup_cosine(step, 1.0, n_warmup=4, n_steps=8) for step in (0, 3, 4, 6, 8)]
    [0.25, 1.0, 1.0, 0.5, 0.0]
    """
    _check_schedule(step, peak, n_warmup, n_steps, minimum)
    if step < n_warmup:
        return peak * min(1.0, (step + 1) / n_warmup)
    if step >= n_steps:
        return minimum
    progress = (step - n_warmup) / (n_steps - n_warmup)  # 0 … 1
    return minimum + (peak - minimum) * (1 + math.cos(math.pi * progress)) / 2


def warmup_stable_decay(
    step: float,
    peak: float,
    n_warmup: float,
    n_steps: float,
    minimum: float = 0.0,
    decay: float = 0.6,
) -> float:
    """Learning rate: up as in `warmup_cosine`, level, then down in a straight line.

    Hu et al., 2024 (MiniCPM), § 4.2, with a straight line at the end.

    Args:
        step: which step, counted from 0
        peak: the largest learning rate
        n_warmup: how many steps the warm-up has
        n_steps: how many steps there are
        minimum: the learning rate from step ``n_steps`` on
        decay: the share of the steps in which the rate falls, at the end

    Returns:
        The learning rate of this step.

    Raises:
        ValueError: as `warmup_cosine`, or if ``decay`` is not in (0, 1].

    >>> [round(warmup_stable_decay(step, 1.0, 2, 10, decay=0.5), 2)
    ...  for step in (0, 1, 4, 5, 6, 9, 10)]
    [0.5, 1.0, 1.0, 1.0, 0.8, 0.2, 0.0]
    """
    _check_schedule(step, peak, n_warmup, n_steps, minimum)
    if not 0 < decay <= 1:
        raise ValueError(f"decay={decay} must lie in (0, 1]")
    if step < n_warmup:
        return peak * min(1.0, (step + 1) / n_warmup)
    left = max(0.0, n_steps - step) / (n_steps - max(n_warmup, (1 - decay) * n_steps))
    return minimum + (peak - minimum) * min(1.0, left)


# --- How long a gradient ------------------------------------------------------------


def gradient_norm(parameters: Iterable[nn.Parameter]) -> float:
    """Measure the gradient of all parameters together: the root of the sum of squares.

    Args:
        parameters: those without a gradient do not count

    Returns:
        Its length; 0 if there is none.

    >>> parameter = nn.Parameter(torch.zeros(2))
    >>> parameter.grad = torch.tensor([3.0, 4.0])
    >>> gradient_norm([parameter])
    5.0
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    # Squares of halves would lose too much.
    norms = [
        _whole(gradient.to(torch.promote_types(gradient.dtype, torch.float32)).norm())
        for gradient in gradients
    ]
    return torch.stack(norms).norm().item() if norms else 0.0


def clip_gradient_norm(parameters: Iterable[nn.Parameter], max_norm: float) -> float:
    """Shorten the gradient of all parameters together if it is too long.

    Its direction stays. Pascanu et al., 2013, alg. 1.

    Args:
        parameters: whose gradients are changed in place; those without one do not count
        max_norm: the length that the gradient has at most afterwards

    Returns:
        The length before.

    Raises:
        ValueError: if ``max_norm`` is not positive or the gradient is not finite.

    >>> parameter = nn.Parameter(torch.zeros(2))
    >>> parameter.grad = torch.tensor([3.0, 4.0])
    >>> clip_gradient_norm([parameter], max_norm=1.0), parameter.grad
    (5.0, tensor([0.6000, 0.8000]))
    """
    require.positive(max_norm=max_norm)
    parameters = list(parameters)
    norm = gradient_norm(parameters)
    if not math.isfinite(norm):
        raise ValueError(f"the gradient has the length {norm}: nothing can be learned")
    if norm > max_norm:
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(max_norm / norm)
    return norm


def _whole(norm: Tensor) -> Tensor:
    # With FSDP every process holds a part of the gradient.
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm


def _check_schedule(
    step: float, peak: float, n_warmup: float, n_steps: float, minimum: float
) -> None:
    require.not_negative(step=step, n_warmup=n_warmup)
    if not n_warmup < n_steps:
        raise ValueError(f"n_warmup={n_warmup} must be less than n_steps={n_steps}")
    if not 0 <= minimum <= peak:
        raise ValueError(f"minimum={minimum} must lie between 0 and peak={peak}")
