"""The command ``lmcore``."""

import dataclasses
from pathlib import Path
from typing import Annotated

import torch
import typer

from . import (
    data,
    finetune,
    model,
    ngram,
    presets,
    processes,
    sample,
    tokenizer,
    tokens,
    train,
)
from . import doctor as examinations

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__)

Folder = Annotated[Path, typer.Argument(help="What `lmcore train` wrote.")]
Device = Annotated[str, typer.Option(help="cpu, cuda or mps.")]
Length = Annotated[int, typer.Option(help="How many tokens are written at most.")]
Warmth = Annotated[float, typer.Option(help="0 = always the likeliest token.")]
Seed = Annotated[int, typer.Option(help="Draws the tokens.")]


@app.callback()
def main() -> None:
    """Language models by hand: the library's commands."""


@app.command()
def doctor() -> None:
    """Check whether this machine is ready and how long the homework here will run."""
    findings = examinations.examine_student(Path.cwd())
    for finding in findings:
        typer.echo(str(finding))
    if any(finding.state == "ill" for finding in findings):
        raise typer.Exit(code=1)


@app.command("train")
def train_command(
    preset: Annotated[str, typer.Option(help=", ".join(presets.PRESETS))],
    folder: Annotated[Path | None, typer.Option(help="Gets all files.")] = None,
    text: Annotated[str | None, typer.Option(help="A file, folder or hf:name.")] = None,
    seconds: Annotated[float | None, typer.Option(help="Of training.")] = None,
    precision: Annotated[str, typer.Option(help="fp32, bf16 or fp16.")] = "fp32",
    parallel: Annotated[str, typer.Option(help="Under torchrun: ddp, fsdp.")] = "ddp",
    compiled: Annotated[bool, typer.Option(help="Use torch.compile.")] = False,
    device: Device = "cpu",
    seed: Annotated[int, typer.Option(help="First parameters, data.")] = 0,
) -> None:
    """Train a model: tokenizer, tokens, training, held-out bits, a sample.

    What is in the folder is used; a training that was stopped goes on.
    """
    if preset not in presets.PRESETS:
        known = ", ".join(presets.PRESETS)
        raise typer.BadParameter(f"{preset!r} is not one of {known}")
    recipe = presets.PRESETS[preset]
    folder = folder or Path("runs") / preset
    changes = {"precision": precision, "parallel": parallel, "compile": compiled}
    changes |= {"seed": seed} | ({"seconds": seconds} if seconds else {})
    with processes.join_team(device) as team:
        if team.is_first:
            typer.echo(f"Preparing tokens in {folder} …")
            presets.prepare(recipe, text or recipe.source, folder)
        team.wait()
        _train(recipe, changes, folder, team)


def _train(
    recipe: presets.Preset, changes: dict, folder: Path, team: processes.Team
) -> None:
    words = tokenizer.Tokenizer.load(folder / "tokenizer.json")
    shape = dataclasses.replace(recipe.shape, vocab_size=words.vocab_size)
    config = dataclasses.replace(recipe.training, **changes)
    dice = torch.Generator().manual_seed(config.seed)
    built = presets.make_model(shape, dice, team.device)
    windows = tokens.TokenDataset(folder / "tokens.npy", shape.max_len)
    trainer = train.Trainer(built, config, windows, folder=folder)
    trainer.resume()
    trainer.train()
    state = train.checkpoint.training_state(built, trainer.optimizer)
    if not team.is_first:
        return
    whole = model.GPT(shape).to(team.device).eval()
    whole.load_state_dict(state["model"])
    presets.save_model(whole, folder)
    counted = presets.count(recipe, folder, words.vocab_size)
    _report(whole, words, folder, trainer, counted)


def _report(
    built: model.GPT,
    words: tokenizer.Tokenizer,
    folder: Path,
    trainer: train.Trainer,
    counted: ngram.NGramModel | None,
) -> None:
    held_out = (folder / "held_out.txt").read_text(encoding="utf-8")
    bits = presets.measure(built, words, held_out, built.config.max_len)
    speed = trainer.n_tokens / max(trainer.seconds, 1e-9)
    _write(built, words, "\n", sample.SamplingConfig(200, temperature=0.8), 0)
    typer.echo(
        f"\n{model.parameter_count(built):,} parameters, {trainer.step:,} steps, "
        f"{trainer.n_tokens:,} tokens in {trainer.seconds:.0f} s ({speed:,.0f} a "
        f"second)\nheld out: {bits:.3f} bits per character"
    )
    if counted is not None:
        n_context = built.config.max_len
        bits = presets.measure(built, words, held_out, n_context, counted)
        typer.echo(
            f"together with counted {counted.order}-grams of tokens: {bits:.3f} bits "
            "per character"
        )


@app.command("sample")
def sample_command(
    folder: Folder,
    prompt: Annotated[str, typer.Option(help="What comes before.")] = "\n",
    max_tokens: Length = 200,
    temperature: Warmth = 0.8,
    seed: Seed = 0,
    device: Device = "cpu",
) -> None:
    """Let a model continue a text."""
    if not prompt:
        raise typer.BadParameter("the prompt is empty: a model continues a text")
    built, words = _load(folder, device)
    typer.echo(prompt, nl=False)
    config = sample.SamplingConfig(max_tokens, temperature=temperature)
    _write(built, words, prompt, config, seed)


@app.command()
def chat(
    folder: Folder,
    you: Annotated[str, typer.Option(help="Who you are, in a play.")] = "HORATIO",
    partner: Annotated[str, typer.Option(help="Who answers, in a play.")] = "HAMLET",
    max_tokens: Length = 100,
    temperature: Warmth = 0.8,
    seed: Seed = 0,
    device: Device = "cpu",
) -> None:
    """Talk with a model, line by line; an empty line ends it.

    A model that knows the buttons of a chat is asked as an assistant; any other one
    plays a scene with you.
    """
    built, words = _load(folder, device)
    template = finetune.ChatTemplate()
    is_assistant = set(template.special_tokens) <= set(words.special_tokens)
    end = {"eos_id": words.special_tokens[template.end]} if is_assistant else {}
    config = sample.SamplingConfig(
        max_tokens, temperature=temperature, stop=("\n\n",), **end
    )
    messages: list[dict[str, str]] = []
    while line := typer.prompt("you", default="", show_default=False).strip():
        messages.append({"role": "user", "content": line})
        if is_assistant:
            text = template.render(messages, add_generation_prompt=True)
        else:
            names = {"user": you, "assistant": partner}
            said = (f"{names[m['role']]}:\n{m['content']}\n\n" for m in messages)
            text = "".join(said) + f"{partner}:\n"
        answer = _write(built, words, text, config, seed + len(messages))
        messages.append({"role": "assistant", "content": answer.strip()})


@app.command("tokenize")
def tokenize_command(
    folder: Folder,
    text: Annotated[str, typer.Argument(help="A text; with --output, its source.")],
    output: Annotated[Path | None, typer.Option(help="Write a file of ids.")] = None,
) -> None:
    """Show the tokens of a text, or write those of a file, folder or data set."""
    words = tokenizer.Tokenizer.load(folder / "tokenizer.json")
    if output is not None:
        ids = words.encode_iterable(data.stream_text(text))
        n_written = tokens.write_tokens(output, ids, words.vocab_size)
        typer.echo(f"{n_written:,} tokens written to {output}")
        return
    for index in words.encode(text):
        typer.echo(f"{index:>8}  {words.decode([index])!r}")


@app.command("eval")
def eval_command(
    folder: Folder,
    text: Annotated[str | None, typer.Option(help="A file, folder or hf:name.")] = None,
    device: Device = "cpu",
) -> None:
    """Measure how well a model foresees a text; its own held-out one, if not given."""
    built, words = _load(folder, device)
    content = data.load_text(text or folder / "held_out.txt")
    bits = presets.measure(built, words, content, built.config.max_len)
    typer.echo(f"{bits:.3f} bits per character ({len(content):,} characters)")


def _load(folder: Path, device: str) -> tuple[model.GPT, tokenizer.Tokenizer]:
    if not (folder / "model.pt").exists():
        raise typer.BadParameter(
            f"{str(folder)!r} holds no model; `lmcore train --folder` makes one"
        )
    words = tokenizer.Tokenizer.load(folder / "tokenizer.json")
    return presets.load_model(folder, device), words


def _write(
    built: model.GPT,
    words: tokenizer.Tokenizer,
    text: str,
    config: sample.SamplingConfig,
    seed: int,
) -> str:
    """Continue a text on the screen, as it is written; give what was written."""
    device = next(built.parameters()).device
    dice = torch.Generator(device).manual_seed(seed)
    ids = torch.tensor(words.encode(text), device=device)[-built.config.max_len :]
    written = []
    for piece in sample.stream(built, ids, config, words.decode, generator=dice):
        typer.echo(piece, nl=False)
        written.append(piece)
    typer.echo()
    return "".join(written)


if __name__ == "__main__":
    app()
