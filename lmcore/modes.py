"""Training and evaluating: a model that is measured, or that writes, drops nothing out.

Used from chapter 11 on. Dropout works in training only, and every part of a model knows
by its own ``training`` whether this is training. Whoever looks at a model in between
must switch that off, and afterwards leave every part as it was found: a part that was
frozen on purpose must not wake up.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Switch dropout off for a while; afterwards every part is as it was found.

    Gradients are another matter: `torch.no_grad` switches them off.

    Args:
        models: whatever is to be still; a part that two of them share is no trouble

    >>> model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
    >>> with evaluating(model):
    ...     model.training, model[1].training
    (False, False)
    >>> model.training, model[1].training
    (True, True)
    """
    parts = [part for model in models for part in model.modules() if part.training]
    for part in parts:
        part.training = False
    try:
        yield
    finally:
        for part in parts:
            part.training = True
