"""Counting and word vectors: Kneser–Ney on 5 MB, and skip-gram against gensim.

Run ``python -m benchmarks.counting``. gensim is compared with if it is installed.
"""

import importlib
import importlib.util
import time

import torch

from benchmarks.timing import best_times
from lmcore import data, embedding, ngram

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
    """Print words per second of one pass over some words."""
    words = text.lower().split()[:N_WORDS]
    vocabulary = data.Vocabulary(sorted(set(words)))
    ids = torch.tensor(vocabulary.encode(words))
    dice = torch.Generator().manual_seed(1)
    vectors = embedding.SkipGram(len(vocabulary), WIDTH, generator=dice)
    (ours,) = best_times(lambda: vectors.fit(ids, dice), rounds=1)
    print(f"skip-gram of width {WIDTH}: {len(words) / ours:,.0f} words/s")
    if importlib.util.find_spec("gensim") is None:
        print("gensim is not installed, so there is nothing to compare with")
        return
    word2vec = importlib.import_module("gensim.models").Word2Vec
    settings = {"vector_size": WIDTH, "sg": 1, "min_count": 1, "epochs": 1}
    (theirs,) = best_times(lambda: word2vec([words], workers=1, **settings), rounds=1)
    print(f"gensim: {len(words) / theirs:,.0f} words/s, ours {theirs / ours:.2f} x")


def main() -> None:
    """Measure and print."""
    text = "".join(play.text for play in data.load_plays())
    bench_ngrams(text)
    bench_skipgram(text)


if __name__ == "__main__":
    main()
