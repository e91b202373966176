"""From tokens to batches: what a model is given, step by step, to learn from.

Chapter 11 of the book, second part; all of it is also reachable as ``lmcore.data``. The
module builds, in this order: files of tokens that are larger than the memory; windows
of such a file with the tokens that come next; batches of windows, in an order that a
seed and a number say again; and many short texts in one window, walls between them.

Left out: mixing several sources, and packing that cuts no text (Ding et al., 2024).

B batch, T tokens of a window, N windows.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from . import files, require

IGNORED = -100  # the target that no loss counts

# --- Files of tokens ----------------------------------------------------------------


def write_tokens(path: str | Path, ids: Iterable[int], vocab_size: int) -> int:
    """Write ids to a file as they come, with two bytes each, or four if need be.

    The file is NumPy's (``.npy``). It appears under its name when it is complete
    (`files.write_whole`).

    Args:
        path: the file
        ids: for example ``tokenizer.encode_iterable(stream_text(...))``
        vocab_size: V; up to 65,536 two bytes are enough

    Returns:
        How many ids were written.

    Raises:
        ValueError: if an id is not in 0 … V - 1.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "tokens.npy"
    >>> write_tokens(path, iter([1, 2, 3]), vocab_size=4)
    3
    >>> np.load(path)
    array([1, 2, 3], dtype=uint16)
    """
    ids = iter(ids)
    dtype = np.dtype("<u2" if vocab_size <= 2**16 else "<u4")

    def write(file: BinaryIO) -> int:
        n_written = 0
        _write_header(file, dtype, 0)
        while block := list(islice(ids, 2**16)):
            if min(block) < 0 or max(block) >= vocab_size:
                wrong = next(i for i in block if not 0 <= i < vocab_size)
                raise ValueError(f"id {wrong} is not in 0 … {vocab_size - 1}")
            file.write(np.array(block, dtype).tobytes())
            n_written += len(block)
        file.seek(0)
        _write_header(file, dtype, n_written)  # which keeps room for a longer number
        return n_written

    return files.write_whole(path, write)


def _write_header(file: BinaryIO, dtype: np.dtype, n_tokens: int) -> None:
    header = {"descr": dtype.str, "fortran_order": False, "shape": (n_tokens,)}
    np.lib.format.write_array_header_1_0(file, header)


# --- Windows ------------------------------------------------------------------------


class TokenDataset:
    """Windows of one long run of tokens, each with the tokens that come next.

    Window i begins at token ``i · stride``. Its inputs are T tokens, its targets the
    same moved by one, so that it needs T + 1. Tokens that fill no window are left out.

    Args:
        tokens: ids in one dimension, or the path of a file that `write_tokens` wrote,
            which stays on the disk: only the windows asked for are read
        n_context: T
        stride: from one window to the next; T if not given, so that no two overlap

    Raises:
        ValueError: if the tokens have not one dimension, are no whole numbers, or fill
            no window; if ``n_context`` or ``stride`` is less than 1.

    >>> dataset = TokenDataset([0, 1, 2, 3, 4], n_context=4)
    >>> len(dataset), dataset[0]
    (1, (tensor([0, 1, 2, 3]), tensor([1, 2, 3, 4])))
    """

    def __init__(
        self,
        tokens: str | Path | Sequence[int] | np.ndarray | Tensor,
        n_context: int,
        stride: int | None = None,
    ) -> None:
        stride = n_context if stride is None else stride
        require.at_least_one(n_context=n_context, stride=stride)
        self.tokens = _open_tokens(tokens)
        self.n_context, self.stride = n_context, stride
        if len(self.tokens) <= n_context:
            raise ValueError(
                f"{len(self.tokens)} tokens fill no window: n_context={n_context} "
                f"needs {n_context + 1}"
            )

    def __len__(self) -> int:
        return (len(self.tokens) - 1 - self.n_context) // self.stride + 1

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Give the inputs and the targets of a window, (T,) int64 each."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"window {index} of {len(self)}")
        begin = index % len(self) * self.stride
        window = self.tokens[begin : begin + self.n_context + 1]
        window = torch.from_numpy(window.astype(np.int64))
        return window[:-1].clone(), window[1:]  # so that to change one leaves the other


def _open_tokens(tokens: str | Path | Sequence[int] | np.ndarray | Tensor) -> Any:
    if isinstance(tokens, str | Path):
        tokens = np.load(tokens, mmap_mode="r")
    elif isinstance(tokens, Tensor):
        tokens = tokens.cpu().numpy()
    tokens = np.asanyarray(tokens)
    if tokens.ndim != 1 or (len(tokens) and tokens.dtype.kind not in "ui"):
        raise ValueError(
            f"tokens of shape {tokens.shape} and type {tokens.dtype}: expected whole "
            "numbers in one dimension"
        )
    return tokens


# --- Batches ------------------------------------------------------------------------


class Dataset(Protocol):
    """Anything with a length whose items are pairs of inputs and targets.

    >>> pairs: Dataset = [(torch.tensor([1, 2]), torch.tensor([2, 3]))]
    >>> len(pairs), pairs[0][1]
    (1, tensor([2, 3]))
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Any, Tensor]: ...


def batches(
    dataset: Dataset,
    batch_size: int,
    *,
    shuffle: bool = True,
    seed: int = 0,
    first: int = 0,
    n_epochs: int | None = None,
    rank: int = 0,
    n_ranks: int = 1,
) -> Iterator[tuple[Any, Tensor]]:
    """Give batches, again and again through the data, in an order that can be resumed.

    The order of an epoch depends on the seed and the number of the epoch alone. So the
    batches from ``first`` on are those that would have come had nothing been stopped.

    Args:
        dataset: items that are pairs of inputs and targets, such as `TokenDataset`
        batch_size: B, items in a batch of all processes together
        shuffle: True: in random order, another one in every epoch, and the items that
            fill no batch at the end of an epoch are left out of it. False: in order,
            with a smaller batch at the end.
        seed: which orders
        first: how many batches to leave out at the beginning: those already seen
        n_epochs: how often through the data; None = without end
        rank: which of several processes this one is: it gets the items ``rank``,
            ``rank + n_ranks`` … of each batch
        n_ranks: how many processes share a batch

    Returns:
        An iterator over inputs and targets, of which (B,) is the first dimension.

    Raises:
        ValueError: if the data fill no batch, or a number is out of its range.

    >>> dataset = TokenDataset(range(7), n_context=2)
    >>> [inputs.tolist() for inputs, _ in batches(dataset, 2, seed=1, n_epochs=1)]
    [[[0, 1], [2, 3]]]
    >>> for inputs, targets in batches(dataset, 2, shuffle=False, n_epochs=1):
    ...     print(inputs.tolist(), targets.tolist())
    [[0, 1], [2, 3]] [[1, 2], [3, 4]]
    [[4, 5]] [[5, 6]]
    """
    _check_batches(dataset, batch_size, shuffle, first, rank, n_ranks)
    return _batches(
        dataset, batch_size, shuffle, seed, first, n_epochs, slice(rank, None, n_ranks)
    )


def _batches(
    dataset: Dataset,
    batch_size: int,
    shuffle: bool,
    seed: int,
    first: int,
    n_epochs: int | None,
    share: slice,
) -> Iterator[tuple[Any, Tensor]]:
    n_items = len(dataset)
    n_batches = n_items // batch_size if shuffle else -(-n_items // batch_size)
    epoch, begin = divmod(first, n_batches)
    while n_epochs is None or epoch < n_epochs:
        order = epoch_order(n_items, seed, epoch) if shuffle else range(n_items)
        for number in range(begin, n_batches):
            items = order[number * batch_size : (number + 1) * batch_size][share]
            yield tuple(default_collate([dataset[int(item)] for item in items]))
        epoch, begin = epoch + 1, 0


def epoch_order(n_items: int, seed: int, epoch: int) -> Tensor:
    """Give the order of the items in one epoch: a permutation, (n_items,), int64.

    >>> epoch_order(3, seed=0, epoch=0), epoch_order(3, seed=0, epoch=1)
    (tensor([1, 0, 2]), tensor([2, 0, 1]))
    """
    generator = torch.Generator().manual_seed(mix_seeds(seed, epoch))
    return torch.randperm(n_items, generator=generator)


def mix_seeds(*seeds: int) -> int:
    """Make one seed of several, so that (1, 0) and (0, 1) have nothing in common.

    >>> mix_seeds(1, 0) == mix_seeds(0, 1)
    False
    """
    mixed = np.random.SeedSequence(seeds).generate_state(1, np.uint64)[0]
    return int(mixed >> np.uint64(1))


def _check_batches(
    dataset: Dataset, batch_size: int, shuffle: bool, first: int, rank: int, n: int
) -> None:
    require.at_least_one(batch_size=batch_size)
    require.not_negative(first=first)
    if not 0 <= rank < n:
        raise ValueError(f"rank={rank} must lie in 0 … n_ranks - 1 = {n - 1}")
    if batch_size < n:
        raise ValueError(f"{batch_size=} is too small to be shared by n_ranks={n}")
    if len(dataset) < (batch_size if shuffle else 1):
        raise ValueError(f"{len(dataset)} items fill no batch of {batch_size=}")


# --- Many texts in one window -------------------------------------------------------


@dataclass(frozen=True)
class PackedTokens:
    """Windows that hold several documents each, and what keeps them apart.

    The inputs of an item are a dictionary of what the model is called with:
    ``model(ids=ids, mask=mask, positions=positions)``. So `batches` can cut them.

    >>> packed = pack([[1, 2], [3, 4]], n_context=4)
    >>> packed.document_mask()[0, 0].int()
    tensor([[1, 0, 0, 0],
            [1, 1, 0, 0],
            [0, 0, 1, 0],
            [0, 0, 1, 1]], dtype=torch.int32)
    """

    ids: Tensor  # (N, T) int64
    targets: Tensor  # (N, T) int64, -100 where no next token belongs to the document
    positions: Tensor  # (N, T) int64, from 0 in every document
    documents: Tensor  # (N, T) int64, which document of the window; -1 = padding

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> tuple[dict[str, Tensor], Tensor]:
        """Give one window: ids (T,), mask (1, T, T), positions (T,); targets (T,)."""
        inputs = {
            "ids": self.ids[index],
            "mask": _document_mask(self.documents[index]),
            "positions": self.positions[index],
        }
        return inputs, self.targets[index]

    def document_mask(self) -> Tensor:
        """Who may look at whom: earlier tokens of the same document, and itself.

        Returns:
            (N, 1, T, T), boolean, True = may look. Padding sees nothing but itself.
        """
        return _document_mask(self.documents)


def _document_mask(documents: Tensor) -> Tensor:
    # (..., T) -> (..., 1, T, T)
    n_tokens = documents.shape[-1]
    rows, columns = documents[..., None, :, None], documents[..., None, None, :]
    same = (rows == columns) & (rows >= 0)
    itself = torch.eye(n_tokens, dtype=torch.bool, device=documents.device)
    return (same | itself).tril()


def pack(
    documents: Iterable[Sequence[int]], n_context: int, pad_id: int = 0
) -> PackedTokens:
    """Put documents one after the other into windows, with walls between them.

    In one window no document sees another: positions begin at 0 again, the mask hides
    what stood before, and the last token of a document has no target, since what stands
    behind it is another story. A document that does not fit goes on in the next window,
    as a document of its own whose first target is not lost.

    Args:
        documents: the ids of each; one that shall learn to end brings its own token for
            that. Empty ones are left out.
        n_context: T
        pad_id: what fills the last window

    Returns:
        The windows.

    Raises:
        ValueError: if ``n_context`` is less than 1 or there is no token.

    >>> packed = pack([[1, 2], [3, 4, 5]], n_context=4)
    >>> packed.ids.tolist(), packed.targets.tolist()
    ([[1, 2, 3, 4], [5, 0, 0, 0]], [[2, -100, 4, 5], [-100, -100, -100, -100]])
    >>> packed.positions.tolist()
    [[0, 1, 0, 1], [0, 0, 0, 0]]
    """
    require.at_least_one(n_context=n_context)
    rows: list[list[tuple[int, int, int, int]]] = [[]]
    for document in documents:
        tokens = list(document)
        targets = [*tokens[1:], IGNORED]
        begin = 0
        while begin < len(tokens):
            if len(rows[-1]) == n_context:
                rows.append([])
            row = rows[-1]
            number = row[-1][3] + 1 if row else 0
            end = min(len(tokens), begin + n_context - len(row))
            row += [
                (tokens[i], targets[i], i - begin, number) for i in range(begin, end)
            ]
            begin = end
    if not rows[0]:
        raise ValueError("there is no token to pack")
    rows[-1] += [(pad_id, IGNORED, 0, -1)] * (n_context - len(rows[-1]))
    ids, targets, positions, numbers = torch.tensor(rows).unbind(dim=-1)
    return PackedTokens(
        ids.contiguous(), targets.contiguous(), positions.contiguous(), numbers
    )
