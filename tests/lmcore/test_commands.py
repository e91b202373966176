"""Tests of the command lmcore, and of lmcore.presets behind it."""

import dataclasses
import re

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from lmcore import __main__ as commands
from lmcore import finetune, model, ngram, presets, tokenizer, train

WORDS = "the king has seen the queen and the fool has seen the king\n"


def run(*arguments, typed=None):
    ended = CliRunner().invoke(commands.app, list(map(str, arguments)), input=typed)
    if ended.exception and not isinstance(ended.exception, SystemExit):
        raise ended.exception
    return ended


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a model that was trained for a moment, and what was said."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "text.txt").write_text(WORDS * 200)
    preset = presets.PRESETS["tiny"]
    training = dataclasses.replace(preset.training, seconds=None, n_steps=30)
    patch = pytest.MonkeyPatch()
    patch.setitem(
        presets.PRESETS, "tiny", dataclasses.replace(preset, training=training)
    )
    text = folder / "text.txt"
    ended = run("train", "--preset", "tiny", "--folder", folder, "--text", text)
    yield folder, ended
    patch.undo()


def test_training_tells_what_came_out(trained):
    folder, ended = trained
    assert ended.exit_code == 0, ended.output
    (bits,) = re.findall(r"held out: ([\d.]+) bits per character", ended.output)
    assert float(bits) < 3.0  # eight bits a byte before
    assert "30 steps" in ended.output
    kept = (folder / "held_out.txt").read_text()
    assert kept == (WORDS * 200)[-len(kept) :]
    assert len(kept) == pytest.approx(0.05 * 200 * len(WORDS), abs=1)
    words = tokenizer.Tokenizer.load(folder / "tokenizer.json")
    ids = np.load(folder / "tokens.npy").tolist()
    assert words.decode(ids) + kept == WORDS * 200


def test_evaluation_gives_the_same_bits(trained):
    folder, ended = trained
    (bits,) = re.findall(r"held out: ([\d.]+)", ended.output)
    assert f"{bits} bits per character" in run("eval", folder).output
    other = run("eval", folder, "--text", folder / "text.txt").output
    assert f"({200 * len(WORDS):,} characters)" in other


def test_a_finished_training_is_not_done_again(trained):
    folder, _ = trained
    before = presets.load_model(folder).state_dict()
    text = folder / "text.txt"
    again = run("train", "--preset", "tiny", "--folder", folder, "--text", text)
    assert "30 steps" in again.output
    for name, value in presets.load_model(folder).state_dict().items():
        assert torch.equal(value, before[name])


def test_samples_begin_with_the_prompt_and_follow_the_seed(trained):
    folder, _ = trained
    options = ("--max-tokens", 12, "--prompt", "the king")
    one = run("sample", folder, *options)
    assert one.output.startswith("the king")
    assert len(one.output) > len("the king\n")
    assert run("sample", folder, *options).output == one.output
    assert run("sample", folder, *options, "--seed", 5).output != one.output


def test_tokens_are_shown_or_written(trained, tmp_path):
    folder, _ = trained
    words = tokenizer.Tokenizer.load(folder / "tokenizer.json")
    shown = run("tokenize", folder, "the king").output.splitlines()
    assert [int(line.split()[0]) for line in shown] == words.encode("the king")
    path = tmp_path / "ids.npy"
    source = folder / "held_out.txt"
    said = run("tokenize", folder, source, "--output", path).output
    ids = np.load(path).tolist()
    assert words.decode(ids) == source.read_text()
    assert f"{len(ids):,} tokens" in said


def test_a_scene_is_played(trained):
    folder, _ = trained
    options = ("--max-tokens", 5, "--you", "ANN")
    ended = run("chat", folder, *options, typed="Well?\nAnd now?\n\n")
    assert ended.exit_code == 0
    assert ended.output.count("you:") == 3


def test_an_assistant_is_asked_with_its_buttons(tmp_path, monkeypatch):
    template = finetune.ChatTemplate()
    words = tokenizer.CharTokenizer("abc ", special_tokens=template.special_tokens)
    words.save(tmp_path / "tokenizer.json")
    shape = model.ModelConfig(words.vocab_size, max_len=64, d_model=8, n_layers=1)
    presets.save_model(model.GPT(shape), tmp_path)
    asked = []

    def stream(built, ids, config, decode, *, generator):
        asked.append(words.decode(ids))
        assert config.eos_id == words.special_tokens["<|end|>"]
        yield "abc"

    monkeypatch.setattr(commands.sample, "stream", stream)
    run("chat", tmp_path, typed="ab\nc\n\n")
    one = "<|begin|><|user|>ab<|end|><|assistant|>"
    assert asked == [one, one + "abc<|end|><|user|>c<|end|><|assistant|>"]


def test_wrong_names_are_refused(tmp_path):
    ended = run("train", "--preset", "huge")
    assert ended.exit_code == 2
    assert "huge" in ended.output
    for command in ("sample", "chat", "eval"):
        ended = run(command, tmp_path)
        assert ended.exit_code == 2
        assert "holds no model" in re.sub(r"\s*│?\s*\n\s*│?\s*", " ", ended.output)


# --- presets ------------------------------------------------------------------------


@pytest.mark.parametrize("name", presets.PRESETS)
def test_presets_can_be_built(name):
    preset = presets.PRESETS[name]
    shape = dataclasses.replace(preset.shape, vocab_size=preset.vocab_size)
    built = presets.make_model(shape, torch.Generator().manual_seed(1), "cpu")
    ids = torch.randint(preset.vocab_size, (1, 5))
    others = torch.randint(preset.vocab_size, (1, 5))
    others[0, -1] = ids[0, -1]
    # With layers that do nothing yet, only the last token counts.
    assert torch.allclose(built(ids)[0, -1], built(others)[0, -1], atol=1e-6)
    assert train.TrainConfig(**dataclasses.asdict(preset.training)) == preset.training


def test_shakespeare_takes_two_minutes():
    assert presets.PRESETS["shakespeare-2min"].training.seconds <= 120


def test_a_text_is_divided_by_characters(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text("abc\n" * 10)
    learnt, kept = presets.divide(file, 0.3)
    assert "".join(learnt) == "abc\n" * 7
    assert "".join(kept) == "abc\n" * 3
    with pytest.raises(ValueError, match="held_out=1"):
        presets.divide(file, 1)


def test_bits_of_a_model_that_knows_nothing():
    """All tokens alike: the logarithm of their number, shared by the characters."""
    words = tokenizer.CharTokenizer("abcd\n", special_tokens=())
    table = torch.nn.Embedding(words.vocab_size, words.vocab_size)
    torch.nn.init.zeros_(table.weight)
    found = presets.measure(table, words, "abcda", 3)
    assert found == pytest.approx(np.log2(words.vocab_size))


def test_two_models_are_asked_together():
    """The mean of both probabilities, where counts see all tokens before."""
    words = tokenizer.CharTokenizer("ab\n", special_tokens=())
    table = torch.nn.Embedding(words.vocab_size, words.vocab_size)
    torch.nn.init.zeros_(table.weight)
    counted = ngram.NGramModel(2, discount=0.5).fit([words.encode("ab\nabb\n")])
    text, before = "abb", words.encode("\n")
    chances = []
    for token in words.encode(text):
        chances.append((counted.prob(token, before) + 1 / words.vocab_size) / 2)
        before = [*before, token]
    expected = -np.log2(chances).sum() / len(text)
    found = presets.measure(table, words, text, 2, counted)
    assert found == pytest.approx(expected, abs=1e-6)
    assert found < presets.measure(table, words, text, 2)
    with pytest.raises(ValueError, match="1 and 2 log-prob"):
        presets.ask_both([0.0], [0.0, 0.0])


def test_counts_know_every_token(tmp_path):
    np.save(tmp_path / "tokens.npy", np.array([0, 1, 0, 1], dtype=np.uint16))
    recipe = dataclasses.replace(presets.PRESETS["tiny"], counted=2)
    counted = presets.count(recipe, tmp_path, vocab_size=3)
    assert 0 < counted.prob(2, [0]) < counted.prob(1, [0])


def test_training_counts_if_the_recipe_says_so(trained, monkeypatch):
    folder, ended = trained
    assert "together" not in ended.output
    recipe = dataclasses.replace(presets.PRESETS["tiny"], counted=3)
    monkeypatch.setitem(presets.PRESETS, "tiny", recipe)
    output = run("train", "--preset", "tiny", "--folder", folder).output
    alone, both = re.findall(r"([\d.]+) bits per\s+character", output)
    assert "together with counted 3-grams of tokens" in output
    assert float(both) < float(alone)
