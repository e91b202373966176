"""Interpretation: look inside a model while it reads.

Chapter 18 of the book. The module builds, in this order: how the parts of a model are
found and watched; what the model would say after each of its layers; where its heads
look; what it does without one of them; and the heads that continue what was said
before, found by a test that any language model can take.

It works on every model that is built of the layers of ``lmcore.transformer``, without
changing it: what is watched or switched off is put back at the end, also after an
error.

Left out: attributions, probes, sparse autoencoders, and patching of activations.

Papers: nostalgebraist, 2020 (logit lens); Michel, Levy and Neubig, 2019 (ablation);
Elhage et al., 2021, and Olsson et al., 2022 (induction heads).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from . import require, transformer

Stack = transformer.Encoder | transformer.Decoder
Look = transformer.PositionalAttention
KINDS = ("self_attention", "cross_attention")

# --- Finding the parts --------------------------------------------------------------


def find_stack(model: nn.Module) -> Stack:
    """Find the stack of layers whose output the model's answer is made from.

    Args:
        model: holds a `transformer.Decoder` or, failing that, an `transformer.Encoder`

    Returns:
        The first decoder, or the first encoder.

    Raises:
        ValueError: if there is neither.

    >>> config = transformer.LayerConfig(d_model=8, n_heads=2, d_ff=32)
    >>> find_stack(nn.ModuleList([transformer.Encoder(config, 3)])).layers[2] is None
    False
    """
    for kind in (transformer.Decoder, transformer.Encoder):
        for module in model.modules():
            if isinstance(module, kind):
                return module
    raise ValueError(
        f"{type(model).__name__} holds no Decoder and no Encoder of lmcore.transformer"
    )


def find_attention(model: nn.Module, kind: str = "self_attention") -> list[Look]:
    """Find the attention of every layer of the model's stack.

    Args:
        model: as in `find_stack`
        kind: ``"self_attention"`` or ``"cross_attention"``

    Returns:
        L modules, from the first layer to the last.

    Raises:
        ValueError: if ``kind`` is another, or the layers have none of it.

    >>> config = transformer.LayerConfig(d_model=8, n_heads=2, d_ff=32)
    >>> len(find_attention(transformer.Encoder(config, 3)))
    3
    """
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r} must be one of {', '.join(KINDS)}")
    found = [getattr(layer, kind, None) for layer in find_stack(model).layers]
    if None in found:
        raise ValueError(f"the layers of {type(model).__name__} have no {kind}")
    return found


@contextmanager
def _hooks(handles: list) -> Iterator[None]:
    """Take hooks away again, whatever happens."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


# --- After each layer ---------------------------------------------------------------


@torch.no_grad()
def residual_stream(model: nn.Module, *inputs: Tensor) -> Tensor:
    """Record the stream between the layers while the model reads.

    Args:
        model: as in `find_stack`; should be in eval mode
        inputs: what the model is called with, such as ids (B, T)

    Returns:
        (L + 1, B, T, C): what enters the first layer, then what leaves each layer,
        before the last norm.

    Raises:
        ValueError: if the model has no stack of layers.

    >>> config = transformer.LayerConfig(d_model=8, n_heads=2, d_ff=32)
    >>> residual_stream(transformer.Encoder(config, 3), torch.zeros(1, 5, 8)).shape
    torch.Size([4, 1, 5, 8])
    """
    layers = find_stack(model).layers
    stream: list[Tensor] = []

    def before_the_first(_module: nn.Module, arguments: tuple) -> None:
        stream.append(arguments[0])

    def behind(_module: nn.Module, _arguments: tuple, output: Tensor) -> None:
        stream.append(output)

    handles = [layer.register_forward_hook(behind) for layer in layers]
    handles.append(layers[0].register_forward_pre_hook(before_the_first))
    with _hooks(handles):
        model(*inputs)
    return torch.stack(stream)


@torch.no_grad()
def logit_lens(
    model: nn.Module,
    *inputs: Tensor,
    to_logits: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Let the model answer after each layer, as if that were the last one.

    The stream of every layer goes through the last norm, whose statistics are taken
    anew, and to the scores of the vocabulary. nostalgebraist, 2020.

    Args:
        model: as in `find_stack`; should be in eval mode
        inputs: what the model is called with, such as ids (B, T)
        to_logits: from normed features (..., C) to logits (..., V); the model's own
            ``logits`` or ``project_logits`` if not given

    Returns:
        (L + 1, B, T, V): from what enters the first layer, then from what leaves each;
        the last are the model's own logits.

    Raises:
        ValueError: if the model has no stack of layers or no way to logits.

    >>> from lmcore.model import GPT, ModelConfig
    >>> model = GPT(ModelConfig.preset("tiny"))
    >>> logit_lens(model, torch.tensor([[3, 1, 4]])).shape
    torch.Size([3, 1, 3, 256])
    """
    if to_logits is None:
        to_logits = getattr(model, "logits", None) or getattr(
            model, "project_logits", None
        )
    if to_logits is None:
        raise ValueError(
            f"{type(model).__name__} has neither logits nor project_logits: "
            "give to_logits"
        )
    final_norm = find_stack(model).final_norm
    stream = residual_stream(model, *inputs)
    return torch.stack([to_logits(final_norm(x)) for x in stream])


# --- Where heads look ---------------------------------------------------------------


@torch.no_grad()
def attention_pattern(
    model: nn.Module, *inputs: Tensor, kind: str = "self_attention"
) -> Tensor:
    """Record the weights of all heads while the model reads.

    A model that was built ``fused`` computes no weights; for this call it does.

    Args:
        model: as in `find_stack`; should be in eval mode
        inputs: what the model is called with, such as ids (B, T)
        kind: ``"self_attention"`` or ``"cross_attention"``

    Returns:
        (L, B, H, T, S): how much each token looks at each other; sums to 1 over S.

    Raises:
        ValueError: if the model has no attention of this kind.

    >>> config = transformer.LayerConfig(d_model=8, n_heads=2, d_ff=32)
    >>> decoder = transformer.Decoder(config, 3, cross_attention=False)
    >>> attention_pattern(decoder, torch.zeros(1, 5, 8)).shape
    torch.Size([3, 1, 2, 5, 5])
    """
    looks = find_attention(model, kind)
    patterns: dict[Look, Tensor] = {}

    def keep(module: Look, _arguments: tuple, output: tuple[Tensor, Tensor]) -> None:
        patterns[module] = output[1]

    was_fused = [look.fused for look in looks]
    try:
        with _hooks([look.register_forward_hook(keep) for look in looks]):
            for look in looks:
                look.fused = False
            model(*inputs)
    finally:
        for look, fused in zip(looks, was_fused, strict=True):
            look.fused = fused
    return torch.stack([patterns[look] for look in looks])


# --- Without a head -----------------------------------------------------------------


@contextmanager
def ablate_head(
    model: nn.Module, layer: int, head: int, kind: str = "self_attention"
) -> Iterator[None]:
    """Switch one head off, for as long as the ``with`` block lasts.

    What the head found is replaced by zeros before the output projection, where the
    heads still lie side by side. Several heads: one ``with`` for each. Michel, Levy and
    Neubig, 2019, § 2.2.

    Args:
        model: as in `find_stack`
        layer: from 0; negative numbers count from the last
        head: from 0 to H - 1
        kind: ``"self_attention"`` or ``"cross_attention"``

    Raises:
        ValueError: if there is no such layer, head or kind of attention.

    >>> config = transformer.LayerConfig(d_model=8, n_heads=2, d_ff=32)
    >>> encoder, x = transformer.Encoder(config, 3), torch.randn(1, 5, 8)
    >>> with ablate_head(encoder, layer=1, head=0):
    ...     without = encoder(x)
    >>> torch.equal(without, encoder(x))
    False
    """
    looks = find_attention(model, kind)
    if not -len(looks) <= layer < len(looks):
        raise ValueError(f"layer={layer} must lie between 0 and {len(looks) - 1}")
    heads = looks[layer].heads
    require.between(0, heads.n_heads - 1, head=head)

    def silence(_module: nn.Module, arguments: tuple[Tensor]) -> tuple[Tensor]:
        each = arguments[0].unflatten(-1, (heads.n_heads, -1)).clone()  # (B, T, H, D)
        each[..., head, :] = 0.0
        return (each.flatten(-2),)

    with _hooks([heads.project_output.register_forward_pre_hook(silence)]):
        yield


# --- Heads that continue what was said before ---------------------------------------


@dataclass(frozen=True)
class HeadScore:
    """A head, and how strongly it does what was looked for.

    >>> HeadScore(layer=1, head=0, score=0.9).layer
    1
    """

    layer: int
    head: int
    score: float  # a mean weight of attention, from 0 to 1


def repeated_tokens(
    n_texts: int, n_tokens: int, vocab_size: int, generator: torch.Generator
) -> Tensor:
    """Draw random texts and write each of them twice, one behind the other.

    Nothing helps to foretell the second half but the first. Olsson et al., 2022, § 2.

    Args:
        n_texts: B
        n_tokens: T, the length of one half; at least 2
        vocab_size: V
        generator: draws the tokens, on its own device

    Returns:
        (B, 2 T) ids.

    Raises:
        ValueError: if a number is too small.

    >>> repeated_tokens(1, 3, vocab_size=9, generator=torch.Generator().manual_seed(1))
    tensor([[4, 5, 0, 4, 5, 0]])
    """
    if n_texts < 1 or n_tokens < 2 or vocab_size < 1:
        raise ValueError(
            f"n_texts={n_texts} and vocab_size={vocab_size} must be at least 1 and "
            f"n_tokens={n_tokens} at least 2"
        )
    half = torch.randint(
        vocab_size, (n_texts, n_tokens), generator=generator, device=generator.device
    )
    return torch.cat([half, half], dim=1)


def induction_scores(pattern: Tensor) -> Tensor:
    """Measure how much heads look one step behind the earlier copy of a token.

    In a text of T tokens that is said twice, the token at T + i stood at i before, and
    what came next then stands at i + 1. The score is the mean weight from T + i to
    i + 1, over the second half. Olsson et al., 2022, § 2.

    Args:
        pattern: (..., 2 T, 2 T), the weights of heads on a `repeated_tokens` text

    Returns:
        (...), between 0 and 1.

    Raises:
        ValueError: if the last two axes are not equal and even, or shorter than 4.

    >>> pattern = torch.zeros(4, 4)
    >>> pattern[2, 1] = 1.0  # T = 2: the first repeated token looks at what followed
    >>> induction_scores(pattern)
    tensor(0.5000)
    """
    n_queries, n_keys = pattern.shape[-2:]
    if n_queries != n_keys or n_queries % 2 or n_queries < 4:
        raise ValueError(
            f"pattern has shape {tuple(pattern.shape)}, expected (..., 2 T, 2 T), T ≥ 2"
        )
    period = n_queries // 2
    stripe = pattern.diagonal(1 - period, dim1=-2, dim2=-1)  # (..., T + 1)
    # The first of them belongs to the last token of the first half.
    return stripe[..., 1:].mean(dim=-1)


def find_induction_heads(
    model: nn.Module,
    vocab_size: int,
    *,
    n_tokens: int = 24,
    n_texts: int = 8,
    threshold: float = 0.4,
    generator: torch.Generator,
) -> list[HeadScore]:
    """Find the heads that look at what followed a token the last time.

    Such heads let a model continue a text that repeats, of words it has never seen
    together: the simplest form of learning from the context. Olsson et al., 2022.

    Args:
        model: from ids (B, T) to anything, as in `find_stack`; should be in eval mode
        vocab_size: V, of which the test texts are drawn
        n_tokens: T, the length of one half; the model must take 2 T
        n_texts: B
        threshold: the least score of a head that is returned
        generator: draws the test texts, on the model's device

    Returns:
        The heads, the strongest first.

    Raises:
        ValueError: if the model has no self-attention or a number is too small.

    >>> from lmcore.model import GPT, ModelConfig
    >>> model, dice = GPT(ModelConfig.preset("tiny")), torch.Generator().manual_seed(1)
    >>> find_induction_heads(model, 256, generator=dice)  # untrained
    []
    """
    ids = repeated_tokens(n_texts, n_tokens, vocab_size, generator)
    scores = induction_scores(attention_pattern(model, ids)).mean(dim=1)  # (L, H)
    heads = [
        HeadScore(layer, head, score)
        for layer, row in enumerate(scores.tolist())
        for head, score in enumerate(row)
        if score >= threshold
    ]
    return sorted(heads, key=lambda found: -found.score)
