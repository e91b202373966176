"""Convolution: a small window slides over the text and looks for one pattern each.

Chapter 06 of the book. The module builds, in this order: the windows of a text, and the
convolution as one layer applied to all of them; the one that looks only back; the
maximum, which keeps the best match wherever it was; a classifier of texts made of
these; and a language model whose windows grow wider from layer to layer.

Left out: groups, transposed convolutions, weight normalisation, dropout, documents side
by side in one text, and the normalisation that chapter 09 builds by hand. The language
model can be given to `recurrent.train`, `recurrent.evaluate` and `recurrent.sample`.

Papers: Waibel et al., 1989 (convolution in time); Collobert et al., 2011, and Kim, 2014
(texts); Van den Oord et al., 2016 (WaveNet: causal and dilated); He, Zhang, Ren and
Sun, 2016 (layers that add to what they are given); Bai, Kolter and Koltun, 2018
(windows against memory).

T is the number of tokens, C their width, F the number of filters, k the kernel's width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from . import network, require

# --- Windows ------------------------------------------------------------------------


def windows(x: Tensor, width: int, dilation: int = 1, stride: int = 1) -> Tensor:
    """Cut a text into all its windows of a width.

    Args:
        x: (B, T, C), the tokens
        width: k, how many tokens a window holds
        dilation: how far apart these stand in the text; 1 for neighbours
        stride: how far apart the windows begin

    Returns:
        (B, T', C, k), without a copy. With stride 1, T' = T - (k - 1) · dilation.

    Raises:
        ValueError: if no window fits into the text or a number is smaller than 1.

    >>> windows(torch.tensor([[[1.0], [2.0], [3.0]]]), width=2).squeeze()
    tensor([[1., 2.],
            [2., 3.]])
    """
    require.at_least_one(width=width, dilation=dilation, stride=stride)
    span = (width - 1) * dilation + 1  # from the first token of a window to its last
    if x.dim() != 3 or x.shape[1] < span:
        raise ValueError(
            f"x has shape {tuple(x.shape)}, expected (B, T, C) with at least the "
            f"{span} tokens that width={width} and dilation={dilation} span"
        )
    return x.unfold(1, span, stride)[..., ::dilation]  # (B, T', C, span) -> (…, k)


def conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    dilation: int = 1,
    stride: int = 1,
) -> Tensor:
    """Apply the same weighted sums to every window of a text.

    As in all of deep learning, the kernel is not turned round: its first weights meet
    the first token of the window. Waibel et al., 1989.

    Args:
        x: (B, T, C), the tokens
        weight: (F, C, k), one kernel for each filter, as in `torch.nn.Conv1d`
        bias: (F,)
        dilation: how far apart the tokens of a window stand
        stride: how far apart the windows begin

    Returns:
        (B, T', F), what each filter finds in each window. With stride 1,
        T' = T - (k - 1) · dilation.

    Raises:
        ValueError: if the shapes do not fit, no window fits into the text, or a number
            is smaller than 1.

    >>> x = torch.tensor([[[1.0], [2.0], [3.0]]])  # (B=1, T=3, C=1)
    >>> conv1d(x, torch.tensor([[[1.0, 0.0]]])).flatten()
    tensor([1., 2.])
    """
    if weight.dim() != 3 or x.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"x has width {x.shape[-1]} and weight has shape {tuple(weight.shape)}, "
            "expected (F, C, k) with C the width of x"
        )
    cut = windows(x, weight.shape[-1], dilation, stride)  # (B, T', C, k)
    return network.linear(cut.flatten(-2), weight.flatten(1), bias)  # (B, T', F)


def causal_conv1d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, dilation: int = 1
) -> Tensor:
    """Convolve so that every token sees only itself and what stands before it.

    Zeros stand for the tokens before the first one. Van den Oord et al., 2016, § 2.1.

    Args:
        x: (B, T, C), the tokens
        weight: (F, C, k); its last weights meet the token itself
        bias: (F,)
        dilation: how far apart the tokens of a window stand

    Returns:
        (B, T, F)

    Raises:
        ValueError: if the shapes do not fit or the dilation is smaller than 1.

    >>> x = torch.tensor([[[1.0], [2.0], [3.0]]])
    >>> causal_conv1d(x, torch.tensor([[[10.0, 1.0]]])).flatten()
    tensor([ 1., 12., 23.])
    """
    require.at_least_one(dilation=dilation)
    n_before = (weight.shape[-1] - 1) * dilation
    padded = functional.pad(x, (0, 0, n_before, 0))  # (B, n_before + T, C)
    return conv1d(padded, weight, bias, dilation)


def receptive_field(kernel_width: int, dilations: Sequence[int]) -> int:
    """Count the tokens that reach the top of a stack of convolutions.

    Every layer adds (k - 1) · dilation tokens to the one that it would see alone.

    Args:
        kernel_width: k, the same for all layers
        dilations: one for each layer; none for no layer

    Returns:
        How many tokens one output depends on, itself included.

    Raises:
        ValueError: if a number is smaller than 1.

    >>> receptive_field(2, [1, 2, 4])
    8
    """
    require.at_least_one(kernel_width=kernel_width)
    for dilation in dilations:
        require.at_least_one(dilation=dilation)
    return 1 + (kernel_width - 1) * sum(dilations)


# --- Texts of any length ------------------------------------------------------------


def max_over_time(x: Tensor, mask: Tensor | None = None) -> Tensor:
    """Keep the strongest answer of every filter, wherever in the text it was.

    Collobert et al., 2011 (the sentence approach).

    Args:
        x: (B, T, F), the answers of the filters
        mask: (B, T) boolean, True = counts; all count if not given

    Returns:
        (B, F), one vector for each text, however long it was.

    Raises:
        ValueError: if there is no token, the mask does not fit, or nothing counts in
            some row.

    >>> x = torch.tensor([[[1.0, 9.0], [5.0, 2.0], [7.0, 3.0]]])  # (1, T=3, F=2)
    >>> max_over_time(x), max_over_time(x, torch.tensor([[True, True, False]]))
    (tensor([[7., 9.]]), tensor([[5., 9.]]))
    """
    if x.dim() != 3 or x.shape[1] == 0:
        raise ValueError(
            f"x has shape {tuple(x.shape)}, expected (B, T, F) with at least one token"
        )
    if mask is not None:
        if mask.dtype != torch.bool or mask.shape != x.shape[:2]:
            raise ValueError(
                f"mask is {mask.dtype} of shape {tuple(mask.shape)}, expected one "
                f"boolean for each of the {tuple(x.shape[:2])} tokens"
            )
        if not mask.any(dim=1).all():
            empty = (~mask.any(dim=1)).nonzero().flatten().tolist()
            raise ValueError(f"nothing counts in the rows {empty} of the mask")
        x = x.masked_fill(~mask[..., None], float("-inf"))
    return x.amax(dim=1)  # (B, T, F) -> (B, F)


class TextCNN(nn.Module):
    """Classifies texts by the patterns of a few words that occur in them.

    Filters of several widths slide over the word vectors; for each filter the best
    match, after a ReLU, is one number, and the classes are weighted sums of these
    numbers. Kim, 2014, without its dropout and its limit on the weights.

    The parameters are ``embedding`` (V, C); for each width k, ``kernel_weights`` (F, C,
    k) and ``kernel_biases`` (F,), as in `torch.nn.Conv1d`; ``output_weight``
    (n_classes, n_widths · F) and ``output_bias`` (n_classes,).

    Args:
        n_words: V
        n_classes: how many kinds of text there are
        d_model: C, the width of a word's vector
        n_filters: F, the number of filters of each width
        kernel_widths: how many words the filters span
        generator: draws the first parameters, on its own device
        dtype: the floating type of the parameters

    Raises:
        ValueError: if there is no width or a size is smaller than 1.

    >>> dice = torch.Generator().manual_seed(1)
    >>> model = TextCNN(9, n_classes=2, d_model=3, n_filters=5, generator=dice)
    >>> model(torch.tensor([[1, 2, 8, 4, 4, 0], [7, 3, 0, 0, 0, 0]])).shape
    torch.Size([2, 2])
    """

    def __init__(
        self,
        n_words: int,
        n_classes: int,
        d_model: int,
        n_filters: int,
        kernel_widths: Sequence[int] = (3, 4, 5),
        *,
        generator: torch.Generator,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        require.at_least_one(
            n_words=n_words, n_classes=n_classes, d_model=d_model, n_filters=n_filters
        )
        if not kernel_widths:
            raise ValueError(f"kernel_widths={kernel_widths} must hold one or more")
        self.embedding = _draw_embedding(n_words, d_model, generator, dtype)
        kernels = [
            _draw_kernel(n_filters, d_model, width, generator, dtype)
            for width in kernel_widths
        ]
        self.kernel_weights = nn.ParameterList(kernels)
        self.kernel_biases = nn.ParameterList([k.new_zeros(n_filters) for k in kernels])
        n_features = len(kernels) * n_filters
        output = network.xavier_uniform(n_features, n_classes, generator, dtype)
        self.output_weight = nn.Parameter(output)
        self.output_bias = nn.Parameter(output.new_zeros(n_classes))

    def features(self, ids: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Find the best match of every filter.

        A text shorter than a filter is filled with zeros to its width. Otherwise only
        windows that lie within the text count, so that padding changes nothing.

        Args:
            ids: (B, T), the words of the texts, at least one
            lengths: (B,), how many of them are real; all if not given

        Returns:
            (B, n_widths · F), 0 or more, the narrowest filters first as given.

        Raises:
            ValueError: if the shapes do not fit, an id is not between 0 and V - 1, or a
                length is not between 1 and T.
        """
        _check_ids(ids, len(self.embedding))
        n_rows, n_tokens = ids.shape
        if lengths is None:
            lengths = torch.full((n_rows,), n_tokens, device=ids.device)
        require.lengths(lengths, n_rows, n_tokens)
        real = torch.arange(n_tokens, device=ids.device) < lengths[:, None]  # (B, T)
        x = self.embedding[ids] * real[..., None]  # (B, T, C)
        found = []
        for weight, bias in zip(self.kernel_weights, self.kernel_biases, strict=True):
            width = weight.shape[-1]
            wide = functional.pad(x, (0, 0, 0, max(width - n_tokens, 0)))
            matches = network.relu(conv1d(wide, weight, bias))  # (B, T', F)
            last = torch.arange(matches.shape[1], device=ids.device) + width
            within = last <= lengths.clamp(min=width)[:, None]  # (B, T')
            found.append(max_over_time(matches, within))  # (B, F)
        return torch.cat(found, dim=-1)

    def forward(self, ids: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Score every class for every text.

        Args:
            ids: (B, T), the words of the texts, at least one
            lengths: (B,), how many of them are real; all if not given

        Returns:
            The logits, (B, n_classes).

        Raises:
            ValueError: as `features`.
        """
        features = self.features(ids, lengths)  # (B, n_widths · F)
        return network.linear(features, self.output_weight, self.output_bias)


# --- The language model -------------------------------------------------------------


class CausalConvBlock(nn.Module):
    """Adds to every token what a window over it and those before it has to say.

    The token is normalised (each one by itself: statistics over the text would know the
    future), convolved, bent by a ReLU, mixed by one more layer and added to what came
    in. Bai et al., 2018, § 3, with one convolution and in the order of He et al., 2016.

    The parameters are ``norm_weight`` and ``norm_bias`` (C,), ``conv_weight`` (C, C, k)
    and ``conv_bias`` (C,), ``output_weight`` (C, C) and ``output_bias`` (C,).

    Args:
        d_model: C, the width of a token
        kernel_width: k
        dilation: how far apart the tokens of a window stand
        generator: draws the first parameters, on its own device
        dtype: the floating type of the parameters

    Raises:
        ValueError: if a number is smaller than 1.

    >>> dice = torch.Generator().manual_seed(1)
    >>> block = CausalConvBlock(3, kernel_width=2, dilation=4, generator=dice)
    >>> block(torch.ones(1, 5, 3)).shape
    torch.Size([1, 5, 3])
    """

    def __init__(
        self,
        d_model: int,
        kernel_width: int,
        dilation: int = 1,
        *,
        generator: torch.Generator,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        require.at_least_one(
            d_model=d_model, kernel_width=kernel_width, dilation=dilation
        )
        self.dilation = dilation
        kernel = _draw_kernel(d_model, d_model, kernel_width, generator, dtype)
        output = network.xavier_uniform(d_model, d_model, generator, dtype)
        self.norm_weight = nn.Parameter(kernel.new_ones(d_model))
        self.norm_bias = nn.Parameter(kernel.new_zeros(d_model))
        self.conv_weight = nn.Parameter(kernel)
        self.conv_bias = nn.Parameter(kernel.new_zeros(d_model))
        self.output_weight = nn.Parameter(output)
        self.output_bias = nn.Parameter(output.new_zeros(d_model))

    def forward(self, x: Tensor) -> Tensor:
        """Look back over a window from every token.

        Args:
            x: (B, T, C), the tokens

        Returns:
            (B, T, C)

        Raises:
            ValueError: if the width is not the block's or there is no token.
        """
        if x.dim() != 3 or x.shape[1] == 0 or x.shape[-1] != len(self.norm_bias):
            raise ValueError(
                f"x has shape {tuple(x.shape)}, expected (B, T, C) with at least one "
                f"token and the block's width C={len(self.norm_bias)}"
            )
        hidden = _normalise(x, self.norm_weight, self.norm_bias)
        hidden = causal_conv1d(hidden, self.conv_weight, self.conv_bias, self.dilation)
        hidden = network.relu(hidden)
        return x + network.linear(hidden, self.output_weight, self.output_bias)


class ConvLM(nn.Module):
    """A language model that sees a window of the text instead of remembering it.

    With dilations that double, the window doubles with every block, and all tokens of a
    text are computed side by side. Van den Oord et al., 2016, § 2.1.

    The parameters are ``embedding`` (V, C), those of ``blocks``, ``norm_weight`` and
    ``norm_bias`` (C,), ``output_weight`` (V, C) and ``output_bias`` (V,).

    Args:
        n_words: V
        d_model: C, the width of a token
        kernel_width: k
        dilations: one for each block
        generator: draws the first parameters, on its own device
        dtype: the floating type of the parameters

    Raises:
        ValueError: if a number is smaller than 1.

    >>> dice = torch.Generator().manual_seed(1)
    >>> model = ConvLM(7, d_model=3, kernel_width=2, dilations=[1, 2], generator=dice)
    >>> logits, seen = model(torch.tensor([[0, 5, 6, 2, 2]]))
    >>> logits.shape, model.receptive_field, seen
    (torch.Size([1, 5, 7]), 4, tensor([[6, 2, 2]]))
    """

    def __init__(
        self,
        n_words: int,
        d_model: int,
        kernel_width: int = 2,
        dilations: Sequence[int] = (1, 2, 4, 8, 16),
        *,
        generator: torch.Generator,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        require.at_least_one(n_words=n_words, d_model=d_model)
        self.receptive_field = receptive_field(kernel_width, dilations)
        self.embedding = _draw_embedding(n_words, d_model, generator, dtype)
        self.blocks = nn.ModuleList(
            CausalConvBlock(
                d_model, kernel_width, dilation, generator=generator, dtype=dtype
            )
            for dilation in dilations
        )
        output = network.xavier_uniform(d_model, n_words, generator, dtype)
        self.norm_weight = nn.Parameter(output.new_ones(d_model))
        self.norm_bias = nn.Parameter(output.new_zeros(d_model))
        self.output_weight = nn.Parameter(output)
        self.output_bias = nn.Parameter(output.new_zeros(n_words))

    def forward(self, ids: Tensor, seen: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Score every token as the next one, at every place of the text.

        Args:
            ids: (B, T), the tokens
            seen: what an earlier call returned, if this text goes on from there. It is
                the model's whole memory: the tokens that its window still covers.

        Returns:
            The logits, (B, T, V), and the last tokens, (B, S), where S is one less than
            the receptive field, or less after a shorter text.

        Raises:
            ValueError: if the shapes do not fit or an id is not between 0 and V - 1.
        """
        _check_ids(ids, len(self.embedding))
        if seen is None:
            seen = ids[:, :0]
        if seen.dim() != 2 or len(seen) != len(ids):
            raise ValueError(
                f"seen has shape {tuple(seen.shape)}, expected one row for each of the "
                f"{len(ids)} rows of ids"
            )
        text = torch.cat([seen, ids], dim=1)  # (B, S + T)
        x = self.embedding[text]  # (B, S + T, C)
        for block in self.blocks:
            x = block(x)
        x = _normalise(x[:, seen.shape[1] :], self.norm_weight, self.norm_bias)
        logits = network.linear(x, self.output_weight, self.output_bias)  # (B, T, V)
        n_forgotten = max(0, text.shape[1] - (self.receptive_field - 1))
        return logits, text[:, n_forgotten:]


def _normalise(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    # Over the numbers of one token: LayerNorm, which chapter 09 builds.
    return functional.layer_norm(x, weight.shape, weight, bias)


def _draw_embedding(
    n_words: int, d_model: int, generator: torch.Generator, dtype: torch.dtype | None
) -> nn.Parameter:
    vectors = torch.empty(n_words, d_model, dtype=dtype, device=generator.device)
    return nn.Parameter(vectors.normal_(generator=generator))


def _draw_kernel(
    n_filters: int,
    d_model: int,
    width: int,
    generator: torch.Generator,
    dtype: torch.dtype | None,
) -> Tensor:
    require.at_least_one(kernel_width=width)
    weight = network.kaiming_normal(d_model * width, n_filters, generator, dtype)
    return weight.view(n_filters, d_model, width)


def _check_ids(ids: Tensor, n_words: int) -> None:
    if ids.dim() != 2 or ids.shape[1] == 0:
        raise ValueError(
            f"ids has shape {tuple(ids.shape)}, expected (B, T) with at least one token"
        )
    require.indices("ids", ids, n_words=n_words)
