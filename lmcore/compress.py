"""Compression: the same model in fewer bits, with fewer weights, or in a smaller one.

Chapter 15 of the book. The module builds, in this order: what a model costs in memory;
numbers kept as whole numbers of 8 bits with a ruler; a linear layer and a model that
store their weights so; weights that are set to zero because they are small; and a loss
by which a small model learns from a large one.

Left out: calibration of activations on data, 4 bits, and sparse kernels: a zero saves
memory and time only where software or hardware skips it, and here nothing does.

Papers: Jacob et al., 2018, and Dettmers et al., 2022 (8 bits); LeCun, Denker and Solla,
1990, and Han et al., 2015 (pruning); Hinton, Vinyals and Dean, 2015 (distillation).
"""

import copy
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import require

LARGEST = 127  # of the whole numbers in use, -127 … 127: zero stays in the middle

# --- What a model costs -------------------------------------------------------------


def memory_bytes(model: nn.Module) -> int:
    """Count the bytes of all parameters and buffers; what is shared counts once.

    Args:
        model: any module

    Returns:
        Bytes.

    >>> memory_bytes(nn.Linear(10, 2))
    88
    """
    tensors = [*model.parameters(), *model.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def kv_cache_bytes(
    n_layers: int,
    n_kv_heads: int,
    d_head: int,
    n_tokens: int,
    n_texts: int = 1,
    bytes_per_number: int = 2,
) -> int:
    """Count the bytes of the keys and values that serving keeps.

    One key and one value of width D for every token, layer and key head.

    Args:
        n_layers: L
        n_kv_heads: H_kv
        d_head: D
        n_tokens: the length of each text, in tokens
        n_texts: B, the texts served at once
        bytes_per_number: 2 for half precision

    Returns:
        Bytes.

    Raises:
        ValueError: if a number is negative.

    >>> kv_cache_bytes(n_layers=32, n_kv_heads=32, d_head=128, n_tokens=4096) / 2**30
    2.0
    """
    numbers = [n_layers, n_kv_heads, d_head, n_tokens, n_texts, bytes_per_number]
    if min(numbers) < 0:
        raise ValueError(f"the sizes {numbers} must not be negative")
    return 2 * n_layers * n_kv_heads * d_head * n_tokens * n_texts * bytes_per_number


# --- Whole numbers with a ruler -----------------------------------------------------


def quantize_int8(x: Tensor, dim: int | None = None) -> tuple[Tensor, Tensor]:
    """Write numbers as whole numbers from -127 to 127, times a scale.

    The scale is the largest size divided by 127, so that nothing is cut off, 0 stays 0
    and the error of a number is at most half a scale. Numbers that are all 0 get the
    scale 1. Jacob et al., 2018, eq. (1), with the zero point at 0.

    Args:
        x: any floating tensor
        dim: the axis along which numbers share one scale: ``dim=1`` gives every row of
            a matrix its own. None = one scale for all.

    Returns:
        The whole numbers, int8, in the shape of ``x``, and the scale, float32, in the
        shape of ``x`` with ``dim`` of size 1, or a scalar.

    Raises:
        ValueError: if ``x`` holds NaN or infinity.
        TypeError: if ``x`` is not floating.

    >>> quantize_int8(torch.tensor([-1.0, 0.5, 1.0]))
    (tensor([-127,   64,  127], dtype=torch.int8), tensor(0.0079))
    """
    if not x.is_floating_point():
        raise TypeError(f"x has dtype {x.dtype}, expected a floating type")
    if not x.isfinite().all():
        raise ValueError(
            f"x of shape {tuple(x.shape)} holds {int((~x.isfinite()).sum())} numbers "
            "that are NaN or infinite: no scale fits them"
        )
    x = x.float()
    size = x.abs()
    if dim is not None:
        largest = size.amax(dim=dim, keepdim=True)
    else:
        largest = size.max() if x.numel() else size.sum()
    scale = largest / LARGEST
    # A largest number so small that the division gives 0 counts as 0, too.
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    whole = torch.round(x / scale).clamp(-LARGEST, LARGEST)
    return whole.to(torch.int8), scale


def dequantize(
    values: Tensor, scale: Tensor, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Turn whole numbers back: the inverse of `quantize_int8` up to half a scale.

    Args:
        values: int8, any shape
        scale: broadcastable to the shape of ``values``
        dtype: the floating type of the result

    Returns:
        ``values · scale``, in the shape of ``values``.

    Raises:
        TypeError: if ``values`` are not int8.

    >>> dequantize(torch.tensor([-127, 64], dtype=torch.int8), torch.tensor(0.5))
    tensor([-63.5000,  32.0000])
    """
    _check_int8("values", values)
    return (values.to(scale.dtype) * scale).to(dtype)


def int8_matmul(x: Tensor, weight: Tensor) -> Tensor:
    """Multiply whole numbers of 8 bits and add the products up in 32.

    A single product can be 16,129 and fits into no 8 bits. The sums are exact.

    Args:
        x: (..., C), int8
        weight: (F, C), int8

    Returns:
        (..., F), int32.

    Raises:
        TypeError: if one of them is not int8.
        ValueError: if the widths differ.

    >>> x = torch.tensor([[127, 127]], dtype=torch.int8)
    >>> int8_matmul(x, x)
    tensor([[32258]], dtype=torch.int32)
    """
    _check_int8("x", x)
    _check_int8("weight", weight)
    require.width("x", x, weight.shape[-1])
    if x.device.type == "cpu":
        return x.to(torch.int32) @ weight.to(torch.int32).T
    # Not every device multiplies matrices of whole numbers; these sums are exact, too.
    return (x.double() @ weight.double().T).to(torch.int32)


class Int8Linear(nn.Module):
    """A linear layer whose weights are whole numbers of 8 bits.

    Every row of the weights, that is every output, has its own scale. By default only
    the weights are quantised, which saves memory; with ``quantize_input`` the input of
    every token is quantised as it comes, so that all products are of whole numbers.
    Dettmers et al., 2022 (LLM.int8), § 2, without its outlier columns.

    The buffers are ``values`` (F, C), int8, ``scale`` (F, 1) and ``bias`` (F,).
    A quantised layer is for use, not for training: it has no parameters.

    Args:
        linear: the layer to copy; it stays as it is
        quantize_input: whether the input is quantised, too

    >>> layer = Int8Linear(nn.Linear(4, 2))
    >>> layer(torch.zeros(1, 3, 4)).shape, layer.values.dtype
    (torch.Size([1, 3, 2]), torch.int8)
    """

    values: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear, *, quantize_input: bool = False) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.quantize_input = quantize_input
        values, scale = quantize_int8(linear.weight.detach(), dim=1)
        bias = None if linear.bias is None else linear.bias.detach().clone()
        self.register_buffer("values", values)  # (F, C)
        self.register_buffer("scale", scale)  # (F, 1)
        self.register_buffer("bias", bias)  # (F,)

    @property
    def weight(self) -> Tensor:
        """The weights that the whole numbers stand for, (F, C)."""
        return dequantize(self.values, self.scale)

    def forward(self, x: Tensor) -> Tensor:
        """Map every token.

        Args:
            x: (..., C)

        Returns:
            (..., F), in the type of ``x``.

        Raises:
            ValueError: if the width of ``x`` is not the layer's.
        """
        require.width("x", x, self.in_features)
        if self.quantize_input:
            whole, x_scale = quantize_int8(x, dim=-1)  # (..., C), (..., 1)
            products = int8_matmul(whole, self.values).float()  # (..., F)
            output = (products * x_scale * self.scale[:, 0]).to(x.dtype)
        else:
            # The scale belongs to a row, so it can wait until the row is summed.
            output = F.linear(x, self.values.to(x.dtype))
            output = output * self.scale[:, 0].to(x.dtype)
        return output if self.bias is None else output + self.bias.to(x.dtype)

    def extra_repr(self) -> str:
        """Say the sizes, as `nn.Linear` does."""
        return f"in_features={self.in_features}, out_features={self.out_features}"


def quantize_model(
    model: nn.Module, *, skip: Collection[str] = (), quantize_input: bool = False
) -> nn.Module:
    """Copy a model with an `Int8Linear` in the place of every `nn.Linear`.

    Embeddings and norms stay as they are.

    Args:
        model: any module; it stays as it is
        skip: the names, as in ``model.named_modules()``, of layers to leave alone, such
            as the one that makes the logits
        quantize_input: as in `Int8Linear`

    Returns:
        The quantised copy.

    Raises:
        ValueError: if there is no `nn.Linear` to replace, or a name in ``skip`` is none
            of the linear layers.

    >>> quantize_model(nn.Sequential(nn.Linear(4, 2), nn.ReLU()))[0]
    Int8Linear(in_features=4, out_features=2)
    """
    names = [name for name, module in model.named_modules() if _is_linear(module)]
    unknown = sorted(set(skip) - set(names))
    if unknown:
        raise ValueError(f"skip={unknown} are not linear layers; those are {names}")
    names = [name for name in names if name not in skip]
    if not names:
        raise ValueError(f"{type(model).__name__} has no nn.Linear to quantise")
    small = copy.deepcopy(model)
    for name in names:
        layer = Int8Linear(small.get_submodule(name), quantize_input=quantize_input)
        if not name:  # the model itself is one layer
            return layer
        parent, _, child = name.rpartition(".")
        setattr(small.get_submodule(parent), child, layer)
    return small


# --- Fewer weights ------------------------------------------------------------------


def prune_masks(weights: Sequence[Tensor], sparsity: float) -> list[Tensor]:
    """Choose the weights to keep: all but the smallest by size, over all tensors.

    Exactly ``round(sparsity · n)`` of the n weights go; of equal ones, the first.

    Args:
        weights: tensors of any shape
        sparsity: the share of weights to drop, between 0 and 1

    Returns:
        One boolean mask per tensor, in its shape, True = kept.

    Raises:
        ValueError: if ``sparsity`` is not between 0 and 1 or there are no weights.

    >>> prune_masks([torch.tensor([0.1, -2.0]), torch.tensor([0.5, -0.05])], 0.5)
    [tensor([False,  True]), tensor([ True, False])]
    """
    require.between(0, 1, sparsity=sparsity)
    if not weights:
        raise ValueError("there are no weights to prune")
    sizes = torch.cat([weight.detach().abs().flatten() for weight in weights])
    n_dropped = round(sparsity * len(sizes))
    kept = torch.ones_like(sizes, dtype=torch.bool)
    kept[torch.argsort(sizes, stable=True)[:n_dropped]] = False
    parts = kept.split([weight.numel() for weight in weights])
    return [part.view_as(w) for part, w in zip(parts, weights, strict=True)]


def magnitude_prune(model: nn.Module, sparsity: float) -> dict[str, Tensor]:
    """Set the smallest weights of all linear layers to zero, in place.

    One threshold holds for the whole model, so that some layers lose more than others.
    Biases, norms and embeddings stay. Han et al., 2015, § 3.1.

    Args:
        model: changed in place
        sparsity: the share of the linear layers' weights to drop, between 0 and 1

    Returns:
        The masks by the name of the weight, True = kept. A model that is trained on
        stays sparse if `apply_masks` follows every step.

    Raises:
        ValueError: if ``sparsity`` is not between 0 and 1 or there is no linear layer.

    >>> layer = nn.Linear(2, 2)
    >>> _ = layer.weight.data.copy_(torch.tensor([[0.1, -2.0], [0.5, -0.05]]))
    >>> _ = magnitude_prune(layer, 0.5)
    >>> layer.weight.tolist()
    [[0.0, -2.0], [0.5, 0.0]]
    """
    weights = _linear_weights(model)
    kept = prune_masks(list(weights.values()), sparsity)
    masks = dict(zip(weights, kept, strict=True))
    apply_masks(model, masks)
    return masks


def apply_masks(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Set the weights that were pruned to zero again, in place.

    Args:
        model: changed in place
        masks: from `magnitude_prune`

    Raises:
        ValueError: if a mask's shape is not its weight's.

    >>> layer = nn.Linear(1, 1)
    >>> apply_masks(layer, {"weight": torch.tensor([[False]])})
    >>> layer.weight.item()
    0.0
    """
    for name, mask in masks.items():
        weight = model.get_parameter(name)
        if mask.shape != weight.shape:
            raise ValueError(
                f"the mask of {name} has shape {tuple(mask.shape)}, expected "
                f"{tuple(weight.shape)}"
            )
        with torch.no_grad():
            weight.masked_fill_(~mask, 0.0)


def pruning_curve(
    model: nn.Module,
    sparsities: Iterable[float],
    measure: Callable[[nn.Module], float],
) -> list[tuple[float, float]]:
    """Measure how a model fares as more and more of its weights are dropped.

    Args:
        model: it stays as it is
        sparsities: the shares to drop, each from the whole model
        measure: such as the loss on held-out text, in nats

    Returns:
        Pairs of sparsity and measure.

    Raises:
        ValueError: if a sparsity is not between 0 and 1.

    >>> def zeros(model): return int((model.weight == 0).sum())
    >>> pruning_curve(nn.Linear(4, 2), [0.0, 0.5, 1.0], zeros)
    [(0.0, 0), (0.5, 4), (1.0, 8)]
    """
    curve = []
    for sparsity in sparsities:
        pruned = copy.deepcopy(model)
        magnitude_prune(pruned, sparsity)
        curve.append((sparsity, measure(pruned)))
    return curve


# --- A small model learns from a large one ------------------------------------------


def distillation_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    targets: Tensor | None = None,
    *,
    temperature: float = 1.0,
    soft_weight: float = 0.5,
    ignore_index: int = -100,
) -> Tensor:
    """Compare the student's whole distribution with the teacher's.

    ``T² · KL(teacher ‖ student)`` with both softened by the temperature T, mixed with
    the cross-entropy to the true token. The factor T² keeps the gradient's size when T
    changes. No gradient reaches the teacher. Hinton, Vinyals and Dean, 2015, § 2.

    Args:
        student_logits: (..., V)
        teacher_logits: (..., V)
        targets: (...,) ids, the true tokens; None = learn from the teacher alone
        temperature: T, positive
        soft_weight: the share of the teacher's part, between 0 and 1; the rest goes to
            the cross-entropy. Without targets it does not count.
        ignore_index: places with this target are left out of both parts

    Returns:
        A scalar, in nats: the mean over places. NaN if all places are left out.

    Raises:
        ValueError: if the shapes differ, T is not positive or ``soft_weight`` is not
            between 0 and 1.

    >>> student, teacher = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    >>> distillation_loss(student, teacher, temperature=2.0)
    tensor(1.8485)
    """
    _check_distillation(
        student_logits, teacher_logits, targets, temperature, soft_weight
    )
    # Half precision has too few digits for the logarithm of a small probability.
    wide = torch.promote_types(student_logits.dtype, torch.float32)
    student, teacher = student_logits.to(wide), teacher_logits.detach().to(wide)
    log_student = F.log_softmax(student / temperature, dim=-1)
    log_teacher = F.log_softmax(teacher / temperature, dim=-1)
    soft = F.kl_div(log_student, log_teacher, reduction="none", log_target=True)
    soft = temperature**2 * soft.sum(dim=-1)  # (..., V) -> (...,)
    if targets is None:
        return soft.mean()
    soft = soft[targets != ignore_index].mean()
    hard = F.cross_entropy(
        student.flatten(0, -2), targets.flatten(), ignore_index=ignore_index
    )
    return soft_weight * soft + (1 - soft_weight) * hard


def _is_linear(module: nn.Module) -> bool:
    # A subclass may use its weights in another way.
    return type(module) is nn.Linear


def _linear_weights(model: nn.Module) -> dict[str, Tensor]:
    """The weights of the linear layers by name, those that are shared once."""
    of_linear = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear)}
    named = model.named_parameters()
    weights = {name: p for name, p in named if id(p) in of_linear}
    if not weights:
        raise ValueError(f"{type(model).__name__} has no nn.Linear to prune")
    return weights


def _check_int8(name: str, x: Tensor) -> None:
    if x.dtype != torch.int8:
        raise TypeError(f"{name} has dtype {x.dtype}, expected torch.int8")


def _check_distillation(
    student: Tensor,
    teacher: Tensor,
    targets: Tensor | None,
    temperature: float,
    soft_weight: float,
) -> None:
    if student.shape != teacher.shape:
        raise ValueError(
            f"the student's logits have shape {tuple(student.shape)} and the teacher's "
            f"{tuple(teacher.shape)}: expected the same"
        )
    if targets is not None and targets.shape != student.shape[:-1]:
        raise ValueError(
            f"targets have shape {tuple(targets.shape)}, expected "
            f"{tuple(student.shape[:-1])}"
        )
    require.positive(temperature=temperature)
    require.between(0, 1, soft_weight=soft_weight)
