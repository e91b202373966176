"""N-grams: how far does counting go?

Chapter 02 of the book. A language model gives every next token a probability. The
module builds, in this order: the counts of neighbouring tokens; four ways to turn them
into probabilities, from plain shares to Kneser–Ney; the model that looks back
``order - 1`` tokens, says how probable a text is and writes new ones; and the measures
by which language models are compared: cross-entropy, perplexity, bits per character.

Left out: the three discounts of modified Kneser–Ney, and everything that stands further
back than ``order - 1`` tokens. To remember more is what the later chapters are about.

Papers: Shannon, 1948 and 1951 (n-grams, the entropy of English); Jelinek and Mercer,
1980 (interpolation); Kneser and Ney, 1995 (continuation counts); Chen and Goodman, 1999
(all of these compared, and the interpolated form that is used here).
"""

import math
from bisect import bisect
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, islice
from typing import Literal, Self, get_args

import torch

from . import require

BEGIN = "<begin>"  # stands before a text and is never predicted
END = "<end>"  # stands after a text and is predicted like any other token
UNKNOWN = "<unknown>"  # stands for every token that is not in the vocabulary

# --- Counting -----------------------------------------------------------------------


def count_ngrams(tokens: Iterable[Hashable], n: int) -> Counter[tuple]:
    """Count the runs of ``n`` neighbouring tokens.

    Args:
        tokens: any tokens, in order; L of them hold L - n + 1 runs, or none if L < n
        n: the length of a run, at least 1

    Returns:
        How often each run, a tuple of ``n`` tokens, was seen.

    Raises:
        ValueError: if ``n`` is smaller than 1.

    >>> count_ngrams("abab", 2)
    Counter({('a', 'b'): 2, ('b', 'a'): 1})
    """
    require.at_least_one(n=n)
    tokens = _as_list(tokens)
    shifted = (islice(tokens, start, None) for start in range(n))
    return Counter(zip(*shifted, strict=False))


def drop_first(counts: Mapping[tuple, int], *, distinct: bool) -> Counter[tuple]:
    """Turn the counts of runs into those of runs that are one token shorter.

    Every run loses its first token. A shorter run then counts either how often it was
    seen, or (``distinct``) after how many different tokens: "Francisco" is frequent but
    follows only "San", so that after another word it is hardly to be expected. Kneser
    and Ney, 1995, § 3.

    Args:
        counts: how often each run was seen
        distinct: whether to count the different first tokens instead of occurrences

    Returns:
        The counts of the shorter runs.

    >>> counts = {("San", "Francisco"): 9, ("my", "glasses"): 1, ("your", "glasses"): 1}
    >>> drop_first(counts, distinct=False)
    Counter({('Francisco',): 9, ('glasses',): 2})
    >>> drop_first(counts, distinct=True)
    Counter({('glasses',): 2, ('Francisco',): 1})
    """
    shorter: Counter[tuple] = Counter()
    for run, count in counts.items():
        shorter[run[1:]] += 1 if distinct else count
    return shorter


@dataclass(slots=True)
class Followers:
    """The tokens that were seen after one context.

    >>> Followers({"b": 2, "c": 1}).total
    3
    """

    counts: Mapping[Hashable, int]  # how often each token followed
    total: int = field(init=False)  # how often any of them did

    def __post_init__(self) -> None:
        self.total = sum(self.counts.values())


def group_by_context(counts: Mapping[tuple, int]) -> dict[tuple, Followers]:
    """Sort runs by their context: all their tokens but the last, which followed it.

    Args:
        counts: how often each run was seen

    Returns:
        What followed each context.

    >>> group_by_context({("a", "b"): 2, ("a", "c"): 1})
    {('a',): Followers(counts={'b': 2, 'c': 1}, total=3)}
    """
    followers: dict[tuple, dict] = {}
    for run, count in counts.items():
        followers.setdefault(run[:-1], {})[run[-1]] = count
    return {context: Followers(tokens) for context, tokens in followers.items()}


# --- From counts to probabilities ---------------------------------------------------


def maximum_likelihood(followers: Followers, token: Hashable) -> float:
    """Give a token its share of what was seen: no smoothing at all.

    Args:
        followers: what was seen after the context
        token: the token to predict

    Returns:
        The probability of the token; 0 for every token if the context was never seen.

    >>> maximum_likelihood(Followers({"b": 2, "c": 1}), "c")
    0.3333333333333333
    """
    if followers.total == 0:
        return 0.0
    return followers.counts.get(token, 0) / followers.total


def add_k(followers: Followers, token: Hashable, k: float, n_types: int) -> float:
    """Act as if every token of the vocabulary had been seen ``k`` times more.

    Args:
        followers: what was seen after the context
        token: the token to predict
        k: what is added to every count, more than 0; 1 is Laplace's rule
        n_types: V, how many different tokens there are to predict

    Returns:
        The probability of the token; 1 / V for every token if the context was never
        seen.

    >>> add_k(Followers({"b": 2}), "c", k=0.5, n_types=3)
    0.14285714285714285
    """
    return (followers.counts.get(token, 0) + k) / (followers.total + k * n_types)


def interpolated(
    followers: Followers, token: Hashable, weight: float, shorter: float
) -> float:
    """Mix the token's share with its probability after a shorter context.

    Jelinek and Mercer, 1980, in the recursive form of Chen and Goodman, 1999, § 2.3.

    Args:
        followers: what was seen after the context
        token: the token to predict
        weight: how much the share counts, between 0 and 1
        shorter: the token's probability after the context without its first token

    Returns:
        The probability of the token; ``shorter`` if the context was never seen.

    >>> interpolated(Followers({"b": 2}), "c", weight=0.75, shorter=0.4)
    0.1
    """
    if followers.total == 0:
        return shorter
    share = followers.counts.get(token, 0) / followers.total
    return weight * share + (1 - weight) * shorter


def kneser_ney(
    followers: Followers, token: Hashable, discount: float, shorter: float
) -> float:
    """Take the same discount off every count and share it out by a shorter context.

    The counts after all but the longest contexts are to be those of different first
    tokens (`drop_first` with ``distinct``); without that this is absolute discounting.
    Kneser and Ney, 1995; Chen and Goodman, 1999, § 3.2 and eq. (20).

    Args:
        followers: what was counted after the context
        token: the token to predict
        discount: what is taken off every count, between 0 and 1
        shorter: the token's probability after the context without its first token

    Returns:
        The probability of the token; ``shorter`` if the context was never seen.

    >>> kneser_ney(Followers({"b": 2, "c": 1}), "c", discount=0.75, shorter=0.5)
    0.3333333333333333
    """
    if followers.total == 0:
        return shorter
    kept = max(followers.counts.get(token, 0) - discount, 0.0)
    taken = discount * len(followers.counts)
    return (kept + taken * shorter) / followers.total


# --- The model ----------------------------------------------------------------------

Smoothing = Literal["none", "add_k", "interpolated", "kneser_ney"]


class NGramModel:
    """A language model that looks back ``order - 1`` tokens.

    Tokens may be anything that can be the key of a dictionary: characters, words, ids.
    A context is always the text so far, from its beginning; a text that has just begun
    is preceded by as many `BEGIN` as the model looks back, and every text is followed
    by one `END`. Interpolated and Kneser–Ney models mix all orders down to 1 and, at
    last, the same probability for every token of the vocabulary.

    Args:
        order: N, how many tokens make a run: those it looks back and the one it
            predicts; at least 1
        smoothing: how counts become probabilities: ``"none"`` (`maximum_likelihood`),
            ``"add_k"``, ``"interpolated"`` or ``"kneser_ney"``
        k: what ``"add_k"`` adds to every count
        weight: how much ``"interpolated"`` trusts every context it has seen
        discount: what ``"kneser_ney"`` takes off every count

    Raises:
        ValueError: if the order is smaller than 1, the smoothing is none of the four,
            or a number is out of its range.

    >>> model = NGramModel(order=2, discount=0.75).fit(["abba", "aba"])
    >>> model.vocabulary
    ['a', 'b', '<end>']
    >>> round(model.prob("b", context="a"), 4)
    0.4625
    """

    def __init__(
        self,
        order: int,
        smoothing: Smoothing = "kneser_ney",
        *,
        k: float = 1.0,
        weight: float = 0.75,
        discount: float = 0.75,
    ) -> None:
        require.at_least_one(order=order)
        if smoothing not in get_args(Smoothing):
            raise ValueError(
                f"smoothing={smoothing!r} is none of {get_args(Smoothing)}"
            )
        if not 0 < k < math.inf:
            raise ValueError(f"k={k} must be more than 0")
        if not 0 <= weight < 1:
            raise ValueError(f"weight={weight} must be at least 0 and less than 1")
        if not 0 < discount <= 1:
            raise ValueError(f"discount={discount} must be more than 0 and at most 1")
        self.order, self.smoothing = order, smoothing
        self.k, self.weight, self.discount = k, weight, discount
        self.vocabulary: list[Hashable] = []  # what it may predict; empty before fit
        self._known: frozenset[Hashable] = frozenset()
        self._followers: dict[tuple, Followers] = {}  # contexts of every length

    def fit(
        self,
        texts: Iterable[Sequence[Hashable]],
        vocabulary: Iterable[Hashable] | None = None,
    ) -> Self:
        """Count the texts; whatever the model counted before is forgotten.

        Args:
            texts: each a sequence of tokens; a string is a sequence of characters
            vocabulary: the tokens that can be predicted besides `END`; those of the
                texts if not given. If `UNKNOWN` is among them, it stands for all other
                tokens, here and later.

        Returns:
            The model itself.

        Raises:
            TypeError: if ``texts`` is one string.
            ValueError: if there is no text, or a text holds `BEGIN`, `END`, or a token
                that is not in the vocabulary although `UNKNOWN` is not there either.

        >>> model = NGramModel(order=1).fit([["to", "be"]], ["be", UNKNOWN])
        >>> model.vocabulary
        ['<unknown>', 'be', '<end>']
        """
        if isinstance(texts, str):
            raise TypeError("texts is one string, expected a list: [text]")
        texts = list(texts)
        if not texts:
            raise ValueError("texts is empty: there is nothing to count")
        if vocabulary is None:
            vocabulary = {token for text in texts for token in _as_list(text)}
        self.vocabulary = [*_in_order(set(vocabulary) - {BEGIN, END}), END]
        self._known = frozenset(self.vocabulary)
        runs: Counter[tuple] = Counter()
        for text in texts:
            runs.update(count_ngrams(self._pad(text), self.order))
        self._followers = group_by_context(runs)
        # Every token ends just one run of its padded text: these runs hold all counts.
        for _ in range(self.order - 1):
            runs = drop_first(runs, distinct=self.smoothing == "kneser_ney")
            self._followers.update(group_by_context(runs))
        return self

    def followers(self, context: Sequence[Hashable]) -> Followers:
        """What was counted after a context of at most ``order - 1`` tokens.

        Unlike elsewhere, the context is taken as it stands and never padded. Its counts
        are occurrences, but in a Kneser–Ney model those after less than ``order - 1``
        tokens are numbers of different first tokens.

        >>> NGramModel(order=2).fit(["abba", "aba"]).followers("b").counts
        {'b': 1, 'a': 2}
        """
        return self._followers.get(tuple(context), _NOTHING)

    def prob(self, token: Hashable, context: Sequence[Hashable]) -> float:
        """The probability that a token comes next.

        Args:
            token: the token to predict, `END` for the end of the text
            context: the text so far; only its last ``order - 1`` tokens matter

        Returns:
            The probability. The probabilities of all tokens of the vocabulary sum to
            1, except without smoothing after a context that was never seen: there all
            are 0.

        Raises:
            RuntimeError: if the model was not fitted.
            ValueError: if the token is `BEGIN`, or neither it nor `UNKNOWN` is in the
                vocabulary.

        >>> model = NGramModel(order=2, smoothing="none").fit(["abba", "aba"])
        >>> model.prob("b", context="a"), model.prob(END, context="ab")
        (0.5, 0.0)
        """
        if token == BEGIN:
            raise ValueError(f"{BEGIN!r} stands before every text: it is not predicted")
        window = self._window(context)
        return self._prob(self._map(token), window)

    def log_prob(self, token: Hashable, context: Sequence[Hashable]) -> float:
        """The logarithm of `prob` in nats, minus infinity where that is 0.

        >>> model = NGramModel(order=2, smoothing="none").fit(["abba", "aba"])
        >>> model.log_prob("b", context="a")
        -0.6931471805599453
        """
        return _log(self.prob(token, context))

    def score(self, text: Sequence[Hashable]) -> list[float]:
        """The log-probability of every token of a text and of its end.

        Args:
            text: L tokens

        Returns:
            L + 1 log-probabilities in nats; their sum is that of the whole text.

        Raises:
            RuntimeError: if the model was not fitted.
            ValueError: if the text holds `BEGIN`, `END`, or a token that is not in the
                vocabulary although `UNKNOWN` is not there either.

        >>> model = NGramModel(order=2, smoothing="none").fit(["abba", "aba"])
        >>> perplexity(model.score("aba"))
        1.5650845800732873
        """
        padded = self._pad(text)
        n_back = self.order - 1
        return [
            _log(self._prob(padded[end], tuple(padded[end - n_back : end])))
            for end in range(n_back, len(padded))
        ]

    def distribution(self, context: Sequence[Hashable]) -> dict[Hashable, float]:
        """The probability of every token of the vocabulary.

        Args:
            context: the text so far; only its last ``order - 1`` tokens matter

        Returns:
            The probabilities, in the order of ``vocabulary``.

        Raises:
            RuntimeError: if the model was not fitted.

        >>> model = NGramModel(order=2, smoothing="none").fit(["abba", "aba"])
        >>> model.distribution("ab")
        {'a': 0.6666666666666666, 'b': 0.3333333333333333, '<end>': 0.0}
        """
        window = self._window(context)
        return {token: self._prob(token, window) for token in self.vocabulary}

    def sample(
        self,
        generator: torch.Generator,
        context: Sequence[Hashable] = (),
        max_tokens: int = 200,
    ) -> list[Hashable]:
        """Write a text, each token drawn with its probability after those before.

        Args:
            generator: draws the tokens
            context: the text to go on with; empty for a new one
            max_tokens: how many tokens are written at most

        Returns:
            The new tokens, without `END`.

        Raises:
            RuntimeError: if the model was not fitted.
            ValueError: if nothing has a probability, as after an unseen context
                without smoothing, or ``max_tokens`` is negative.

        >>> model = NGramModel(order=3, smoothing="none").fit(["to be"])
        >>> "".join(model.sample(torch.Generator().manual_seed(1)))
        'to be'
        """
        require.not_negative(max_tokens=max_tokens)
        text = list(context)
        for _ in range(max_tokens):
            token = _draw(self.distribution(text), generator)
            if token == END:
                break
            text.append(token)
        return text[len(context) :]

    def _prob(self, token: Hashable, window: tuple) -> float:
        if self.smoothing == "none":
            return maximum_likelihood(self.followers(window), token)
        n_types = len(self.vocabulary)
        if self.smoothing == "add_k":
            return add_k(self.followers(window), token, self.k, n_types)
        prob = 1 / n_types
        for start in range(len(window), -1, -1):  # from the empty context to the whole
            followers = self.followers(window[start:])
            if self.smoothing == "interpolated":
                prob = interpolated(followers, token, self.weight, prob)
            else:
                prob = kneser_ney(followers, token, self.discount, prob)
        return prob

    def _pad(self, text: Sequence[Hashable]) -> list[Hashable]:
        self._check_fitted()
        tokens = _as_list(text)
        for mark in (BEGIN, END):
            if mark in tokens:
                raise ValueError(
                    f"the text holds {mark!r}, which the model adds itself"
                )
        return [BEGIN] * (self.order - 1) + [self._map(t) for t in tokens] + [END]

    def _window(self, context: Sequence[Hashable]) -> tuple:
        self._check_fitted()
        n_back = self.order - 1
        recent = _as_list(context[max(0, len(context) - n_back) :])
        if UNKNOWN in self._known:
            recent = [token if token == BEGIN else self._map(token) for token in recent]
        return (BEGIN,) * (n_back - len(recent)) + tuple(recent)

    def _map(self, token: Hashable) -> Hashable:
        if token in self._known:
            return token
        if UNKNOWN in self._known:
            return UNKNOWN
        raise ValueError(
            f"{token!r} is not among the {len(self._known)} tokens of the vocabulary, "
            f"and neither is {UNKNOWN!r}, which would stand for it"
        )

    def _check_fitted(self) -> None:
        if not self.vocabulary:
            raise RuntimeError("the model has counted nothing yet: call fit first")


_NOTHING = Followers({})


def _as_list(tokens: Iterable[Hashable]) -> list[Hashable]:
    # The numbers of a tensor would be counted as objects, each different from all.
    return tokens.tolist() if isinstance(tokens, torch.Tensor) else list(tokens)


def _in_order(tokens: Iterable[Hashable]) -> list[Hashable]:
    # A set has another order in every run of Python, and samples would change with it.
    return sorted(tokens, key=lambda token: (type(token).__name__, token))


def _log(prob: float) -> float:
    return math.log(prob) if prob > 0 else -math.inf


def _draw(
    distribution: Mapping[Hashable, float], generator: torch.Generator
) -> Hashable:
    cumulative = list(accumulate(distribution.values()))
    if cumulative[-1] == 0:
        raise ValueError("no token has a probability: this context was never seen")
    uniform = torch.rand(
        (), generator=generator, device=generator.device, dtype=torch.float64
    )
    return list(distribution)[bisect(cumulative, uniform.item() * cumulative[-1])]


# --- How good is a model? -----------------------------------------------------------


def cross_entropy(log_probs: Iterable[float], base: float = math.e) -> float:
    """The mean surprise of a model at the tokens that came.

    Shannon, 1948, § 7.

    Args:
        log_probs: the log-probability of each token that came, in nats (`NGramModel.
            score`)
        base: what the result is measured in: e for nats, 2 for bits

    Returns:
        The cross-entropy per token; infinity if a token had no probability.

    Raises:
        ValueError: if there is no token, a log-probability is above 0 or NaN, or the
            base is not above 1.

    >>> cross_entropy([math.log(1 / 2), math.log(1 / 8)], base=2)
    2.0
    """
    log_probs = _checked(log_probs)
    if not base > 1:
        raise ValueError(f"base={base} must be more than 1")
    return -math.fsum(log_probs) / len(log_probs) / math.log(base)


def perplexity(log_probs: Iterable[float]) -> float:
    """How many equally probable tokens would surprise as much.

    Args:
        log_probs: the log-probability of each token that came, in nats

    Returns:
        The exponential of `cross_entropy`, at least 1.

    Raises:
        ValueError: if there is no token, or a log-probability is above 0 or NaN.

    >>> round(perplexity([math.log(1 / 2), math.log(1 / 8)]), 9)
    4.0
    """
    try:
        return math.exp(cross_entropy(log_probs))
    except OverflowError:
        return math.inf


def bits_per_character(log_probs: Iterable[float], text: str) -> float:
    """The cross-entropy of a text in bits, shared out over its characters.

    Models that cut a text into different tokens can be compared by it, which their
    perplexities cannot. Characters are those of Python: "ą" is one, of two bytes.

    Args:
        log_probs: the log-probability of each token of the text, in nats, and perhaps
            of its end
        text: what the tokens join to

    Returns:
        Bits per character.

    Raises:
        TypeError: if the text is not a string.
        ValueError: if the text is empty, there is no token, or a log-probability is
            above 0 or NaN.

    >>> bits_per_character([math.log(1 / 4)], "ą")
    2.0
    """
    if not isinstance(text, str):
        raise TypeError(
            f"text is {type(text).__name__}, expected str: characters count"
        )
    if not text:
        raise ValueError("text is empty: there is no character to share the bits")
    return -math.fsum(_checked(log_probs)) / math.log(2) / len(text)


def _checked(log_probs: Iterable[float]) -> list[float]:
    log_probs = list(log_probs)
    if not log_probs:
        raise ValueError("log_probs is empty: there is no token to be surprised at")
    for log_prob in log_probs:
        if not log_prob <= 0:
            raise ValueError(f"{log_prob} is not a log-probability: at most 0")
    return log_probs
