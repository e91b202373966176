"""Counting and word vectors: Kneser–Ney on 5 MB, and skip-gram against gensim.

Run ``python -m benchmarks.counting``. gensim is compared with if it is installed. The
words per second include everything from ids to vectors, on one side as on the other.
"""

import importlib
import importlib.util
import time
from collections.abc import Callable

import torch

from benchmarks.timing import best_times
from lmcore import data, embedding, fast_skipgram, ngram

ORDER = 6
HELD_OUT = 0.05
N_WORDS, WIDTH = 60_000, 64


def bench_ngrams(text: str) -> None:
    """Print how long it takes to count all plays, and to score what was held out."""
    cut = int(len(text) * (1 - HELD_OUT))
    start = time.perf_counter()
    fitted = ngram.NGramModel(ORDER, smoothing="kneser_ney").fit([text[:cut]])
    counted = time.perf_counter()
    bits = ngram.bits_per_character(fitted.score(text[cut:]), text[cut:])
    scored = time.perf_counter()
    print(
        f"Kneser–Ney of order {ORDER}, {cut / 1e6:.1f} M characters: "
        f"{counted - start:.1f} s to count, {scored - counted:.1f} s for "
        f"{len(text) - cut:,} held-out characters, {bits:.3f} bits each"
    )


def bench_skipgram(text: str) -> None:
    """Print words per second of one pass, and how well the words' pairs are told.

    All sides learn from all pairs of words that stand at most five apart, each against
    five words drawn, with one thread: steps this small only wait for a second one.
    """
    torch.set_num_threads(1)
    words = text.lower().split()[:N_WORDS]
    vocabulary = data.Vocabulary(sorted(set(words)))
    ids = torch.tensor(vocabulary.encode(words))
    made = {}

    def side(name: str, fit: Callable[..., object]) -> Callable[[], None]:
        def learn() -> None:
            dice = torch.Generator().manual_seed(1)
            made[name] = embedding.SkipGram(len(vocabulary), WIDTH, generator=dice)
            fit(made[name], ids, dice)

        return learn

    sides = {"pair by pair": embedding.SkipGram.fit, "stretches": fast_skipgram.fit}
    sides = {name: side(name, fit) for name, fit in sides.items()}
    sides |= _gensim(words, vocabulary, made)
    sides["stretches"]()  # PyTorch imports its optimizers once
    times = best_times(*sides.values(), rounds=2)
    for name, seconds in zip(sides, times, strict=True):
        print(
            f"skip-gram of width {WIDTH}, {name}: {len(words) / seconds:,.0f} words/s, "
            f"loss {_loss(made[name], ids):.2f} nats"
        )


def _gensim(
    words: list[str], vocabulary: data.Vocabulary, made: dict[str, embedding.SkipGram]
) -> dict[str, Callable[[], None]]:
    """The side of gensim, if it is installed: the same pairs, and its own SGD."""
    if importlib.util.find_spec("gensim") is None:
        print("gensim is not installed (make bench does that): nothing to compare with")
        return {}
    word2vec = importlib.import_module("gensim.models").Word2Vec
    settings = {"vector_size": WIDTH, "sg": 1, "min_count": 1, "epochs": 1}
    settings |= {"workers": 1, "sample": 0, "shrink_windows": False}
    most = 10_000  # gensim reads no more of a sentence
    texts = [words[i : i + most] for i in range(0, len(words), most)]

    def fit() -> None:
        theirs = word2vec(texts, **settings)
        model = embedding.SkipGram(len(vocabulary), WIDTH)
        ids = torch.tensor(vocabulary.encode(theirs.wv.index_to_key))
        model.centre.weight.data[ids] = torch.from_numpy(theirs.wv.vectors)
        model.context.weight.data[ids] = torch.from_numpy(theirs.syn1neg)
        made["gensim"] = model

    return {"gensim": fit}


@torch.no_grad()
def _loss(model: embedding.SkipGram, ids: torch.Tensor) -> float:
    """The loss of some of the text's pairs, in nats."""
    dice = torch.Generator().manual_seed(2)
    pairs = embedding.skipgram_pairs(ids, window=5)
    pairs = pairs[torch.randperm(len(pairs), generator=dice)[:20_000]]
    distribution = embedding.negative_distribution(torch.bincount(ids))
    drawn = embedding.sample_negatives(pairs[:, 1], 5, distribution, dice)
    return model(pairs, drawn).item()


def main() -> None:
    """Measure and print."""
    text = "".join(play.text for play in data.load_plays())
    bench_ngrams(text)
    bench_skipgram(text)


if __name__ == "__main__":
    main()
