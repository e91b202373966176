"""T5: reads one text and writes another, and learns by filling gaps.

Chapter 10 of the book. The module builds what is new since chapter 09: a learned score
for every distance between two tokens, and the encoder–decoder that uses it.

Left out: what it learns from (`objectives.span_corruption`).

Papers: Raffel et al., 2020 (T5); Shazeer, 2020 (the gated network of version 1.1).

The original does not divide its scores by √D: that factor is in its query weights. Here
attention divides as always, and `pretrained.from_pretrained` multiplies the weights.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import model, transformer


def distance_buckets(
    distance: Tensor, *, both_ways: bool, n_buckets: int = 32, max_distance: int = 128
) -> Tensor:
    """Sort distances into buckets: near ones each alone, far ones many at once.

    Of the buckets of one direction, the first half takes one distance each; in the
    other half their size grows by a constant factor up to ``max_distance``, beyond
    which all is one. Raffel et al., 2020, § 2.1, and the published code.

    Args:
        distance: whole numbers, place of the key minus place of the query
        both_ways: whether later keys have buckets of their own, the second half;
            otherwise they all fall into bucket 0
        n_buckets: how many buckets there are
        max_distance: from here on all distances are one

    Returns:
        Numbers of buckets, of the shape of ``distance``.

    Raises:
        ValueError: if there are too few buckets, or ``max_distance`` lies within those
            of a single distance.

    >>> distance = torch.tensor([0, -1, -2, -3, -20, 1])
    >>> distance_buckets(distance, both_ways=False, n_buckets=4, max_distance=8)
    tensor([0, 1, 2, 2, 3, 0])
    """
    n = n_buckets // 2 if both_ways else n_buckets
    n_single = n // 2
    if n_single < 1 or max_distance <= n_single:
        raise ValueError(
            f"n_buckets={n_buckets} must be at least {4 if both_ways else 2}, and "
            f"max_distance={max_distance} more than the {n_single} single distances"
        )
    away = distance.abs() if both_ways else (-distance).clamp(min=0)
    growth = math.log(max_distance / n_single)
    # Clamped, since the logarithm of 0 is thrown away below.
    steps = torch.log(away.clamp(min=1).float() / n_single) / growth * (n - n_single)
    far = (n_single + steps.long()).clamp(max=n - 1)
    bucket = torch.where(away < n_single, away, far)
    return bucket + n * (distance > 0) if both_ways else bucket


class RelativePosition(nn.Module):
    """A learned score for every distance, for every head.

    The parameter is ``weight``, (n_buckets, H). Raffel et al., 2020, § 2.1.

    Args:
        config: ``n_heads``, ``n_buckets`` and ``max_distance`` count
        both_ways: whether tokens look ahead too
        device: where the parameter is made
        dtype: its floating type

    >>> config = model.ModelConfig(vocab_size=5, n_heads=4)
    >>> RelativePosition(config, both_ways=True)(2, 3).shape
    torch.Size([4, 2, 3])
    """

    def __init__(
        self,
        config: model.ModelConfig,
        *,
        both_ways: bool,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.both_ways = both_ways
        self.max_distance = config.max_distance
        weight = torch.zeros(
            config.n_buckets, config.n_heads, device=device, dtype=dtype
        )
        self.weight = nn.Parameter(weight)

    def forward(self, n_queries: int, n_keys: int) -> Tensor:
        """Make the bias for the scores.

        Args:
            n_queries: T; the queries are the last ones, as in `attention.causal_mask`
            n_keys: S

        Returns:
            (H, T, S)
        """
        places = torch.arange(n_keys, device=self.weight.device)
        distance = places - places[n_keys - n_queries :, None]  # (T, S)
        buckets = distance_buckets(
            distance,
            both_ways=self.both_ways,
            n_buckets=len(self.weight),
            max_distance=self.max_distance,
        )
        return self.weight[buckets].permute(2, 0, 1)  # (T, S, H) -> (H, T, S)


class T5(nn.Module):
    """Reads a source text both ways, and writes a target text.

    Encoder and decoder of chapter 09 share one table of token vectors; all layers of a
    stack share one `RelativePosition`. If the output is tied to that table, what goes
    into it is divided by √C. Raffel et al., 2020, § 2.1.

    Args:
        config: how the model is built; ``position`` must be "none"
        generator: draws the first parameters; torch's own if not given
        device: where the parameters are made; the generator's if not given
        dtype: their floating type

    Raises:
        ValueError: if the configuration asks for other positions.

    >>> config = model.ModelConfig.preset("t5-small", d_model=24, n_layers=2)
    >>> t5 = T5(config, generator=torch.Generator().manual_seed(1))
    >>> t5(source=torch.tensor([[3, 1, 4]]), target=torch.tensor([[0, 5]])).shape
    torch.Size([1, 2, 32128])
    """

    def __init__(
        self,
        config: model.ModelConfig,
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if config.position != "none":
            raise ValueError(
                f"position={config.position!r}: T5 has position='none', since its "
                "positions are in the scores of attention"
            )
        self.config = config
        options = {"device": "meta", "dtype": dtype}
        layers = config.layer_config(), config.n_layers
        self.embedding = model.empty_embedding(config.vocab_size, config.d_model, dtype)
        self.encoder = transformer.Encoder(*layers, **options)
        self.decoder = transformer.Decoder(*layers, **options)
        model.fit_layers(self.encoder, config)
        model.fit_layers(self.decoder, config)
        self.encoder_position = RelativePosition(config, both_ways=True, **options)
        self.decoder_position = RelativePosition(config, both_ways=False, **options)
        self.project_logits = None
        if not config.tied:
            self.project_logits = nn.Linear(
                config.d_model, config.vocab_size, bias=False, **options
            )
        self.dropout = nn.Dropout(config.dropout)
        model.materialise(self, config, generator, device)

    def forward(
        self, source: Tensor, target: Tensor, source_mask: Tensor | None = None
    ) -> Tensor:
        """Score the next token at every place of the target.

        Args:
            source: (B, S), ids
            target: (B, T), ids, what was written so far: in training, the text to be
                written, shifted by `transformer.shift_right`
            source_mask: boolean, (B, S), True = a real token

        Returns:
            The logits, (B, T, V); those at place t see the target up to place t.

        Raises:
            ValueError: if an id is not in the vocabulary or the mask does not fit.
            TypeError: if the mask is not boolean.
        """
        return self.decode(target, self.encode(source, source_mask), source_mask)

    def encode(self, source: Tensor, source_mask: Tensor | None = None) -> Tensor:
        """Read the source.

        Args:
            source: (B, S), ids
            source_mask: boolean, (B, S), True = a real token

        Returns:
            The context for `decode`, (B, S, C).

        Raises:
            ValueError: as in `forward`.
            TypeError: as in `forward`.
        """
        model.check_ids(source, self.config.vocab_size)
        x = self.dropout(self.embedding(source))  # (B, S, C)
        bias = self.encoder_position(source.shape[1], source.shape[1])
        may_look = model.visible(source_mask, *source.shape)
        return self.dropout(self.encoder(x, may_look, bias=bias))

    def decode(
        self,
        target: Tensor,
        context: Tensor,
        source_mask: Tensor | None = None,
        cache: transformer.DecoderCache | None = None,
    ) -> Tensor:
        """Score the next token at every place of the target.

        Args:
            target: (B, T), ids; with a cache, those that came after the last call
            context: (B, S, C), from `encode`
            source_mask: boolean, (B, S), True = a real token
            cache: what earlier calls have read; the new tokens are added to it

        Returns:
            The logits, (B, T, V).

        Raises:
            ValueError: as in `forward`, or if the cache does not fit.
            TypeError: as in `forward`.
        """
        model.check_ids(target, self.config.vocab_size)
        n_tokens = target.shape[1]
        n_keys = n_tokens + (0 if cache is None else len(cache))
        features = self.decoder(
            self.dropout(self.embedding(target)),
            context,
            context_mask=model.visible(source_mask, *context.shape[:2]),
            cache=cache,
            bias=self.decoder_position(n_tokens, n_keys),
        )
        return self.logits(self.dropout(features))

    def logits(self, features: Tensor) -> Tensor:
        """Score every token of the vocabulary: (..., C) -> (..., V)."""
        if self.project_logits is None:
            scaled = features / math.sqrt(self.config.d_model)
            return F.linear(scaled, self.embedding.weight)
        return self.project_logits(features)

    def new_cache(self) -> transformer.DecoderCache:
        """Make an empty cache for `decode`."""
        return transformer.DecoderCache(self.config.n_layers)
