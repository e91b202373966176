"""What a model learns from: hidden words, pairs of sentences, gaps, and answers.

Chapter 10 of the book. Each family of models has a game of its own, and each function
makes the rounds of one: `mask_tokens` and `next_sentence_pairs` for BERT,
`span_corruption` for T5, `prefix_lm_batch` for a decoder whose prompt looks both ways.
A GPT needs none: its targets are the text itself, one place further.

Papers: Devlin et al., 2019 (BERT); Raffel et al., 2020 (T5); Dong et al., 2019 (UniLM).

Targets that are not to be learned are `IGNORED`, which `network.cross_entropy` skips.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import require

IGNORED = -100

# --- BERT ---------------------------------------------------------------------------


def mask_tokens(
    ids: Tensor,
    vocab_size: int,
    mask_id: int,
    special_ids: Collection[int] = (),
    *,
    share: float = 0.15,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Hide some tokens, and keep what they were.

    Each token is chosen with probability ``share``. Of the chosen ones 80 % become
    ``mask_id``, 10 % any token of the vocabulary, each as likely as any other, and 10 %
    stay as they are: only so has the model to know every token, since outside training
    there is no mask. Devlin et al., 2019, § 3.1 and appendix A.1.

    Args:
        ids: (..., T)
        vocab_size: V
        mask_id: the id that stands for a hidden token
        special_ids: ids that are never chosen, such as padding and the borders of
            sentences
        share: how many tokens are chosen, between 0 and 1
        generator: draws, on its own device; torch's own if not given

    Returns:
        The ids with some hidden, and the targets: the original ids where a token was
        chosen, `IGNORED` elsewhere. Both (..., T); ``ids`` stays as it was.

    Raises:
        ValueError: if ``share`` is not a probability or ``mask_id`` is not in the
            vocabulary.

    >>> dice = torch.Generator().manual_seed(5)
    >>> mask_tokens(torch.tensor([5, 6, 7, 8]), 10, 0, [8], share=1.0, generator=dice)
    (tensor([5, 0, 0, 8]), tensor([   5,    6,    7, -100]))
    """
    require.between(0, 1, share=share)
    if not 0 <= mask_id < vocab_size:
        raise ValueError(
            f"mask_id={mask_id} must lie between 0 and {vocab_size - 1}, the last of "
            "the vocabulary"
        )
    device = ids.device if generator is None else generator.device
    draws = torch.rand(2, *ids.shape, generator=generator, device=device)
    other = torch.randint(vocab_size, ids.shape, generator=generator, device=device)
    is_chosen, fate = draws.to(ids.device)  # (..., T) each
    special = torch.tensor(sorted(special_ids), dtype=ids.dtype, device=ids.device)
    is_chosen = (is_chosen < share) & ~torch.isin(ids, special)
    hidden = torch.where(is_chosen & (fate < 0.8), mask_id, ids)
    is_random = is_chosen & (fate >= 0.8) & (fate < 0.9)
    hidden = torch.where(is_random, other.to(ids), hidden)
    return hidden, torch.where(is_chosen, ids, IGNORED)


@dataclass(frozen=True)
class SentencePair:
    """Two sentences, and whether the second follows the first.

    >>> SentencePair([5, 6], [7], is_next=True).joined(cls_id=1, sep_id=2)
    ([1, 5, 6, 2, 7, 2], [0, 0, 0, 0, 1, 1])
    """

    first: Sequence[int]  # ids
    second: Sequence[int]  # ids
    is_next: bool

    def joined(self, cls_id: int, sep_id: int) -> tuple[list[int], list[int]]:
        """Write both as one text: [CLS] first [SEP] second [SEP].

        Args:
            cls_id: the id that begins every text and speaks for the whole
            sep_id: the id that ends a sentence

        Returns:
            The ids, and for each the number of its sentence, 0 or 1.
        """
        first = [cls_id, *self.first, sep_id]
        second = [*self.second, sep_id]
        return first + second, [0] * len(first) + [1] * len(second)


def next_sentence_pairs(
    documents: Sequence[Sequence[Sequence[int]]],
    *,
    generator: torch.Generator | None = None,
) -> list[SentencePair]:
    """Pair every sentence with the next one, or with one from another document.

    Half of the pairs, by the toss of a coin for each, keep the true next sentence; the
    others get any sentence of any other document, each as likely as any other. Devlin
    et al., 2019, § 3.1.

    Args:
        documents: for each its sentences, and for each of these its ids
        generator: draws; torch's own if not given

    Returns:
        A pair for every sentence but the last one of each document, in their order.

    Raises:
        ValueError: if fewer than two documents have a sentence: there would be no
            other document.

    >>> dice = torch.Generator().manual_seed(2)
    >>> for pair in next_sentence_pairs([[[1], [2], [3]], [[9]]], generator=dice):
    ...     print(pair.first, pair.second, pair.is_next)
    [1] [2] True
    [2] [9] False
    """
    if sum(len(document) > 0 for document in documents) < 2:
        raise ValueError(
            "fewer than two documents have a sentence: a false pair needs a second "
            "sentence from another document"
        )
    everything = [
        (number, sentence)
        for number, document in enumerate(documents)
        for sentence in document
    ]
    pairs = []
    for number, document in enumerate(documents):
        others = [sentence for n, sentence in everything if n != number]
        for i in range(len(document) - 1):
            is_next = _draw_below(2, generator) == 0
            stranger = others[_draw_below(len(others), generator)]
            second = document[i + 1] if is_next else stranger
            pairs.append(SentencePair(document[i], second, is_next))
    return pairs


# --- T5 -----------------------------------------------------------------------------


def span_corruption(
    ids: Tensor,
    sentinels: Sequence[int],
    *,
    density: float = 0.15,
    mean_span: float = 3.0,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Cut spans out of a text, leave a mark in every gap, and list what is missing.

    ``density · T`` tokens are hidden in ``hidden / mean_span`` spans, both numbers
    rounded. Text and gaps are cut at random and laid round a circle, which is then
    turned by a random angle: so every token is as likely to be hidden as any other. A
    gap that the end of the text cuts in two counts as two. Raffel et al., 2020, § 3.1.4
    and fig. 2; there the last token is always in a gap and the first never.

    Args:
        ids: (T,), at least two
        sentinels: ids that mark the gaps, in the order of their use; none of them may
            be in the text. In the published T5 they go downwards: 32099, 32098, …
        density: the share of tokens that is hidden, between 0 and 1; at least one token
            is hidden, and at least one stays
        mean_span: how many tokens a gap has on average, at least 1
        generator: draws; torch's own if not given

    Returns:
        The input: the text with one sentinel in place of each gap. And the target: for
        each gap its sentinel and its tokens, and after the last gap one more sentinel.

    Raises:
        ValueError: if there are too few ids or sentinels, a sentinel is in the text, or
            density or mean span make no sense.

    >>> ids, dice = torch.arange(10, 20), torch.Generator().manual_seed(4)
    >>> span_corruption(ids, [99, 98, 97], density=0.4, mean_span=2.0, generator=dice)
    (tensor([10, 99, 13, 14, 15, 16, 98, 19]), tensor([99, 11, 12, 98, 17, 18, 97]))
    """
    is_hidden = _hidden_spans(len(ids), density, mean_span, generator)
    begins = is_hidden & ~torch.cat([is_hidden.new_zeros(1), is_hidden[:-1]])
    n_spans = int(begins.sum())
    if len(sentinels) <= n_spans:
        raise ValueError(
            f"{len(sentinels)} sentinels for {n_spans} gaps: one more than gaps is "
            "needed, since the last one ends the target"
        )
    if set(sentinels) & set(ids.tolist()):
        raise ValueError(
            f"sentinels {sorted(set(sentinels) & set(ids.tolist()))} are in the text, "
            "where they could not be told from marks"
        )
    marks = iter(sentinels)
    source, target = [], []
    for token, hidden, begin in zip(
        ids.tolist(), is_hidden.tolist(), begins.tolist(), strict=True
    ):
        if begin:
            mark = next(marks)
            source.append(mark)
            target.append(mark)
        (target if hidden else source).append(token)
    target.append(next(marks))
    return ids.new_tensor(source), ids.new_tensor(target)


def fill_spans(source: Tensor, target: Tensor, sentinels: Sequence[int]) -> Tensor:
    """Put the missing spans back: the inverse of `span_corruption`.

    Args:
        source: the text with its gaps, one axis
        target: the gaps with their tokens, one axis
        sentinels: the marks, as `span_corruption` got them

    Returns:
        (T,), the whole text.

    Raises:
        ValueError: if a gap of the source is missing in the target.

    >>> fill_spans(torch.tensor([5, 99, 8]), torch.tensor([99, 6, 7, 98]), [99, 98])
    tensor([5, 6, 7, 8])
    """
    spans: dict[int, list[int]] = {}
    span: list[int] = []
    for token in target.tolist():
        if token in sentinels:
            span = spans.setdefault(token, [])
        else:
            span.append(token)
    whole = []
    for token in source.tolist():
        if token in sentinels and token not in spans:
            raise ValueError(f"the target says nothing about the gap {token}")
        whole += spans[token] if token in sentinels else [token]
    return source.new_tensor(whole)


# --- Prefix -------------------------------------------------------------------------


def prefix_lm_batch(
    prompts: Sequence[Tensor], answers: Sequence[Tensor], pad_id: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Put prompts and answers into one batch, in which only answers are learned.

    Place t of the input predicts token t + 1 of the text, so that the last token of the
    prompt is responsible for the first of the answer. Dong et al., 2019, § 2.3.

    Args:
        prompts: B times ids, one axis each, at least one id
        answers: B times ids, one axis each
        pad_id: fills shorter rows, behind the text

    Returns:
        The input of the model, (B, T), with T one less than the longest text, since the
        last token predicts nothing; the targets, (B, T), `IGNORED` where what follows
        is prompt or padding; and the length of each prompt, (B,), for `model.PrefixLM`.

    Raises:
        ValueError: if there is no pair, the numbers of prompts and answers differ, or a
            prompt or answer is empty.

    >>> prompts, answers = [torch.tensor([5, 6])], [torch.tensor([7, 8])]
    >>> prefix_lm_batch(prompts, answers)
    (tensor([[5, 6, 7]]), tensor([[-100,    7,    8]]), tensor([2]))
    """
    if len(prompts) != len(answers) or len(prompts) == 0:
        raise ValueError(
            f"{len(prompts)} prompts and {len(answers)} answers: expected as many, and "
            "at least one"
        )
    if any(len(text) == 0 for text in (*prompts, *answers)):
        raise ValueError("every prompt and every answer must have at least one token")
    lengths = [len(prompt) for prompt in prompts]
    n_tokens = max(map(len, map(_join, prompts, answers))) - 1
    shape = len(prompts), n_tokens
    inputs = prompts[0].new_full(shape, pad_id)
    targets = prompts[0].new_full(shape, IGNORED)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        text = _join(prompt, answer)
        inputs[row, : len(text) - 1] = text[:-1]
        targets[row, len(prompt) - 1 : len(text) - 1] = answer
    return inputs, targets, torch.tensor(lengths, device=inputs.device)


def _join(prompt: Tensor, answer: Tensor) -> Tensor:
    return torch.cat([prompt, answer])


# --- Chance -------------------------------------------------------------------------


def _draw_below(n: int, generator: torch.Generator | None) -> int:
    device = None if generator is None else generator.device
    return int(torch.randint(n, (), generator=generator, device=device))


def _cut(length: int, n_parts: int, generator: torch.Generator | None) -> list[int]:
    """Cut a length into parts of at least 1, every way as likely as any other."""
    device = None if generator is None else generator.device
    places = torch.randperm(length - 1, generator=generator, device=device)
    cuts = sorted((places[: n_parts - 1] + 1).tolist())
    ends = zip([0, *cuts], [*cuts, length], strict=True)
    return [end - begin for begin, end in ends]


def _hidden_spans(
    n_tokens: int, density: float, mean_span: float, generator: torch.Generator | None
) -> Tensor:
    """Which tokens are hidden, (T,) boolean."""
    if n_tokens < 2:
        raise ValueError(f"{n_tokens} ids: one must be hidden and one must stay")
    if not 0 < density < 1 or mean_span < 1:
        raise ValueError(
            f"density={density} must lie between 0 and 1, and mean_span={mean_span} "
            "must be at least 1"
        )
    n_hidden = min(max(round(n_tokens * density), 1), n_tokens - 1)
    n_spans = max(round(n_hidden / mean_span), 1)
    # Between two gaps there is at least one token that stays.
    n_spans = min(n_spans, n_hidden, n_tokens - n_hidden)
    hidden = _cut(n_hidden, n_spans, generator)
    visible = _cut(n_tokens - n_hidden, n_spans, generator)
    parts = [part for pair in zip(visible, hidden, strict=True) for part in pair]
    is_hidden = torch.tensor([False, True]).repeat(n_spans)
    is_hidden = is_hidden.repeat_interleave(torch.tensor(parts))
    return is_hidden.roll(_draw_below(n_tokens, generator))
