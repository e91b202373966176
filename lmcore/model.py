"""Four families of models, made of one block: what differs is who may look at whom.

Chapter 10 of the book. This module builds, in this order: one configuration for all
families, the decoder that continues a text (GPT), the same with a prompt that is read
both ways (PrefixLM), and what a model costs. The rest of the chapter has modules of its
own, and their names can be used as if they stood here: ``lmcore.bert`` (BERT),
``lmcore.t5`` (T5), ``lmcore.objectives`` (what each family learns from),
``lmcore.mixture`` (mixture of experts) and ``lmcore.pretrained`` (published weights).

Left out: training (``lmcore.train``, chapter 11) and writing (``lmcore.sample``,
chapter 14).

Papers: Radford et al., 2019 (GPT-2); Touvron et al., 2023 (Llama); Dong et al., 2019
(UniLM: the prefix mask); Kaplan et al., 2020, and Chowdhery et al., 2022 (what a token
costs).

Masks are boolean: True means "may look", or for a mask (B, T) "a real token".
"""

import dataclasses
import importlib
import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import attention, mixture, position, require, transformer

POSITIONS = ("learned", "sinusoidal", "rope", "alibi", "none")
FEED_FORWARDS = (*transformer.FEED_FORWARDS, "geglu")


# --- One configuration for all families ---------------------------------------------


@dataclass(frozen=True)
class ModelConfig:
    """How a model is built, of whichever family.

    >>> ModelConfig(vocab_size=65, d_model=128).hidden_width
    512
    >>> ModelConfig.preset("gpt2", dropout=0.1).n_layers
    12
    """

    vocab_size: int  # V
    max_len: int = 256  # how many tokens a text has at most
    d_model: int = 128  # C, the width of a token
    n_layers: int = 4  # L; for T5 in the encoder and again in the decoder
    n_heads: int = 4  # H
    n_kv_heads: int | None = None  # H_kv, a divisor of H; H if not given
    d_head: int | None = None  # D; C / H if not given
    d_ff: int | None = None  # F; 4 · C if not given
    feed_forward: str = "gelu_tanh"  # as in `transformer.LayerConfig`, or "geglu"
    norm: str = "layer"  # "layer" or "rms"
    norm_first: bool = True  # norm before each step; BERT has it behind
    norm_eps: float = 1e-5  # keeps the root of the norm away from 0
    bias: bool = True  # whether projections add a bias, and LayerNorm a shift
    qkv_bias: bool | None = None  # the same for queries, keys and values; as bias
    position: str = "learned"  # learned, sinusoidal, rope, alibi or none
    rope_base: float = 10_000.0  # decides how slowly rotary positions turn
    tied: bool = True  # whether the output reuses the vectors of the input
    n_experts: int = 0  # feed-forward networks per layer to choose from; 0 = just one
    top_k: int = 2  # how many experts a token visits
    n_buckets: int = 32  # T5: how many distances have a score of their own
    max_distance: int = 128  # T5: from here on all distances are one
    dropout: float = 0.0  # the share dropped in training
    init_std: float = 0.02  # standard deviation of the first weights
    fused: bool = True  # PyTorch's fast attention and norms, without the weights

    def __post_init__(self) -> None:
        """Refuse what does not fit."""
        for name in ("vocab_size", "max_len", "d_model", "n_layers", "n_heads"):
            require.at_least_one(**{name: getattr(self, name)})
        if self.d_head is None:
            require.divisible(d_model=self.d_model, n_heads=self.n_heads)
        require.divisible(n_heads=self.n_heads, n_kv_heads=self.key_heads)
        if self.position == "rope" and self.head_width % 2 != 0:
            raise ValueError(
                f"d_head={self.head_width} must be even for rotary positions"
            )
        if self.n_experts and not 1 <= self.top_k <= self.n_experts:
            raise ValueError(
                f"top_k={self.top_k} must lie between 1 and n_experts={self.n_experts}"
            )
        require.one_of("position", self.position, POSITIONS)
        require.one_of("feed_forward", self.feed_forward, FEED_FORWARDS)
        self.layer_config()

    @property
    def key_heads(self) -> int:
        """H_kv, how many heads the keys and values have."""
        return self.n_heads if self.n_kv_heads is None else self.n_kv_heads

    @property
    def head_width(self) -> int:
        """D, how many numbers a head has of a token."""
        return self.d_model // self.n_heads if self.d_head is None else self.d_head

    @property
    def hidden_width(self) -> int:
        """F, the width between the two halves of the feed-forward network."""
        return 4 * self.d_model if self.d_ff is None else self.d_ff

    @property
    def key_bias(self) -> bool:
        """Whether the projections to queries, keys and values add a bias."""
        return self.bias if self.qkv_bias is None else self.qkv_bias

    @classmethod
    def preset(cls, name: str, **changes: object) -> "ModelConfig":
        """Give the configuration of a known model, with changes if wanted.

        Args:
            name: one of `PRESETS`
            changes: fields that are to differ

        Returns:
            The configuration.

        Raises:
            ValueError: if there is no such preset.

        >>> ModelConfig.preset("tiny", n_layers=1).n_layers
        1
        """
        require.one_of("preset", name, PRESETS)
        return dataclasses.replace(PRESETS[name], **changes)

    def layer_config(self) -> transformer.LayerConfig:
        """Give the part that the layers of chapter 09 understand.

        >>> ModelConfig(vocab_size=5, d_model=8, n_heads=2).layer_config().d_ff
        32
        """
        gated = self.feed_forward == "geglu"
        own_width = self.head_width * self.n_heads != self.d_model
        return transformer.LayerConfig(
            d_model=self.d_model,
            n_heads=1 if own_width else self.n_heads,  # until `fit_layers`
            d_ff=self.hidden_width,
            n_kv_heads=1 if own_width else self.key_heads,
            feed_forward="swiglu" if gated else self.feed_forward,
            norm=self.norm,
            norm_first=self.norm_first,
            norm_eps=self.norm_eps,
            bias=self.bias,
            dropout=self.dropout,
            fused=self.fused,
        )


_LLAMA = {
    "feed_forward": "swiglu",
    "norm": "rms",
    "bias": False,
    "position": "rope",
}
PRESETS = {
    # For tests and pictures: a step is milliseconds.
    "tiny": ModelConfig(vocab_size=256, max_len=64, d_model=32, n_layers=2, n_heads=2),
    # Characters of Shakespeare on two CPU cores.
    "shakespeare": ModelConfig(vocab_size=96, max_len=128, d_model=128, n_layers=4),
    "llama-tiny": ModelConfig(
        vocab_size=256, max_len=128, d_model=64, n_kv_heads=2, d_ff=172, **_LLAMA
    ),
    "gpt2": ModelConfig(
        vocab_size=50_257, max_len=1024, d_model=768, n_layers=12, n_heads=12
    ),
    "bert-base": ModelConfig(
        vocab_size=30_522,
        max_len=512,
        d_model=768,
        n_layers=12,
        n_heads=12,
        feed_forward="gelu",
        norm_first=False,
        norm_eps=1e-12,
    ),
    "t5-small": ModelConfig(
        vocab_size=32_128,
        max_len=512,
        d_model=512,
        n_layers=6,
        n_heads=8,
        feed_forward="relu",
        norm="rms",
        norm_eps=1e-6,
        bias=False,
        position="none",
    ),
}


# --- What all families share --------------------------------------------------------


class GeGLU(transformer.SwiGLU):
    """The gated network of `transformer.SwiGLU` with GELU in the gate.

    ``(gelu(x W_gate) · x W_up) W_down``, with the approximation of GELU by tanh.
    Shazeer, 2020, eq. (6); the feed-forward network of T5 since version 1.1.

    >>> GeGLU(d_model=2, d_ff=8)(torch.zeros(1, 3, 2)).shape
    torch.Size([1, 3, 2])
    """

    def forward(self, x: Tensor) -> Tensor:
        """Work on every token by itself: (..., C) -> (..., C)."""
        gate = F.gelu(self.project_gate(x), approximate="tanh")  # (..., F)
        return self.project_down(self.dropout(gate * self.project_up(x)))


def fit_layers(
    stack: transformer.Encoder | transformer.Decoder, config: ModelConfig
) -> None:
    """Give the layers of chapter 09 what only some models have.

    These are heads whose width is not C / H, a bias for queries, keys and values only,
    experts, and another gate.

    Args:
        stack: its layers are changed in place, and have to be drawn afterwards
        config: how the model is built

    >>> config = ModelConfig(vocab_size=5, d_model=8, n_heads=2, d_head=6)
    >>> stack = transformer.Encoder(config.layer_config(), n_layers=1)
    >>> fit_layers(stack, config)
    >>> stack.layers[0].self_attention.heads.project_query
    Linear(in_features=8, out_features=12, bias=True)
    """
    layer_config = config.layer_config()
    for layer in stack.layers:
        _fit_heads(layer.self_attention.heads, config)
        if getattr(layer, "cross_attention", None) is not None:
            _fit_heads(layer.cross_attention.heads, config)
        network = layer.feed_forward
        options = {"device": network.project_up.weight.device}
        options["dtype"] = network.project_up.weight.dtype
        if config.feed_forward == "geglu":
            network = GeGLU(
                config.d_model,
                config.hidden_width,
                bias=config.bias,
                dropout=config.dropout,
                **options,
            )
        if config.n_experts:
            network = mixture.MixtureOfExperts(
                layer_config, config.n_experts, config.top_k, **options
            )
        layer.feed_forward = network


def _fit_heads(heads: attention.MultiHeadAttention, config: ModelConfig) -> None:
    width = config.n_heads * config.head_width
    if width == config.d_model and config.key_bias == config.bias:
        return
    heads.n_heads, heads.n_kv_heads = config.n_heads, config.key_heads
    weight = heads.project_query.weight
    linear = partial(nn.Linear, device=weight.device, dtype=weight.dtype)
    kv_width = config.key_heads * config.head_width
    heads.project_query = linear(config.d_model, width, config.key_bias)
    heads.project_key = linear(config.d_model, kv_width, config.key_bias)
    heads.project_value = linear(config.d_model, kv_width, config.key_bias)
    heads.project_output = linear(width, config.d_model, config.bias)


def empty_embedding(
    n_rows: int, d_model: int, dtype: torch.dtype | None = None
) -> nn.Embedding:
    """Make a table of vectors without memory, for `materialise`.

    `nn.Embedding` would draw them even on the meta device, for which torch imports its
    whole compiler: seconds for nothing.

    Args:
        n_rows: how many vectors
        d_model: C
        dtype: their floating type

    >>> empty_embedding(5, 2).weight.shape
    torch.Size([5, 2])
    """
    weight = torch.empty(n_rows, d_model, dtype=dtype, device="meta")
    return nn.Embedding.from_pretrained(weight, freeze=False)


def initialise(
    model: nn.Module, config: ModelConfig, generator: torch.Generator | None = None
) -> None:
    """Give every parameter of a model its first value.

    Matrices are drawn from a normal distribution; those that write to the residual
    stream are smaller by √(2 L), so that the sum over all layers is not too large.
    Shifts become 0 and scales 1. Radford et al., 2019, § 2.3.

    Args:
        model: changed in place; on the meta device nothing happens
        config: ``init_std`` and ``n_layers`` count
        generator: draws the numbers, on its own device; torch's own if not given

    >>> model = nn.Linear(1, 1)
    >>> initialise(model, ModelConfig(vocab_size=5), torch.Generator().manual_seed(1))
    >>> model.bias.tolist()
    [0.0]
    """
    for name, parameter in model.named_parameters():
        if parameter.device.type == "meta":
            continue
        with torch.no_grad():
            if parameter.dim() < 2:
                is_scale = name.rpartition(".")[-1] == "weight"
                parameter.fill_(1.0 if is_scale else 0.0)
                continue
            std = config.init_std
            if name.endswith(("project_output.weight", "project_down.weight")):
                std /= math.sqrt(2 * config.n_layers)
            where = parameter.device if generator is None else generator.device
            drawn = torch.empty_like(parameter, device=where)
            parameter.copy_(drawn.normal_(0.0, std, generator=generator))


def materialise(
    model: nn.Module,
    config: ModelConfig,
    generator: torch.Generator | None,
    device: torch.device | str | None,
) -> None:
    """Give memory and first values to a model that was built on the meta device.

    Args:
        model: changed in place
        config: as in `initialise`
        generator: draws the numbers, on its own device; torch's own if not given
        device: where the parameters are to be; the generator's if not given

    >>> model = nn.Linear(1, 1, device="meta")
    >>> materialise(model, ModelConfig(vocab_size=5), None, "cpu")
    >>> model.bias.tolist()
    [0.0]
    """
    if device is None:
        own = torch.get_default_device()
        device = own if generator is None else generator.device
    model.to_empty(device=device)
    initialise(model, config, generator)


def visible(mask: Tensor | None, n_rows: int, n_keys: int) -> Tensor | None:
    """Bring a mask into the form that attention takes.

    Args:
        mask: boolean; (B, S), True = a real token, or (B, T, S) or (B, H, T, S),
            True = may look
        n_rows: B
        n_keys: S

    Returns:
        A mask of four axes, broadcastable to (B, H, T, S); None if there was none.

    Raises:
        TypeError: if the mask is not boolean.
        ValueError: if its shape does not fit.

    >>> visible(torch.tensor([[True, False]]), n_rows=1, n_keys=2).shape
    torch.Size([1, 1, 1, 2])
    """
    if mask is None:
        return None
    if mask.dtype != torch.bool:
        raise TypeError(f"mask has dtype {mask.dtype}, expected torch.bool")
    fits = (
        2 <= mask.dim() <= 4
        and mask.shape[0] in (1, n_rows)
        and mask.shape[-1] in (1, n_keys)
    )
    if not fits:
        raise ValueError(
            f"mask has shape {tuple(mask.shape)}, expected (B, S) = {n_rows, n_keys}, "
            "(B, T, S) or (B, H, T, S), where S counts also the tokens in the cache"
        )
    if mask.dim() == 2:
        return mask[:, None, None, :]  # (B, 1, 1, S)
    return mask[:, None] if mask.dim() == 3 else mask


def token_positions(mask: Tensor | None, start: int, ids: Tensor) -> Tensor:
    """Say where the tokens stand: padding before a text does not push it back.

    Args:
        mask: boolean, (B, S), True = a real token; other masks say nothing about it
        start: how many tokens were read before
        ids: (B, T), the tokens, which are the last of the S

    Returns:
        Positions, (T,), or (B, T) if there is padding to leave out.

    >>> mask = torch.tensor([[False, True, True]])
    >>> token_positions(mask, 0, torch.zeros(1, 3, dtype=torch.int64))
    tensor([[0, 0, 1]])
    """
    n_tokens = ids.shape[1]
    if mask is None or mask.dim() != 2:
        return torch.arange(start, start + n_tokens, device=ids.device)
    counted = mask.expand(ids.shape[0], start + n_tokens).cumsum(dim=1) - 1
    return counted.clamp(min=0)[:, start:]  # (B, T)


def check_ids(ids: Tensor, vocab_size: int) -> None:
    """Refuse ids that are not (B, T) whole numbers of the vocabulary.

    Args:
        ids: what a model was given
        vocab_size: V

    Raises:
        ValueError: if the shape, the type or a number is wrong.

    >>> check_ids(torch.tensor([[0, 7]]), vocab_size=5)
    Traceback (most recent call last):
    ...
    ValueError: ids from 0 to 7 must lie between 0 and vocab_size - 1 = 4
    """
    if ids.dim() != 2 or ids.is_floating_point() or ids.dtype == torch.bool:
        raise ValueError(
            f"ids is {ids.dtype} of shape {tuple(ids.shape)}, expected whole numbers "
            "(B, T)"
        )
    require.indices("ids", ids, vocab_size=vocab_size)


# --- GPT ----------------------------------------------------------------------------


class GPT(nn.Module):
    """Reads a text from left to right and scores the next token at every place.

    Token vectors, positions, the decoder of chapter 09 without cross-attention, and a
    score for every token of the vocabulary. With the fields of `ModelConfig` it is
    GPT-2 (Radford et al., 2019), Llama (Touvron et al., 2023), Qwen2 or Mixtral.

    The parts are ``embedding`` (V, C), ``position`` (None unless learned), ``decoder``
    and ``project_logits`` (None if tied).

    Args:
        config: how the model is built
        generator: draws the first parameters; torch's own if not given
        device: where the parameters are made; the generator's if not given
        dtype: their floating type

    Raises:
        ValueError: if the norm is to stand behind a step, which the stack of a decoder
            without last norm would not survive.

    >>> dice = torch.Generator().manual_seed(1)
    >>> model = GPT(ModelConfig.preset("tiny"), generator=dice)
    >>> model(torch.tensor([[3, 1, 4]])).shape
    torch.Size([1, 3, 256])
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        # On the meta device nothing is drawn: `materialise` alone is to decide.
        options = {"device": "meta", "dtype": dtype}
        self.embedding = empty_embedding(config.vocab_size, config.d_model, dtype)
        self.position = None
        if config.position == "learned":
            self.position = position.LearnedPosition(
                config.max_len, config.d_model, generator=torch.Generator(), dtype=dtype
            )
        self.decoder = transformer.Decoder(
            config.layer_config(), config.n_layers, cross_attention=False, **options
        )
        fit_layers(self.decoder, config)
        self.project_logits = None
        if not config.tied:
            self.project_logits = nn.Linear(
                config.d_model, config.vocab_size, bias=False, **options
            )
        self.dropout = nn.Dropout(config.dropout)
        materialise(self, config, generator, device)

    def forward(
        self,
        ids: Tensor,
        mask: Tensor | None = None,
        cache: transformer.DecoderCache | None = None,
        *,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Score the next token at every place.

        Args:
            ids: (B, T); with a cache, the tokens that came after the last call
            mask: boolean; (B, S), True = a real token, or (B, T, S) or (B, H, T, S),
                True = may look, as far as causality allows. S counts the tokens in the
                cache too; without a cache S = T.
            cache: what earlier calls have read (`new_cache`); it is added to
            positions: (T,) or (B, T), where the tokens stand. If not given, they
                follow each other, and with a mask (B, S) padding is not counted.

        Returns:
            The logits, (B, T, V); those at place t see the text up to place t.

        Raises:
            ValueError: if an id is not in the vocabulary, the text is too long for the
                learned positions, or mask or cache do not fit.
            TypeError: if the mask is not boolean.
        """
        return self.logits(self.features(ids, mask, cache, positions=positions))

    def features(
        self,
        ids: Tensor,
        mask: Tensor | None = None,
        cache: transformer.DecoderCache | None = None,
        *,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Describe every token in its context, behind the last norm.

        Args:
            ids: (B, T)
            mask: as in `forward`
            cache: as in `forward`
            positions: as in `forward`

        Returns:
            (B, T, C)

        Raises:
            ValueError: as in `forward`.
            TypeError: as in `forward`.
        """
        return self._features(ids, mask, cache, positions)

    def logits(self, features: Tensor) -> Tensor:
        """Score every token of the vocabulary.

        Args:
            features: (..., C)

        Returns:
            (..., V)
        """
        if self.project_logits is None:
            return F.linear(features, self.embedding.weight)  # (..., C) -> (..., V)
        return self.project_logits(features)

    def new_cache(self) -> transformer.DecoderCache:
        """Make an empty cache for `forward`."""
        return transformer.DecoderCache(self.config.n_layers)

    def balance_loss(self) -> Tensor:
        """Say how unevenly the experts were used in the last call.

        Returns:
            The mean of `mixture.load_balancing_loss` over the layers: 1 if all experts
            were used alike, and up to ``n_experts`` if all tokens visit the same.

        Raises:
            ValueError: if the model has no experts.
            RuntimeError: if it was never called.
        """
        if self.config.n_experts == 0:
            raise ValueError("n_experts=0: there is nothing to balance")
        losses = [layer.feed_forward.balance_loss() for layer in self.decoder.layers]
        return torch.stack(losses).mean()

    def _features(
        self,
        ids: Tensor,
        mask: Tensor | None,
        cache: transformer.DecoderCache | None,
        positions: Tensor | None,
        *,
        causal: bool = True,
    ) -> Tensor:
        check_ids(ids, self.config.vocab_size)
        start = 0 if cache is None else len(cache)
        may_look = visible(mask, len(ids), start + ids.shape[1])
        if positions is None:
            positions = token_positions(mask, start, ids)
        x = self._add_positions(self.embedding(ids), positions)  # (B, T, C)
        return self.decoder(
            self.dropout(x),
            mask=may_look,
            cache=cache,
            causal=causal and ids.shape[1] > 1,  # a last token sees all anyway
            rotate=self._rotation(positions),
            bias=self._bias(ids.shape[1], start, x),
        )

    def _add_positions(self, x: Tensor, positions: Tensor) -> Tensor:
        if self.config.position == "learned":
            return self.position(x, positions)
        if self.config.position == "sinusoidal":
            table = position.sinusoidal_positions(
                int(positions.max()) + 1, x.shape[-1], device=x.device, dtype=x.dtype
            )
            return x + table[positions]
        return x

    def _rotation(self, positions: Tensor) -> partial | None:
        if self.config.position != "rope":
            return None
        frequencies = position.rope_frequencies(
            self.config.head_width, self.config.rope_base, positions.device
        )
        positions = positions if positions.dim() == 1 else positions[:, None]
        return partial(
            position.apply_rope, positions=positions, frequencies=frequencies
        )

    def _bias(self, n_tokens: int, start: int, x: Tensor) -> Tensor | None:
        if self.config.position != "alibi":
            return None
        return position.alibi_bias(
            self.config.n_heads, n_tokens, start + n_tokens, x.device
        )


class PrefixLM(GPT):
    """A GPT whose prompt looks both ways, and whose answer looks only back.

    Built as `GPT`; with an empty prefix it is one. Dong et al., 2019, § 2.3; Raffel et
    al., 2020, § 3.2.1.

    >>> dice = torch.Generator().manual_seed(1)
    >>> model = PrefixLM(ModelConfig.preset("tiny"), generator=dice)
    >>> ids = torch.tensor([[3, 1, 4, 1], [2, 7, 1, 8]])
    >>> model(ids, prefix_length=torch.tensor([2, 3])).shape
    torch.Size([2, 4, 256])
    """

    def forward(
        self,
        ids: Tensor,
        mask: Tensor | None = None,
        cache: transformer.DecoderCache | None = None,
        *,
        prefix_length: int | Tensor = 0,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Score the next token at every place.

        Args:
            ids: (B, T); with a cache, the tokens that came after the last call
            mask: as in `GPT.forward`
            cache: as in `GPT.forward`; the first call must read the whole prefix
            prefix_length: how many tokens are the prompt, one number or (B,)
            positions: as in `GPT.forward`

        Returns:
            The logits, (B, T, V).

        Raises:
            ValueError: if a prefix does not fit the text, or begins in the cache and
                goes on in ``ids``; and as in `GPT.forward`.
            TypeError: if the mask is not boolean.
        """
        features = self.features(
            ids, mask, cache, prefix_length=prefix_length, positions=positions
        )
        return self.logits(features)

    def features(
        self,
        ids: Tensor,
        mask: Tensor | None = None,
        cache: transformer.DecoderCache | None = None,
        *,
        prefix_length: int | Tensor = 0,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Describe every token in its context: (B, T) -> (B, T, C), as `forward`."""
        start = 0 if cache is None else len(cache)
        n_rows, n_tokens = ids.shape[0], ids.shape[1]
        n_keys = start + n_tokens
        lengths = torch.as_tensor(prefix_length).expand(n_rows).tolist()
        if start > 0 and max(lengths, default=0) > start:
            raise ValueError(
                f"prefix_length={max(lengths)} is more than the {start} tokens in the "
                "cache: read the whole prefix in the first call"
            )
        masks = [attention.prefix_mask(n_keys, n, ids.device) for n in lengths]
        may_look = torch.stack(masks)[:, None, start:]  # (B, 1, T, S)
        if positions is None:
            positions = token_positions(mask, start, ids)
        if mask is not None:
            may_look = may_look & visible(mask, n_rows, n_keys)
        return self._features(ids, may_look, cache, positions, causal=False)


# --- What a model costs -------------------------------------------------------------


def parameter_count(model: nn.Module | ModelConfig) -> int:
    """Count the numbers that a model learns, each once.

    A tensor with two names, such as the tied vectors of GPT-2, counts once.

    Args:
        model: any module, or the configuration of a `GPT`, of which no memory is needed

    Returns:
        How many numbers.

    >>> parameter_count(ModelConfig.preset("gpt2"))
    124439808
    """
    if isinstance(model, ModelConfig):
        model = GPT(model, device="meta")
    return sum(parameter.numel() for parameter in model.parameters())


def flops_per_token(
    config: ModelConfig, n_tokens: int | None = None, *, training: bool = True
) -> int:
    """Estimate how many operations a `GPT` spends on one token of a text.

    Every weight that a token meets costs a multiplication and an addition, and so does
    every number of every key for the score, and of every value for the average: 2 N + 4
    L H D T forward. Backward is twice as dear: 6 N + 12 L H D T together. Kaplan et
    al., 2020, § 2.1; Chowdhery et al., 2022 (PaLM), appendix B.

    N leaves out tables that are only looked up (positions, and the input vectors unless
    they are tied to the output) and experts that a token does not visit. As in the
    paper, causality is not deducted.

    Args:
        config: how the model is built
        n_tokens: T, the length of the text; ``max_len`` if not given
        training: forward and backward, or forward alone

    Returns:
        Floating-point operations per token.

    Raises:
        ValueError: if ``n_tokens`` is negative.

    >>> config = ModelConfig.preset("gpt2")
    >>> round(flops_per_token(config) / (6 * parameter_count(config)), 3)
    1.145
    """
    n_tokens = config.max_len if n_tokens is None else n_tokens
    require.not_negative(n_tokens=n_tokens)
    model = GPT(config, device="meta")
    n_used = parameter_count(model)
    if model.position is not None:
        n_used -= parameter_count(model.position)
    if not config.tied:
        n_used -= parameter_count(model.embedding)
    if config.n_experts:
        experts = model.decoder.layers[0].feed_forward.experts
        n_idle = config.n_experts - config.top_k
        n_used -= config.n_layers * n_idle * parameter_count(experts[0])
    width = config.n_heads * config.head_width
    forward = 2 * n_used + 4 * config.n_layers * width * n_tokens
    return 3 * forward if training else forward


# --- The rest of the chapter --------------------------------------------------------

ELSEWHERE = {
    "bert": ("BERT",),
    "t5": ("T5",),
    "objectives": (
        "mask_tokens",
        "next_sentence_pairs",
        "span_corruption",
        "prefix_lm_batch",
    ),
    "mixture": ("TopKRouter", "MixtureOfExperts", "load_balancing_loss"),
    "pretrained": ("from_pretrained", "save_pretrained"),
}


def __getattr__(name: str) -> object:
    # Looked up at every use, so that a student's version in its module is found.
    for module, names in ELSEWHERE.items():
        if name in names:
            return getattr(importlib.import_module(f"{__package__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
