"""Tests of lmcore.train and its neighbours checkpoint, processes and scaling."""

import copy
import dataclasses
import importlib.util
import itertools
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from lmcore import ngram, processes, scaling, tokens, train

SCRIPT = Path(__file__).parent / "distributed_training.py"
spec = importlib.util.spec_from_file_location("distributed_training", SCRIPT)
tiny = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tiny)

CONFIG = train.TrainConfig(n_steps=12, batch_size=8, lr=0.02, log_every=1, seed=4)
ENVIRONMENT = {"PYTHONPATH": str(SCRIPT.parents[2]), "OMP_NUM_THREADS": "1"}
few = settings(max_examples=10)


def change(**changes):
    return dataclasses.replace(CONFIG, **changes)


def trainer(device="cpu", model=None, held_out=None, dropout=0.0, **options):
    names = {field.name for field in dataclasses.fields(train.TrainConfig)}
    changes = {name: options.pop(name) for name in names & options.keys()}
    model = (model or tiny.make_model(dropout=dropout)).to(device)
    data = options.pop("data", None) or tiny.make_data()
    return train.Trainer(
        model, change(**changes), data, held_out, progress=False, **options
    )


def assert_same(one, other, tolerance=0.0):
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


def losses(records):
    return [record["loss"] for record in records]


# --- The step -----------------------------------------------------------------------


def test_training_equals_a_loop_by_hand(device):
    """torch's optimizer, its clipping, and the schedule written out."""
    ours = trainer(device, max_norm=0.5, warmup=0.25)
    theirs = copy.deepcopy(ours.model)
    groups = [
        {"params": [p for p in theirs.parameters() if p.dim() > 1]},
        {"params": [p for p in theirs.parameters() if p.dim() == 1]},
    ]
    groups[1]["weight_decay"] = 0.0
    optimizer = torch.optim.AdamW(groups, lr=0.02, betas=(0.9, 0.95), weight_decay=0.1)
    feed = tokens.batches(tiny.make_data(), 8, seed=4)
    expected = []
    for step in range(12):
        inputs, targets = (part.to(device) for part in next(feed))
        rate = (
            (step + 1) / 3
            if step < 3
            else 0.5 + 0.5 * math.cos(math.pi * (step - 3) / 9)
        )
        for group in optimizer.param_groups:
            group["lr"] = 0.02 * rate
        loss = F.cross_entropy(theirs(inputs).flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
        optimizer.step()
        expected.append((loss.item(), norm.item(), 0.02 * rate))
    records = ours.train()
    found = [(r["loss"], r["gradient_norm"], r["lr"]) for r in records]
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected))
    assert_same(ours.model, theirs, 1e-5)
    assert [r["n_tokens"] for r in records] == [48 * n for n in range(1, 13)]


def test_the_model_learns():
    found = losses(trainer(n_steps=60).train())
    assert found[0] == pytest.approx(math.log(11), abs=0.4)
    assert found[-1] < found[0] - 0.3


@pytest.mark.parametrize("size", [1, 2, 4])
def test_micro_batches_equal_one_batch(size, device):
    """Also when they have different numbers of targets that count."""
    data = [tiny.make_data()[i] for i in range(20)]
    for index, (_, targets) in enumerate(data):
        targets[: index % 6] = tokens.IGNORED
    whole = trainer(device, data=data)
    parts = trainer(device, data=data, micro_batch_size=size)
    found = [
        [(r["loss"], r["gradient_norm"]) for r in t.train()] for t in (whole, parts)
    ]
    torch.testing.assert_close(*map(torch.tensor, found))
    assert_same(whole.model, parts.model, 1e-5)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_fused_and_own_optimizers(optimizer):
    one = trainer(optimizer=optimizer)
    other = trainer(optimizer=optimizer, fused=True)
    one.train()
    other.train()
    assert_same(one.model, other.model, 1e-6)
    assert losses(one.records)[-1] < losses(one.records)[0]


def test_bfloat16_equals_autocast_by_hand(device):
    ours = trainer(device, n_steps=1, precision="bf16", max_norm=None)
    theirs = copy.deepcopy(ours.model)
    inputs, targets = (x.to(device) for x in next(tokens.batches(ours.data, 8, seed=4)))
    with torch.autocast(torch.device(device).type, torch.bfloat16):
        logits = theirs(inputs)
    assert logits.dtype == torch.bfloat16
    loss = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())
    (record,) = ours.train()
    assert record["loss"] == pytest.approx(loss.item(), abs=1e-6)
    assert next(ours.model.parameters()).dtype == torch.float32


def test_halves_are_clipped_at_their_true_size(device):
    """With the loss scaled by 65,536, the norm is that of single precision."""
    half = trainer(device, n_steps=3, precision="fp16", max_norm=0.1)
    single = trainer(device, n_steps=3, max_norm=0.1)
    found, expected = half.train(), single.train()
    assert half._scaler.get_scale() > 1000
    for one, other in zip(found, expected, strict=True):
        assert one["gradient_norm"] == pytest.approx(other["gradient_norm"], rel=0.02)
    assert_same(half.model, single.model, 0.02)


def test_an_overflow_skips_a_step():
    half = trainer(n_steps=1, precision="fp16")
    half._scaler = torch.amp.GradScaler("cpu", init_scale=2.0**60)
    before = copy.deepcopy(half.model)
    half.train()
    assert_same(half.model, before)
    assert half._scaler.get_scale() == 2.0**59


def test_a_loss_of_ones_own_and_several_inputs():
    """An encoder and decoder: the inputs are a pair, or arguments by name."""

    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(11, 11)

        def forward(self, source, target):
            return self.table(source).mean(dim=1, keepdim=True) + self.table(target)

    plain = tiny.make_data()
    items = [plain[i] for i in range(16)]
    pairs = [((x, y), y) for x, y in items]
    named = [({"target": y, "source": x}, y) for x, y in items]
    torch.manual_seed(1)
    model = Pair()
    one = trainer(model=copy.deepcopy(model), data=pairs, micro_batch_size=4)
    other = trainer(model=copy.deepcopy(model), data=named)

    def loss(model, inputs, targets):
        return 3 * train.next_token_loss(model, inputs, targets)

    third = trainer(model=copy.deepcopy(model), data=pairs, loss=loss)
    assert losses(one.train()) == pytest.approx(losses(other.train()))
    assert third.train()[0]["loss"] == pytest.approx(3 * one.records[0]["loss"])


def test_packed_documents():
    """A model with attention learns from windows with walls inside."""
    from lmcore import model

    config = model.ModelConfig(vocab_size=11, max_len=8, d_model=8, n_layers=1)
    gpt = model.GPT(config, generator=torch.Generator().manual_seed(1))
    packed = tokens.pack([[1, 2, 3], [4, 5, 6, 7], [8, 9, 10]] * 20, n_context=8)
    found = losses(trainer(model=gpt, data=packed, n_steps=40).train())
    assert found[-1] < found[0] - 0.5


def test_an_optimizer_of_ones_own():
    ours = trainer(
        make_optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.5),
        schedule="stable",
    )
    rates = [record["lr"] for record in ours.train()]
    assert rates[:4] == [0.5] * 4
    assert rates[-1] == pytest.approx(0.5 / 7.2)


def test_time_can_end_a_training(monkeypatch):
    """On a clock that says 10 ms later whenever it is asked, twice a step."""
    clock = itertools.count()
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock) / 100)
    ours = trainer(n_steps=None, seconds=0.295, lr=1e-3, min_lr=1e-4)
    records = ours.train()
    assert len(records) == 30
    assert records[-1]["seconds"] == pytest.approx(0.3)
    assert ours.is_finished
    assert 1e-4 <= records[-1]["lr"] < 2e-4


def test_torchs_dice_stay_untouched():
    model = tiny.make_model(dropout=0.5)
    before = torch.get_rng_state()
    trainer(model=model, held_out=tiny.make_data(59)).train()
    assert torch.equal(torch.get_rng_state(), before)


# --- Evaluation ---------------------------------------------------------------------


def test_evaluation_is_the_mean_over_all_targets(device):
    """Of batches of different sizes, without dropout, and without a trace."""
    held_out = tiny.make_data(6 * 11 + 1, seed=9)
    ours = trainer(device, held_out=held_out, dropout=0.5)
    ours.model.train()
    ours.model.norm.eval()
    x, y = (
        torch.stack(part).to(device)
        for part in zip(*map(held_out.__getitem__, range(11)), strict=True)
    )
    found = ours.evaluate()
    assert ours.model.training
    assert not ours.model.norm.training
    ours.model.eval()
    expected = F.cross_entropy(ours.model(x).flatten(0, 1), y.flatten())
    assert found == pytest.approx(expected.item(), abs=1e-5)
    assert ours.evaluate() == found
    first = F.cross_entropy(ours.model(x[:8]).flatten(0, 1), y[:8].flatten())
    assert ours.evaluate(n_batches=1) == pytest.approx(first.item(), abs=1e-5)
    assert all(p.grad is None for p in ours.model.parameters())


def test_evaluations_are_recorded():
    held_out = tiny.make_data(59)
    ours = trainer(held_out=held_out, eval_every=5, log_every=100)
    assert [r["step"] for r in ours.train() if "held_out_loss" in r] == [5, 10, 12]
    assert ours.records[-1]["held_out_loss"] == pytest.approx(ours.evaluate())


# --- score --------------------------------------------------------------------------


@given(
    n=st.integers(2, 40),
    n_context=st.integers(1, 12),
    stride=st.integers(1, 12),
    batch_size=st.integers(1, 4),
)
@settings(max_examples=12)
def test_score_is_what_the_model_says_with_enough_before(
    n, n_context, stride, batch_size
):
    stride = min(stride, n_context)
    model = tiny.make_model()
    ids = torch.randint(11, (n,))
    found = train.score(model, ids, n_context, stride, batch_size)
    assert found.shape == (n - 1,)
    for place in range(1, n):
        fits = []
        for begin in range(max(0, place - n_context), place):
            logits = model(ids[begin:place][None])[0, -1]
            log_prob = logits.log_softmax(0)[ids[place]].item()
            if place - begin >= min(place, n_context - stride + 1):
                fits.append(log_prob)
        assert min(abs(found[place - 1].item() - fit) for fit in fits) < 1e-5


def test_score_of_one_window_and_bits():
    model = tiny.make_model()
    ids = torch.randint(11, (9,))
    logits = model(ids[None, :-1]).log_softmax(-1)[0]
    expected = logits.gather(1, ids[1:, None])[:, 0]
    torch.testing.assert_close(train.score(model, ids, 100), expected)
    uniform = train.score(lambda x: torch.zeros(*x.shape, 8), ids % 8, 3)
    bits = ngram.bits_per_character(uniform.tolist(), "abcdefghabcdefgh")
    assert bits == pytest.approx(8 * 3 / 16)


# --- Checkpoints --------------------------------------------------------------------


def run(folder, n_steps, model=None, **options):
    options = {"checkpoint_every": 1, "dropout": 0.3} | options
    held_out = tiny.make_data(59)
    ours = trainer(
        model=model, n_steps=n_steps, folder=folder, held_out=held_out, **options
    )
    ours.resume()
    ours.train()
    return ours


KILLED_STEPS = 60


def timeless(records):
    timed = ("seconds", "tokens_per_second")
    return [{k: v for k, v in r.items() if k not in timed} for r in records]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_resumed_equals_undisturbed(precision, tmp_path, device):
    """With dropout, over the end of an epoch of 8 batches, bit by bit."""
    options = {"precision": precision, "eval_every": 4, "schedule": "stable"}
    whole = run(tmp_path / "a", 20, **options)
    ours = trainer(
        n_steps=20,
        folder=tmp_path / "b",
        held_out=whole.held_out,
        dropout=0.3,
        **options,
    )
    feed = ours._feed()
    for _ in range(7):
        ours._diary.write(ours._timed_step(*next(feed)))
    ours.save()
    for _ in range(2):  # goes on, and is then killed
        ours._diary.write(ours._timed_step(*next(feed)))
    resumed = run(tmp_path / "b", 20, **options)
    assert_same(resumed.model, whole.model)
    assert timeless(resumed.records[7:]) == timeless(whole.records[7:])
    lines = (tmp_path / "b" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == resumed.records
    assert [r["step"] for r in resumed.records] == list(range(1, 21))


@pytest.mark.slow
def test_killed_at_any_moment(tmp_path):
    """Children that train are killed until one of them arrives at the end."""
    whole = run(tmp_path / "whole", KILLED_STEPS)
    found = subprocess.run(
        [sys.executable, __file__, str(tmp_path / "killed")],
        env=os.environ | ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert found.returncode == 0, found.stderr
    assert int(found.stdout) >= 2  # so often was one killed
    resumed = run(tmp_path / "killed", KILLED_STEPS)
    assert resumed.step == KILLED_STEPS
    assert_same(resumed.model, whole.model)
    assert timeless(resumed.records) == timeless(whole.records)


def kill_until_one_arrives(folder):
    """Start trainings here, kill each a few steps on; count the killed.

    Where it is killed is said in steps, not in seconds, so that a quick machine does
    not arrive unkilled; the moment within the step is left to chance.
    """
    importlib.import_module("torch._dynamo")  # optimizers do: seconds for every child
    dice = random.Random(7)
    for n_killed in range(100):
        steps_to_go = dice.randrange(12)
        end = steps_done(folder) + steps_to_go
        child = os.fork()  # torch is imported, but has not run: that can be forked
        if child == 0:
            try:
                run(folder, KILLED_STEPS)
            finally:
                os._exit(0 if (folder / "checkpoint.pt").exists() else 1)
        while steps_done(folder) < end:
            if os.waitpid(child, os.WNOHANG)[0]:
                return n_killed
            time.sleep(0.001)
        time.sleep(dice.uniform(0, 0.02 if steps_to_go else 0.3))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return -1


def steps_done(folder):
    diary = folder / "metrics.jsonl"
    return diary.read_bytes().count(b"\n") if diary.exists() else 0


def test_a_checkpoint_is_not_forgotten_nor_overwritten(tmp_path):
    run(tmp_path, 3)
    with pytest.raises(ValueError, match="resume"):
        trainer(folder=tmp_path).train()
    for changes, message in (
        ({"batch_size": 4}, "batch_size=8, not 4"),
        ({"seed": 5}, "seed=4, not 5"),
        ({"optimizer": "muon"}, "optimizer='adamw', not 'muon'"),
        ({"data": tiny.make_data(300)}, "n_items=66, not 49"),
    ):
        with pytest.raises(ValueError, match=message):
            trainer(folder=tmp_path, **changes).resume()
    (tmp_path / "checkpoint.pt").write_bytes(b"no checkpoint")
    with pytest.raises(ValueError, match="holds no checkpoint"):
        trainer(folder=tmp_path).resume()


def test_a_longer_training_goes_on(tmp_path):
    run(tmp_path, 5)
    longer = run(tmp_path, 9, micro_batch_size=2)
    assert [r["step"] for r in longer.records] == list(range(1, 10))
    assert trainer(folder=tmp_path / "new").resume() == 0


def test_tensorboard_if_installed(tmp_path, monkeypatch):
    written = []

    class SummaryWriter:
        def __init__(self, folder):
            assert folder == str(tmp_path / "tensorboard")

        def add_scalar(self, name, value, step):
            written.append((name, value, step))

        def flush(self):
            pass

    fake = types.SimpleNamespace(SummaryWriter=SummaryWriter)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", fake)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    ours = trainer(folder=tmp_path, n_steps=2)
    ours.train()
    assert ("loss", ours.records[1]["loss"], 2) in written


def test_the_bar_tells_loss_and_speed(capsys):
    ours = trainer(n_steps=3)
    ours.progress = True
    ours.train()
    shown = capsys.readouterr().err
    assert "3/3" in shown
    assert f"loss {ours.records[-1]['loss']:.3f}" in shown
    assert "tokens/s" in shown
    trainer(n_steps=3).train()
    assert capsys.readouterr().err == ""


@pytest.mark.slow
# Of modules in torch that are imported when something is compiled.
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_a_compiled_model_trains_alike(tmp_path):
    one, other = trainer(n_steps=3), trainer(n_steps=3, compile=True, folder=tmp_path)
    one.train()
    other.train()
    assert_same(one.model, other.model, 1e-5)
    assert_same(run(tmp_path, 3, dropout=0.0).model, one.model, 1e-5)


# --- Several processes --------------------------------------------------------------


def torchrun(path, options, pause=4, n_processes=2):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc_per_node={n_processes}", str(SCRIPT), str(path)]
    ended = subprocess.run(
        [*command, json.dumps(options), str(pause)],
        env=os.environ | ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert ended.returncode == 0, ended.stderr
    return json.loads(path.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_equal_one(parallel, tmp_path):
    """With accumulation, clipping, a checkpoint between, and evaluation."""
    options = {
        "n_steps": 10,
        "batch_size": 8,
        "micro_batch_size": 2,
        "lr": 0.02,
        "schedule": "stable",
        "max_norm": 0.5,
        "log_every": 1,
        "eval_every": 3,
        "seed": 4,
        "parallel": parallel,
    }
    found = torchrun(tmp_path / "found.json", options)
    one = None
    for n_steps in (4, 10):
        one = trainer(
            **(options | {"n_steps": n_steps}),
            held_out=tiny.make_data(59, seed=6),
            folder=tmp_path / "one",
        )
        one.resume()
        one.train()
    for name, parameter in one.model.named_parameters():
        other = torch.tensor(found["model"][name])
        torch.testing.assert_close(parameter.detach(), other, atol=1e-5, rtol=1e-5)
    for ours, theirs in zip(one.records, found["records"], strict=True):
        for name in ("step", "loss", "gradient_norm", "n_tokens", "lr"):
            assert theirs[name] == pytest.approx(ours[name], abs=1e-5)
        assert theirs.get("held_out_loss") == pytest.approx(
            ours.get("held_out_loss"), abs=1e-5
        )
    # One process goes on where two have stopped.
    alone = trainer(
        **(options | {"n_steps": 12}),
        held_out=tiny.make_data(59, seed=6),
        folder=tmp_path / "run",
    )
    assert alone.resume() == 10
    assert_same(alone.model, one.model, 1e-5)
    alone.train()


def test_a_process_alone_is_a_team():
    team = processes.current_team()
    assert (team.rank, team.n_ranks, team.is_first) == (0, 1, True)
    assert team.agree(0.1) == 0.1
    assert team.sum(torch.tensor(3)).item() == 3
    team.wait()


def test_shares_of_a_batch_are_all_of_it():
    """Three processes, batches of 5, 2 and 1: equal sizes, every target once."""
    ours = trainer()
    for n_items in (5, 2, 1):
        inputs = torch.arange(n_items)[:, None].expand(n_items, 2)
        shares = []
        for rank in range(3):
            ours.team = processes.Team(rank, 3)
            shares.append(ours._share(inputs, inputs))
        assert len({len(targets) for _, targets in shares}) == 1
        counted = torch.cat([x[y != tokens.IGNORED] for x, y in shares])
        assert sorted(counted.tolist()) == sorted(inputs.flatten().tolist())


# --- Refusals -----------------------------------------------------------------------

REFUSED_CONFIGS = {
    "no end": ({"n_steps": None}, "no end"),
    "no steps": ({"n_steps": 0}, "n_steps=0"),
    "no time": ({"seconds": 0.0}, "seconds=0.0"),
    "empty batch": ({"batch_size": 0}, "batch_size=0"),
    "micro": ({"micro_batch_size": -1}, "micro_batch_size=-1"),
    "rate": ({"lr": math.nan}, "lr=nan"),
    "minimum": ({"min_lr": 1.0}, "min_lr=1.0"),
    "decay": ({"weight_decay": -0.1}, "weight_decay=-0.1"),
    "warmup": ({"warmup": 1.0}, "warmup=1.0"),
    "norm": ({"max_norm": 0.0}, "max_norm=0.0"),
    "optimizer": ({"optimizer": "adam"}, "optimizer='adam'"),
    "schedule": ({"schedule": "linear"}, "schedule='linear'"),
    "precision": ({"precision": "int8"}, "precision='int8'"),
    "parallel": ({"parallel": "tensor"}, "parallel='tensor'"),
}


@pytest.mark.parametrize("name", REFUSED_CONFIGS)
def test_bad_configurations_are_refused(name):
    changes, message = REFUSED_CONFIGS[name]
    with pytest.raises(ValueError, match=message):
        change(**changes)


REFUSED_TRAINERS = {
    "micro": ({"micro_batch_size": 3}, "8 items.*micro_batch_size=3"),
    "few": ({"batch_size": 100}, "66 items"),
    "folder": ({"checkpoint_every": 1}, "checkpoint_every=1"),
    "held out": ({"eval_every": 1}, "eval_every=1"),
    "nothing learns": ({"model": nn.ReLU()}, "ReLU"),
    "no number": ({"loss": lambda m, x, y: m(x)[0, 0]}, r"\(11,\)"),
}


@pytest.mark.parametrize("name", REFUSED_TRAINERS)
def test_what_does_not_fit_is_refused_at_once(name):
    options, message = REFUSED_TRAINERS[name]
    with pytest.raises(ValueError, match=message):
        trainer(**options)
    with pytest.raises(ValueError, match="held_out=None"):
        trainer().evaluate()


def test_a_loss_that_is_not_finite_changes_nothing():
    ours = trainer()
    before = copy.deepcopy(ours.model)
    ours.loss = lambda m, x, y: train.next_token_loss(m, x, y) * math.nan
    with pytest.raises(ValueError, match="step 0 is nan"):
        ours.train()
    assert_same(ours.model, before)


@pytest.mark.parametrize(
    ("ids", "options", "message"),
    [
        (torch.zeros(1, dtype=torch.int64), {}, r"\(1,\)"),
        (torch.zeros(2, 2, dtype=torch.int64), {}, r"\(2, 2\)"),
        (torch.zeros(9, dtype=torch.int64), {"stride": 5}, "stride=5"),
    ],
)
def test_score_refuses(ids, options, message):
    with pytest.raises(ValueError, match=message):
        train.score(tiny.make_model(), ids, 4, **options)


# --- Scaling ------------------------------------------------------------------------


def test_utilisation_by_hand():
    """Four micro-batches of 8 tokens in a second: 32 tokens."""
    found = train.estimate_mfu(1000, 4 * 8, 1.0, 1e6)
    assert found == pytest.approx(6 * 1000 * 32 / 1e6)
    shape = {"n_layers": 3, "d_model": 5, "n_context": 7}
    found = train.estimate_mfu(1000, 32, 2.0, 1e6, **shape)
    assert found == pytest.approx((6000 + 12 * 3 * 5 * 7) * 16 / 1e6)


@given(
    scale=st.floats(0.1, 1e3),
    exponent=st.floats(0.05, 2.0),
    lowest=st.floats(0.1, 5),
    first=st.floats(1, 1e8),
)
@few
def test_laws_are_recovered_exactly(scale, exponent, lowest, first):
    sizes = [first * 3**k for k in range(6)]
    shares = [3 ** (-k * exponent) for k in range(6)]
    law = train.fit_scaling_law(sizes, [scale * share for share in shares])
    assert law.exponent == pytest.approx(exponent, rel=1e-6)
    assert law.predict(sizes[2]) == pytest.approx(scale * shares[2], rel=1e-6)
    assert law.floor == 0.0
    losses = [lowest + scale * share for share in shares]
    law = train.fit_scaling_law(sizes, losses, floor=True)
    for size, loss in zip(sizes, losses, strict=True):
        assert law.predict(size) == pytest.approx(loss, rel=1e-5)
    assert law.exponent == pytest.approx(exponent, rel=1e-3, abs=1e-4)


def test_a_law_by_hand():
    law = train.fit_scaling_law([1e2, 1e4, 1e6], [1.0, 0.1, 0.01])
    assert law.exponent == pytest.approx(0.5, abs=1e-12)
    assert law.scale == pytest.approx(10.0)
    sizes, losses = [1e6, 1e7, 1e8, 1e9], []
    losses = [1.69 + 406.4 * size**-0.34 for size in sizes]
    law = train.fit_scaling_law(sizes, losses, floor=True)
    assert (law.floor, law.exponent) == pytest.approx((1.69, 0.34), abs=1e-5)
    assert law.scale == pytest.approx(406.4, rel=1e-4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: scaling.fit_scaling_law([1, 2], [1.0]), "2 sizes and 1 losses"),
        (lambda: scaling.fit_scaling_law([1, -2], [1.0, 2.0]), "size -2"),
        (lambda: scaling.fit_scaling_law([1, 2], [1.0, 0.0]), "loss 0.0"),
        (lambda: scaling.fit_scaling_law([2, 2], [1.0, 1.0]), "1 different"),
        (lambda: scaling.fit_scaling_law([1, 2], [2, 1], floor=True), "3 are needed"),
        (lambda: scaling.estimate_mfu(1, 1, 0.0, 1.0), "seconds=0.0"),
        (lambda: scaling.estimate_mfu(-1, 1, 1.0, 1.0), "n_parameters=-1"),
    ],
)
def test_scaling_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call()


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(kill_until_one_arrives(Path(sys.argv[1])))
