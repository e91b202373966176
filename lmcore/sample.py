"""Sampling: how a model that scores the next token writes a text.

Chapter 14 of the book. The module builds, in this order: the ways to change the scores
before a token is drawn (penalties, temperature, cuts), the cache that spares the model
what it has read before, writing with all of them, writing that is shown while it goes
on, the search for the likeliest text, a small model that drafts for a large one, and
two measures of repetition.

Left out: constraints by a grammar, and penalties learned in training.

Papers: Fan, Lewis and Dauphin, 2018 (top-k); Holtzman et al., 2020 (top-p, repetition);
Nguyen et al., 2024 (min-p); Keskar et al., 2019 (repetition penalty); Wu et al., 2016
(length norm); Leviathan, Kalman and Matias, 2023, and Chen et al., 2023 (speculative
decoding); Olsson et al., 2022 (induction heads).

Logits that are cut are -inf: 0 would be a score like any other.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from . import attention, fast_step, modes, require, transformer

Decode = Callable[[list[int]], str]  # from ids to text, as a tokenizer does

# --- One token ----------------------------------------------------------------------


def greedy(logits: Tensor) -> Tensor:
    """Take the likeliest token, the first one among equals.

    Args:
        logits: (..., V)

    Returns:
        Ids, (...).

    >>> greedy(torch.tensor([[1.0, 3.0, 2.0], [0.0, 0.0, -1.0]]))
    tensor([1, 0])
    """
    return logits.argmax(dim=-1)


def apply_temperature(logits: Tensor, temperature: float) -> Tensor:
    """Sharpen the distribution below 1, flatten it above.

    ``logits / T``. At 0 only the likeliest token is left, at infinity all that were not
    cut are equally likely.

    Args:
        logits: (..., V)
        temperature: T, 0 or more

    Returns:
        (..., V)

    Raises:
        ValueError: if the temperature is negative or not a number.

    >>> torch.softmax(apply_temperature(torch.tensor([2.0, 0.0]), 0.5), dim=-1)
    tensor([0.9820, 0.0180])
    """
    if not temperature >= 0:
        raise ValueError(f"temperature={temperature} must be 0 or more")
    if temperature == 0:
        return top_k_filter(logits, 1)
    if math.isinf(temperature):
        return torch.where(logits == -math.inf, logits, 0.0)
    return logits / temperature


def top_k_filter(logits: Tensor, k: int) -> Tensor:
    """Cut all but the k likeliest tokens.

    Exactly k stay, the first ones among equals; all of them if there are no more. Fan,
    Lewis and Dauphin, 2018, § 5.

    Args:
        logits: (..., V)
        k: how many stay, at least 1

    Returns:
        (..., V) with -inf for the others.

    Raises:
        ValueError: if ``k`` is smaller than 1.

    >>> top_k_filter(torch.tensor([-6.0, -5.0, -5.0]), k=1)
    tensor([-inf, -5., -inf])
    """
    require.at_least_one(k=k)
    if k >= logits.shape[-1]:
        return logits
    last = logits.topk(k, dim=-1).values[..., -1:]  # (..., 1)
    is_above, is_last = logits > last, logits == last
    n_left = k - is_above.sum(dim=-1, keepdim=True)
    stays = is_above | (is_last & (is_last.cumsum(dim=-1) <= n_left))
    return logits.masked_fill(~stays, -math.inf)


def top_p_filter(logits: Tensor, p: float) -> Tensor:
    """Keep the fewest likeliest tokens that together reach the probability p.

    The token that crosses p stays, so that there is always one. Among equals the first
    ones stay. Holtzman et al., 2020, § 3.1.

    Args:
        logits: (..., V)
        p: more than 0, at most 1

    Returns:
        (..., V) with -inf for the others.

    Raises:
        ValueError: if ``p`` does not lie in (0, 1].

    >>> logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
    >>> top_p_filter(logits, p=0.8).isfinite()
    tensor([ True,  True,  True, False])
    """
    if not 0 < p <= 1:
        raise ValueError(f"p={p} must lie in (0, 1]")
    if p == 1:
        return logits
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    probabilities = torch.softmax(ordered, dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities
    stays = before < p
    stays[..., 0] = True  # also where rounding says otherwise
    stays = torch.zeros_like(stays).scatter(-1, order, stays)
    return logits.masked_fill(~stays, -math.inf)


def min_p_filter(logits: Tensor, min_p: float) -> Tensor:
    """Keep the tokens that have at least a share of the largest probability.

    So that more stay where the model is unsure. Nguyen et al., 2024, § 3.

    Args:
        logits: (..., V)
        min_p: the share, between 0 and 1

    Returns:
        (..., V) with -inf for the others.

    Raises:
        ValueError: if ``min_p`` does not lie in [0, 1].

    >>> min_p_filter(torch.tensor([0.5, 0.3, 0.2]).log(), min_p=0.5).isfinite()
    tensor([ True,  True, False])
    """
    if not 0 <= min_p <= 1:
        raise ValueError(f"min_p={min_p} must lie in [0, 1]")
    probabilities = torch.softmax(logits, dim=-1)
    least = min_p * probabilities.amax(dim=-1, keepdim=True)
    return logits.masked_fill(probabilities < least, -math.inf)


def repetition_penalty(
    logits: Tensor, ids: Tensor, penalty: float, mask: Tensor | None = None
) -> Tensor:
    """Make every token that has occurred less likely, however often it has.

    Positive logits are divided by the penalty, negative ones multiplied. Keskar et al.,
    2019, § 4.1.

    Args:
        logits: (B, V)
        ids: (B, T), what was written so far
        penalty: more than 0; 1 changes nothing, and less than 1 rewards
        mask: (B, T) boolean, True = a real token; all if not given

    Returns:
        (B, V)

    Raises:
        ValueError: if the penalty is not positive.

    >>> logits = torch.tensor([[4.0, -1.0, 2.0]])
    >>> repetition_penalty(logits, torch.tensor([[0, 1, 0]]), penalty=2.0)
    tensor([[ 2., -2.,  2.]])
    """
    require.positive(penalty=penalty)
    occurred = _count(logits, ids, mask) > 0  # (B, V)
    punished = torch.where(logits > 0, logits / penalty, logits * penalty)
    return torch.where(occurred, punished, logits)


def frequency_penalty(
    logits: Tensor, ids: Tensor, penalty: float, mask: Tensor | None = None
) -> Tensor:
    """Make a token less likely each time that it has occurred.

    ``logits - penalty · count``: what was said often is cut down most.

    Args:
        logits: (B, V)
        ids: (B, T), what was written so far
        penalty: in logits per occurrence; 0 changes nothing
        mask: (B, T) boolean, True = a real token; all if not given

    Returns:
        (B, V)

    >>> frequency_penalty(torch.tensor([[4.0, -1.0]]), torch.tensor([[0, 0]]), 0.5)
    tensor([[ 3., -1.]])
    """
    return logits - penalty * _count(logits, ids, mask)


def _count(logits: Tensor, ids: Tensor, mask: Tensor | None) -> Tensor:
    counted = torch.ones_like(ids) if mask is None else mask
    zeros = torch.zeros_like(logits)
    return zeros.scatter_add(-1, ids, counted.to(logits.dtype))  # (B, V)


@dataclass(frozen=True)
class SamplingConfig:
    """How the next tokens are chosen, and when to stop.

    Penalties come first, then the temperature, then the cuts in the fields' order.

    >>> SamplingConfig(temperature=0.0).max_new_tokens
    100
    """

    max_new_tokens: int = 100  # how many tokens are written at most
    temperature: float = 1.0  # 0 = always the likeliest
    top_k: int | None = None  # `top_k_filter`; None = no cut
    top_p: float | None = None  # `top_p_filter`; None = no cut
    min_p: float | None = None  # `min_p_filter`; None = no cut
    repetition_penalty: float = 1.0  # 1 = none
    frequency_penalty: float = 0.0  # logits per occurrence, 0 = none
    eos_id: int | None = None  # the id that ends a text
    pad_id: int | None = None  # follows a text that has ended; eos_id or 0 if not given
    stop: tuple[str, ...] = ()  # a text ends where one of these has been written

    def __post_init__(self) -> None:
        """Refuse what makes no sense, before anything is written."""
        require.not_negative(max_new_tokens=self.max_new_tokens)
        if isinstance(self.stop, str) or not all(self.stop):
            raise ValueError(
                f"stop={self.stop!r} must be a tuple of texts that are not empty"
            )
        filter_logits(torch.zeros(1, 2), torch.zeros(1, 1, dtype=torch.int64), self)


def filter_logits(
    logits: Tensor, ids: Tensor, config: SamplingConfig, mask: Tensor | None = None
) -> Tensor:
    """Apply all that a configuration asks for.

    Args:
        logits: (B, V)
        ids: (B, T), what was written so far, prompt included
        config: penalties, temperature and cuts
        mask: (B, T) boolean, True = a real token; all if not given

    Returns:
        (B, V): the softmax of these is what is drawn from.

    Raises:
        ValueError: if a number of the configuration makes no sense.

    >>> config = SamplingConfig(temperature=0.5, top_k=2)
    >>> ids = torch.tensor([[0]])
    >>> filter_logits(torch.tensor([[1.0, 2.0, 0.0]]), ids, config)
    tensor([[2., 4., -inf]])
    """
    if config.repetition_penalty != 1:
        logits = repetition_penalty(logits, ids, config.repetition_penalty, mask)
    if config.frequency_penalty != 0:
        logits = frequency_penalty(logits, ids, config.frequency_penalty, mask)
    if config.temperature != 1:
        logits = apply_temperature(logits, config.temperature)
    if config.top_k is not None:
        logits = top_k_filter(logits, config.top_k)
    if config.top_p is not None:
        logits = top_p_filter(logits, config.top_p)
    if config.min_p is not None:
        logits = min_p_filter(logits, config.min_p)
    return logits


def draw(logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Draw a token from the softmax of its logits.

    Args:
        logits: (B, V)
        generator: draws, on its own device; torch's own if not given

    Returns:
        Ids, (B,).

    >>> draw(torch.tensor([[0.0, -math.inf]]))
    tensor([0])
    """
    probabilities = torch.softmax(logits.float(), dim=-1)
    if generator is not None:
        probabilities = probabilities.to(generator.device)
    drawn = torch.multinomial(probabilities, 1, generator=generator)
    return drawn[:, 0].to(logits.device)


# --- What was read before -----------------------------------------------------------


class GrowingCache(attention.KeyValueCache):
    """Keys and values of one layer, in memory that is twice as long as is needed.

    So that a new token is written to its place, and the earlier ones are not copied at
    every step. For writing, not for training.

    >>> cache = GrowingCache()
    >>> for token in range(3):
    ...     key, value = cache.append(torch.zeros(1, 2, 1, 4), torch.ones(1, 2, 1, 4))
    >>> len(cache), key.shape
    (3, torch.Size([1, 2, 3, 4]))
    """

    def __init__(self) -> None:
        super().__init__()
        self._memory: Tensor | None = None  # (B, 2 H_kv, capacity, D), keys first
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Add the keys and values of new tokens and return all of them.

        Args:
            key: (B, H_kv, T, D)
            value: (B, H_kv, T, D)

        Returns:
            All keys and all values so far, (B, H_kv, S, D) each, as views of the
            cache's own memory.

        Raises:
            RuntimeError: if gradients are recorded.
        """
        return self.append_pair(torch.cat([key, value], dim=1))

    def append_pair(self, pair: Tensor) -> tuple[Tensor, Tensor]:
        """Do the same with keys and values in one tensor: one copy in place of two.

        Args:
            pair: (B, 2 H_kv, T, D), all the keys before all the values

        Returns:
            As `append`.

        Raises:
            RuntimeError: if gradients are recorded.
        """
        if pair.requires_grad:
            raise RuntimeError(
                "this cache is for writing: call the model under torch.no_grad(), or "
                "use transformer.DecoderCache"
            )
        n_new = pair.shape[2]
        stop = self._length + n_new
        if self._memory is None or stop > self._memory.shape[2]:
            self._grow(pair, capacity=2 * stop)
        self._memory.narrow(2, self._length, n_new).copy_(pair)
        self._look_at(stop)
        return self.key, self.value

    def crop(self, n_tokens: int) -> None:
        """Forget all but the first tokens; what follows is overwritten later."""
        self._look_at(min(n_tokens, self._length))

    def reorder(self, rows: Tensor) -> None:
        """Give every row of the batch the keys and values of another row."""
        if self._memory is not None:
            self._memory = self._memory[rows]
            self._look_at(self._length)

    def _grow(self, pair: Tensor, capacity: int) -> None:
        n_rows, n_heads, _, d_head = pair.shape
        memory = pair.new_empty(n_rows, n_heads, capacity, d_head)
        if self._memory is not None:
            memory[:, :, : self._length] = self._memory[:, :, : self._length]
        self._memory = memory

    def _look_at(self, n_tokens: int) -> None:
        self._length = n_tokens
        if self._memory is not None:
            self.key, self.value = self._memory.narrow(2, 0, n_tokens).chunk(2, dim=1)


class KVCache(transformer.DecoderCache):
    """What a model has read, kept so that every token is read once.

    To be given to `model.GPT.forward` in place of `transformer.DecoderCache`: the
    result is the same, and long texts are faster.

    Args:
        n_layers: L

    >>> from lmcore.model import GPT, ModelConfig
    >>> model = GPT(ModelConfig.preset("tiny"))
    >>> cache = KVCache(model.config.n_layers)
    >>> with torch.no_grad():
    ...     _ = model(torch.tensor([[3, 1, 4]]), cache=cache)
    ...     _ = model(torch.tensor([[1]]), cache=cache)
    >>> len(cache)
    4
    """

    def __init__(self, n_layers: int) -> None:
        super().__init__(n_layers)
        self.text = [GrowingCache() for _ in range(n_layers)]

    def crop(self, n_tokens: int) -> None:
        """Forget all but the first tokens.

        Args:
            n_tokens: how many are kept; all if there are no more

        Raises:
            ValueError: if ``n_tokens`` is negative.
        """
        require.not_negative(n_tokens=n_tokens)
        for layer in self.text:
            layer.crop(n_tokens)

    def reorder(self, rows: Tensor) -> None:
        """Let every row of the batch go on from another row, as beams do.

        Args:
            rows: (B_new,), for every new row the number of the old one
        """
        for layer in self.text:
            layer.reorder(rows)


class Reader:
    """Feeds a model with the new tokens only, if it has a cache.

    Args:
        model: a module that maps ids, (B, T), to logits, (B, T, V), such as
            `model.GPT`. With a method ``new_cache`` it also takes ``mask`` and
            ``cache``.
        use_cache: whether to use it

    >>> reader = Reader(nn.Embedding(5, 5))
    >>> reader.next_logits(torch.tensor([[1, 2, 3]])).shape
    torch.Size([1, 5])
    """

    def __init__(self, model: nn.Module, use_cache: bool = True) -> None:
        self.model = model
        self.cache = None
        self.takes_mask = hasattr(model, "new_cache")
        self.fast: fast_step.FastStep | None = None
        if use_cache and self.takes_mask:
            self.cache = KVCache(model.config.n_layers)
            if fast_step.fits(model):
                self.fast = fast_step.FastStep(model)

    def next_logits(
        self, ids: Tensor, mask: Tensor | None = None, n_places: int = 1
    ) -> Tensor:
        """Score what follows a text, of which a beginning may have been read before.

        Args:
            ids: (B, T), the whole text
            mask: (B, T) boolean, True = a real token; all if not given
            n_places: for how many of the last places

        Returns:
            (B, V) for one place, (B, n_places, V) for more.

        Raises:
            ValueError: if there is padding and the model takes no mask.
        """
        if not self.takes_mask:
            if mask is not None:
                raise ValueError("this model takes no mask: give texts of one length")
            logits = self.model(ids)[:, -n_places:]
        else:
            start = 0 if self.cache is None else len(self.cache)
            if self.fast is not None and 0 < start == ids.shape[1] - 1:
                logits = self.fast(ids[:, start:], mask, self.cache)  # (B, V)
                return logits if n_places == 1 else logits[:, None]
            features = self.model.features(ids[:, start:], mask, self.cache)
            logits = self.model.logits(features[:, -n_places:])  # (B, n_places, V)
        return logits[:, 0] if n_places == 1 else logits


def _in_training(model: nn.Module) -> list[nn.Module]:
    """The parts that drop out: asked once, which takes as long as part of a step."""
    return [part for part in model.modules() if part.training]


# --- Writing ------------------------------------------------------------------------


def generate(
    model: nn.Module,
    ids: Tensor,
    config: SamplingConfig,
    *,
    mask: Tensor | None = None,
    decode: Decode | None = None,
    generator: torch.Generator | None = None,
    use_cache: bool = True,
) -> Tensor:
    """Continue a batch of texts, token by token.

    Shorter prompts are padded on the left (`left_pad`), so that the new tokens follow
    the text and not the padding. Dropout is off meanwhile.

    Args:
        model: maps ids to logits, such as `model.GPT` (see `Reader`)
        ids: (B, T), the prompts, at least one token
        config: how tokens are chosen and when to stop
        mask: (B, T) boolean, False = padding; no padding if not given
        decode: from ids to text; needed for ``config.stop``
        generator: draws, on its own device; torch's own if not given
        use_cache: whether tokens are read once, or again and again

    Returns:
        (B, T + new) with new ≤ ``max_new_tokens``: the prompts and what follows. Behind
        the end of a text, only ``pad_id``. The token that completes a stop text is
        there; `cut_at_stop` cuts the text.

    Raises:
        ValueError: if there is no prompt, it and the new tokens are longer than the
            model's learned positions, padding is not on the left, or ``decode`` is
            missing.

    >>> from lmcore.model import GPT, ModelConfig
    >>> model = GPT(ModelConfig.preset("tiny"))
    >>> config = SamplingConfig(max_new_tokens=5, top_p=0.9)
    >>> generate(model, torch.tensor([[3, 1, 4]]), config).shape
    torch.Size([1, 8])
    """
    written = [ids]
    for token in _write(model, ids, config, mask, decode, generator, use_cache):
        written.append(token[:, None])
    return torch.cat(written, dim=1)


def _write(
    model: nn.Module,
    ids: Tensor,
    config: SamplingConfig,
    mask: Tensor | None,
    decode: Decode | None,
    generator: torch.Generator | None,
    use_cache: bool,
) -> Iterator[Tensor]:
    """Yield the next token of every row, (B,), until all rows have ended."""
    mask = _check_prompt(model, ids, config, mask, decode)
    pad_id = config.pad_id
    if pad_id is None:
        pad_id = 0 if config.eos_id is None else config.eos_id
    can_end = config.eos_id is not None or bool(config.stop)
    ended = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
    is_greedy = config.temperature == 0
    if is_greedy:  # no cut takes the likeliest token away
        config = replace(config, temperature=1.0, top_k=None, top_p=None, min_p=None)
    reader, in_training = Reader(model, use_cache), _in_training(model)
    n_prompt = ids.shape[1]
    for _ in range(config.max_new_tokens):
        # Anew at every step: in between, others are at work.
        with torch.no_grad(), modes.evaluating(*in_training):
            logits = filter_logits(reader.next_logits(ids, mask), ids, config, mask)
            token = greedy(logits) if is_greedy else draw(logits, generator)
        if can_end:
            token = token.masked_fill(ended, pad_id)
        ids = torch.cat([ids, token[:, None]], dim=1)
        if mask is not None:
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        if config.eos_id is not None:
            ended = ended | (token == config.eos_id)
        if config.stop:
            ended = ended | _has_stopped(ids[:, n_prompt:], config.stop, decode)
        yield token
        if can_end and bool(ended.all()):
            return


def _check_prompt(
    model: nn.Module,
    ids: Tensor,
    config: SamplingConfig,
    mask: Tensor | None,
    decode: Decode | None,
) -> Tensor | None:
    if ids.dim() != 2 or ids.shape[1] == 0:
        raise ValueError(
            f"ids has shape {tuple(ids.shape)}, expected (B, T) with at least one token"
        )
    if config.stop and decode is None:
        raise ValueError(f"stop={config.stop} is text: decode must be given")
    if mask is not None:
        if mask.shape != ids.shape or mask.dtype != torch.bool:
            raise ValueError(
                f"mask is {mask.dtype} of shape {tuple(mask.shape)}, expected booleans "
                f"of shape {tuple(ids.shape)}"
            )
        if not mask[:, -1].all() or (mask[:, :-1] & ~mask[:, 1:]).any():
            raise ValueError("padding must be on the left, before every text")
        mask = None if mask.all() else mask
    longest = ids.shape[1] if mask is None else int(mask.sum(dim=1).max())
    model_config = getattr(model, "config", None)
    if getattr(model_config, "position", None) == "learned":
        n_tokens = longest + config.max_new_tokens - 1  # the last one is never read
        if n_tokens > model_config.max_len:
            raise ValueError(
                f"{longest} tokens and max_new_tokens={config.max_new_tokens} are more "
                f"than the {model_config.max_len} positions that the model has learned"
            )
    return mask


def _has_stopped(new: Tensor, stop: tuple[str, ...], decode: Decode) -> Tensor:
    texts = [decode(row) for row in new.tolist()]
    stopped = [any(s in text for s in stop) for text in texts]
    return torch.tensor(stopped, device=new.device)


def left_pad(prompts: Sequence[Tensor], pad_id: int = 0) -> tuple[Tensor, Tensor]:
    """Put prompts of different lengths into a batch for `generate`.

    Args:
        prompts: B times ids, one axis each
        pad_id: stands before the shorter ones

    Returns:
        The ids, (B, T), and the mask, (B, T), False = padding.

    Raises:
        ValueError: if there is no prompt.

    >>> left_pad([torch.tensor([5]), torch.tensor([6, 7])])
    (tensor([[0, 5],
            [6, 7]]), tensor([[False,  True],
            [ True,  True]]))
    """
    if len(prompts) == 0:
        raise ValueError("0 prompts, expected at least one")
    n_tokens = max(map(len, prompts))
    ids = prompts[0].new_full((len(prompts), n_tokens), pad_id)
    mask = torch.zeros_like(ids, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        ids[row, n_tokens - len(prompt) :] = prompt
        mask[row, n_tokens - len(prompt) :] = True
    return ids, mask


def cut_at_stop(text: str, stop: Sequence[str]) -> str:
    """Cut a text before the first of the stop texts.

    Args:
        text: what was written
        stop: where to end

    Returns:
        The text before the stop text that comes first, or the whole.

    >>> cut_at_stop("Romeo: Ay me!\\n\\nJuliet: O", ["\\n\\n", "!"])
    'Romeo: Ay me'
    """
    places = [place for s in stop if (place := text.find(s)) >= 0]
    return text[: min(places)] if places else text


def stream(
    model: nn.Module,
    ids: Tensor,
    config: SamplingConfig,
    decode: Decode,
    *,
    generator: torch.Generator | None = None,
    use_cache: bool = True,
) -> Iterator[str]:
    """Continue one text, and show every piece as soon as it is sure.

    Held back is half a character, since more bytes may come, and what may be the
    beginning of a stop text, which is never shown.

    Args:
        model: as in `generate`
        ids: (T,) or (1, T), the prompt
        config: as in `generate`
        decode: from ids to text; gets all new ids at every step, since a token alone
            may be half a character
        generator: as in `generate`
        use_cache: as in `generate`

    Yields:
        Pieces of text, none empty. Together they are the text of what `generate`
        writes, without ``eos_id``, up to the stop text.

    Raises:
        ValueError: as in `generate`, or if there is more than one prompt.

    >>> model = nn.Embedding(3, 3, _weight=10 * torch.eye(3).roll(1, dims=1))
    >>> config = SamplingConfig(max_new_tokens=4, temperature=0.0)
    >>> letters = lambda ids: "".join("abc"[i] for i in ids)
    >>> list(stream(model, torch.tensor([0]), config, letters))
    ['b', 'c', 'a', 'b']
    """
    ids = ids[None] if ids.dim() == 1 else ids
    if len(ids) != 1:
        raise ValueError(f"{len(ids)} prompts, expected one: a stream is one text")
    new: list[int] = []
    n_shown, text = 0, ""
    for token in _write(model, ids, config, None, decode, generator, use_cache):
        if int(token) != config.eos_id:
            new.append(int(token))
        text = cut_at_stop(decode(new), config.stop)
        sure = _sure_part(text, config.stop)
        if len(sure) > n_shown:
            yield sure[n_shown:]
            n_shown = len(sure)
    if len(text) > n_shown:
        yield text[n_shown:]


def _sure_part(text: str, stop: tuple[str, ...]) -> str:
    """The part that no later token can change."""
    n = len(text.rstrip("\N{REPLACEMENT CHARACTER}"))
    for s in stop:
        for length in range(min(len(s) - 1, len(text)), 0, -1):
            if text.endswith(s[:length]):
                n = min(n, len(text) - length)
                break
    return text[:n]


# --- The likeliest text -------------------------------------------------------------


@dataclass(frozen=True)
class Hypothesis:
    """A text that beam search found.

    >>> model = nn.Embedding(3, 3, _weight=10 * torch.eye(3).roll(1, dims=1))
    >>> best = beam_search(model, torch.tensor([0]), 2, max_new_tokens=9, eos_id=2)[0]
    >>> best.ids, round(best.score, 4)
    (tensor([1, 2]), -0.0001)
    """

    ids: Tensor  # (new,), without the prompt; ends with eos_id unless it was cut short
    score: float  # nats, the log-probability over the length to the power of the norm


def beam_search(
    model: nn.Module,
    ids: Tensor,
    n_beams: int,
    max_new_tokens: int,
    *,
    eos_id: int | None = None,
    length_penalty: float = 1.0,
) -> list[Hypothesis]:
    """Search for likely texts, keeping the best beginnings at every step.

    A finished text is scored by ``log-probability / length ** length_penalty``: without
    that norm every further token costs, and the shortest would win. The search ends
    when no beginning can become better than the texts that have been finished, however
    it goes on. Wu et al., 2016, § 7, with the simpler norm now in use.

    Args:
        model: as in `generate`
        ids: (T,) or (1, T), the prompt
        n_beams: how many beginnings are kept, at least 1
        max_new_tokens: how many tokens are written at most, at least 1
        eos_id: the id that ends a text
        length_penalty: 0 scores by the log-probability alone, 1 by its mean

    Returns:
        Up to ``n_beams`` texts, the best first.

    Raises:
        ValueError: if a number is smaller than 1, or as in `generate`.

    >>> model = nn.Embedding(3, 3, _weight=10 * torch.eye(3).roll(1, dims=1))
    >>> beam_search(model, torch.tensor([0]), 2, max_new_tokens=9, eos_id=2)[0].ids
    tensor([1, 2])
    """
    if n_beams < 1 or max_new_tokens < 1:
        raise ValueError(
            f"n_beams={n_beams} and max_new_tokens={max_new_tokens} must be at least 1"
        )
    ids = ids[None] if ids.dim() == 1 else ids
    _check_prompt(model, ids, SamplingConfig(max_new_tokens), None, None)
    if len(ids) != 1:
        raise ValueError(f"{len(ids)} prompts, expected one")
    reader, in_training = Reader(model), _in_training(model)
    n_prompt = ids.shape[1]
    finished: list[Hypothesis] = []
    live = torch.zeros(1, device=ids.device)  # (n_live,), nats
    for n_new in range(1, max_new_tokens + 1):
        with torch.no_grad(), modes.evaluating(*in_training):
            logits = reader.next_logits(ids)  # (n_live, V)
        steps = torch.log_softmax(logits.float(), dim=-1)
        sums = (live[:, None] + steps).flatten()  # (n_live · V,)
        best, places = sums.topk(min(2 * n_beams, len(sums)))
        rows = places // logits.shape[-1]
        ids = torch.cat([ids[rows], (places % logits.shape[-1])[:, None]], dim=1)
        ends = torch.full_like(ids[:, -1], n_new == max_new_tokens, dtype=torch.bool)
        if eos_id is not None:
            ends = ends | (ids[:, -1] == eos_id)
        for i in ends[:n_beams].nonzero().flatten().tolist():
            score = float(best[i]) / n_new**length_penalty
            finished.append(Hypothesis(ids[i, n_prompt:].clone(), score))
        finished = sorted(finished, key=lambda text: -text.score)[:n_beams]
        going_on = (~ends).nonzero().flatten()[:n_beams]
        ids, live = ids[going_on], best[going_on]
        if _is_decided(finished, live, n_beams, n_new, max_new_tokens, length_penalty):
            break
        if reader.cache is not None:
            reader.cache.reorder(rows[going_on])
    return finished


def _is_decided(
    finished: list[Hypothesis],
    live: Tensor,
    n_beams: int,
    n_new: int,
    max_new_tokens: int,
    length_penalty: float,
) -> bool:
    """Whether no beginning can still get among the best."""
    if len(live) == 0:
        return True
    if len(finished) < n_beams:
        return False
    # At best all further tokens are certain: then only the norm changes.
    length = max_new_tokens if length_penalty > 0 else n_new + 1
    return float(live[0]) / length**length_penalty <= finished[-1].score


# --- A small model drafts -----------------------------------------------------------


def accept_draft(
    target: Tensor,
    draft: Tensor,
    drafted: Tensor,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Decide how much of a draft stays, and draw the token that follows it.

    A drafted token x stays with probability ``min(1, p(x) / q(x))``. The first that
    does not is replaced by a draw from what p has more than q, ``(p - q)⁺``
    normalised, and the rest of the draft is thrown away. If all stay, one more token is
    drawn from p. The result is distributed as if p alone had been drawn from. Leviathan
    et al., 2023, alg. 1; Chen et al., 2023, alg. 2.

    Args:
        target: (K + 1, V), p, the large model's probabilities at every place of the
            draft and behind it
        draft: (K, V), q, the probabilities that the draft was drawn from
        drafted: (K,), ids
        generator: draws, on its own device; torch's own if not given

    Returns:
        Ids, between 1 and K + 1 of them.

    Raises:
        ValueError: if the shapes do not fit.

    >>> p, q = torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([[1.0, 0.0]])
    >>> accept_draft(p, q, torch.tensor([0])), accept_draft(p, p[:1], torch.tensor([1]))
    (tensor([1]), tensor([1, 0]))
    """
    n_drafted = len(drafted)
    if len(target) != n_drafted + 1 or draft.shape != (n_drafted, target.shape[-1]):
        raise ValueError(
            f"target {tuple(target.shape)} and draft {tuple(draft.shape)} do not fit "
            f"{n_drafted} drafted tokens: expected (K + 1, V) and (K, V)"
        )
    device = target.device if generator is None else generator.device
    dice = torch.rand(n_drafted, generator=generator, device=device).to(target.device)
    for i, token in enumerate(drafted.tolist()):
        # Not p / q: what was drafted with q = 0 must not be kept.
        if dice[i] * draft[i, token] < target[i, token]:
            continue
        missing = (target[i] - draft[i]).clamp(min=0)
        if missing.sum() <= 0:  # by rounding, if p and q are the same
            missing = target[i]
        return torch.cat([drafted[:i], draw(missing.log()[None], generator)])
    return torch.cat([drafted, draw(target[-1].log()[None], generator)])


def speculative_decode(
    model: nn.Module,
    draft_model: nn.Module,
    ids: Tensor,
    config: SamplingConfig,
    *,
    n_drafted: int = 4,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, float]:
    """Let a small model write ahead, and a large one check several tokens at once.

    The text is distributed as if the large model had written it alone
    (`accept_draft`), which then reads the text in fewer and larger steps.

    Args:
        model: the large model, as in `generate`
        draft_model: the small model, with the same vocabulary
        ids: (T,) or (1, T), the prompt
        config: as in `generate`, for both models; without ``stop``
        n_drafted: K, how many tokens the small model writes ahead, at least 1
        generator: draws, on its own device; torch's own if not given

    Returns:
        (1, T + new), and the share of drafted tokens that stayed.

    Raises:
        ValueError: if ``n_drafted`` is smaller than 1, ``stop`` is given, or as in
            `generate`.

    >>> model = nn.Embedding(3, 3, _weight=10 * torch.eye(3).roll(1, dims=1))
    >>> config = SamplingConfig(max_new_tokens=4, temperature=0.0)
    >>> speculative_decode(model, model, torch.tensor([0]), config, n_drafted=2)
    (tensor([[0, 1, 2, 0, 1]]), 1.0)
    """
    if n_drafted < 1 or config.stop:
        raise ValueError(
            f"n_drafted={n_drafted} must be at least 1, and stop={config.stop} empty"
        )
    ids = ids[None] if ids.dim() == 1 else ids
    if len(ids) != 1:
        raise ValueError(f"{len(ids)} prompts, expected one")
    for one in (model, draft_model):
        _check_prompt(one, ids, config, None, None)
    readers = Reader(model), Reader(draft_model)
    n_left, n_kept, n_tried = config.max_new_tokens, 0, 0
    with torch.no_grad(), modes.evaluating(model, draft_model):
        while n_left > 0:
            # One place is for the token that the large model adds.
            n_ahead = min(n_drafted, n_left - 1)
            new = _draft_and_check(readers, ids, config, n_ahead, generator)
            n_tried, n_kept = n_tried + n_ahead, n_kept + len(new) - 1
            n_left -= len(new)
            is_end = new == config.eos_id if config.eos_id is not None else new < 0
            if is_end.any():
                new, n_left = new[: int(is_end.int().argmax()) + 1], 0
            ids = torch.cat([ids, new[None]], dim=1)
            for reader in readers:
                if reader.cache is not None:  # what was thrown away, and the last token
                    reader.cache.crop(ids.shape[1] - 1)
    return ids, n_kept / max(n_tried, 1)


def _draft_and_check(
    readers: tuple[Reader, Reader],
    ids: Tensor,
    config: SamplingConfig,
    n_ahead: int,
    generator: torch.Generator | None,
) -> Tensor:
    large, small = readers
    text, draft = ids, []
    for _ in range(n_ahead):
        logits = filter_logits(small.next_logits(text), text, config)
        draft.append(torch.softmax(logits[0].float(), dim=-1))
        text = torch.cat([text, draw(logits, generator)[:, None]], dim=1)
    n_places = n_ahead + 1
    logits = large.next_logits(text, n_places=n_places).reshape(n_places, -1)
    target = [
        filter_logits(logits[i : i + 1], text[:, : ids.shape[1] + i], config)[0]
        for i in range(n_places)
    ]
    target = torch.softmax(torch.stack(target).float(), dim=-1)  # (K + 1, V)
    draft = torch.stack(draft) if draft else target[:0]
    return accept_draft(target, draft, text[0, ids.shape[1] :], generator)


# --- Repetition ---------------------------------------------------------------------


def repetition_rate(ids: Sequence[int] | Tensor, n: int = 4) -> float:
    """Say how many of a text's n-grams have stood there before.

    ``1 - different / all``: 0 if none comes twice. Holtzman et al., 2020, § 4, and
    Welleck et al., 2020, § 6.

    Args:
        ids: (T,)
        n: how many tokens are compared at once, at least 1

    Returns:
        A share between 0 and 1; 0 for a text shorter than ``n``.

    Raises:
        ValueError: if ``n`` is smaller than 1.

    >>> repetition_rate([7, 7, 7, 7], n=2)
    0.6666666666666667
    """
    require.at_least_one(n=n)
    ids = ids.tolist() if isinstance(ids, Tensor) else list(ids)
    ngrams = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
    return 1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0


def induction_score(weights: Tensor) -> Tensor:
    """Say how much a head looks at what followed the same token the last time.

    The text is a random block of N tokens, twice. At place N + i the same token stood
    at i, and an induction head looks at i + 1: so the model can go on as before. Olsson
    et al., 2022.

    Args:
        weights: (..., 2 N, 2 N), attention of every query (rows) to every key

    Returns:
        (...), the mean weight over the second block, between 0 and 1.

    Raises:
        ValueError: if the weights are not square with an even side.

    >>> looks_back_three = torch.eye(8).roll(3, dims=0)
    >>> induction_score(looks_back_three)
    tensor(1.)
    """
    n_tokens = weights.shape[-1]
    if weights.dim() < 2 or weights.shape[-2] != n_tokens or n_tokens % 2 != 0:
        raise ValueError(
            f"weights has shape {tuple(weights.shape)}, expected (..., 2 N, 2 N)"
        )
    query = torch.arange(n_tokens // 2, n_tokens, device=weights.device)
    return weights[..., query, query - n_tokens // 2 + 1].mean(dim=-1)
