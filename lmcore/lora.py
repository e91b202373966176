"""LoRA: fine-tuning adds a matrix of low rank and leaves the large one as it is.

Chapter 12 of the book; these names can be used from ``lmcore.finetune`` as well. The
module builds, in this order: a linear layer with a change of low rank beside it, the
same for chosen layers of a whole model, and the way back to plain layers.

Left out: quantised base weights (``lmcore.compress``) and adapters for embeddings.

Paper: Hu et al., 2022.

R is the rank, n_in and n_out are the widths of a layer.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import require


class LoRALinear(nn.Module):
    """A linear layer that stays, and beside it a change of low rank that is learned.

    ``base(x) + alpha / rank · x lora_aᵀ lora_bᵀ``. ``lora_a`` (R, n_in) is drawn,
    ``lora_b`` (n_out, R) is zero: at first nothing is changed, and yet the first
    gradient of ``lora_b`` is not zero. The parameters of ``base`` are frozen. Hu et
    al., 2022, § 4.1.

    Args:
        base: the layer; it is used as it is, not copied
        rank: R, at most the smaller width
        alpha: the change is multiplied by ``alpha / rank``, so that its size does not
            depend on the rank
        generator: draws ``lora_a``, on its own device
        dropout: the share of the input dropped, in training, on its way to the change

    Raises:
        ValueError: if the rank does not fit, ``alpha`` is not positive, or the dropout
            is no share.

    >>> layer = LoRALinear(
    ...     nn.Linear(6, 5), rank=2, alpha=4, generator=torch.Generator().manual_seed(1)
    ... )
    >>> layer.scale, layer.lora_a.shape, layer.lora_b.shape
    (2.0, torch.Size([2, 6]), torch.Size([5, 2]))
    >>> x = torch.ones(3, 6)
    >>> torch.equal(layer(x), layer.base(x))
    True
    """

    def __init__(
        self,
        base: nn.Linear,
        rank: int,
        alpha: float,
        *,
        generator: torch.Generator,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        _check_numbers(base, rank, alpha, dropout)
        self.base = base.requires_grad_(False)
        self.in_features, self.out_features = base.in_features, base.out_features
        self.scale, self.dropout = alpha / rank, dropout
        bound = 1 / math.sqrt(base.in_features)  # as the first weights of nn.Linear
        drawn = torch.empty(rank, base.in_features, device=generator.device)
        drawn.uniform_(-bound, bound, generator=generator)
        self.lora_a = nn.Parameter(drawn.to(base.weight))
        self.lora_b = nn.Parameter(base.weight.new_zeros(base.out_features, rank))
        self.train(base.training)

    def forward(self, x: Tensor) -> Tensor:
        """Send the input through the layer and the change: (..., n_in) -> (..., n_out).

        The change goes through the narrow middle: no (n_out, n_in) matrix is made.
        """
        narrow = F.dropout(x, self.dropout, self.training) @ self.lora_a.T  # (..., R)
        return self.base(x) + self.scale * (narrow @ self.lora_b.T)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """Make one plain layer that computes the same.

        Returns:
            A new layer with the weight ``base + alpha / rank · lora_b lora_a``, frozen
            as the base; this one and its base keep their weights.

        >>> layer = LoRALinear(nn.Linear(2, 2), 1, 1, generator=torch.Generator())
        >>> torch.equal(layer.merged().weight, layer.base.weight)
        True
        """
        weight = self.base.weight
        n_out, n_in = weight.shape
        layer = nn.Linear(n_in, n_out, bias=False, device="meta").train(self.training)
        # In single precision at least: a half would lose small changes twice.
        exact = torch.promote_types(weight.dtype, torch.float32)
        change = self.scale * (self.lora_b.to(exact) @ self.lora_a.to(exact))
        total = (weight.to(exact) + change).to(weight.dtype)  # (n_out, n_in)
        layer.weight = nn.Parameter(total, requires_grad=False)
        layer.bias = self.base.bias
        return layer

    def extra_repr(self) -> str:
        """What ``print`` says about the layer besides its base."""
        return f"rank={len(self.lora_a)}, scale={self.scale}, dropout={self.dropout}"


def apply_lora(
    model: nn.Module,
    targets: Sequence[str] = ("project_query", "project_value"),
    *,
    rank: int,
    alpha: float,
    generator: torch.Generator,
    dropout: float = 0.0,
) -> list[str]:
    """Freeze a model and put a `LoRALinear` in the place of chosen layers.

    The paper changes the projections of queries and values, which are the default.
    Hu et al., 2022, § 4.2 and 7.1.

    Args:
        model: changed in place
        targets: the last part, or more, of the names of `nn.Linear` layers:
            ``"project_query"`` stands for all layers of this name
        rank: R
        alpha: the change is multiplied by ``alpha / rank``
        generator: draws the first matrices, on its own device
        dropout: as in `LoRALinear`

    Returns:
        The names of the layers that were replaced, in the model's order.

    Raises:
        TypeError: if the targets are one string.
        ValueError: if a target is the name of no `nn.Linear`, the model has LoRA
            layers already, or the numbers do not fit; the model is then unchanged.

    >>> model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    >>> apply_lora(model, ["2"], rank=2, alpha=4, generator=torch.Generator())
    ['2']
    >>> count_trainable(model)
    (18, 69)
    """
    if isinstance(targets, str):
        raise TypeError(f"targets={targets!r} is one string, expected a list of names")
    if any(isinstance(module, LoRALinear) for module in model.modules()):
        raise ValueError("the model has LoRA layers already: merge_lora them first")
    linears = {
        name: module
        for name, module in model.named_modules(remove_duplicate=False)
        if name and isinstance(module, nn.Linear)
    }
    chosen = [name for name in linears if any(_ends(name, end) for end in targets)]
    for target in targets:
        if not any(_ends(name, target) for name in chosen):
            raise ValueError(
                f"target {target!r} is the name of no nn.Linear layer: there are "
                f"{', '.join(linears) or 'none'}"
            )
    if not chosen:
        raise ValueError(f"targets={targets} name no layer")
    for name in chosen:
        _check_numbers(linears[name], rank, alpha, dropout)
    model.requires_grad_(False)
    made: dict[nn.Linear, LoRALinear] = {}  # a layer with two names stays one
    for name in chosen:
        base = linears[name]
        if base not in made:
            made[base] = LoRALinear(
                base, rank, alpha, generator=generator, dropout=dropout
            )
        model.set_submodule(name, made[base])
    return chosen


def merge_lora(model: nn.Module) -> nn.Module:
    """Move every change into the weight of its layer, and take the adapters away.

    Merging once more changes nothing. All parameters stay frozen, as `apply_lora` left
    them. A weight that the layer shared with another one, such as tied vectors, is
    changed for this layer only.

    Args:
        model: changed in place, unless it is itself a `LoRALinear`

    Returns:
        The model, which now has plain linear layers only.

    >>> model = nn.Sequential(nn.Linear(4, 6))
    >>> _ = apply_lora(model, ["0"], rank=2, alpha=4, generator=torch.Generator())
    >>> merge_lora(model)
    Sequential(
      (0): Linear(in_features=4, out_features=6, bias=True)
    )
    """
    if isinstance(model, LoRALinear):
        return model.merged()
    modules = list(model.named_modules(remove_duplicate=False))
    merged: dict[nn.Module, nn.Linear] = {}
    for name, module in modules:
        if isinstance(module, LoRALinear):
            if module not in merged:
                merged[module] = module.merged()
            model.set_submodule(name, merged[module])
    return model


def count_trainable(model: nn.Module) -> tuple[int, int]:
    """Count the numbers that training changes, and all numbers of a model.

    Args:
        model: any

    Returns:
        How many are trained, and how many there are; what is shared counts once.

    >>> model = nn.Linear(3, 2)
    >>> _ = model.bias.requires_grad_(False)
    >>> count_trainable(model)
    (6, 8)
    """
    parameters = list(model.parameters())
    n_trained = sum(p.numel() for p in parameters if p.requires_grad)
    return n_trained, sum(p.numel() for p in parameters)


def lora_state(model: nn.Module) -> dict[str, Tensor]:
    """Give the adapters alone, which is all that has to be saved.

    ``model.load_state_dict(state, strict=False)`` puts them into a model that
    `apply_lora` prepared in the same way; ``alpha`` must be the same as well.

    Args:
        model: with LoRA layers

    Returns:
        The matrices by name, copied.

    Raises:
        ValueError: if there are none.

    >>> model = nn.Sequential(nn.Linear(4, 6))
    >>> _ = apply_lora(model, ["0"], rank=2, alpha=4, generator=torch.Generator())
    >>> list(lora_state(model))
    ['0.lora_a', '0.lora_b']
    """
    state = {
        name: values.detach().clone()
        for name, values in model.state_dict().items()
        if name.rpartition(".")[-1] in ("lora_a", "lora_b")
    }
    if not state:
        raise ValueError(f"{type(model).__name__} has no LoRA layer")
    return state


def _ends(name: str, target: str) -> bool:
    return f".{name}".endswith(f".{target}")


def _check_numbers(base: nn.Linear, rank: int, alpha: float, dropout: float) -> None:
    n_out, n_in = base.weight.shape
    if not 1 <= rank <= min(n_in, n_out):
        raise ValueError(
            f"rank={rank} must lie between 1 and {min(n_in, n_out)}, the smaller "
            f"width of the layer ({n_in} to {n_out})"
        )
    require.positive(alpha=alpha)
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout={dropout} must be at least 0 and less than 1")
