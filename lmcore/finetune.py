"""Fine-tuning: a text predictor becomes an assistant, or a judge of texts.

Chapter 12 of the book. The module builds, in this order: how a conversation is written
as one text, with buttons that no user can press; which of its tokens the model is to
learn; the loss on these alone; a classifier on top of any model; and the order in which
several tasks take turns. Small changes to large models have modules of their own, and
their names can be used as if they stood here: ``lmcore.lora`` (a sum of low rank) and
``lmcore.soft_prompt`` (tokens that are learned).

Left out: the loop of training (``lmcore.train``) and packing (``lmcore.data``).

Papers: Howard and Ruder, 2018, and Devlin et al., 2019 (fine-tuning a classifier);
Raffel et al., 2020 (tasks that take turns); Ouyang et al., 2022 (answers of people as
examples).
"""

import importlib
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from . import network, require, tokenizer

Message = Mapping[str, str]  # {"role": ..., "content": ...}

# --- Conversations as text ----------------------------------------------------------


@dataclass(frozen=True)
class ChatTemplate:
    """How a conversation is written as one text, and read again.

    The conversation opens with ``begin``; every message is the button of its role, its
    content, and ``end``. The buttons are special tokens: in `render` a content that
    spells one is refused, and in `encode` it is read as ordinary letters, so that no
    message can begin another one.

    A message is a dictionary with the keys ``role`` and ``content``.

    Raises:
        ValueError: if the roles lack ``assistant``, or two buttons have the same name.

    >>> template = ChatTemplate()
    >>> chat = [{"role": "user", "content": "Hi"}]
    >>> template.render(chat, add_generation_prompt=True)
    '<|begin|><|user|>Hi<|end|><|assistant|>'
    """

    roles: tuple[str, ...] = ("system", "user", "assistant")  # who may speak
    begin: str = "<|begin|>"  # stands once, before the first message
    end: str = "<|end|>"  # stands behind every message

    def __post_init__(self) -> None:
        if "assistant" not in self.roles:
            raise ValueError(f"roles={self.roles} must name the assistant")
        names = self.special_tokens
        if len(set(names)) < len(names) or "" in names:
            raise ValueError(f"the special tokens {names} must differ from each other")

    @property
    def special_tokens(self) -> tuple[str, ...]:
        """The buttons, which the tokenizer must know: begin, end, and all roles.

        >>> ChatTemplate(roles=("user", "assistant")).special_tokens
        ('<|begin|>', '<|end|>', '<|user|>', '<|assistant|>')
        """
        return (self.begin, self.end, *map(self.button, self.roles))

    def button(self, role: str) -> str:
        """The special token that opens a message of a role.

        >>> ChatTemplate().button("user")
        '<|user|>'
        """
        return f"<|{role}|>"

    def render(
        self, messages: Iterable[Message], add_generation_prompt: bool = False
    ) -> str:
        """Write a conversation as one text.

        Args:
            messages: the conversation, in order
            add_generation_prompt: whether the text ends where the assistant's answer
                begins. True to let a model answer; False in training, where the answer
                is there.

        Returns:
            The text. It has its ``begin``: the tokenizer must not add another one.

        Raises:
            ValueError: if a role is not the template's, or a content spells a button.
            KeyError: if a message has no role or no content.

        >>> messages = [{"role": "assistant", "content": "Yes."}]
        >>> ChatTemplate().render(messages)
        '<|begin|><|assistant|>Yes.<|end|>'
        """
        parts = list(self._parts(messages, add_generation_prompt))
        for is_button, text in parts:
            if not is_button and (found := self._buttons().search(text)):
                raise ValueError(
                    f"the content {text!r} spells the special token {found[0]!r}"
                )
        return "".join(text for _, text in parts)

    def parse(self, text: str) -> list[dict[str, str]]:
        """Read a text that `render` wrote.

        Args:
            text: a whole conversation, without an opened answer at its end

        Returns:
            The messages.

        Raises:
            ValueError: if the text is no conversation of this template.

        >>> ChatTemplate().parse("<|begin|><|user|>Hi<|end|>")
        [{'role': 'user', 'content': 'Hi'}]
        """
        pieces = self._buttons().split(text)  # text, button, text, button, …, text
        parts = [(index % 2 == 1, piece) for index, piece in enumerate(pieces)]
        return self._read(parts)

    def encode(
        self,
        messages: Iterable[Message],
        with_tokenizer: tokenizer.Tokenizer,
        add_generation_prompt: bool = False,
    ) -> list[int]:
        """Turn a conversation into ids; whatever a content spells, it stays content.

        Args:
            messages: the conversation, in order
            with_tokenizer: knows the template's special tokens
            add_generation_prompt: as in `render`

        Returns:
            The ids. Without a button's name in a content, they are those of the
            rendered text.

        Raises:
            ValueError: if a role is not the template's, or the tokenizer lacks a
                special token.
            KeyError: if a message has no role or no content.

        >>> from lmcore.tokenizer import CharTokenizer
        >>> template = ChatTemplate()
        >>> letters = CharTokenizer("abc", special_tokens=template.special_tokens)
        >>> template.encode([{"role": "user", "content": "cab"}], letters)
        [1, 4, 8, 6, 7, 2]
        """
        ids_of = self._ids_of_buttons(with_tokenizer)
        ids: list[int] = []
        for is_button, text in self._parts(messages, add_generation_prompt):
            if is_button:
                ids.append(ids_of[text])
            else:
                ids += with_tokenizer.encode(text, use_special=False)
        return ids

    def decode(
        self, ids: Iterable[int], with_tokenizer: tokenizer.Tokenizer
    ) -> list[dict[str, str]]:
        """Turn ids back into messages, also where a content spells a button.

        Args:
            ids: of a whole conversation, without padding
            with_tokenizer: the one that encoded it

        Returns:
            The messages.

        Raises:
            ValueError: if the ids are no conversation of this template.

        >>> from lmcore.tokenizer import CharTokenizer
        >>> template = ChatTemplate()
        >>> letters = CharTokenizer("abc", special_tokens=template.special_tokens)
        >>> template.decode([1, 4, 8, 6, 7, 2], letters)
        [{'role': 'user', 'content': 'cab'}]
        """
        ids_of = self._ids_of_buttons(with_tokenizer)
        names = {index: name for name, index in ids_of.items()}
        parts: list[tuple[bool, str]] = []
        content: list[int] = []
        for index in map(int, ids):
            if index in names:
                parts += [(False, with_tokenizer.decode(content)), (True, names[index])]
                content = []
            else:
                content.append(index)
        return self._read([*parts, (False, with_tokenizer.decode(content))])

    def _parts(
        self, messages: Iterable[Message], add_generation_prompt: bool
    ) -> Iterator[tuple[bool, str]]:
        """The text in parts, each with whether it is a button."""
        yield True, self.begin
        for message in messages:
            if message["role"] not in self.roles:
                raise ValueError(
                    f"role {message['role']!r} must be one of {', '.join(self.roles)}"
                )
            yield True, self.button(message["role"])
            yield False, message["content"]
            yield True, self.end
        if add_generation_prompt:
            yield True, self.button("assistant")

    def _read(self, parts: Iterable[tuple[bool, str]]) -> list[dict[str, str]]:
        role_of = {self.button(role): role for role in self.roles}
        messages: list[dict[str, str]] = []
        role = None
        # Between two buttons nothing, or a content, may stand.
        parts = [part for part in parts if part != (False, "")]
        if parts[:1] != [(True, self.begin)]:
            raise ValueError(f"a conversation begins with {self.begin!r}")
        for is_button, text in parts[1:]:
            if role is None:
                if not is_button or text not in role_of:
                    raise ValueError(f"expected the button of a role, found {text!r}")
                role, content = role_of[text], ""
            elif not is_button:
                content = text
            elif text == self.end:
                messages.append({"role": role, "content": content})
                role = None
            else:
                raise ValueError(f"expected {self.end!r}, found {text!r}")
        if role is not None:
            raise ValueError(f"the last message, of {role}, has no {self.end!r}")
        return messages

    def _buttons(self) -> re.Pattern[str]:
        # Of buttons that start alike, the longest is meant.
        longest_first = sorted(self.special_tokens, key=len, reverse=True)
        return re.compile(f"({'|'.join(map(re.escape, longest_first))})")

    def _ids_of_buttons(self, with_tokenizer: tokenizer.Tokenizer) -> Mapping[str, int]:
        known = with_tokenizer.special_tokens
        for name in self.special_tokens:
            if name not in known:
                raise ValueError(
                    f"the tokenizer lacks the special token {name!r}: it knows "
                    f"{', '.join(known) or 'none'}"
                )
        return {name: known[name] for name in self.special_tokens}


# --- Which tokens are learned -------------------------------------------------------


def pad(
    rows: Sequence[Sequence[int]], pad_id: int, left: bool = False
) -> tuple[Tensor, Tensor]:
    """Fill texts of different lengths up to one length.

    Args:
        rows: the ids of B texts
        pad_id: what they are filled with
        left: whether the padding stands before the text instead of behind it

    Returns:
        The ids, (B, T), and a boolean mask, (B, T), True = a real token.

    Raises:
        ValueError: if there is no text.

    >>> pad([[5], [6, 7]], pad_id=0)
    (tensor([[5, 0],
            [6, 7]]), tensor([[ True, False],
            [ True,  True]]))
    """
    if not rows:
        raise ValueError("there is no text to pad")
    n_tokens = max(map(len, rows))
    ids, mask = [], []
    for row in rows:
        filling = n_tokens - len(row)
        real, fill = [True] * len(row), [False] * filling
        ids.append([pad_id] * filling + [*row] if left else [*row] + [pad_id] * filling)
        mask.append(fill + real if left else real + fill)
    shape = (len(rows), n_tokens)
    return (
        torch.tensor(ids, dtype=torch.long).reshape(shape),
        torch.tensor(mask, dtype=torch.bool).reshape(shape),
    )


def answer_mask(ids: Tensor, assistant_id: int, end_id: int) -> Tensor:
    """Find the tokens that the assistant itself has to say.

    They are what follows its button, up to the next end token, which counts: the model
    must learn to stop. The button does not count, since whoever asks presses it. An
    answer without an end runs to the end of its row; what stands before the first
    button of a row belongs to nobody.

    Args:
        ids: (..., T), conversations
        assistant_id: the button that opens an answer
        end_id: the token that ends every message

    Returns:
        A boolean mask, (..., T), True = the assistant's token.

    Raises:
        ValueError: if the two ids are the same.

    >>> user, assistant, end = 1, 2, 3
    >>> answer_mask(torch.tensor([user, 7, end, assistant, 8, 9, end]), assistant, end)
    tensor([False, False, False, False,  True,  True,  True])
    """
    if assistant_id == end_id:
        raise ValueError(f"assistant_id and end_id are both {end_id}")
    place = torch.arange(ids.shape[-1], device=ids.device)  # (T,)
    is_border = (ids == assistant_id) | (ids == end_id)
    border = torch.where(is_border, place, -1)  # (..., T)
    # The last border before each token, the token itself excluded.
    none_before = torch.full_like(border[..., :1], -1)
    before = torch.cat([none_before, border[..., :-1]], dim=-1)[..., : len(place)]
    before = before.cummax(dim=-1).values if len(place) else before
    opened = ids.gather(-1, before.clamp(min=0)) == assistant_id
    return opened & (before >= 0) & (ids != assistant_id)


def sft_loss(logits: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """The mean surprise at the tokens that the model is to learn to say.

    The logits at place t score the token at t + 1, so that the last token of the prompt
    finds the first one of the answer. Ouyang et al., 2022, § 3.4, step 1.

    Args:
        logits: (B, T, V), what the model says after each token of ``ids``
        ids: (B, T), the text that was read, prompt and answer
        mask: (B, T) boolean, True at the tokens to be learned (`answer_mask`)

    Returns:
        The mean over these tokens in the whole batch, a scalar in nats; 0 if there is
        none.

    Raises:
        ValueError: if the shapes do not fit.
        TypeError: if the mask is not boolean.

    >>> logits = torch.zeros(1, 3, 4)  # knows nothing
    >>> ids, mask = torch.tensor([[0, 1, 2]]), torch.tensor([[False, False, True]])
    >>> sft_loss(logits, ids, mask), math.log(4)
    (tensor(1.3863), 1.3862943611198906)
    """
    if ids.dim() != 2 or logits.shape[:-1] != ids.shape or mask.shape != ids.shape:
        raise ValueError(
            f"logits {tuple(logits.shape)}, ids {tuple(ids.shape)} and mask "
            f"{tuple(mask.shape)} must have the shapes (B, T, V), (B, T) and (B, T)"
        )
    _check_boolean(mask)
    targets = ids.masked_fill(~mask, -100)[:, 1:]  # (B, T - 1)
    return network.cross_entropy(logits[:, :-1], targets)


# --- A classifier on top of a model -------------------------------------------------


def features_of(backbone: nn.Module, ids: Tensor, mask: Tensor | None = None) -> Tensor:
    """Let a model read and say what it made of every token, before it scores words.

    Args:
        backbone: has a method ``features`` that maps ids, and a mask if there is one,
            to (B, T, C), as `lmcore.model.GPT`; or does so when it is called
        ids: (B, T)
        mask: (B, T) boolean, True = a real token

    Returns:
        (B, T, C)

    Raises:
        ValueError: if the shapes do not fit.

    >>> features_of(nn.Embedding(10, 4), torch.tensor([[1, 2, 3]])).shape
    torch.Size([1, 3, 4])
    """
    read = getattr(backbone, "features", backbone)
    if ids.dim() != 2 or (mask is not None and mask.shape != ids.shape):
        shape = None if mask is None else tuple(mask.shape)
        raise ValueError(
            f"ids have shape {tuple(ids.shape)} and mask {shape}, expected (B, T)"
        )
    features = read(ids) if mask is None else read(ids, mask)
    if features.dim() != 3 or features.shape[:2] != ids.shape:
        raise ValueError(
            f"the backbone made features of shape {tuple(features.shape)} from ids of "
            f"shape {tuple(ids.shape)}, expected (B, T, C)"
        )
    return features


def pool(features: Tensor, mask: Tensor | None = None, how: str = "last") -> Tensor:
    """Make one vector of the vectors of a text.

    Args:
        features: (B, T, C)
        mask: (B, T) boolean, True = a real token; all are if not given
        how: ``"last"``, the last real token, which in a causal model has seen all;
            ``"first"``, the first one, as BERT; ``"mean"``, the mean of all real ones

    Returns:
        (B, C); padding has no part in it, on whichever side it stands.

    Raises:
        ValueError: if a text has no real token or ``how`` is something else.
        TypeError: if the mask is not boolean.

    >>> features = torch.tensor([[[10.0], [20.0], [30.0], [40.0]]])
    >>> mask = torch.tensor([[False, False, True, True]])
    >>> pool(features, mask).item(), pool(features, mask, "mean").item()
    (40.0, 35.0)
    """
    if mask is None:
        mask = features.new_ones(features.shape[:2], dtype=torch.bool)
    _check_boolean(mask)
    if not mask.any(dim=1).all():
        empty = int(mask.any(dim=1).logical_not().nonzero()[0])
        raise ValueError(f"text {empty} of the batch has no real token")
    if how == "mean":
        real = features.masked_fill(~mask[..., None], 0.0)
        return real.sum(dim=1) / mask.sum(dim=1, keepdim=True)
    place = torch.arange(mask.shape[1], device=mask.device)  # (T,)
    if how == "last":
        chosen = torch.where(mask, place, -1).amax(dim=1)  # (B,)
    elif how == "first":
        chosen = torch.where(mask, place, len(place)).amin(dim=1)
    else:
        raise ValueError(f"how={how!r} must be 'last', 'first' or 'mean'")
    row = torch.arange(len(mask), device=mask.device)
    return features[row, chosen]  # (B, T, C) -> (B, C)


class SequenceClassifier(nn.Module):
    """A model that reads a text, and one linear layer that sorts it into classes.

    The layer is ``head``, (n_classes, C) and a bias; the model is ``backbone``. Freeze
    the model's parameters to train the layer alone. Howard and Ruder, 2018, § 3.3;
    Radford et al., 2018, § 3.2.

    Args:
        backbone: makes features (`features_of`)
        d_model: C, their width
        n_classes: how many classes there are
        generator: draws the first weights of the layer, on its own device
        how: which token speaks for the text (`pool`)
        dtype: the floating type of the layer

    Raises:
        ValueError: if there is no class or ``how`` is something else.

    >>> dice = torch.Generator().manual_seed(1)
    >>> model = SequenceClassifier(nn.Embedding(10, 4), 4, 3, generator=dice)
    >>> model(torch.tensor([[1, 2], [3, 4]])).shape
    torch.Size([2, 3])
    """

    def __init__(
        self,
        backbone: nn.Module,
        d_model: int,
        n_classes: int,
        *,
        generator: torch.Generator,
        how: str = "last",
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if how not in ("last", "first", "mean"):
            raise ValueError(f"how={how!r} must be 'last', 'first' or 'mean'")
        weight = network.xavier_uniform(d_model, n_classes, generator, dtype)
        self.backbone, self.how = backbone, how
        self.head = nn.Linear(d_model, n_classes, device="meta", dtype=dtype)
        self.head.weight = nn.Parameter(weight)
        self.head.bias = nn.Parameter(weight.new_zeros(n_classes))

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Score every class for every text.

        Args:
            ids: (B, T)
            mask: (B, T) boolean, True = a real token; the backbone gets it as well

        Returns:
            The logits, (B, n_classes).

        Raises:
            ValueError: if shapes do not fit or a text has no real token.
        """
        features = features_of(self.backbone, ids, mask)  # (B, T, C)
        return self.head(pool(features, mask, self.how))  # (B, C) -> (B, n_classes)


# --- Several tasks ------------------------------------------------------------------


class MultiTaskSampler:
    """Draws examples from several tasks, so that no large task drowns a small one.

    A task is drawn with a rate in proportion to ``min(size, limit) ** (1 /
    temperature)``; its examples come in random order, all of them once before any comes
    again. Raffel et al., 2020, § 3.5.2. ``rates`` holds the rate of every task.

    Args:
        sizes: how many examples every task has
        temperature: 1 draws in proportion to the sizes; the larger, the more equally
        limit: the largest size that counts; no limit if not given
        generator: draws tasks and examples, on the CPU

    Raises:
        ValueError: if there is no task, a task has no example, or the temperature or
            the limit is not positive.

    >>> dice = torch.Generator().manual_seed(1)
    >>> sampler = MultiTaskSampler({"a": 90, "b": 10}, temperature=2, generator=dice)
    >>> sampler.rates
    {'a': 0.75, 'b': 0.25}
    >>> [(task, 0 <= index < 90) for task, index in sampler.sample(2)]
    [('a', True), ('a', True)]
    """

    def __init__(
        self,
        sizes: Mapping[str, int],
        *,
        generator: torch.Generator,
        temperature: float = 1.0,
        limit: int | None = None,
    ) -> None:
        if not sizes or min(sizes.values()) < 1:
            raise ValueError(f"sizes={dict(sizes)} must give each task an example")
        require.positive(temperature=temperature)
        require.at_least_one(limit=limit)
        self.sizes, self.generator = dict(sizes), generator
        counted = [min(size, limit or size) for size in sizes.values()]
        # In proportion to the largest, so that no power overflows.
        weights = [(size / max(counted)) ** (1 / temperature) for size in counted]
        total = math.fsum(weights)
        self.rates = {
            task: weight / total for task, weight in zip(sizes, weights, strict=True)
        }
        self._waiting: dict[str, list[int]] = {task: [] for task in sizes}

    def __iter__(self) -> Iterator[tuple[str, int]]:
        """Draw without end: the name of a task and the index of one of its examples."""
        while True:
            yield from self.sample(1)

    def sample(self, n: int) -> list[tuple[str, int]]:
        """Draw n examples.

        Args:
            n: how many

        Returns:
            For each the name of its task and its index in it.

        Raises:
            ValueError: if n is negative.

        >>> dice = torch.Generator().manual_seed(1)
        >>> sampler = MultiTaskSampler({"sums": 3}, generator=dice)
        >>> sorted(sampler.sample(3))
        [('sums', 0), ('sums', 1), ('sums', 2)]
        """
        require.not_negative(n=n)
        if n == 0:
            return []
        names, rates = list(self.rates), torch.tensor([*self.rates.values()])
        tasks = torch.multinomial(rates, n, replacement=True, generator=self.generator)
        return [self._next(names[task]) for task in tasks.tolist()]

    def _next(self, task: str) -> tuple[str, int]:
        if not self._waiting[task]:
            order = torch.randperm(self.sizes[task], generator=self.generator)
            self._waiting[task] = order.tolist()
        return task, self._waiting[task].pop()


# --- The rest of the chapter --------------------------------------------------------

ELSEWHERE = {
    "lora": ("LoRALinear", "apply_lora", "merge_lora", "count_trainable", "lora_state"),
    "soft_prompt": ("PromptTuning", "PrefixTuning"),
}


def __getattr__(name: str) -> object:
    # Looked up at every use, so that a student's version in its module is found.
    for module, names in ELSEWHERE.items():
        if name in names:
            return getattr(importlib.import_module(f"{__package__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _check_boolean(mask: Tensor) -> None:
    if mask.dtype != torch.bool:
        raise TypeError(f"mask has dtype {mask.dtype}, expected torch.bool")
