"""AttentionSteps: every number between Q, K, V and the output, on a handful of tokens.

The second figure of chapter 08. A reader walks from the scores to the output, changes
any number on the way and sees what follows from it.

Left out: several heads. One head whose numbers can be followed by hand is the point.
"""

import math
import re

import anywidget
import torch
import traitlets
from torch import Tensor

from lmcore.widgets import assets

# More would neither fit on a page nor be followed by hand.
MAX_TOKENS = 8
MAX_WIDTH = 6
TOKENS = ("the", "dog", "licks", "itself")
# Read the two numbers of a query and a key as "a thing?" and "an action?": "itself"
# looks for a thing, and "dog" offers one.
QUERY = ((1.0, 0.0), (0.0, 1.0), (1.0, 0.0), (2.0, 0.0))
KEY = ((0.0, 0.0), (2.0, 0.0), (0.0, 2.0), (1.0, 0.5))
VALUE = ((0.0, 0.0, 1.0), (10.0, 0.0, 0.0), (0.0, 10.0, 0.0), (1.0, 0.0, 5.0))
PINNABLE = ("scores", "scaled", "weights")

_PIN = re.compile(r"(scores|scaled|weights)\[(\d+),(\d+)\]")


def attention_steps(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    pins: dict[str, float] | None = None,
) -> dict[str, Tensor]:
    """Compute every stage of attention, the Python twin of what the browser does.

    Without pins the weights and the output are those of
    `lmcore.attention.scaled_dot_product_attention`.

    Args:
        query: (T, D)
        key: (T, D)
        value: (T, Dv)
        mask: boolean (T, T), True = may look; None = all may
        pins: numbers put by hand in the place of computed ones, such as
            ``{"scores[3,1]": 2.0}``; what comes after is computed from them

    Returns:
        ``scores``, ``scaled``, ``masked`` (-inf where nobody may look) and ``weights``,
        (T, T) each, and ``output``, (T, Dv).

    >>> one = torch.ones(1, 1)
    >>> attention_steps(one, one, 7 * one, pins={"weights[0,0]": 0.5})["output"]
    tensor([[3.5000]])
    """
    pins = pins or {}
    scores = _pin("scores", query @ key.T, pins)  # (T, T)
    scaled = _pin("scaled", scores / math.sqrt(query.shape[-1]), pins)
    if mask is None:
        mask = torch.ones_like(scaled, dtype=torch.bool)
    masked = scaled.masked_fill(~mask, -torch.inf)
    # A row of -inf alone would give NaN: such a token gets no weights at all.
    weights = torch.softmax(masked, dim=-1).nan_to_num(0.0)
    weights = _pin("weights", weights, pins)
    stages = {"scores": scores, "scaled": scaled, "masked": masked, "weights": weights}
    return {**stages, "output": weights @ value}


class AttentionSteps(anywidget.AnyWidget):
    """Attention on a few tokens, number by number.

    Args:
        query: (T, D), as a tensor or nested lists; our example if not given
        key: (T, D)
        value: (T, Dv)
        tokens: T words
        mask: boolean (T, T), True = may look; all may if not given
        step: where the walk begins: 0 the inputs, 1 scores, 2 scaled, 3 masked,
            4 weights, 5 output

    The attributes ``query``, ``key``, ``value``, ``mask`` (nested lists), ``pins``
    (such as ``{"scores[3,1]": 2.0}``) and ``step`` are what the reader changes; they
    can be set and observed from Python where there is a kernel.

    Raises:
        ValueError: if the shapes do not fit.
        traitlets.TraitError: if one is set later to something that does not fit.

    >>> steps = AttentionSteps()
    >>> steps.stages["scores"][3]
    tensor([0., 4., 0., 2.], dtype=torch.float64)
    """

    _esm = assets.bundle("attention_math.js", "page.js", "steps_panel.js", "steps.js")
    _css = assets.read("widgets.css")

    tokens = traitlets.List(traitlets.Unicode()).tag(sync=True)
    query = traitlets.Any().tag(sync=True)
    key = traitlets.Any().tag(sync=True)
    value = traitlets.Any().tag(sync=True)
    mask = traitlets.Any().tag(sync=True)
    pins = traitlets.Dict().tag(sync=True)
    step = traitlets.Int(0, min=0, max=5).tag(sync=True)
    start = traitlets.Dict().tag(sync=True)  # what "Reset" goes back to

    def __init__(
        self,
        query: Tensor | list | None = None,
        key: Tensor | list | None = None,
        value: Tensor | list | None = None,
        tokens: list[str] | None = None,
        mask: Tensor | list | None = None,
        step: int = 0,
    ) -> None:
        tokens = list(TOKENS if tokens is None else tokens)
        numbers = {
            "query": _numbers("query", QUERY if query is None else query),
            "key": _numbers("key", KEY if key is None else key),
            "value": _numbers("value", VALUE if value is None else value),
        }
        _check_sizes(tokens, **{n: torch.tensor(x).shape for n, x in numbers.items()})
        if mask is None:
            mask = torch.ones(len(tokens), len(tokens), dtype=torch.bool)
        numbers["mask"] = _mask(mask, len(tokens))
        super().__init__(tokens=tokens, step=step, start=numbers, **numbers)

    @property
    def stages(self) -> dict[str, Tensor]:
        """All stages with the present numbers, in float64: see `attention_steps`."""
        query, key, value = (
            torch.tensor(x, dtype=torch.float64)
            for x in (self.query, self.key, self.value)
        )
        return attention_steps(query, key, value, torch.tensor(self.mask), self.pins)

    @traitlets.validate("query", "key", "value")
    def _same_shape_as_before(self, proposal: dict) -> list[list[float]]:
        name = proposal["trait"].name
        try:
            numbers = _numbers(name, proposal["value"])
        except ValueError as error:
            raise traitlets.TraitError(str(error)) from error
        if name in self.start:
            found = tuple(torch.tensor(numbers).shape)
            expected = tuple(torch.tensor(self.start[name]).shape)
            if found != expected:
                raise traitlets.TraitError(
                    f"{name} has shape {found}, expected {expected}"
                )
        return numbers

    @traitlets.validate("mask")
    def _mask_fits(self, proposal: dict) -> list[list[bool]]:
        try:
            return _mask(proposal["value"], len(self.tokens))
        except ValueError as error:
            raise traitlets.TraitError(str(error)) from error

    @traitlets.validate("pins")
    def _pins_fit(self, proposal: dict) -> dict[str, float]:
        for name, number in proposal["value"].items():
            found = _PIN.fullmatch(name)
            places = map(int, found.groups()[1:]) if found else [MAX_TOKENS]
            if any(place >= len(self.tokens) for place in places):
                raise traitlets.TraitError(
                    f"pin {name!r} names no number, expected one such as 'scores[3,1]'"
                )
            if not isinstance(number, int | float) or not math.isfinite(number):
                raise traitlets.TraitError(f"pin {name!r} is {number!r}, not a number")
        return proposal["value"]


def _pin(stage: str, numbers: Tensor, pins: dict[str, float]) -> Tensor:
    """Put the pinned numbers of one stage in the place of the computed ones."""
    numbers = numbers.clone()
    for name, number in pins.items():
        pinned, row, column = _PIN.fullmatch(name).groups()
        if pinned == stage:
            numbers[int(row), int(column)] = number
    return numbers


def _numbers(name: str, value: Tensor | list) -> list[list[float]]:
    try:
        numbers = torch.as_tensor(value, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name}={value!r} is not a table of numbers") from error
    if numbers.ndim != 2 or 0 in numbers.shape:
        raise ValueError(
            f"{name} has shape {tuple(numbers.shape)}, expected two dimensions"
        )
    if not torch.isfinite(numbers).all():
        raise ValueError(f"{name} has a number that is NaN or infinite")
    return numbers.detach().cpu().tolist()


def _mask(value: Tensor | list, n_tokens: int) -> list[list[bool]]:
    mask = torch.as_tensor(value)
    if mask.dtype != torch.bool or tuple(mask.shape) != (n_tokens, n_tokens):
        raise ValueError(
            f"mask has shape {tuple(mask.shape)} and dtype {mask.dtype}, expected "
            f"{(n_tokens, n_tokens)} and torch.bool with True = may look"
        )
    return mask.tolist()


def _check_sizes(
    tokens: list[str], query: torch.Size, key: torch.Size, value: torch.Size
) -> None:
    if not 1 <= len(tokens) <= MAX_TOKENS:
        raise ValueError(
            f"tokens has {len(tokens)} words, expected between 1 and {MAX_TOKENS}"
        )
    for name, shape in (("query", query), ("key", key), ("value", value)):
        if shape[0] != len(tokens) or shape[1] > MAX_WIDTH:
            raise ValueError(
                f"{name} has shape {tuple(shape)}, expected one row for each of the "
                f"{len(tokens)} tokens and at most {MAX_WIDTH} columns"
            )
    if query[1] != key[1]:
        raise ValueError(
            f"query has width {query[1]} and key has width {key[1]}: a dot product "
            "needs the same width"
        )
