"""BERT: a model that reads in both directions, to understand and not to write.

Chapter 10 of the book. Every token looks at the whole text, so that predicting the next
one would be cheating; the model learns from words that are hidden and from pairs of
sentences instead (``lmcore.objectives``).

Left out: the heads of the tasks that a trained BERT is made for (``lmcore.finetune``,
chapter 12).

Paper: Devlin, Chang, Lee and Toutanova, 2019.
"""

import dataclasses

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import model, position, transformer


class BERT(nn.Module):
    """Describes every token by the whole text, and guesses the tokens that are hidden.

    The sum of the vectors of token, segment and position, normalised; the encoder of
    chapter 09; then a head for hidden tokens, and one that says whether the second
    sentence follows the first. Devlin et al., 2019, § 3.

    Args:
        config: how the model is built; positions are learned, and the output is tied
        next_sentence: whether there is a head for pairs of sentences
        generator: draws the first parameters; torch's own if not given
        device: where the parameters are made; the generator's if not given
        dtype: their floating type

    Raises:
        ValueError: if the configuration asks for other positions or an output that is
            not tied.

    >>> config = model.ModelConfig.preset("bert-base", d_model=24, n_layers=2)
    >>> bert = BERT(config, generator=torch.Generator().manual_seed(1))
    >>> features = bert.features(torch.tensor([[3, 1, 4]]))
    >>> bert.logits(features).shape, bert.next_sentence_logits(features).shape
    (torch.Size([1, 3, 30522]), torch.Size([1, 2]))
    """

    n_segments = 2

    def __init__(
        self,
        config: model.ModelConfig,
        *,
        next_sentence: bool = True,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if config.position != "learned" or not config.tied:
            raise ValueError(
                f"position={config.position!r} and tied={config.tied}: BERT has "
                "position='learned' and tied=True"
            )
        self.config = config
        options = {"device": "meta", "dtype": dtype}
        width, layer_config = config.d_model, config.layer_config()
        always_shifted = dataclasses.replace(layer_config, bias=True)
        self.embedding = model.empty_embedding(config.vocab_size, width, dtype)
        self.segment = model.empty_embedding(self.n_segments, width, dtype)
        self.position = position.LearnedPosition(
            config.max_len, width, generator=torch.Generator(), dtype=dtype
        )
        self.embedding_norm = transformer.make_norm(always_shifted, **options)
        self.encoder = transformer.Encoder(layer_config, config.n_layers, **options)
        model.fit_layers(self.encoder, config)
        self.transform = nn.Linear(width, width, **options)
        self.transform_norm = transformer.make_norm(always_shifted, **options)
        self.logits_bias = nn.Parameter(torch.empty(config.vocab_size, **options))
        self.pool = nn.Linear(width, width, **options) if next_sentence else None
        self.project_next = nn.Linear(width, 2, **options) if next_sentence else None
        self.dropout = nn.Dropout(config.dropout)
        model.materialise(self, config, generator, device)

    def forward(
        self,
        ids: Tensor,
        mask: Tensor | None = None,
        segments: Tensor | None = None,
    ) -> Tensor:
        """Score, at every place, every token that may stand there.

        Args:
            ids: (B, T)
            mask: boolean; (B, T), True = a real token, or (B, T, T) or (B, H, T, T),
                True = may look
            segments: (B, T), 0 in the first sentence and 1 in the second; 0 if not
                given

        Returns:
            The logits, (B, T, V).

        Raises:
            ValueError: if an id or a segment does not exist, the text is too long, or
                the mask does not fit.
            TypeError: if the mask is not boolean.
        """
        return self.logits(self.features(ids, mask, segments))

    def features(
        self,
        ids: Tensor,
        mask: Tensor | None = None,
        segments: Tensor | None = None,
    ) -> Tensor:
        """Describe every token in its context: (B, T) -> (B, T, C), as `forward`."""
        model.check_ids(ids, self.config.vocab_size)
        segments = torch.zeros_like(ids) if segments is None else segments
        model.check_ids(segments, self.n_segments)
        x = self.embedding(ids) + self.segment(segments)  # (B, T, C)
        x = self.position(x, model.token_positions(mask, 0, ids))
        x = self.dropout(self.embedding_norm(x))
        return self.encoder(x, model.visible(mask, *ids.shape))

    def logits(self, features: Tensor) -> Tensor:
        """Score every token of the vocabulary: (..., C) -> (..., V)."""
        x = self.transform_norm(F.gelu(self.transform(features)))
        return F.linear(x, self.embedding.weight, self.logits_bias)

    def next_sentence_logits(self, features: Tensor) -> Tensor:
        """Score whether the second sentence follows the first.

        Args:
            features: (B, T, C); the first token, [CLS], speaks for the text

        Returns:
            (B, 2): column 0 for "it follows", column 1 for "it does not", as in the
            published weights.

        Raises:
            ValueError: if the model was built without this head.
        """
        if self.pool is None:
            raise ValueError("this BERT has next_sentence=False: it has no such head")
        return self.project_next(torch.tanh(self.pool(features[:, 0])))  # (B, 2)
