"""Soft prompts: the model stays, and what stands before its text is learned.

Chapter 12 of the book; these names can be used from ``lmcore.finetune`` as well. The
module builds virtual tokens in front of the text (prompt tuning), drawn by a small
network if wanted (P-tuning), and virtual keys and values in every layer (prefix
tuning).

Left out: the discrete search for prompts in words, which needs no gradient.

Papers: Lester, Al-Rfou and Constant, 2021 (prompt tuning); Liu et al., 2021
(P-tuning); Li and Liang, 2021 (prefix tuning).

N is the number of virtual tokens.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from . import network, require


class PromptTuning(nn.Module):
    """A frozen model that reads N learned tokens before every text.

    The virtual tokens take the places 0 … N - 1 of the text; what the model says there
    is left out, so that the output fits the ids: this is a model as any other, for
    every loss and trainer. Attention masks (B, T) are lengthened here.

    The parameter ``prompt`` (N, C) starts as a copy of random words' vectors. With
    ``d_hidden`` a small network of two layers makes the virtual tokens of it
    (P-tuning), which is trained too and can be left behind afterwards: only what
    `virtual_tokens` gives has to be kept. Lester et al., 2021, § 2; Liu et al., 2021,
    § 3.

    Args:
        model: maps ids (B, T), and a mask if there is one, to logits (B, T, V); its
            parameters are frozen
        n_virtual: N
        embedding: the name of the model's `nn.Embedding` for tokens
        generator: chooses the words and draws the network, on its own device
        d_hidden: the width of the network; None for no network

    Raises:
        ValueError: if N or ``d_hidden`` is smaller than 1, or the model has no such
            embedding.

    >>> model = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 10))
    >>> tuned = PromptTuning(model, 3, "0", generator=torch.Generator().manual_seed(1))
    >>> tuned(torch.tensor([[1, 2]])).shape, tuned.prompt.shape
    (torch.Size([1, 2, 10]), torch.Size([3, 4]))
    """

    def __init__(
        self,
        model: nn.Module,
        n_virtual: int,
        embedding: str = "embedding",
        *,
        generator: torch.Generator,
        d_hidden: int | None = None,
    ) -> None:
        super().__init__()
        require.at_least_one(n_virtual=n_virtual, d_hidden=d_hidden)
        words = dict(model.named_modules()).get(embedding)
        if not isinstance(words, nn.Embedding):
            raise ValueError(
                f"the model's {embedding!r} is {type(words).__name__}, expected an "
                "nn.Embedding"
            )
        self.model, self.embedding = model.requires_grad_(False), embedding
        n_words, d_model = words.weight.shape
        where = {"device": generator.device, "generator": generator}
        chosen = torch.randint(n_words, (n_virtual,), **where)
        first = words.weight.detach()[chosen.to(words.weight.device)]  # (N, C)
        self.prompt = nn.Parameter(first.clone())
        self.reparametrize = None
        if d_hidden is not None:
            self.reparametrize = nn.Sequential(
                _linear(d_model, d_hidden, generator, first),
                nn.Tanh(),
                _linear(d_hidden, d_model, generator, first),
            )

    def virtual_tokens(self) -> Tensor:
        """The vectors that stand before every text, (N, C)."""
        if self.reparametrize is None:
            return self.prompt
        return self.reparametrize(self.prompt)

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Score the next token at every place of the text.

        Args:
            ids: (B, T)
            mask: (B, T) boolean, True = a real token

        Returns:
            The logits, (B, T, V), of the real text only.

        Raises:
            ValueError: if the ids or the mask are not (B, T).
        """
        return self._read(self.model, ids, mask)

    def features(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Describe every token of the text, if the model can: (B, T) -> (B, T, C)."""
        return self._read(self.model.features, ids, mask)

    def _read(
        self, read: Callable[..., Tensor], ids: Tensor, mask: Tensor | None
    ) -> Tensor:
        _check_ids(ids, mask)
        n_virtual = len(self.prompt)
        # Some id has to stand where the virtual tokens will be: any does.
        longer = torch.cat([ids.new_zeros(len(ids), n_virtual), ids], dim=1)
        words = self.model.get_submodule(self.embedding)
        handle = words.register_forward_hook(self._put_virtual_tokens)
        try:
            if mask is None:
                output = read(longer)
            else:
                output = read(longer, _lengthen(mask, n_virtual))
        finally:
            handle.remove()
        return output[:, n_virtual:]  # (B, N + T, …) -> (B, T, …)

    def _put_virtual_tokens(
        self, _module: nn.Module, _inputs: tuple, vectors: Tensor
    ) -> Tensor:
        virtual = self.virtual_tokens().to(vectors.dtype)  # (N, C)
        virtual = virtual.expand(len(vectors), *virtual.shape)  # (B, N, C)
        return torch.cat([virtual, vectors[:, virtual.shape[1] :]], dim=1)


class PrefixTuning(nn.Module):
    """A frozen model with N learned keys and values before the text, in every layer.

    They stand in the model's cache, as if N tokens had been read already; the real
    text follows on the places N, N + 1, … The parameters are ``key`` and ``value``
    (L, H_kv, N, D). Li and Liang, 2021, § 4.2, without the network that makes the
    prefix there in training.

    Args:
        model: as `lmcore.model.GPT`: maps ids (B, T), a mask and a cache to logits, and
            has ``new_cache()``, whose ``text`` holds a cache for each layer; its
            parameters are frozen
        n_virtual: N
        generator: chooses the words whose keys and values are the first ones, on its
            own device

    Raises:
        ValueError: if N is smaller than 1.

    >>> from lmcore.model import GPT, ModelConfig
    >>> dice = torch.Generator().manual_seed(1)
    >>> model = GPT(ModelConfig.preset("tiny"), generator=dice)
    >>> tuned = PrefixTuning(model, n_virtual=3, generator=dice)
    >>> tuned(torch.tensor([[1, 2]])).shape, tuned.key.shape
    (torch.Size([1, 2, 256]), torch.Size([2, 2, 3, 16]))
    """

    def __init__(
        self, model: nn.Module, n_virtual: int, *, generator: torch.Generator
    ) -> None:
        super().__init__()
        require.at_least_one(n_virtual=n_virtual)
        self.model = model.requires_grad_(False)
        where = {"device": generator.device, "generator": generator}
        words = torch.randint(model.config.vocab_size, (1, n_virtual), **where)
        cache = model.new_cache()
        with torch.no_grad():
            model(words.to(next(model.parameters()).device), cache=cache)
        layers = cache.text
        self.key = nn.Parameter(torch.cat([layer.key for layer in layers]))
        self.value = nn.Parameter(torch.cat([layer.value for layer in layers]))

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Score the next token at every place of the text.

        Args:
            ids: (B, T)
            mask: (B, T) boolean, True = a real token

        Returns:
            The logits, (B, T, V).

        Raises:
            ValueError: if the ids or the mask are not (B, T).
        """
        return self._read(self.model, ids, mask)

    def features(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Describe every token of the text: (B, T) -> (B, T, C)."""
        return self._read(self.model.features, ids, mask)

    def _read(
        self, read: Callable[..., Tensor], ids: Tensor, mask: Tensor | None
    ) -> Tensor:
        _check_ids(ids, mask)
        if mask is not None:
            mask = _lengthen(mask, self.key.shape[2])
        return read(ids, mask, self._cache(len(ids)))

    def _cache(self, n_rows: int) -> object:
        cache = self.model.new_cache()
        for layer, key, value in zip(cache.text, self.key, self.value, strict=True):
            shape = (n_rows, *key.shape)  # (B, H_kv, N, D)
            layer.append(key.expand(shape), value.expand(shape))
        return cache


def _linear(
    n_in: int, n_out: int, generator: torch.Generator, like: Tensor
) -> nn.Linear:
    layer = nn.Linear(n_in, n_out, device="meta")
    drawn = network.xavier_uniform(n_in, n_out, generator)
    layer.weight = nn.Parameter(drawn.to(like))
    layer.bias = nn.Parameter(like.new_zeros(n_out))
    return layer


def _lengthen(mask: Tensor, n_virtual: int) -> Tensor:
    return torch.cat([mask.new_ones(len(mask), n_virtual), mask], dim=1)


def _check_ids(ids: Tensor, mask: Tensor | None) -> None:
    if ids.dim() != 2 or (mask is not None and mask.shape != ids.shape):
        shape = None if mask is None else tuple(mask.shape)
        raise ValueError(
            f"ids have shape {tuple(ids.shape)} and mask {shape}, expected (B, T)"
        )
