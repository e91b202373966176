"""Checkpoints that are whole at any moment, and a diary of the training.

Chapter 11 of the book, third part. The module builds, in this order: the state of a
model and its optimizer, in one form however many processes share them, in a file that
is there completely or not at all (`lmcore.files`); and the metrics of every step in a
file that a program can read, and in TensorBoard.

Left out: several checkpoints side by side, and writing in the background.
"""

import importlib
import importlib.util
import io
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint import state_dict as shared_state

from . import files

# --- Files --------------------------------------------------------------------------


def save_state(path: str | Path, state: dict[str, Any]) -> None:
    """Write tensors, numbers and names to a file, whole (`files.write_whole`).

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "state.pt"
    >>> save_state(path, {"step": 3, "weight": torch.ones(2)})
    >>> load_state(path)
    {'step': 3, 'weight': tensor([1., 1.])}
    """
    # Into the memory first: torch.save writes archives that it goes back in.
    buffer = io.BytesIO()
    torch.save(state, buffer)
    files.write_whole(path, lambda file: file.write(buffer.getbuffer()))


def load_state(path: str | Path) -> dict[str, Any]:
    """Read what `save_state` wrote, onto the CPU; the file's code, if any, never runs.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file holds something else.

    >>> load_state("no such file")
    Traceback (most recent call last):
    ...
    FileNotFoundError: [Errno 2] No such file or directory: 'no such file'
    """
    content = Path(path).read_bytes()
    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds
        raise ValueError(f"{str(path)!r} holds no checkpoint: {error}") from error


# --- Model and optimizer ------------------------------------------------------------

_WHOLE = shared_state.StateDictOptions(full_state_dict=True, cpu_offload=True)


def training_state(
    model: nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, Any]:
    """Collect parameters, buffers and the optimizer's state under the model's names.

    The form is the same for one process, DDP and FSDP, so that a training may go on
    with another number of processes. Every process must call it; the first gets all.

    Args:
        model: not wrapped in DDP, but sharded if FSDP is used
        optimizer: of the model's parameters

    Returns:
        ``{"model": …, "optimizer": …}``, on the CPU.

    >>> model = nn.Linear(2, 1)
    >>> state = training_state(model, torch.optim.SGD(model.parameters()))
    >>> sorted(state), sorted(state["model"])
    (['model', 'optimizer'], ['bias', 'weight'])
    """
    found = shared_state.get_state_dict(model, optimizer, options=_WHOLE)
    return dict(zip(("model", "optimizer"), found, strict=True))


def load_training_state(
    model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]
) -> None:
    """Put back what `training_state` collected.

    Args:
        model: built as the one that was saved
        optimizer: of the same kind
        state: the same in every process

    >>> old, new = nn.Linear(2, 1), nn.Linear(2, 1)
    >>> optimizers = [torch.optim.Adam(model.parameters()) for model in (old, new)]
    >>> load_training_state(new, optimizers[1], training_state(old, optimizers[0]))
    >>> torch.equal(old.weight, new.weight)
    True
    """
    shared_state.set_state_dict(
        model,
        optimizer,
        model_state_dict=state["model"],
        optim_state_dict=state["optimizer"],
        options=shared_state.StateDictOptions(full_state_dict=True),
    )


# --- The diary ----------------------------------------------------------------------


class Diary:
    """The records of a training: in memory, as JSON lines, and in TensorBoard.

    Args:
        folder: holds ``metrics.jsonl``, and the folder ``tensorboard`` if that package
            is installed; None keeps the records in the memory only

    >>> diary = Diary(None)
    >>> diary.write({"step": 1, "loss": 2.5})
    >>> diary.records
    [{'step': 1, 'loss': 2.5}]
    """

    def __init__(self, folder: Path | None) -> None:
        self.records: list[dict[str, float]] = []
        self._file = None if folder is None else folder / "metrics.jsonl"
        self._board = None
        if folder is not None and importlib.util.find_spec("tensorboard") is not None:
            tensorboard = importlib.import_module("torch.utils.tensorboard")
            self._board = tensorboard.SummaryWriter(str(folder / "tensorboard"))

    def write(self, record: dict[str, float]) -> None:
        """Add the record of a step, which has a ``"step"``."""
        self.records.append(record)
        if self._file is not None:
            with self._file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        if self._board is not None:
            for name in record.keys() - {"step"}:
                self._board.add_scalar(name, record[name], int(record["step"]))
            self._board.flush()

    def turn_back(self, step: int) -> None:
        """Read the file, and forget what was written after a step.

        A training that was killed has gone on beyond its last checkpoint, and may have
        left half a line.
        """
        if self._file is None or not self._file.exists():
            return
        whole = self._file.read_text(encoding="utf-8").rpartition("\n")[0]
        records = [json.loads(line) for line in whole.splitlines()]
        self.records = [record for record in records if record["step"] <= step]
        lines = "".join(json.dumps(record) + "\n" for record in self.records)
        files.write_whole(self._file, lambda file: file.write(lines.encode()))
