"""Tokenizers against their peers: BPE learned from 5 MB, and the same text encoded.

Run ``python -m benchmarks.tokenizer``.
"""

import itertools
import json

import tiktoken
import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from benchmarks.timing import best_times
from lmcore import data, fast_bpe, gpt2_files, tokenizer

VOCAB_SIZE = 4096


def train_theirs(texts: list[str]) -> tokenizers.Tokenizer:
    """Learn BPE on bytes with `tokenizers`."""
    model = tokenizers.Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    model.train_from_iterator(texts, trainer)
    return model


def same_merges(ours: tokenizer.BPETokenizer, theirs: tokenizers.Tokenizer) -> str:
    """How many merges agree, in any order and until the first tie."""
    merges = json.loads(theirs.to_str())["model"]["merges"]
    merges = [tuple(map(gpt2_files.unspell, pair)) for pair in merges]
    equal = (a == b for a, b in zip(ours.merges, merges, strict=True))
    n_until_a_tie = sum(itertools.takewhile(bool, equal))
    n_common = len(set(ours.merges) & set(merges))
    return f"{n_common} of {len(merges)} merges; in order until {n_until_a_tie}"


def textbook_step(cut: dict[tuple, int], pair: tokenizer.Pair) -> None:
    """What one step of ``tokenizer.train_merges`` costs, but for finding the pair."""
    tokenizer.count_pairs(cut)
    dict.fromkeys(tuple(tokenizer.merge_pair(word, pair)) for word in cut)


def report(what: str, ours: float, theirs: float) -> None:
    """Print one line of the table."""
    print(f"{what:<48} {ours:9.3f} s {theirs:9.3f} s {ours / theirs:9.3f} x")


def main() -> None:
    """Measure and print."""
    texts = [play.text for play in data.load_plays()]
    n_bytes = sum(len(text.encode()) for text in texts)
    print(f"{len(texts)} plays, {n_bytes / 1e6:.2f} MB, {VOCAB_SIZE} tokens")
    print(f"{'':<48} {'ours':>11} {'theirs':>11} {'ratio':>11}")

    times = best_times(
        lambda: tokenizer.BPETokenizer.train(texts, VOCAB_SIZE),
        lambda: train_theirs(texts),
    )
    report("train, against tokenizers", *times)
    ours, theirs = tokenizer.BPETokenizer.train(texts, VOCAB_SIZE), train_theirs(texts)

    encoding = tiktoken.Encoding(
        "ours",
        pat_str=tokenizer.GPT2_PATTERN,
        mergeable_ranks={piece: index for index, piece in enumerate(ours.pieces)},
        special_tokens={},
    )

    def encode_from_nothing() -> None:
        ours._remembered.clear()
        for text in texts:
            ours.encode(text)

    def encode_again() -> None:
        for text in texts:
            ours.encode(text)

    new, again, of_tiktoken, of_tokenizers = best_times(
        encode_from_nothing,
        encode_again,
        lambda: [encoding.encode_ordinary(text) for text in texts],
        lambda: [theirs.encode(text).ids for text in texts],
    )
    report("encode, no word seen before, against tiktoken", new, of_tiktoken)
    report("encode, all words seen, against tiktoken", again, of_tiktoken)
    report("encode, no word seen before, against tokenizers", new, of_tokenizers)

    words = tokenizer.count_words(texts, tokenizer.GPT2_PATTERN)
    pieces = {word: [ours.pieces[i] for i in ours.encode(word)] for word in words}
    cut = {tuple(pieces[word]): count for word, count in words.items()}
    last_step, of_fast = best_times(
        lambda: textbook_step(cut, ours.merges[-1]),
        lambda: fast_bpe.train_merges(words, VOCAB_SIZE),
        rounds=1,
    )
    # All steps would take an hour. Words only get shorter, so the last is the cheapest.
    at_least = last_step * len(ours.merges)
    report("merges, against the textbook's least time", of_fast, at_least)
    print(f"the textbook takes at least {at_least / of_fast:.0f} x as long")
    print(same_merges(ours, theirs))


if __name__ == "__main__":
    main()
