"""Training: the same small step, some hundred or some million times.

Chapter 11 of the book, third part. The module builds, in this order: all decisions of a
training in one place; what a batch costs; the trainer, which makes the steps, can be
stopped at any moment and goes on exactly where it was; and how well a trained model
foresees a text. Its neighbours are ``lmcore.optimizer``, ``lmcore.checkpoint``,
``lmcore.processes`` (several GPUs) and ``lmcore.scaling`` (what larger models promise).

The trainer works on any model that maps ids to logits, and, with a loss of its own, on
any model at all.

Left out: early stopping, averages of weights, search for the best configuration.

Papers: Micikevicius et al., 2018 (mixed precision); Hoffmann et al., 2022.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from . import checkpoint, modes, processes, require, tokens
from . import optimizer as optimizers
from .scaling import ScalingLaw, estimate_mfu, fit_scaling_law

__all__ = [
    "ScalingLaw",
    "TrainConfig",
    "Trainer",
    "estimate_mfu",
    "fit_scaling_law",
    "next_token_loss",
    "score",
]

Loss = Callable[[nn.Module, Any, Tensor], Tensor]

# --- All decisions ------------------------------------------------------------------

OPTIMIZERS = ("adamw", "muon")
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
SCHEDULES = {
    "cosine": optimizers.warmup_cosine,
    "stable": optimizers.warmup_stable_decay,
}


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained.

    >>> TrainConfig(n_steps=1000, batch_size=64).lr
    0.001
    """

    n_steps: int | None = None  # optimizer steps; None = until the seconds are over
    seconds: float | None = None  # of training; None = until the steps are done
    batch_size: int = 32  # B, items a step, of all processes and micro-batches together
    micro_batch_size: int | None = None  # items at once in a process; None = its share
    optimizer: str = "adamw"  # or "muon": that for the matrices inside, AdamW elsewhere
    lr: float = 1e-3  # the highest learning rate, of AdamW
    min_lr: float = 0.0  # the learning rate at the end
    matrix_lr: float = 0.02  # the highest learning rate of Muon
    betas: tuple[float, float] = (0.9, 0.95)  # of AdamW
    weight_decay: float = 0.1  # for matrices
    schedule: str = "cosine"  # or "stable": level, then a straight line down
    warmup: float = 0.02  # the share of the training in which the rate rises
    max_norm: float | None = 1.0  # the length of the gradient at most; None = any
    precision: str = "fp32"  # "bf16" or "fp16": matrix products in half precision
    compile: bool = False  # whether torch.compile makes the model faster
    fused: bool = False  # PyTorch's fused AdamW, which computes the same
    parallel: str = "ddp"  # under torchrun: "ddp" copies the model, "fsdp" shards it
    log_every: int = 10  # steps from one record to the next
    eval_every: int = 0  # steps from one evaluation to the next; 0 = only at the end
    n_eval_batches: int | None = None  # how much held-out data is used; None = all
    checkpoint_every: int = 0  # steps from one checkpoint to the next; 0 = only the end
    seed: int = 0  # the order of the data, and dropout

    def __post_init__(self) -> None:
        """Refuse what cannot work before any time is spent."""
        if self.n_steps is None and self.seconds is None:
            raise ValueError("n_steps=None and seconds=None: the training has no end")
        counts = ("n_steps", "batch_size", "micro_batch_size", "n_eval_batches")
        for name in (*counts, "log_every"):
            require.at_least_one(**{name: getattr(self, name)})
        for name in ("seconds", "lr", "matrix_lr", "max_norm"):
            number = getattr(self, name)
            if number is not None and not 0 < number < math.inf:
                raise ValueError(f"{name}={number} must be more than 0")
        for name in ("weight_decay", "eval_every", "checkpoint_every", "seed"):
            require.not_negative(**{name: getattr(self, name)})
        if not 0 <= self.min_lr <= self.lr:
            raise ValueError(f"min_lr={self.min_lr} must lie in 0 … lr={self.lr}")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup={self.warmup} must lie in [0, 1)")
        require.one_of("optimizer", self.optimizer, OPTIMIZERS)
        require.one_of("schedule", self.schedule, SCHEDULES)
        require.one_of("precision", self.precision, PRECISIONS)
        require.one_of("parallel", self.parallel, processes.PARALLEL)


# What decides which data a step sees: a training cannot go on with another value.
FIXED = ("batch_size", "seed", "optimizer")


# --- What a batch costs -------------------------------------------------------------


def next_token_loss(model: nn.Module, inputs: Any, targets: Tensor) -> Tensor:
    """Add up the cross-entropy of all targets that count.

    A sum and not a mean, since micro-batches and processes may have different numbers
    of targets: the trainer divides once, by the number in the whole batch.

    Args:
        model: maps the inputs to logits, (B, T, V), or (B, V)
        inputs: ids (B, T), or a tuple or a dictionary of arguments
        targets: (B, T), or (B,); -100 does not count

    Returns:
        The sum, in nats, in single precision.

    >>> def model(ids): return torch.zeros(*ids.shape, 4)
    >>> next_token_loss(model, torch.tensor([[1, 2]]), torch.tensor([[2, -100]]))
    tensor(1.3863)
    """
    if isinstance(inputs, Tensor):
        logits = model(inputs)
    elif isinstance(inputs, dict):
        logits = model(**inputs)
    else:
        logits = model(*inputs)
    return F.cross_entropy(
        logits.flatten(0, -2).float(),
        targets.flatten(),
        ignore_index=tokens.IGNORED,
        reduction="sum",
    )


# --- The trainer --------------------------------------------------------------------

CHECKPOINT = "checkpoint.pt"


class Trainer:
    """Trains a model on batches of data, one optimizer step after the other.

    A step is the same whether its batch is read at once, in micro-batches, or by
    several processes: the loss is the mean over all targets of the batch, and gradients
    are clipped when they are complete. Which items and which dropout a step has depends
    on the seed and the number of the step alone; so a training that was stopped and
    resumed from its checkpoint ends with the same numbers, bit by bit, on the same
    machine (unless ``seconds`` decide when it ends).

    Under ``torchrun``, inside `processes.join_team`, the processes share the work.

    Args:
        model: on the device where it is to be trained; changed in place
        config: how
        data: pairs of inputs and targets, such as `tokens.TokenDataset`
        held_out: the same, never trained on
        folder: for the checkpoint and the metrics; None keeps nothing
        loss: what a batch costs: the sum over its targets, in nats, from the model, the
            inputs and the targets, of which those equal to -100 do not count
        make_optimizer: makes the optimizer; if not given, the configuration decides
        progress: whether a bar shows how far the training is

    Attributes:
        step: how many steps are done
        seconds: how long they took, evaluations and checkpoints not included

    Raises:
        ValueError: if model, data and configuration do not fit together.

    >>> model = nn.Embedding(3, 3)  # the last token decides on the next
    >>> data = tokens.TokenDataset([0, 1, 2] * 20, n_context=5)
    >>> config = TrainConfig(n_steps=50, batch_size=4, lr=0.3)
    >>> trainer = Trainer(model, config, data, progress=False)
    >>> trainer.train()[-1]["loss"] < 0.1
    True
    """

    def __init__(
        self,
        model: nn.Module,
        config: TrainConfig,
        data: tokens.Dataset,
        held_out: tokens.Dataset | None = None,
        *,
        folder: str | Path | None = None,
        loss: Loss = next_token_loss,
        make_optimizer: Callable[[nn.Module], torch.optim.Optimizer] | None = None,
        progress: bool = True,
    ) -> None:
        self.model, self.config, self.loss = model, config, loss
        self.data, self.held_out = data, held_out
        self.device = next(model.parameters(), torch.empty(0)).device
        self.team = processes.current_team(self.device)
        self.folder = None if folder is None else Path(folder)
        self.progress = progress and self.team.is_first
        self._check()
        self._prepare_model()
        self.optimizer = (make_optimizer or self._make_optimizer)(model)
        self._peaks = [group["lr"] for group in self.optimizer.param_groups]
        # Halves end at 65,504 and begin at 6e-8: losses are scaled to fit in between.
        self._scaler = torch.amp.GradScaler(
            self.device.type, enabled=config.precision == "fp16"
        )
        self.n_tokens, self.seconds = 0, 0.0
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
        self._diary = checkpoint.Diary(self.folder if self.team.is_first else None)
        self._has_state = not self._saved

    @property
    def records(self) -> list[dict[str, float]]:
        """The metrics of the recorded steps.

        Each has ``step``, ``loss`` (nats per target, before the step), ``lr``,
        ``gradient_norm`` (before clipping), ``n_tokens`` (targets so far),
        ``tokens_per_second``, ``seconds``, and after an evaluation ``held_out_loss``.
        """
        return self._diary.records

    @property
    def is_finished(self) -> bool:
        """Whether all steps are done or the time is over."""
        return self._done >= 1.0

    def train(self) -> list[dict[str, float]]:
        """Make all steps that are left, and a checkpoint and an evaluation at the end.

        Returns:
            The records of the whole training; under ``torchrun``, of the first process.

        Raises:
            ValueError: if the loss is not finite, or the folder holds a checkpoint that
                was not resumed from.
        """
        if not self._has_state:
            raise ValueError(
                f"{str(self.folder)!r} holds the checkpoint of another training: call "
                "resume() to go on with it, or take another folder"
            )
        config = self.config
        self.model.train()
        self._diary.turn_back(self.step)
        feed = self._feed()
        with self._bar() as bar:
            while not self.is_finished:
                record = self._timed_step(*next(feed))
                last = self.is_finished
                if self.held_out is not None and self._due(config.eval_every, last):
                    record["held_out_loss"] = self.evaluate()
                if self._due(config.log_every, last) or "held_out_loss" in record:
                    self._diary.write(record)
                self._show(bar, record)
                if self._due(config.checkpoint_every, last):
                    self.save()
        return self.records

    def train_step(self, inputs: Any, targets: Tensor) -> dict[str, float]:
        """Learn from one batch: gradients of all micro-batches, then one step.

        Args:
            inputs: this process's share of the batch, on any device
            targets: (B, T), the same

        Returns:
            ``loss``, ``lr``, ``gradient_norm`` and ``n_tokens``, of all processes.

        Raises:
            ValueError: if the loss or the gradient is not finite.
        """
        rate = self._set_rates()
        n_targets = int(self.team.sum(self._put((targets != tokens.IGNORED).sum())))
        total = self._accumulate(inputs, targets, max(n_targets, 1))
        loss = self.team.sum(total).item() / max(n_targets, 1)
        if not math.isfinite(loss):
            raise ValueError(
                f"the loss of step {self.step} is {loss} at the learning rate {rate}: "
                "nothing was changed in this step; try a smaller rate"
            )
        norm = self._clip()
        self._scaler.step(self.optimizer)
        self._scaler.update()
        self.optimizer.zero_grad()
        self.step += 1
        self.n_tokens += n_targets
        return {
            "step": self.step,
            "loss": loss,
            "lr": rate,
            "gradient_norm": norm,
            "n_tokens": self.n_tokens,
        }

    @torch.no_grad()
    def evaluate(self, n_batches: int | None = None) -> float:
        """Measure the loss on held-out data, without dropout.

        Args:
            n_batches: how many batches are used; as configured, if not given

        Returns:
            The mean loss, in nats per target.

        Raises:
            ValueError: if there are no held-out data.
        """
        if self.held_out is None:
            raise ValueError("held_out=None: there is nothing to evaluate on")
        n_batches = n_batches or self.config.n_eval_batches
        size = self.config.batch_size
        feed = tokens.batches(self.held_out, size, shuffle=False, n_epochs=1)
        total, n_targets = 0.0, 0
        with modes.evaluating(self.model):
            for batch in islice(feed, n_batches):
                for inputs, targets in self._micro_batches(*self._share(*batch)):
                    with self._autocast():
                        total += self.loss(self._forward, inputs, targets).item()
                    n_targets += int((targets != tokens.IGNORED).sum())
        both = torch.tensor([total, n_targets], device=self.device)
        total, n_targets = self.team.sum(both).tolist()
        return total / n_targets

    def save(self) -> None:
        """Write a checkpoint, if there is a folder; it is whole or not there at all."""
        if self.folder is None:
            return
        state = checkpoint.training_state(self.model, self.optimizer)
        state |= {
            "scaler": self._scaler.state_dict(),
            "step": self.step,
            "n_tokens": self.n_tokens,
            "seconds": self.seconds,
            "fixed": self._fixed(),
        }
        if self.team.is_first:
            checkpoint.save_state(self.folder / CHECKPOINT, state)
        self.team.wait()

    def resume(self) -> int:
        """Go back to the checkpoint in the folder, if there is one.

        The number of processes and the size of micro-batches may be other ones now.

        Returns:
            How many steps are done.

        Raises:
            ValueError: if the checkpoint is not one, or was made with other data,
                another batch size, seed or optimizer.
        """
        self._has_state = True
        if not self._saved:
            return self.step
        state = checkpoint.load_state(self.folder / CHECKPOINT)
        for name, now in self._fixed().items():
            before = state["fixed"][name]
            if before != now:
                raise ValueError(
                    f"the checkpoint was made with {name}={before!r}, not {now!r}"
                )
        checkpoint.load_training_state(self.model, self.optimizer, state)
        self._scaler.load_state_dict(state["scaler"])
        self.step, self.n_tokens = state["step"], state["n_tokens"]
        self.seconds = state["seconds"]
        return self.step

    # --- Preparations ---------------------------------------------------------------

    def _check(self) -> None:
        config, n_ranks = self.config, self.team.n_ranks
        if not any(p.requires_grad for p in self.model.parameters()):
            raise ValueError(f"{type(self.model).__name__} has nothing that learns")
        if config.batch_size % n_ranks:
            raise ValueError(
                f"batch_size={config.batch_size} is not divisible by {n_ranks}, the "
                "number of processes"
            )
        share = config.batch_size // n_ranks
        if share % (config.micro_batch_size or share):
            raise ValueError(
                f"the share of a process, {share} items, is not divisible by "
                f"micro_batch_size={config.micro_batch_size}"
            )
        if config.eval_every and self.held_out is None:
            raise ValueError(f"eval_every={config.eval_every} needs held-out data")
        if config.checkpoint_every and self.folder is None:
            raise ValueError(
                f"checkpoint_every={config.checkpoint_every} needs a folder"
            )
        if config.optimizer == "muon" and self._is_sharded:
            raise ValueError(
                "optimizer='muon' needs whole matrices, not parallel='fsdp'"
            )
        is_old = self.device.type == "cuda" and not torch.cuda.is_bf16_supported()
        if config.precision == "bf16" and is_old:
            raise ValueError("precision='bf16' is too new for this GPU: take 'fp16'")
        self.step = 0
        self._feed()  # refuses too few data
        self._check_one_item()

    @torch.no_grad()
    def _check_one_item(self) -> None:
        inputs, targets = tokens.default_collate([self.data[0]])
        with self._own_dice(), modes.evaluating(self.model):
            loss = self.loss(self.model, self._put(inputs), self._put(targets))
        if not isinstance(loss, Tensor) or loss.dim() != 0:
            found = tuple(loss.shape) if isinstance(loss, Tensor) else loss
            raise ValueError(f"the loss must be one number, got {found}")

    @property
    def _is_sharded(self) -> bool:
        return self.team.n_ranks > 1 and self.config.parallel == "fsdp"

    @property
    def _saved(self) -> bool:
        return self.folder is not None and (self.folder / CHECKPOINT).exists()

    def _fixed(self) -> dict[str, Any]:
        fixed = {name: getattr(self.config, name) for name in FIXED}
        return fixed | {"n_items": len(self.data)}

    def _prepare_model(self) -> None:
        if self._is_sharded:
            processes.shard_over_team(self.model, self.team)
        self._forward = torch.compile(self.model) if self.config.compile else self.model
        self._running = self._forward
        if self.team.n_ranks > 1 and not self._is_sharded:
            self._running = processes.copy_to_team(self._forward, self.device)

    def _make_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        config = self.config
        groups = optimizers.decay_groups(model, config.weight_decay)
        options = {"lr": config.lr, "betas": config.betas, "eps": 1e-8}
        if config.optimizer == "adamw":
            if config.fused:
                return torch.optim.AdamW(groups, fused=True, **options)
            return optimizers.AdamW(groups, **options)
        return optimizers.MuonAdamW(
            model, config.matrix_lr, weight_decay=config.weight_decay, **options
        )

    # --- One step -------------------------------------------------------------------

    def _timed_step(self, inputs: Any, targets: Tensor) -> dict[str, float]:
        begin = time.perf_counter()
        before = self.n_tokens
        record = self.train_step(inputs, targets)
        passed = time.perf_counter() - begin
        self.seconds = self.team.agree(self.seconds + passed)
        record["tokens_per_second"] = (self.n_tokens - before) / passed
        record["seconds"] = self.seconds
        return record

    def _accumulate(self, inputs: Any, targets: Tensor, n_targets: int) -> Tensor:
        """Add up the gradients of all micro-batches, and their losses."""
        parts = list(self._micro_batches(inputs, targets))
        total = torch.zeros((), device=self.device)
        # DDP and FSDP take the mean over the processes; n_targets counts all of them.
        weight = self.team.n_ranks / n_targets
        with self._own_dice():
            for number, part in enumerate(parts, 1):
                with self._exchange(number == len(parts)), self._autocast():
                    loss = self.loss(self._running, *part)
                    self._scaler.scale(loss * weight).backward()
                total += loss.detach()
        return total

    def _clip(self) -> float:
        """Clip the gradient at its true size, which it has after unscaling."""
        self._scaler.unscale_(self.optimizer)
        parameters = list(self.model.parameters())
        if self._scaler.is_enabled():
            norm = optimizers.gradient_norm(parameters)
            if not math.isfinite(norm):  # too large a scale: the scaler skips the step
                return norm
        return optimizers.clip_gradient_norm(
            parameters, self.config.max_norm or math.inf
        )

    def _set_rates(self) -> float:
        """Set the learning rates of this step; return the first."""
        config = self.config
        n_steps = config.n_steps or 1000  # of equal time
        step = self.step if config.seconds is None else self._done * n_steps
        share = SCHEDULES[config.schedule](
            min(step, n_steps),
            1.0,
            int(config.warmup * n_steps),
            n_steps,
            config.min_lr / config.lr,
        )
        for group, peak in zip(self.optimizer.param_groups, self._peaks, strict=True):
            group["lr"] = peak * share
        return self._peaks[0] * share

    @property
    def _done(self) -> float:
        """The share of the training that is done."""
        config = self.config
        steps = self.step / config.n_steps if config.n_steps else 0.0
        seconds = self.seconds / config.seconds if config.seconds else 0.0
        return max(steps, seconds)

    def _due(self, every: int, last: bool) -> bool:
        return last or (every > 0 and self.step % every == 0)

    def _feed(self) -> Iterator[tuple[Any, Tensor]]:
        return tokens.batches(
            self.data,
            self.config.batch_size,
            seed=self.config.seed,
            first=self.step,
            rank=self.team.rank,
            n_ranks=self.team.n_ranks,
        )

    def _share(self, inputs: Any, targets: Tensor) -> tuple[Any, Tensor]:
        """Take this process's part of a batch, filled up so that all have as many."""
        size = -(-len(targets) // self.team.n_ranks)
        items = torch.arange(size) + size * self.team.rank
        missing = items >= len(targets)
        items = items.clamp(max=len(targets) - 1)
        filled = targets[items].masked_fill_(
            missing.view(-1, *[1] * (targets.dim() - 1)), tokens.IGNORED
        )
        return _cut(inputs, items), filled

    def _micro_batches(
        self, inputs: Any, targets: Tensor
    ) -> Iterator[tuple[Any, Tensor]]:
        size = self.config.micro_batch_size or len(targets)
        for begin in range(0, len(targets), size):
            part = slice(begin, begin + size)
            yield self._put(_cut(inputs, part)), self._put(targets[part])

    def _put(self, inputs: Any) -> Any:
        if isinstance(inputs, Tensor):
            return inputs.to(self.device, non_blocking=True)
        if isinstance(inputs, dict):
            return {name: self._put(value) for name, value in inputs.items()}
        return tuple(map(self._put, inputs))

    @contextmanager
    def _own_dice(self) -> Iterator[None]:
        """Let dropout depend on the step alone, and leave torch's dice untouched."""
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            seeds = (self.config.seed, self.step, self.team.rank)
            torch.manual_seed(tokens.mix_seeds(*seeds))
            yield

    def _autocast(self) -> AbstractContextManager:
        dtype = PRECISIONS[self.config.precision]
        if dtype is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype)

    def _exchange(self, last: bool) -> AbstractContextManager:
        """Let processes exchange gradients once a step, after the last micro-batch."""
        if self._is_sharded:
            self.model.set_requires_gradient_sync(last)
        elif self.team.n_ranks > 1 and not last:
            return self._running.no_sync()
        return nullcontext()

    # --- What the reader sees -------------------------------------------------------

    def _bar(self) -> tqdm:
        config = self.config
        return tqdm(
            total=config.n_steps or config.seconds,
            initial=self.step if config.n_steps else self.seconds,
            unit="step" if config.n_steps else "s",
            bar_format=None if config.n_steps else _TIME_BAR,
            disable=not self.progress,
        )

    def _show(self, bar: tqdm, record: dict[str, float]) -> None:
        rate = self.n_tokens / self.seconds
        text = f"loss {record['loss']:.3f}, {rate:,.0f} tokens/s"
        if "held_out_loss" in record:
            text += f", held out {record['held_out_loss']:.3f}"
        bar.set_postfix_str(text, refresh=False)
        done = self.step if self.config.n_steps else self.seconds
        bar.update(min(done, bar.total) - bar.n)


# What is done is time already; the rest of it is what remains.
_TIME_BAR = "{percentage:3.0f}%|{bar}| {n:.0f} of {total:.0f} s{postfix}"


def _cut(inputs: Any, part: slice | Tensor) -> Any:
    if isinstance(inputs, Tensor):
        return inputs[part]
    if isinstance(inputs, dict):
        return {name: value[part] for name, value in inputs.items()}
    return tuple(value[part] for value in inputs)


# --- How well a text is foreseen ----------------------------------------------------


@torch.no_grad()
def score(
    model: nn.Module,
    ids: Tensor,
    n_context: int,
    stride: int | None = None,
    batch_size: int = 16,
) -> Tensor:
    """Give every token of a text its log-probability after the tokens before it.

    The text is read in windows. From the second one on, only tokens that have at least
    ``n_context - stride`` others before them are taken from a window, so that a smaller
    stride costs more and gives better numbers. For bits per character:
    ``ngram.bits_per_character(score(...).tolist(), text)``.

    Args:
        model: maps ids (B, T) to logits (B, T, V); its mode is left as it is
        ids: (N,), the text behind one token that only serves as context
        n_context: T, the most tokens that the model sees at once
        stride: from one window to the next; half a window if not given
        batch_size: how many windows are read at once

    Returns:
        (N - 1,), of the tokens from the second on, in nats, single precision, on the
        CPU.

    Raises:
        ValueError: if the ids are not at least two in one dimension, or the stride is
            not in 1 … n_context.

    >>> def model(ids): return torch.zeros(*ids.shape, 4)
    >>> score(model, torch.tensor([0, 1, 2, 3]), n_context=2)
    tensor([-1.3863, -1.3863, -1.3863])
    """
    stride = max(n_context // 2, 1) if stride is None else stride
    if ids.dim() != 1 or len(ids) < 2:
        raise ValueError(f"ids of shape {tuple(ids.shape)}: expected (N,), N ≥ 2")
    if not 1 <= stride <= n_context or batch_size < 1:
        raise ValueError(f"{stride=} is not in 1 … {n_context=}, or {batch_size=} < 1")
    n_tokens = min(n_context, len(ids) - 1)
    begins = [*range(0, len(ids) - 1 - n_tokens, stride), len(ids) - 1 - n_tokens]
    log_probs = torch.empty(len(ids) - 1)
    # From the last window to the first: where two overlap, the earlier one, which has
    # seen more before the token, has the last word.
    for start in range(0, len(begins), batch_size):
        group = begins[::-1][start : start + batch_size]
        rows = torch.stack([ids[begin : begin + n_tokens + 1] for begin in group])
        logits = model(rows[:, :-1]).float()  # (B, T, V)
        losses = F.cross_entropy(
            logits.transpose(1, 2), rows[:, 1:], reduction="none"
        ).cpu()
        for begin, row in zip(group, losses, strict=True):
            log_probs[begin : begin + n_tokens] = -row
    return log_probs
