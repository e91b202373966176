"""Recipes: which text, tokens, model and training belong together.

Chapter 11 of the book. The recipes are what ``lmcore train --preset`` offers. The
module builds, in this order: the recipes; the way from a text of any size to a
tokenizer and a file of tokens; a model for the recipe, its file, and how well it
foresees a text, alone or together with counts.

Papers: Zhang, Dauphin and Ma, 2019 (the first weights); Bengio et al., 2003, § 4, and
Mikolov et al., 2011 (a network and counts, asked together).
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from . import checkpoint, data, model, ngram, tokenizer, train

END_OF_TEXT = "<|endoftext|>"
TRAINING_CHARACTERS = 50_000_000  # a tokenizer learns nothing new from more


@dataclass(frozen=True)
class Preset:
    """All decisions from a text to a trained model.

    >>> PRESETS["shakespeare-2min"].training.seconds
    105.0
    """

    vocab_size: int  # V, of the byte-pair tokenizer that is trained first
    shape: model.ModelConfig  # the model; its vocab_size is set when V is known
    training: train.TrainConfig  # how it is trained
    source: str = "shakespeare"  # as for `data.load_text`
    held_out: float = 0.05  # the share of characters at the end that is put aside
    counted: int = 0  # the order of the n-grams that are asked as well; 0 = none


_SMALL = model.ModelConfig(
    vocab_size=2048,
    max_len=128,
    d_model=192,
    n_layers=3,
    n_heads=3,
    feed_forward="relu",
    norm="rms",
    bias=False,
    position="rope",
    tied=False,
)
_QUICK = train.TrainConfig(
    seconds=105.0,  # counting takes up to a quarter of a minute
    batch_size=8,
    lr=4e-3,
    optimizer="muon",
    schedule="stable",
    warmup=0.02,
    weight_decay=0.05,
    log_every=50,
)

PRESETS = {
    "shakespeare-2min": Preset(2048, _SMALL, _QUICK, counted=4),
    "shakespeare-10min": Preset(
        2048,
        dataclasses.replace(_SMALL, d_model=256, n_layers=4, n_heads=4),
        dataclasses.replace(_QUICK, seconds=585.0),
        counted=4,
    ),
    "tiny": Preset(
        300,
        dataclasses.replace(_SMALL, d_model=32, n_layers=1, n_heads=2, max_len=32),
        dataclasses.replace(_QUICK, seconds=2.0, log_every=10),
    ),
}

# --- Tokens -------------------------------------------------------------------------


def divide(source: str | Path, held_out: float) -> tuple[Iterator[str], Iterator[str]]:
    """Cut the characters at the end of a text off, without holding the text.

    Args:
        source: as for `data.load_text`
        held_out: the share of the characters to cut off

    Returns:
        The pieces before the cut, and those behind it.

    Raises:
        ValueError: if the share is not in (0, 1).

    >>> learnt, kept = divide("shakespeare", 0.05)
    >>> round(len("".join(kept)) / len(data.load_text("shakespeare")), 3)
    0.05
    """
    if not 0 < held_out < 1:
        raise ValueError(f"held_out={held_out} must lie in (0, 1)")
    cut = int(sum(map(len, data.stream_text(source))) * (1 - held_out))
    return _between(source, 0, cut), _between(source, cut, None)


def _between(source: str | Path, begin: int, end: int | None) -> Iterator[str]:
    place = 0
    for piece in data.stream_text(source):
        first = max(begin - place, 0)
        last = len(piece) if end is None else max(end - place, 0)
        if piece[first:last]:
            yield piece[first:last]
        place += len(piece)


def prepare(preset: Preset, source: str | Path, folder: Path) -> tokenizer.BPETokenizer:
    """Make what a training needs, unless it is there already.

    Args:
        preset: ``vocab_size`` and ``held_out`` count
        source: as for `data.load_text`
        folder: gets ``tokenizer.json``, ``tokens.npy`` and ``held_out.txt``

    Returns:
        The tokenizer, which has seen nothing of what is held out.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> (folder / "text.txt").write_text("to be or not to be\\n" * 50)
    950
    >>> preset = dataclasses.replace(PRESETS["shakespeare-2min"], vocab_size=270)
    >>> made = prepare(preset, folder / "text.txt", folder)
    >>> sorted(path.name for path in folder.iterdir())
    ['held_out.txt', 'text.txt', 'tokenizer.json', 'tokens.npy']
    >>> made.vocab_size, made.encode("to be")
    (266, [257, 258])
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tokenizer.json"
    if path.exists() and (folder / "tokens.npy").exists():
        return tokenizer.BPETokenizer.load(path)
    learnt, kept = divide(source, preset.held_out)
    (folder / "held_out.txt").write_text("".join(kept), encoding="utf-8", newline="\n")
    learnt, pieces = itertools.tee(learnt)
    n_pieces = TRAINING_CHARACTERS // 1_000_000
    sample = list(itertools.islice(pieces, n_pieces))
    del pieces  # so that tee remembers nothing more
    made = tokenizer.BPETokenizer.train(sample, preset.vocab_size, [END_OF_TEXT])
    made.save(path)
    data.write_tokens(
        folder / "tokens.npy", made.encode_iterable(learnt), made.vocab_size
    )
    return made


# --- The model ----------------------------------------------------------------------


def make_model(
    shape: model.ModelConfig, generator: torch.Generator, device: torch.device | str
) -> model.GPT:
    """Make a GPT whose layers do nothing at first.

    The projections that end a step of the residual stream begin at zero, so that the
    first gradients reach all layers alike. Zhang, Dauphin and Ma, 2019 (Fixup), § 3.

    Args:
        shape: how it is built
        generator: draws the other parameters
        device: where it is made

    Returns:
        The model.

    >>> shape = model.ModelConfig(vocab_size=9, d_model=8, n_layers=1, n_heads=2)
    >>> built = make_model(shape, torch.Generator().manual_seed(1), "cpu")
    >>> bool(built.decoder.layers[0].feed_forward.project_down.weight.any())
    False
    """
    built = model.GPT(shape, generator=generator).to(device)
    for layer in built.decoder.layers:
        for name, module in layer.named_modules():
            if name.endswith(("project_down", "project_output")):
                nn.init.zeros_(module.weight)
    return built


def save_model(built: model.GPT, folder: Path) -> None:
    """Write a model of any shape to ``model.pt``, for `load_model`.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> save_model(model.GPT(model.ModelConfig.preset("tiny")), folder)
    >>> load_model(folder).config == model.ModelConfig.preset("tiny")
    True
    """
    state = {
        "shape": dataclasses.asdict(built.config),
        "model": {name: value.cpu() for name, value in built.state_dict().items()},
    }
    checkpoint.save_state(folder / "model.pt", state)


def load_model(folder: str | Path, device: torch.device | str = "cpu") -> model.GPT:
    """Read the model that `save_model` wrote, in evaluation mode.

    Raises:
        FileNotFoundError: if there is none in this folder.
        ValueError: if the file holds something else.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> save_model(model.GPT(model.ModelConfig.preset("tiny")).train(), folder)
    >>> load_model(folder).training
    False
    """
    state = checkpoint.load_state(Path(folder) / "model.pt")
    built = model.GPT(model.ModelConfig(**state["shape"]))
    built.load_state_dict(state["model"])
    return built.to(device).eval()


def count(preset: Preset, folder: Path, vocab_size: int) -> ngram.NGramModel | None:
    """Count the tokens that a model is trained on: what it need not learn by heart.

    Args:
        preset: ``counted`` counts
        folder: holds what `prepare` wrote
        vocab_size: V

    Returns:
        A Kneser–Ney model of ids, or None if the recipe wants none.

    >>> count(PRESETS["tiny"], Path("anywhere"), vocab_size=300) is None
    True
    """
    if not preset.counted:
        return None
    ids = np.load(folder / "tokens.npy").tolist()
    # Each token once more, by itself: some stand nowhere in the text, yet may come.
    alone = ([token] for token in range(vocab_size))
    return ngram.NGramModel(preset.counted, discount=0.8).fit([ids, *alone])


def ask_both(one: Sequence[float], other: Sequence[float]) -> list[float]:
    """Give every token the mean of the probabilities that two models give it.

    The mean of two distributions is one, too. It is never more than one bit a token
    worse than the better of both; and as a network and counts are wrong at different
    places, it is mostly better than either.

    Args:
        one: the log-probabilities of the tokens by one model, in nats
        other: those of the same tokens by another

    Returns:
        As many log-probabilities.

    Raises:
        ValueError: if the models did not score as many tokens.

    >>> [round(math.exp(x), 4) for x in ask_both([math.log(0.5)], [math.log(0.1)])]
    [0.3]
    """
    if len(one) != len(other):
        raise ValueError(f"{len(one)} and {len(other)} log-probabilities: not the same")
    return (np.logaddexp(one, other) - math.log(2)).tolist()


def measure(
    built: nn.Module,
    tokens_of: tokenizer.Tokenizer,
    text: str,
    n_context: int,
    counted: ngram.NGramModel | None = None,
) -> float:
    """Measure how well a model foresees a text.

    Args:
        built: maps ids to logits
        tokens_of: its tokenizer
        text: which it has never seen, begun as if after the end of a line
        n_context: the most tokens that the model sees at once
        counted: if given, is asked as well (`ask_both`)

    Returns:
        Bits per character.

    >>> letters = tokenizer.CharTokenizer.train(["be\\n"])
    >>> guess = nn.Embedding(letters.vocab_size, letters.vocab_size)
    >>> _ = nn.init.zeros_(guess.weight)  # four tokens, all as likely: two bits each
    >>> round(measure(guess, letters, "bee", n_context=2), 4)
    2.0
    """
    before = tokens_of.encode("\n")[-1:]
    device = next(built.parameters()).device
    ids = before + tokens_of.encode(text)
    found = train.score(built, torch.tensor(ids, device=device), n_context).tolist()
    if counted is not None:  # which also scores the first token, and the end
        found = ask_both(found, counted.score(ids)[1 : len(ids)])
    return ngram.bits_per_character(found, text)
