"""Embeddings: what is a word made of, for a machine?

Chapter 03 of the book. A number alone says nothing about a word; a vector can lie near
those of similar words. The module builds, in this order: the vector that says nothing
(one-hot), the cosine that compares two vectors, neighbours and analogies; two ways to
learn vectors from the company that words keep, skip-gram with negative sampling and
GloVe; and a test of the prejudices that the vectors pick up on the way.

Left out: the parts of words (``lmcore.tokenizer``), and words with several meanings: a
word has one vector wherever it stands, until attention (chapter 08) changes that.

Papers: Mikolov, Chen, Corrado and Dean, 2013 (skip-gram, analogies); Mikolov,
Sutskever, Chen, Corrado and Dean, 2013 (negative sampling); Levy and Goldberg, 2014
(analogies as cosines); Pennington, Socher and Manning, 2014 (GloVe); Caliskan, Bryson
and Narayanan, 2017 (the association test).

V is the number of words, C the width of their vectors.
"""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from . import require

# --- Vectors and how near they are --------------------------------------------------


def one_hot(ids: Tensor, n_words: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Give every word a vector of its own that is as far from all others as it can be.

    Args:
        ids: (...), whole numbers
        n_words: V
        dtype: the type of the vectors

    Returns:
        (..., V), all zeros but for a 1 at each word's own place.

    Raises:
        ValueError: if an id is not between 0 and V - 1.

    >>> one_hot(torch.tensor([2, 0]), n_words=3)
    tensor([[0., 0., 1.],
            [1., 0., 0.]])
    """
    _check_ids("ids", ids, n_words)
    return (ids[..., None] == torch.arange(n_words, device=ids.device)).to(dtype)


def normalize(x: Tensor) -> Tensor:
    """Scale vectors to length 1; the zero vector has no direction and stays.

    Args:
        x: (..., C)

    Returns:
        (..., C)

    >>> normalize(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    tensor([[0.6000, 0.8000],
            [0.0000, 0.0000]])
    """
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    # Vectors this short are the remains of rounding, not directions.
    return x / length.clamp(min=max(1e-12, torch.finfo(x.dtype).tiny))


def cosine_similarity(a: Tensor, b: Tensor) -> Tensor:
    """Compare the directions of vectors: 1 if they are the same, -1 if opposite.

    Args:
        a: (..., C)
        b: (..., C), broadcast against ``a``

    Returns:
        (...), the cosine of the angle; 0 if one of the two vectors is zero.

    Raises:
        ValueError: if the widths differ.

    >>> cosine_similarity(torch.tensor([1.0, 0.0]), torch.tensor([[10.0, 0.0], [3, 4]]))
    tensor([1.0000, 0.6000])
    """
    if a.shape[-1] != b.shape[-1]:
        raise ValueError(f"the vectors have widths {a.shape[-1]} and {b.shape[-1]}")
    return (normalize(a) * normalize(b)).sum(dim=-1)


def nearest(embedding: Tensor, word: int, k: int = 10) -> tuple[Tensor, Tensor]:
    """Find the words whose vectors point most nearly in the same direction.

    Args:
        embedding: (V, C), the vector of every word
        word: the id of the word whose neighbours are asked for; it is not among them
        k: how many neighbours

    Returns:
        The ids, (k,), nearest first (of equals the lower id), and their cosines, (k,).

    Raises:
        ValueError: if the id is not between 0 and V - 1, or there are less than ``k``
            other words.

    >>> embedding = torch.tensor([[1.0, 0.0], [0.0, 1.0], [4.0, 3.0]])
    >>> nearest(embedding, word=0, k=2)
    (tensor([2, 1]), tensor([0.8000, 0.0000]))
    """
    _check_words(embedding, [word])
    return nearest_to_vector(embedding, embedding[word], k, exclude=[word])


def nearest_to_vector(
    embedding: Tensor, vector: Tensor, k: int = 10, exclude: Sequence[int] = ()
) -> tuple[Tensor, Tensor]:
    """Find the words whose vectors point most nearly in a given direction.

    Args:
        embedding: (V, C), the vector of every word
        vector: (C,), the direction
        k: how many words
        exclude: ids of words that are not wanted

    Returns:
        The ids, (k,), nearest first (of equals the lower id), and their cosines, (k,).

    Raises:
        ValueError: if an excluded id is not between 0 and V - 1, or there are less than
            ``k`` other words.

    >>> embedding = torch.tensor([[1.0, 0.0], [0.0, 1.0], [4.0, 3.0]])
    >>> nearest_to_vector(embedding, torch.tensor([0.0, 2.0]), k=1, exclude=[1])
    (tensor([2]), tensor([0.6000]))
    """
    _check_words(embedding, exclude)
    n_others = len(embedding) - len(set(exclude))
    if not 1 <= k <= n_others:
        raise ValueError(f"k={k} must lie between 1 and the {n_others} other words")
    similarity = cosine_similarity(embedding, vector)  # (V,)
    similarity[list(exclude)] = -math.inf
    similarity, ids = similarity.sort(descending=True, stable=True)
    return ids[:k], similarity[:k]


def analogy(
    embedding: Tensor, a: int, b: int, c: int, k: int = 1
) -> tuple[Tensor, Tensor]:
    """Answer "a is to b as c is to …": man, king, woman.

    The answer is the word nearest to ``b - a + c``, each scaled to length 1, so that
    long vectors do not count more. The three words themselves are no answers. Mikolov,
    Chen, Corrado and Dean, 2013, § 4; Levy and Goldberg, 2014, eq. (1).

    Args:
        embedding: (V, C), the vector of every word
        a: the id of a word
        b: the id of the word that is to ``a`` as the answer is to ``c``
        c: the id of a word
        k: how many answers

    Returns:
        The ids of the answers, (k,), best first, and their cosines, (k,).

    Raises:
        ValueError: if an id is not between 0 and V - 1, or there are less than ``k``
            other words.

    >>> embedding = torch.tensor([[1, 0.0], [1, 0.1], [0, 1], [0.2, 1.3], [-1, 0]])
    >>> analogy(embedding, a=0, b=1, c=2)
    (tensor([3]), tensor([0.9877]))
    """
    _check_words(embedding, [a, b, c])
    unit = normalize(embedding[[a, b, c]])  # (3, C)
    return nearest_to_vector(embedding, unit[1] - unit[0] + unit[2], k, [a, b, c])


# --- Skip-gram with negative sampling -----------------------------------------------


def subsample(tokens: Tensor, threshold: float, generator: torch.Generator) -> Tensor:
    """Drop many of the most frequent words: "the" says little about its neighbours.

    A word that makes up the share f of a text is kept with probability
    ``√(threshold / f)``, or always if it is rarer than the threshold. Mikolov,
    Sutskever et al., 2013, § 2.3.

    Args:
        tokens: (T,), ids of words
        threshold: the share of a text up to which a word is always kept, more than 0
        generator: draws which words are dropped

    Returns:
        (T',), the words that are left, in their order.

    Raises:
        ValueError: if the tokens are no row of ids or the threshold is not above 0.

    >>> subsample(torch.tensor([0, 1, 2, 3]), 0.25, torch.Generator())
    tensor([0, 1, 2, 3])
    """
    _check_text(tokens)
    require.positive(threshold=threshold)
    share = torch.bincount(tokens)[tokens] / len(tokens)  # (T,)
    uniform = torch.rand(len(tokens), generator=generator, device=tokens.device)
    return tokens[uniform < (threshold / share).sqrt()]


def skipgram_pairs(tokens: Tensor, window: int) -> Tensor:
    """Pair every word with each of its neighbours.

    Mikolov, Chen, Corrado and Dean, 2013, § 3.2, with the same window around all words.

    Args:
        tokens: (T,), ids of words
        window: how many words to the left and to the right are neighbours

    Returns:
        (N, 2), a centre and one of its neighbours in every row, in the order of the
        text: by centre, and then from left to right.

    Raises:
        ValueError: if the tokens are no row of ids or the window is smaller than 1.

    >>> skipgram_pairs(torch.tensor([5, 6, 7]), window=1)
    tensor([[5, 6],
            [6, 5],
            [6, 7],
            [7, 6]])
    """
    _check_text(tokens)
    require.at_least_one(window=window)
    n_tokens = len(tokens)
    centre = torch.arange(n_tokens, device=tokens.device)[:, None]  # (T, 1)
    offset = torch.arange(-window, window + 1, device=tokens.device)
    neighbour = centre + offset[offset != 0]  # (T, 2 · window)
    inside = (neighbour >= 0) & (neighbour < n_tokens)
    centre = centre.expand_as(neighbour)
    return torch.stack([tokens[centre[inside]], tokens[neighbour[inside]]], dim=-1)


def negative_distribution(counts: Tensor, power: float = 0.75) -> Tensor:
    """Say how often each word is to be drawn as a wrong neighbour.

    The power makes rare words less rare: a word 16 times as frequent as another is
    drawn 8 times as often. Mikolov, Sutskever et al., 2013, § 2.2.

    Args:
        counts: (V,), how often each word is in the text
        power: what the counts are raised to

    Returns:
        (V,), probabilities.

    Raises:
        ValueError: if a count is negative or all are 0.

    >>> negative_distribution(torch.tensor([1, 16]))
    tensor([0.1111, 0.8889])
    """
    if counts.min() < 0 or counts.max() == 0:
        raise ValueError(f"counts from {counts.min()} to {counts.max()} are no counts")
    weight = counts.to(torch.get_default_dtype()) ** power
    weight = weight.masked_fill(counts == 0, 0.0)  # also when the power is 0
    return weight / weight.sum()


def sample_negatives(
    positive: Tensor,
    n_negatives: int,
    distribution: Tensor,
    generator: torch.Generator,
) -> Tensor:
    """Draw words that did not stand there, and so never the one that did.

    Args:
        positive: (B,), the id of the true neighbour in every pair
        n_negatives: K, how many words are drawn for each of them
        distribution: (V,), how probable each word is (`negative_distribution`)
        generator: draws the words

    Returns:
        (B, K), ids drawn with replacement. Those that hit the true neighbour are drawn
        again until none does.

    Raises:
        ValueError: if a true neighbour is not between 0 and V - 1, or leaves less than
            0.0001 of the probability to all other words.

    >>> positive, distribution = torch.tensor([1, 0]), torch.tensor([0.5, 0.5, 0.0])
    >>> sample_negatives(positive, 3, distribution, torch.Generator())
    tensor([[0, 0, 0],
            [1, 1, 1]])
    """
    _check_ids("positive", positive, len(distribution))
    require.at_least_one(n_negatives=n_negatives)
    largest = float(distribution[positive].max() / distribution.sum())
    if largest > 1 - 1e-4:
        raise ValueError(f"a true neighbour has {largest:.6f} of all probability")
    n_drawn = len(positive) * n_negatives
    negatives = torch.multinomial(distribution, n_drawn, True, generator=generator)
    negatives = negatives.view(len(positive), n_negatives)  # (B, K)
    while (hit := negatives == positive[:, None]).any():
        n_hit = int(hit.sum())
        negatives[hit] = torch.multinomial(
            distribution, n_hit, True, generator=generator
        )
    return negatives


def negative_sampling_loss(
    centre: Tensor, context: Tensor, negatives: Tensor
) -> Tensor:
    """Tell the true neighbour of each word from words that were drawn at random.

    ``- log σ(centre · context) - Σ log σ(- centre · negative)``, which is the loss of a
    yes-or-no question for each of the 1 + K words. Mikolov, Sutskever et al., 2013,
    eq. (4).

    Args:
        centre: (B, C), vectors of the words in the centre
        context: (B, C), vectors of their true neighbours
        negatives: (B, K, C), vectors of the words drawn

    Returns:
        The mean over the batch, a scalar, in nats.

    Raises:
        ValueError: if the shapes do not fit.

    >>> zero = torch.zeros(1, 3)  # knows nothing: six times one bit
    >>> negative_sampling_loss(zero, zero, torch.zeros(1, 5, 3)) / math.log(2)
    tensor(6.)
    """
    fits = negatives.dim() == 3 and negatives.shape[::2] == centre.shape
    if context.shape != centre.shape or not fits:
        raise ValueError(
            f"centre {tuple(centre.shape)}, context {tuple(context.shape)} and "
            f"negatives {tuple(negatives.shape)} must be (B, C), (B, C) and (B, K, C)"
        )
    true_score = (centre * context).sum(dim=-1)  # (B,)
    false_score = (centre[:, None] * negatives).sum(dim=-1)  # (B, K)
    # logsigmoid, since the logarithm of a sigmoid that is rounded to 0 is not finite.
    losses = -F.logsigmoid(true_score) - F.logsigmoid(-false_score).sum(dim=-1)
    return losses.mean()


class SkipGram(nn.Module):
    """Word vectors that predict the neighbours of a word.

    Every word has two vectors: one for when it stands in the centre, which is what
    remains in the end, and one for when it is a neighbour. The parameters are
    ``centre.weight`` and ``context.weight``, (V, C) each; the first start as small
    random numbers, the second at 0.

    Args:
        n_words: V
        d_model: C, the width of the vectors
        generator: draws the first vectors; torch's own if not given
        device: where the parameters are made
        dtype: the floating type of the parameters

    >>> model = SkipGram(n_words=7, d_model=3)
    >>> pairs, negatives = torch.tensor([[0, 1], [1, 0]]), torch.tensor([[5], [6]])
    >>> model(pairs, negatives) / math.log(2)
    tensor(2., grad_fn=<DivBackward0>)
    """

    def __init__(
        self,
        n_words: int,
        d_model: int,
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        require.at_least_one(n_words=n_words, d_model=d_model)
        options = {"device": device, "dtype": dtype}
        self.centre = nn.Embedding(n_words, d_model, **options)
        self.context = nn.Embedding(n_words, d_model, **options)
        bound = 0.5 / d_model
        nn.init.uniform_(self.centre.weight, -bound, bound, generator=generator)
        nn.init.zeros_(self.context.weight)

    @property
    def vectors(self) -> Tensor:
        """The vector of every word, (V, C)."""
        return self.centre.weight.detach()

    def forward(self, pairs: Tensor, negatives: Tensor) -> Tensor:
        """The loss of some pairs.

        Args:
            pairs: (B, 2), words and their true neighbours (`skipgram_pairs`)
            negatives: (B, K), words drawn at random (`sample_negatives`)

        Returns:
            The mean loss, a scalar, in nats.
        """
        return negative_sampling_loss(
            self.centre(pairs[:, 0]),  # (B, C)
            self.context(pairs[:, 1]),  # (B, C)
            self.context(negatives),  # (B, K, C)
        )

    def fit(
        self,
        tokens: Tensor,
        generator: torch.Generator,
        *,
        window: int = 5,
        n_negatives: int = 5,
        n_epochs: int = 1,
        batch_size: int = 1024,
        learning_rate: float = 0.005,
    ) -> list[float]:
        """Learn the vectors from a text.

        Args:
            tokens: (T,), ids of words
            generator: shuffles the pairs and draws the negatives
            window: how many words to the left and to the right are neighbours
            n_negatives: how many words are drawn for each pair
            n_epochs: how often every pair is learned from
            batch_size: how many pairs make a step
            learning_rate: the size of a step

        Returns:
            The loss of every step, in nats.

        Raises:
            ValueError: if the text has less than two words or an id that is not between
                0 and V - 1, or a number is smaller than 1.
        """
        require.at_least_one(n_epochs=n_epochs, batch_size=batch_size)
        n_words = self.centre.num_embeddings
        _check_ids("tokens", tokens, n_words)
        if len(tokens) < 2:
            raise ValueError(f"tokens has {len(tokens)} words, a pair needs two")
        pairs = skipgram_pairs(tokens, window)
        counts = torch.bincount(tokens, minlength=n_words)
        distribution = negative_distribution(counts)
        optimizer = torch.optim.Adam(self.parameters(), lr=learning_rate)
        losses = []
        for batch in _shuffled(len(pairs), batch_size, n_epochs, generator):
            chosen = pairs[batch]  # (B, 2)
            negatives = sample_negatives(
                chosen[:, 1], n_negatives, distribution, generator
            )
            losses.append(_step(optimizer, self(chosen, negatives)))
        return losses


# --- GloVe --------------------------------------------------------------------------


def cooccurrence(tokens: Tensor, n_words: int, window: int) -> Tensor:
    """Count how often two words stand near each other, the nearer the more.

    Two words at the distance d count 1 / d, once in the row of the one and once in the
    row of the other; a word that meets itself counts twice, once from either side.
    Pennington, Socher and Manning, 2014, § 4.2.

    Args:
        tokens: (T,), ids of words
        n_words: V; the table has V² numbers, so some thousands at most
        window: up to which distance words count

    Returns:
        (V, V), symmetric.

    Raises:
        ValueError: if the tokens are no row of ids between 0 and V - 1, or the window
            is smaller than 1.

    >>> cooccurrence(torch.tensor([0, 2, 1]), n_words=3, window=2)
    tensor([[0.0000, 0.5000, 1.0000],
            [0.5000, 0.0000, 1.0000],
            [1.0000, 1.0000, 0.0000]])
    """
    _check_text(tokens)
    _check_ids("tokens", tokens, n_words)
    require.at_least_one(window=window)
    # Sums of many small numbers, so that float32 would lose the last ones.
    counts = torch.zeros(n_words, n_words, dtype=torch.float64, device=tokens.device)
    for distance in range(1, min(window, len(tokens) - 1) + 1):
        left, right = tokens[:-distance], tokens[distance:]
        one = counts.new_full((len(left),), 1 / distance)
        counts.index_put_((left, right), one, accumulate=True)
    return (counts + counts.T).to(torch.get_default_dtype())


def glove_weight(counts: Tensor, x_max: float = 100.0, alpha: float = 0.75) -> Tensor:
    """Say how much the error at each count matters: more with more evidence, up to 1.

    Pennington, Socher and Manning, 2014, eq. (9).

    Args:
        counts: (...), at least 0
        x_max: the count from which on the weight is 1
        alpha: the power with which the weight rises up to there

    Returns:
        (...), between 0 and 1; 0 for words that never met.

    >>> glove_weight(torch.tensor([0.0, 6.25, 100.0, 200.0]))
    tensor([0.0000, 0.1250, 1.0000, 1.0000])
    """
    return (counts / x_max).clamp(max=1.0) ** alpha


def glove_loss(
    predicted: Tensor, counts: Tensor, x_max: float = 100.0, alpha: float = 0.75
) -> Tensor:
    """Measure how far predicted log-counts are from the logarithms of the counts.

    ``Σ weight · (predicted - log count)²``, over the pairs of words that met; those
    that never met have no logarithm, and add nothing. Pennington, Socher and Manning,
    2014, eq. (8).

    Args:
        predicted: (...), the predicted logarithms of the counts
        counts: (...), the counts (`cooccurrence`)
        x_max: as in `glove_weight`
        alpha: as in `glove_weight`

    Returns:
        The sum, a scalar.

    Raises:
        ValueError: if the shapes differ or a count is negative.

    >>> glove_loss(torch.tensor([2.0, 7.0]), torch.tensor([1.0, 0.0]), x_max=16)
    tensor(0.5000)
    """
    if predicted.shape != counts.shape:
        raise ValueError(
            f"predicted {tuple(predicted.shape)} and counts {tuple(counts.shape)} must "
            "have the same shape"
        )
    if (counts < 0).any():
        raise ValueError(f"counts has the negative entry {counts.min()}")
    met = counts > 0
    error = predicted[met] - counts[met].log()
    return (glove_weight(counts[met], x_max, alpha) * error**2).sum()


class GloVe(nn.Module):
    """Word vectors whose products are the logarithms of how often two words met.

    The parameters are ``word.weight`` and ``context.weight``, (V, C), and a bias for
    each word in each role, ``word_bias.weight`` and ``context_bias.weight``, (V, 1).

    Args:
        n_words: V
        d_model: C, the width of the vectors
        generator: draws the first vectors; torch's own if not given
        device: where the parameters are made
        dtype: the floating type of the parameters

    >>> GloVe(n_words=7, d_model=3)(torch.tensor([0, 1]), torch.tensor([5, 5])).shape
    torch.Size([2])
    """

    def __init__(
        self,
        n_words: int,
        d_model: int,
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        require.at_least_one(n_words=n_words, d_model=d_model)
        options = {"device": device, "dtype": dtype}
        self.word = nn.Embedding(n_words, d_model, **options)
        self.context = nn.Embedding(n_words, d_model, **options)
        self.word_bias = nn.Embedding(n_words, 1, **options)
        self.context_bias = nn.Embedding(n_words, 1, **options)
        bound = 0.5 / d_model
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound, generator=generator)

    @property
    def vectors(self) -> Tensor:
        """The vector of every word, (V, C): the sum of its two."""
        return (self.word.weight + self.context.weight).detach()

    def forward(self, word: Tensor, context: Tensor) -> Tensor:
        """Predict the logarithms of how often words met.

        Args:
            word: (B,), ids
            context: (B,), ids

        Returns:
            (B,)
        """
        product = (self.word(word) * self.context(context)).sum(dim=-1)  # (B,)
        bias = self.word_bias(word) + self.context_bias(context)  # (B, 1)
        return product + bias.squeeze(-1)

    def fit(
        self,
        counts: Tensor,
        generator: torch.Generator,
        *,
        n_epochs: int = 10,
        batch_size: int = 1024,
        learning_rate: float = 0.05,
        x_max: float = 100.0,
    ) -> list[float]:
        """Learn the vectors from a table of counts.

        Args:
            counts: (V, V), how often words met (`cooccurrence`)
            generator: shuffles the pairs
            n_epochs: how often every pair is learned from
            batch_size: how many pairs make a step
            learning_rate: the size of a step
            x_max: as in `glove_weight`

        Returns:
            The loss of every step, per pair.

        Raises:
            ValueError: if the table has another size, no words met, or a number is
                smaller than 1.
        """
        require.at_least_one(n_epochs=n_epochs, batch_size=batch_size)
        n_words = self.word.num_embeddings
        if counts.shape != (n_words, n_words):
            raise ValueError(
                f"counts {tuple(counts.shape)} is not {(n_words, n_words)}"
            )
        word, context = counts.nonzero(as_tuple=True)  # (N,), (N,)
        if len(word) == 0:
            raise ValueError("counts is all zero: no words met")
        optimizer = torch.optim.Adagrad(self.parameters(), lr=learning_rate)
        losses = []
        for batch in _shuffled(len(word), batch_size, n_epochs, generator):
            predicted = self(word[batch], context[batch])  # (B,)
            loss = glove_loss(predicted, counts[word[batch], context[batch]], x_max)
            losses.append(_step(optimizer, loss / len(batch)))
        return losses


# --- What vectors pick up on the way ------------------------------------------------


def association(words: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Say how much nearer words are to one group of words than to another.

    Caliskan, Bryson and Narayanan, 2017, the quantity s(w, A, B).

    Args:
        words: (N, C), the vectors of the words in question
        a: (A, C), the vectors of a group, such as words for what is pleasant
        b: (B, C), the vectors of another, such as words for what is not

    Returns:
        (N,), the mean cosine with the first group minus that with the second.

    Raises:
        ValueError: if the widths differ or a group is empty.

    >>> words = torch.tensor([[2.0, 0.0], [3.0, 3.0]])
    >>> association(words, torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]))
    tensor([1., 0.])
    """
    for name, vectors in (("words", words), ("a", a), ("b", b)):
        if len(vectors) == 0:
            raise ValueError(f"{name} is empty: there is no word in it")
    to_a = cosine_similarity(words[:, None], a).mean(dim=-1)  # (N, A) -> (N,)
    to_b = cosine_similarity(words[:, None], b).mean(dim=-1)  # (N, B) -> (N,)
    return to_a - to_b


def weat_effect_size(x: Tensor, y: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Measure a prejudice: is X to A as Y is to B, and how clearly?

    The difference between the mean `association` of the two groups of targets, measured
    in standard deviations of all target words taken together (with N - 1). Caliskan,
    Bryson and Narayanan, 2017 (the word embedding association test).

    Args:
        x: (X, C), the vectors of a group of targets, such as flowers
        y: (Y, C), the vectors of another, such as insects
        a: (A, C), the vectors of a group of attributes, such as pleasant words
        b: (B, C), the vectors of another, such as unpleasant words

    Returns:
        A scalar: positive if X goes with A and Y with B, negative if the other way
        round, and between -2 and 2 if X and Y have the same number of words.

    Raises:
        ValueError: if the widths differ, a group is empty, or all targets have the same
            association, so that nothing can be measured by it.

    >>> up, right = torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.0]])
    >>> weat_effect_size(x=up, y=right, a=up, b=right)
    tensor(1.4142)
    """
    of_x, of_y = association(x, a, b), association(y, a, b)  # (X,), (Y,)
    spread = torch.cat([of_x, of_y]).std()
    if spread == 0:
        raise ValueError(f"every target word has the association {of_x[0]:.4f}")
    return (of_x.mean() - of_y.mean()) / spread


# --- Checks and steps ---------------------------------------------------------------


def _shuffled(
    n_rows: int, batch_size: int, n_epochs: int, generator: torch.Generator
) -> Iterator[Tensor]:
    n_steps = n_epochs * math.ceil(n_rows / batch_size)
    with tqdm(total=n_steps, unit="step") as progress:
        for _ in range(n_epochs):
            order = torch.randperm(n_rows, generator=generator, device=generator.device)
            for batch in order.split(batch_size):
                yield batch
                progress.update()


def _step(optimizer: torch.optim.Optimizer, loss: Tensor) -> float:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def _check_ids(name: str, ids: Tensor, n_words: int) -> None:
    if ids.is_floating_point() or ids.is_complex():
        raise TypeError(f"{name} has dtype {ids.dtype}, expected whole numbers")
    require.indices(name, ids, n_words=n_words)


def _check_words(embedding: Tensor, ids: Sequence[int]) -> None:
    for index in ids:
        if not 0 <= index < len(embedding):
            raise ValueError(f"word {index} is not between 0 and {len(embedding) - 1}")


def _check_text(tokens: Tensor) -> None:
    if tokens.dim() != 1 or tokens.is_floating_point():
        raise ValueError(
            f"tokens has shape {tuple(tokens.shape)} and dtype {tokens.dtype}, "
            "expected one row of ids"
        )
