"""AttentionExplorer: type a sentence and see which word looks at which.

The first figure of chapter 08. A reader types, switches heads and masks, turns the
temperature, takes √D away, and loads a model of their own. The browser computes the
weights from the embedding, the positions and the query and key projections of a
`MultiHeadAttention`; the functions here compute the same with ``lmcore.attention``.

Left out: values and outputs (see `AttentionSteps`), models of more than one layer.
"""

import json
import math
import re
import unicodedata
from pathlib import Path

import anywidget
import torch
import traitlets
from torch import Tensor, nn

from lmcore import attention
from lmcore.widgets import assets, checkpoint

FORMAT = "lmbh-attention-1"
UNKNOWN = "<unknown>"
MASKS = ("none", "causal", "window")

_SPACE = re.compile(r"[ \t\n\r\f\v\u00a0\u2000-\u200a\u2028\u2029\u202f\u3000]+")
# One Chinese character, or a word with apostrophes and hyphens inside, or a sign.
_WORD = re.compile(r"c|a+(?:[-'’]a+)*|.", re.DOTALL)
_IDEOGRAPHS = ((0x3040, 0x30FF), (0x3400, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF))


def split_words(text: str, vocab: list[str]) -> tuple[list[str], list[int | None]]:
    """Cut a text into words and find each in the vocabulary.

    What stands between two spaces is one word if the vocabulary has it. Otherwise it is
    cut into runs of letters and digits, single signs and single Chinese characters. A
    word that the vocabulary lacks is tried in lower case.

    Args:
        text: any text
        vocab: the V words of the model

    Returns:
        The words, and for each its number in the vocabulary; None if it is unknown.

    >>> split_words("The dog, 我 <eos>", ["<eos>", "the", "dog", "我"])
    (['The', 'dog', ',', '我', '<eos>'], [1, 2, None, 3, 0])
    """
    number = {word: i for i, word in enumerate(vocab)}
    words: list[str] = []
    for chunk in filter(None, _SPACE.split(text)):
        if chunk in number or chunk.lower() in number:
            words.append(chunk)
        else:
            kinds = "".join(_kind(letter) for letter in chunk)
            words += [chunk[m.start() : m.end()] for m in _WORD.finditer(kinds)]
    return words, [number.get(w, number.get(w.lower())) for w in words]


def attention_weights(
    arrays: dict[str, Tensor],
    ids: list[int],
    n_heads: int,
    n_kv_heads: int,
    *,
    mask: str = "none",
    window: int = 3,
    temperature: float = 1.0,
    scaled: bool = True,
) -> Tensor:
    """Compute the weights of every head, the Python twin of what the browser does.

    Args:
        arrays: ``embedding`` (V, C), ``positions`` (T_max, C), ``project_query.weight``
            (C, C), ``project_key.weight`` (H_kv · D, C), and their ``….bias`` if any
        ids: the T numbers of the words, T ≤ T_max
        n_heads: H
        n_kv_heads: H_kv
        mask: "none", "causal" or "window"
        window: how many words a word sees with "window", itself included
        temperature: the scores are divided by it
        scaled: whether the scores are divided by √D

    Returns:
        The weights, (H, T, T), in float64.

    >>> arrays = {"embedding": torch.eye(2), "positions": torch.zeros(3, 2)}
    >>> arrays |= {f"project_{name}.weight": torch.eye(2) for name in ("query", "key")}
    >>> weights = attention_weights(arrays, [0, 1, 1], 1, 1, mask="causal")
    >>> weights[0].float()
    tensor([[1.0000, 0.0000, 0.0000],
            [0.3302, 0.6698, 0.0000],
            [0.1978, 0.4011, 0.4011]])
    """
    arrays = {name: array.double() for name, array in arrays.items()}
    x = arrays["embedding"][torch.tensor(ids, dtype=torch.long)]  # (T, C)
    x = (x + arrays["positions"][: len(ids)])[None]  # (1, T, C)
    query = attention.split_heads(_project(x, arrays, "project_query"), n_heads)
    key = attention.split_heads(_project(x, arrays, "project_key"), n_kv_heads)
    key = attention.repeat_kv_heads(key, n_heads // n_kv_heads)  # (1, H, T, D)
    factor = 1.0 if scaled else math.sqrt(query.shape[-1])
    _, weights = attention.scaled_dot_product_attention(
        query * (factor / temperature), key, key, _mask(mask, len(ids), window)
    )
    return weights[0]


class AttentionExplorer(anywidget.AnyWidget):
    """A sentence, and who looks at whom in it.

    Args:
        vocab: V words; unknown words get the vector of ``<unknown>``, or zeros in a
            vocabulary without it
        embedding: (V, C)
        positions: (T_max, C), added to the embedding; longer sentences are cut
        attention: `lmcore.attention.MultiHeadAttention` of width C, or what has its
            ``n_heads``, ``n_kv_heads``, ``project_query`` and ``project_key``
        text: the sentence at the beginning
        settings: the start of ``head``, ``word``, ``mask``, ``window``, ``temperature``
            and ``scaled``

    The attributes ``text``, ``head`` (None = the average of all), ``word`` (the place
    of the word that looks; None = the last), ``mask`` ("none", "causal", "window"),
    ``window``, ``temperature`` and ``scaled`` are what the reader sets; they can be set
    and observed from Python where there is a kernel.

    Raises:
        ValueError: if the shapes do not fit.
        traitlets.TraitError: if a setting is out of range.

    >>> from lmcore.attention import MultiHeadAttention
    >>> explorer = AttentionExplorer(
    ...     vocab=["<unknown>", "the", "dog"],
    ...     embedding=torch.zeros(3, 8),
    ...     positions=torch.zeros(5, 8),
    ...     attention=MultiHeadAttention(8, 2),
    ...     text="The dog barks",
    ... )
    >>> explorer.tokens
    ['The', 'dog', 'barks']
    >>> explorer.weights.shape
    torch.Size([3, 3])
    """

    _esm = assets.bundle(
        "attention_math.js", "page.js", "explorer_panels.js", "explorer.js"
    )
    _css = assets.read("widgets.css")

    checkpoint = traitlets.Bytes().tag(sync=True)
    own_checkpoint = traitlets.Bytes(b"").tag(
        sync=True, from_json=lambda value, widget: bytes(value)
    )
    text = traitlets.Unicode("").tag(sync=True)
    head = traitlets.Int(0, allow_none=True, min=0).tag(sync=True)
    word = traitlets.Int(None, allow_none=True, min=0).tag(sync=True)
    mask = traitlets.Enum(MASKS, "none").tag(sync=True)
    window = traitlets.Int(3, min=1).tag(sync=True)
    temperature = traitlets.Float(1.0, min=0.01, max=100.0).tag(sync=True)
    scaled = traitlets.Bool(True).tag(sync=True)

    def __init__(
        self,
        vocab: list[str],
        embedding: Tensor,
        positions: Tensor,
        attention: nn.Module,
        text: str = "",
        **settings: object,
    ) -> None:
        arrays = {"embedding": embedding, "positions": positions}
        for name in ("project_query", "project_key"):
            layer = getattr(attention, name)
            arrays[f"{name}.weight"] = layer.weight
            if layer.bias is not None:
                arrays[f"{name}.bias"] = layer.bias
        metadata = {
            "format": FORMAT,
            "vocab": json.dumps(list(vocab)),
            "n_heads": str(attention.n_heads),
            "n_kv_heads": str(attention.n_kv_heads),
        }
        check(arrays, metadata)
        packed = checkpoint.pack(arrays, metadata)
        super().__init__(checkpoint=packed, text=text, **settings)

    def export(self, path: str | Path) -> Path:
        """Write the model of this figure to a file that "Your own model" can load.

        Args:
            path: where to; such files are called ``….safetensors``

        Returns:
            The path.
        """
        path = Path(path)
        path.write_bytes(self.own_checkpoint or self.checkpoint)
        return path

    @property
    def tokens(self) -> list[str]:
        """The words that are used: those of the text, cut at T_max."""
        arrays, vocab, _, _ = self._model()
        return split_words(self.text, vocab)[0][: len(arrays["positions"])]

    @property
    def all_weights(self) -> Tensor:
        """The weights of all heads with the present settings, (H, T, T)."""
        arrays, vocab, n_heads, n_kv_heads = self._model()
        _, ids = split_words(self.text, vocab)
        ids = ids[: len(arrays["positions"])]
        if UNKNOWN in vocab:
            unknown = vocab.index(UNKNOWN)
        else:
            unknown = len(vocab)
            zeros = torch.zeros_like(arrays["embedding"][:1])  # (1, C)
            arrays["embedding"] = torch.cat([arrays["embedding"], zeros])
        return attention_weights(
            arrays,
            [unknown if number is None else number for number in ids],
            n_heads,
            n_kv_heads,
            mask=self.mask,
            window=self.window,
            temperature=self.temperature,
            scaled=self.scaled,
        )

    @property
    def weights(self) -> Tensor:
        """The weights that the figure shows, (T, T): of one head or the average."""
        weights = self.all_weights
        return weights.mean(0) if self.head is None else weights[self.head]

    def _model(self) -> tuple[dict[str, Tensor], list[str], int, int]:
        arrays, metadata = checkpoint.unpack(self.own_checkpoint or self.checkpoint)
        check(arrays, metadata)
        n_heads, n_kv_heads = int(metadata["n_heads"]), int(metadata["n_kv_heads"])
        return arrays, json.loads(metadata["vocab"]), n_heads, n_kv_heads

    @traitlets.validate("head")
    def _head_exists(self, proposal: dict) -> int | None:
        head, n_heads = proposal["value"], self._model()[2]
        if head is not None and head >= n_heads:
            raise traitlets.TraitError(
                f"head={head} does not exist: the model has heads 0 to {n_heads - 1}"
            )
        return head

    @traitlets.validate("own_checkpoint")
    def _own_checkpoint_fits(self, proposal: dict) -> bytes:
        if proposal["value"]:
            try:
                check(*checkpoint.unpack(proposal["value"]))
            except ValueError as error:
                raise traitlets.TraitError(str(error)) from error
        return proposal["value"]

    @traitlets.observe("checkpoint", "own_checkpoint")
    def _fall_back_to_an_existing_head(self, change: dict) -> None:
        if self.head is not None and self.head >= self._model()[2]:
            self.head = 0


def check(arrays: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Refuse a checkpoint whose parts do not fit together.

    Args:
        arrays: as for `attention_weights`
        metadata: ``format``, ``vocab`` (JSON), ``n_heads``, ``n_kv_heads``

    Raises:
        ValueError: naming the part, its shape and what was expected.

    >>> check({}, {"format": "a photograph"})
    Traceback (most recent call last):
    ...
    ValueError: format='a photograph', expected 'lmbh-attention-1'
    """
    if metadata.get("format") != FORMAT:
        raise ValueError(f"format={metadata.get('format')!r}, expected {FORMAT!r}")
    vocab = json.loads(metadata["vocab"])
    n_heads, n_kv_heads = int(metadata["n_heads"]), int(metadata["n_kv_heads"])
    if not vocab or len(set(vocab)) != len(vocab):
        raise ValueError(
            f"vocab has {len(vocab)} words, {len(set(vocab))} of them different: "
            "expected at least one and none twice"
        )
    shape = {name: tuple(array.shape) for name, array in arrays.items()}
    if len(shape["embedding"]) != 2 or shape["embedding"][0] != len(vocab):
        raise ValueError(
            f"embedding has shape {shape['embedding']}, expected (V, C) with "
            f"V={len(vocab)}, the length of vocab"
        )
    d_model = shape["embedding"][1]
    if len(shape["positions"]) != 2 or shape["positions"][1] != d_model:
        raise ValueError(
            f"positions has shape {shape['positions']}, expected (T_max, C) with "
            f"C={d_model}, the width of embedding"
        )
    if n_heads < 1 or n_kv_heads < 1 or d_model % n_heads or n_heads % n_kv_heads:
        raise ValueError(
            f"n_heads={n_heads} and n_kv_heads={n_kv_heads} do not fit C={d_model}: "
            "n_heads must divide C, and n_kv_heads must divide n_heads"
        )
    d_key = d_model // n_heads * n_kv_heads
    for name, width in (("project_query", d_model), ("project_key", d_key)):
        for part, expected in (("weight", (width, d_model)), ("bias", (width,))):
            found = shape.get(f"{name}.{part}", expected if part == "bias" else None)
            if found != expected:
                raise ValueError(
                    f"{name}.{part} of attention has shape {found}, expected {expected}"
                )


def _project(x: Tensor, arrays: dict[str, Tensor], name: str) -> Tensor:
    bias = arrays.get(f"{name}.bias")
    return nn.functional.linear(x, arrays[f"{name}.weight"], bias)


def _mask(name: str, n_tokens: int, window: int) -> Tensor | None:
    if name == "causal":
        return attention.causal_mask(n_tokens)
    if name == "window":
        return attention.sliding_window_mask(n_tokens, window)
    return None


def _kind(letter: str) -> str:
    """Name the kind of a letter for `_WORD`: c ideograph, a of a word, s a sign."""
    if any(first <= ord(letter) <= last for first, last in _IDEOGRAPHS):
        return "c"
    if unicodedata.category(letter)[0] in "LNM":
        return "a"
    return letter if letter in "-'’" else "s"
