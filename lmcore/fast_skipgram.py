"""Fast skip-gram: word vectors from stretches of text, a few rows at a time.

Chapter 03 of the book. ``embedding.SkipGram.fit`` looks every pair of words up by
itself and moves all vectors of the vocabulary in every step, even those of words that
it did not see. Here a step reads a stretch of text: each of its words is looked up once
in each role, one matrix product holds the scores of all its pairs, as a band along the
diagonal, and the pairs share the words that were drawn as wrong neighbours. Only the
vectors of these words move.

The loss is the same (tested). What differs: the pairs of a step come from one place in
the text, a shared wrong neighbour may by chance be a true one of somebody, and steps
are those of Adagrad, which needs no memory of the words that are not there.

Papers: Ji, Satish, Li and Dubey, 2016 (shared negatives); Duchi, Hazan and Singer, 2011
(Adagrad).
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from . import embedding, require


def stretch_loss(
    centre: Tensor, context: Tensor, negatives: Tensor, window: int, n_negatives: int
) -> Tensor:
    """Compute `embedding.negative_sampling_loss` for all pairs of a stretch of text.

    Every pair is told from all S wrong neighbours, which together count as much as
    ``n_negatives`` of them.

    Args:
        centre: (T, C), the vectors of the words of the stretch, in the centre
        context: (T, C), the vectors of the same words, as neighbours
        negatives: (S, C), the vectors of the words drawn, as neighbours
        window: how many words to the left and to the right are neighbours
        n_negatives: K

    Returns:
        The mean over the pairs, a scalar, in nats.

    Raises:
        ValueError: if there are no pairs or no words drawn.

    >>> zero = torch.zeros(3, 2)  # knows nothing: six times one bit
    >>> loss = stretch_loss(zero, zero, zero, window=1, n_negatives=5)
    >>> loss / torch.tensor(2.0).log()
    tensor(6.)
    """
    if len(centre) < 2 or len(negatives) == 0:
        raise ValueError(
            f"{len(centre)} words and {len(negatives)} drawn: expected at least two, "
            "which are a pair, and one drawn"
        )
    near = torch.ones(len(centre), len(centre), dtype=torch.bool, device=centre.device)
    near = near.tril(window).triu(-window).fill_diagonal_(False)  # (T, T)
    n_neighbours = near.sum(dim=1, keepdim=True)  # (T, 1)
    true = F.logsigmoid((centre @ context.T)[near]).sum()
    false = F.logsigmoid(-(centre @ negatives.T))  # (T, S)
    share = n_negatives / len(negatives)
    return -(true + share * (n_neighbours * false).sum()) / n_neighbours.sum()


def fit(
    model: embedding.SkipGram,
    words: Tensor,
    generator: torch.Generator,
    *,
    window: int = 5,
    n_negatives: int = 5,
    n_epochs: int = 1,
    stretch: int = 128,
    learning_rate: float = 0.2,
) -> list[float]:
    """Learn word vectors from a text, as `embedding.SkipGram.fit`, but much sooner.

    Pairs across the border of two stretches are left out.

    Args:
        model: changed in place
        words: (T,), ids
        generator: shuffles the stretches and draws the negatives
        window: how many words to the left and to the right are neighbours
        n_negatives: how many drawn words count against each pair
        n_epochs: how often every stretch is learned from
        stretch: how many words make a step; as many are drawn
        learning_rate: the size of a step of Adagrad

    Returns:
        The loss of every step, in nats.

    Raises:
        ValueError: if the text has less than two words or an id that is not between 0
            and V - 1, or a number is smaller than 1.
        TypeError: if the ids are no whole numbers.

    >>> dice = torch.Generator().manual_seed(1)
    >>> model = embedding.SkipGram(n_words=2, d_model=4, generator=dice)
    >>> losses = fit(model, torch.tensor([0, 1] * 100), dice, window=1, n_epochs=20)
    >>> losses[-1] < losses[0]
    True
    """
    require.at_least_one(window=window, n_negatives=n_negatives, n_epochs=n_epochs)
    if stretch < 2 or len(words) < 2:
        raise ValueError(f"{stretch=} and {len(words)} words: a pair needs two")
    tables = model.centre.weight, model.context.weight
    embedding._check_ids("words", words, len(tables[0]))
    counts = torch.bincount(words, minlength=len(tables[0]))
    distribution = embedding.negative_distribution(counts)
    optimizer = torch.optim.Adagrad(tables, lr=learning_rate)
    stretches = [part for part in words.split(stretch) if len(part) > 1]
    losses = []
    # PyTorch asks for a decision on whether it shall check the sparse gradients.
    with torch.sparse.check_sparse_tensor_invariants(False):
        for number in embedding._shuffled(len(stretches), 1, n_epochs, generator):
            read = stretches[number]
            drawn = torch.multinomial(distribution, stretch, True, generator=generator)
            # With sparse=True a gradient is only of the rows that were looked up.
            centre = F.embedding(read, tables[0], sparse=True)  # (T, C)
            context = F.embedding(torch.cat([read, drawn]), tables[1], sparse=True)
            context, negatives = context[: len(read)], context[len(read) :]
            loss = stretch_loss(centre, context, negatives, window, n_negatives)
            losses.append(embedding._step(optimizer, loss))
    return losses
