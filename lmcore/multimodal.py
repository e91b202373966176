"""Pictures and words: what else is a token?

Chapter 17 of the book. The module builds, in this order: pictures cut into patches, and
a transformer that reads them as tokens (ViT); pictures and texts brought into one space
by choosing each other (CLIP); a writer that looks at a picture while it describes it;
and pictures that are drawn from noise, step by step, after a text (diffusion).

The data is drawn by ``lmcore.shapes``. Left out: sound, latent diffusion, and models
that write pictures token by token.

Papers: Dosovitskiy et al., 2021 (ViT); Radford et al., 2021 (CLIP); Alayrac et al.,
2022 (cross-attention to pictures); Ho, Jain and Abbeel, 2020, and Nichol and Dhariwal,
2021 (diffusion and its schedules); Ho and Salimans, 2022 (guidance); Salimans and Ho,
2022 (velocity).

N is the number of patches of a picture, P the width and height of a patch in pixels.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import embedding, position, require, transformer

# --- Pictures as tokens -------------------------------------------------------------


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """Cut pictures into square patches, row by row, and lay each out as one vector.

    A vector holds the patch channel by channel, each channel row by row.

    Args:
        images: (B, channels, height, width)
        patch_size: P, a divisor of height and width

    Returns:
        (B, N, channels · P²) with N = height / P · width / P.

    Raises:
        ValueError: if there are not four axes, or P does not divide the sides.

    >>> patchify(torch.arange(16).view(1, 1, 4, 4), patch_size=2)[0, 0]
    tensor([0, 1, 4, 5])
    """
    if images.dim() != 4:
        raise ValueError(
            f"images have shape {tuple(images.shape)}, expected (B, channels, height, "
            "width)"
        )
    height, width = images.shape[2:]
    if patch_size < 1 or height % patch_size or width % patch_size:
        raise ValueError(
            f"patch_size={patch_size} does not divide the sides {height} and {width}"
        )
    x = images.unflatten(3, (-1, patch_size)).unflatten(2, (-1, patch_size))
    x = x.permute(0, 2, 4, 1, 3, 5)  # (B, rows, columns, channels, P, P)
    return x.flatten(3).flatten(1, 2)  # (B, N, channels · P²)


def unpatchify(patches: Tensor, patch_size: int, n_columns: int) -> Tensor:
    """Put patches together again: the inverse of `patchify`.

    Args:
        patches: (B, N, channels · P²)
        patch_size: P
        n_columns: how many patches stand in a row of the picture

    Returns:
        (B, channels, height, width)

    Raises:
        ValueError: if the patches do not fill whole rows or channels.

    >>> x = torch.arange(48).view(1, 3, 4, 4)
    >>> torch.equal(unpatchify(patchify(x, 2), 2, n_columns=2), x)
    True
    """
    if patches.shape[1] % n_columns or patches.shape[2] % patch_size**2:
        raise ValueError(
            f"patches of shape {tuple(patches.shape)} do not fill rows of {n_columns} "
            f"patches of {patch_size} × {patch_size} pixels"
        )
    x = patches.unflatten(2, (-1, patch_size, patch_size))
    x = x.unflatten(1, (-1, n_columns))  # (B, rows, columns, channels, P, P)
    x = x.permute(0, 3, 1, 4, 2, 5)  # (B, channels, rows, P, columns, P)
    return x.flatten(4).flatten(2, 3)


class ViT(nn.Module):
    """The encoder of chapter 09, reading patches in the place of words.

    A linear map of each patch, a class token in front, learned positions for all of
    them, and the encoder. Dosovitskiy et al., 2021, § 3.1.

    The parameters besides the encoder's are ``project_patch`` (C, channels · P²) with a
    bias, ``class_token`` (C,) and ``position`` (1 + N, C).

    Args:
        config: how the layers are built
        n_layers: L
        image_size: pixels per side, a multiple of ``patch_size``
        patch_size: P
        n_channels: 3 for colours
        generator: draws the first parameters, on its own device

    Raises:
        ValueError: if ``patch_size`` does not divide ``image_size``.

    >>> config = transformer.LayerConfig(d_model=8, n_heads=2, d_ff=16)
    >>> model = ViT(config, 2, image_size=16, patch_size=4, generator=torch.Generator())
    >>> model(torch.zeros(1, 3, 16, 16)).shape
    torch.Size([1, 17, 8])
    """

    def __init__(
        self,
        config: transformer.LayerConfig,
        n_layers: int,
        *,
        image_size: int,
        patch_size: int,
        n_channels: int = 3,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        if patch_size < 1 or image_size % patch_size:
            raise ValueError(
                f"patch_size={patch_size} does not divide image_size={image_size}"
            )
        self.image_size, self.patch_size = image_size, patch_size
        self.n_channels = n_channels
        n_patches = (image_size // patch_size) ** 2
        d_patch, d_model = n_channels * patch_size**2, config.d_model
        self.project_patch = nn.Linear(d_patch, d_model, device="meta")
        self.encoder = transformer.Encoder(config, n_layers, device="meta")
        self.to_empty(device=generator.device)
        transformer.draw_parameters(self, generator)
        table = torch.randn(
            1 + n_patches, d_model, generator=generator, device=generator.device
        )
        self.class_token = nn.Parameter(torch.zeros_like(table[0]))  # (C,)
        self.position = nn.Parameter(0.02 * table)  # (1 + N, C)

    def forward(self, images: Tensor) -> Tensor:
        """Describe every patch in the light of the whole picture.

        Args:
            images: (B, channels, image_size, image_size)

        Returns:
            (B, 1 + N, C); the first token stands for the whole picture.

        Raises:
            ValueError: if the pictures have another size.
        """
        wanted = (self.n_channels, self.image_size, self.image_size)
        if images.shape[1:] != wanted:
            raise ValueError(
                f"images have shape {tuple(images.shape)}, expected (B, *{wanted})"
            )
        x = self.project_patch(patchify(images, self.patch_size))  # (B, N, C)
        whole = self.class_token.expand(len(x), 1, -1)
        return self.encoder(torch.cat([whole, x], dim=1) + self.position)


# --- Pictures and texts in one space ------------------------------------------------


def clip_loss(
    image_features: Tensor, text_features: Tensor, log_scale: Tensor | float
) -> Tensor:
    """Let pictures choose their texts and texts their pictures, within a batch.

    Cosines times ``exp(log_scale)``, at most 100, are the logits of two
    classifications, and the loss is the mean of both. Radford et al., 2021, fig. 3.

    Args:
        image_features: (B, C); row i belongs to row i of the texts
        text_features: (B, C)
        log_scale: the logarithm of the scale, such as ln(1 / 0.07)

    Returns:
        A scalar, in nats; ln B for features that tell nothing.

    Raises:
        ValueError: if the shapes differ.

    >>> clip_loss(torch.eye(2), torch.eye(2), log_scale=0.0)
    tensor(0.3133)
    """
    if image_features.shape != text_features.shape or image_features.dim() != 2:
        raise ValueError(
            f"features have shapes {tuple(image_features.shape)} and "
            f"{tuple(text_features.shape)}, expected (B, C) twice"
        )
    images, texts = (
        embedding.normalize(image_features),
        embedding.normalize(text_features),
    )
    scale = torch.as_tensor(log_scale).exp().clamp_max(100.0)
    logits = scale * images @ texts.T  # (B, B), row = picture, column = text
    targets = torch.arange(len(logits), device=logits.device)
    of_images = F.cross_entropy(logits, targets)
    of_texts = F.cross_entropy(logits.T, targets)
    return (of_images + of_texts) / 2


class CLIP(nn.Module):
    """A reader of pictures and a reader of texts that meet in one space.

    Radford et al., 2021, § 2.

    Args:
        vision: the reader of pictures; its class token stands for a picture
        config: how the layers of the reader of texts are built
        n_layers: L of the reader of texts
        n_words: V; token 0 is padding
        max_len: the longest text, in tokens
        d_shared: the width of the common space
        generator: draws the first parameters, on its own device

    >>> dice = torch.Generator().manual_seed(1)
    >>> config = transformer.LayerConfig(d_model=8, n_heads=2, d_ff=16)
    >>> vision = ViT(config, 1, image_size=16, patch_size=8, generator=dice)
    >>> model = CLIP(vision, config, 1, n_words=15, max_len=7, generator=dice)
    >>> model.encode_text(torch.tensor([[1, 3, 2, 0]])).shape
    torch.Size([1, 32])
    """

    def __init__(
        self,
        vision: ViT,
        config: transformer.LayerConfig,
        n_layers: int,
        *,
        n_words: int,
        max_len: int,
        d_shared: int = 32,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(n_words, config.d_model, device="meta")
        self.position = nn.Embedding(max_len, config.d_model, device="meta")
        self.encoder = transformer.Encoder(config, n_layers, device="meta")
        options = {"bias": False, "device": "meta"}
        d_image = vision.position.shape[1]
        self.project_image = nn.Linear(d_image, d_shared, **options)
        self.project_text = nn.Linear(config.d_model, d_shared, **options)
        self.to_empty(device=generator.device)
        transformer.draw_parameters(self, generator)
        self.vision = vision
        start = torch.tensor(math.log(1 / 0.07), device=generator.device)
        self.log_scale = nn.Parameter(start)

    def encode_image(self, images: Tensor) -> Tensor:
        """Bring pictures into the common space.

        Args:
            images: (B, channels, height, width)

        Returns:
            (B, d_shared), not normalised.
        """
        return self.project_image(self.vision(images)[:, 0])

    def encode_text(self, ids: Tensor) -> Tensor:
        """Bring texts into the common space: the mean over their tokens.

        Args:
            ids: (B, T), 0 = padding

        Returns:
            (B, d_shared), not normalised.

        Raises:
            ValueError: if a text is longer than ``max_len``.
        """
        x = self.embedding(ids) + _places(self.position, ids)
        real = ids != 0  # (B, T)
        x = self.encoder(x, real[:, None, None, :])
        x = x.masked_fill(~real[..., None], 0.0).sum(dim=1)
        return self.project_text(x / real.sum(dim=1, keepdim=True).clamp_min(1))

    def forward(self, images: Tensor, ids: Tensor) -> Tensor:
        """Compute the loss of a batch of pairs.

        Args:
            images: (B, channels, height, width)
            ids: (B, T), row i describes picture i

        Returns:
            A scalar, `clip_loss`.
        """
        return clip_loss(
            self.encode_image(images), self.encode_text(ids), self.log_scale
        )


# --- A writer that looks ------------------------------------------------------------


class CrossAttentionCaptioner(nn.Module):
    """Describes a picture: the words ask, the patches answer.

    The decoder of chapter 09 with cross-attention, whose queries are the words written
    so far and whose keys and values are the patches. Alayrac et al., 2022, § 2.2.

    Args:
        vision: the reader of pictures, of the same width C
        config: how the layers of the writer are built
        n_layers: L of the writer
        n_words: V
        max_len: the longest text, in tokens
        generator: draws the first parameters, on its own device

    >>> dice = torch.Generator().manual_seed(1)
    >>> config = transformer.LayerConfig(d_model=8, n_heads=2, d_ff=16)
    >>> vision = ViT(config, 1, image_size=16, patch_size=8, generator=dice)
    >>> model = CrossAttentionCaptioner(
    ...     vision, config, 1, n_words=15, max_len=7, generator=dice
    ... )
    >>> model(torch.zeros(1, 3, 16, 16), torch.tensor([[1, 3, 4]])).shape
    torch.Size([1, 3, 15])
    """

    def __init__(
        self,
        vision: ViT,
        config: transformer.LayerConfig,
        n_layers: int,
        *,
        n_words: int,
        max_len: int,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(n_words, config.d_model, device="meta")
        self.position = nn.Embedding(max_len, config.d_model, device="meta")
        self.decoder = transformer.Decoder(config, n_layers, device="meta")
        self.project_logits = nn.Linear(config.d_model, n_words, device="meta")
        self.to_empty(device=generator.device)
        transformer.draw_parameters(self, generator)
        self.vision = vision

    def forward(self, images: Tensor, ids: Tensor) -> Tensor:
        """Score the next word at every place.

        Args:
            images: (B, channels, height, width)
            ids: (B, T), the words so far

        Returns:
            The logits, (B, T, V).

        Raises:
            ValueError: if the text is longer than ``max_len``.
        """
        return self._write(self.vision(images), ids)

    @torch.no_grad()
    def describe(
        self, images: Tensor, start: int = 1, stop: int = 2, max_tokens: int = 8
    ) -> Tensor:
        """Write the likeliest word each time.

        Args:
            images: (B, channels, height, width)
            start: the id that begins a text
            stop: the id that ends it
            max_tokens: how many words are written at most

        Returns:
            (B, T) ids without the start; behind a ``stop`` only ``stop`` follows.
        """
        patches = self.vision(images)
        ids = torch.full((len(images), 1), start, device=images.device)
        ended = torch.zeros_like(ids, dtype=torch.bool)
        while ids.shape[1] <= max_tokens and not ended.all():
            word = self._write(patches, ids)[:, -1:].argmax(dim=-1)  # (B, 1)
            word = word.masked_fill(ended, stop)
            ended = ended | (word == stop)
            ids = torch.cat([ids, word], dim=1)
        return ids[:, 1:]

    def _write(self, patches: Tensor, ids: Tensor) -> Tensor:
        x = self.embedding(ids) + _places(self.position, ids)
        return self.project_logits(self.decoder(x, patches))


# --- Pictures from noise ------------------------------------------------------------


def noise_schedule(
    n_steps: int, kind: str = "cosine", device: torch.device | str | None = None
) -> tuple[Tensor, Tensor]:
    """Say how much noise each step adds, and how much of the picture is left.

    ``beta[t]`` is the share of noise that step t adds to the variance, and ``kept[t]``
    the product of ``1 - beta`` up to and with t: already t = 0 is noised once. Linear:
    from 0.0001 to 0.02 for 1000 steps, in proportion for fewer (Ho et al., 2020, § 4).
    Cosine: kept follows cos² (Nichol and Dhariwal, 2021, eq. 17).

    Args:
        n_steps: how many steps lead from picture to noise
        kind: ``"cosine"`` or ``"linear"``
        device: where they are made

    Returns:
        ``beta`` and ``kept``, (n_steps,) each.

    Raises:
        ValueError: if ``n_steps`` is less than 1 or ``kind`` is another.

    >>> beta, kept = noise_schedule(1000, "linear")
    >>> beta[0], kept[-1]
    (tensor(1.0000e-04), tensor(4.0358e-05))
    """
    require.at_least_one(n_steps=n_steps)
    options = {"dtype": torch.float64, "device": device}
    if kind == "linear":
        scale = 1000 / n_steps
        beta = torch.linspace(1e-4 * scale, 0.02 * scale, n_steps, **options)
    elif kind == "cosine":
        t = torch.arange(n_steps + 1, **options) / n_steps
        wanted = torch.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
        beta = 1 - wanted[1:] / wanted[:-1]
    else:
        raise ValueError(f"kind={kind!r} must be 'cosine' or 'linear'")
    beta = beta.clamp_max(0.999)
    return beta.float(), signal_kept(beta).float()


def signal_kept(beta: Tensor) -> Tensor:
    """Multiply up what each step leaves of a picture's variance.

    Ho et al., 2020, § 2.

    Args:
        beta: (n_steps,), the share of noise that each step adds

    Returns:
        (n_steps,), what is left up to and with each step.

    Raises:
        ValueError: if a share is not between 0 and 1.

    >>> signal_kept(torch.tensor([0.1, 0.2]))
    tensor([0.9000, 0.7200])
    """
    if beta.min() < 0 or beta.max() > 1:
        raise ValueError(
            f"beta from {beta.min():.4g} to {beta.max():.4g} must lie between 0 and 1"
        )
    return torch.cumprod(1 - beta, dim=0)


def add_noise(images: Tensor, noise: Tensor, kept: Tensor) -> Tensor:
    """Mix pictures with noise: ``√kept · image + √(1 - kept) · noise``.

    Ho et al., 2020, eq. (4).

    Args:
        images: (B, ...)
        noise: the same shape
        kept: (B,), how much of each picture's variance is left

    Returns:
        The same shape.

    Raises:
        ValueError: if the shapes do not fit.

    >>> add_noise(torch.ones(1, 2), torch.zeros(1, 2), torch.tensor([0.25]))
    tensor([[0.5000, 0.5000]])
    """
    if images.shape != noise.shape or kept.shape != images.shape[:1]:
        raise ValueError(
            f"images {tuple(images.shape)} and noise {tuple(noise.shape)} must have "
            f"one shape, and kept {tuple(kept.shape)} a number for each picture"
        )
    # One number per picture, not per column of pixels.
    kept = kept.view(-1, *[1] * (images.dim() - 1))  # (B, 1, 1, 1)
    return kept.sqrt() * images + (1 - kept).sqrt() * noise


def denoising_loss(
    model: nn.Module,
    images: Tensor,
    ids: Tensor,
    kept: Tensor,
    generator: torch.Generator,
) -> Tensor:
    """Let a model find the noise in pictures that were noised, each by its own step.

    Ho et al., 2020, eq. (14).

    Args:
        model: from noised pictures (B, ...), steps (B,) and ids (B, T) to the noise
        images: (B, channels, height, width), best between -1 and 1
        ids: (B, T), the text that describes each picture
        kept: (n_steps,), from `noise_schedule`
        generator: draws steps and noise, on its own device

    Returns:
        A scalar, the mean squared error; 1 for a model that always says 0.

    >>> dice, kept = torch.Generator().manual_seed(1), noise_schedule(10)[1]
    >>> def nothing(noised, steps, ids): return torch.zeros_like(noised)
    >>> ids = torch.ones(2, 1, dtype=torch.int64)
    >>> round(denoising_loss(nothing, torch.ones(2, 3, 32, 32), ids, kept, dice).item())
    1
    """
    noised, noise, steps = _draw_noised(images, kept, generator)
    return F.mse_loss(model(noised, steps, ids), noise)


def _draw_noised(
    images: Tensor, kept: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Noise pictures, each by a step of its own; give them, the noise and the steps."""
    options = {"generator": generator, "device": generator.device}
    steps = torch.randint(len(kept), (len(images),), **options).to(images.device)
    noise = torch.randn(images.shape, **options).to(images)
    return add_noise(images, noise, kept.to(images)[steps]), noise, steps


def drop_captions(ids: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Take some pictures their text away, so that a model also learns to draw without.

    Only a model that knows what it would draw without a text can be told to follow the
    text more (guidance). Ho and Salimans, 2022, alg. 1.

    Args:
        ids: (B, T), 0 = padding
        share: how many of the texts become empty, on average; between 0 and 1
        generator: chooses them, on its own device

    Returns:
        (B, T), a copy in which the chosen rows are all padding.

    Raises:
        ValueError: if the share is not between 0 and 1.

    >>> ids, dice = torch.tensor([[1, 3], [1, 4]]), torch.Generator().manual_seed(1)
    >>> drop_captions(ids, 0.5, dice)
    tensor([[1, 3],
            [0, 0]])
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share={share} must lie between 0 and 1")
    drawn = torch.rand(len(ids), generator=generator, device=generator.device)
    empty = (drawn < share).to(ids.device)
    return ids.masked_fill(empty[:, None], 0)


class TinyDiffusion(nn.Module):
    """Draws a picture after a text, from noise, by taking away noise step by step.

    The noise is found by a transformer whose tokens are patches; it looks at the words
    by cross-attention and is told the step by a vector added to every token. The noise
    of a whole patch must pass through a token, so that C should be well above
    channels · P². Ho et al., 2020, with the transformer of Peebles and Xie, 2023, in a
    small form.

    In a picture that is nearly all noise, the noise is what one sees, and a small error
    in it is a large one in the picture. So the transformer finds neither of them but
    the velocity, ``√kept · noise - √(1 - kept) · image``, from which and from what it
    was shown both follow, with no error larger than its own. Salimans and Ho, 2022,
    appendix D.

    Args:
        config: how the layers are built
        n_layers: L
        image_size: pixels per side
        patch_size: P, a divisor of ``image_size``
        n_words: V; token 0 is padding
        max_len: the longest text, in tokens
        n_steps: how many steps lead from picture to noise
        n_channels: 3 for colours
        generator: draws the first parameters, on its own device

    Raises:
        ValueError: if ``patch_size`` does not divide ``image_size``.

    >>> config = transformer.LayerConfig(d_model=8, n_heads=2, d_ff=16)
    >>> model = TinyDiffusion(
    ...     config, 1, image_size=8, patch_size=4, n_words=15, max_len=7, n_steps=4,
    ...     generator=torch.Generator().manual_seed(1),
    ... )
    >>> model.draw(torch.tensor([[1, 3, 2]]), torch.Generator()).shape
    torch.Size([1, 3, 8, 8])
    """

    def __init__(
        self,
        config: transformer.LayerConfig,
        n_layers: int,
        *,
        image_size: int,
        patch_size: int,
        n_words: int,
        max_len: int,
        n_steps: int = 50,
        n_channels: int = 3,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        if patch_size < 1 or image_size % patch_size:
            raise ValueError(
                f"patch_size={patch_size} does not divide image_size={image_size}"
            )
        self.shape = (n_channels, image_size, image_size)
        self.patch_size, self.n_columns = patch_size, image_size // patch_size
        d_patch, d_model = n_channels * patch_size**2, config.d_model
        self.project_patch = nn.Linear(d_patch, d_model, device="meta")
        self.place = nn.Embedding(self.n_columns**2, d_model, device="meta")
        self.embedding = nn.Embedding(n_words, d_model, device="meta")
        self.position = nn.Embedding(max_len, d_model, device="meta")
        self.time = transformer.FeedForward(d_model, d_model, device="meta")
        self.decoder = transformer.Decoder(config, n_layers, device="meta")
        self.project_velocity = nn.Linear(d_model, d_patch, device="meta")
        self.to_empty(device=generator.device)
        transformer.draw_parameters(self, generator)
        beta, kept = noise_schedule(n_steps, device=generator.device)
        self.register_buffer("beta", beta)
        self.register_buffer("kept", kept)

    def forward(self, noised: Tensor, steps: Tensor, ids: Tensor) -> Tensor:
        """Find the noise.

        Args:
            noised: (B, channels, image_size, image_size)
            steps: (B,), from 0 to n_steps - 1
            ids: (B, T), 0 = padding

        Returns:
            The noise, in the shape of the pictures.

        Raises:
            ValueError: if the pictures have another size or a text is too long.
        """
        velocity = self.velocity(noised, steps, ids)
        kept = self.kept[steps].view(-1, 1, 1, 1)
        return kept.sqrt() * velocity + (1 - kept).sqrt() * noised

    def velocity(self, noised: Tensor, steps: Tensor, ids: Tensor) -> Tensor:
        """Find ``√kept · noise - √(1 - kept) · image``.

        Args:
            noised: as in `forward`
            steps: as in `forward`
            ids: as in `forward`

        Returns:
            The velocity, in the shape of the pictures.

        Raises:
            ValueError: as in `forward`.
        """
        if noised.shape[1:] != self.shape:
            raise ValueError(
                f"images have shape {tuple(noised.shape)}, expected (B, *{self.shape})"
            )
        # As in chapter 09: what is looked up would else be too faint to hear.
        loud = math.sqrt(self.place.weight.shape[1])
        words = loud * (self.embedding(ids) + _places(self.position, ids))  # (B, T, C)
        x = self.project_patch(patchify(noised, self.patch_size))
        x = x + loud * self.place.weight  # (B, N, C)
        waves = position.sinusoidal_positions(
            len(self.kept), x.shape[-1], device=x.device, dtype=x.dtype
        )
        x = x + self.time(waves[steps])[:, None]  # (B, N, C) + (B, 1, C)
        real = (ids != 0)[:, None, None, :]
        x = self.decoder(x, words, context_mask=real, causal=False)
        return unpatchify(self.project_velocity(x), self.patch_size, self.n_columns)

    def loss(self, images: Tensor, ids: Tensor, generator: torch.Generator) -> Tensor:
        """Compute `denoising_loss` as an error of the velocity, by the own schedule.

        An error of the noise is √kept times as large as one of the velocity, and would
        count next to nothing where a picture begins: in the steps that are nearly all
        noise, in which only the text says what it shall be.

        Args:
            images: (B, channels, image_size, image_size), best between -1 and 1
            ids: (B, T)
            generator: draws steps and noise

        Returns:
            A scalar.
        """
        noised, noise, steps = _draw_noised(images, self.kept, generator)
        kept = self.kept[steps].view(-1, 1, 1, 1)
        target = kept.sqrt() * noise - (1 - kept).sqrt() * images
        return F.mse_loss(self.velocity(noised, steps, ids), target)

    @torch.no_grad()
    def draw(
        self, ids: Tensor, generator: torch.Generator, guidance: float = 1.0
    ) -> Tensor:
        """Draw one picture for each text.

        From pure noise, each step takes away what the model finds, and adds a little
        new noise, but for the last. Ho et al., 2020, alg. 2; guidance as in Ho and
        Salimans, 2022, which needs a model that was also trained on empty texts
        (`drop_captions`).

        Args:
            ids: (B, T)
            generator: draws the noise, on its own device
            guidance: how strongly the text counts against an empty one; 1 = as it is

        Returns:
            (B, channels, image_size, image_size), in the range of the training data,
            -1 to 1.
        """
        options = {"generator": generator, "device": generator.device}
        x = torch.randn(len(ids), *self.shape, **options).to(self.beta)
        empty = torch.zeros_like(ids)
        for step in reversed(range(len(self.kept))):
            steps = torch.full((len(ids),), step, device=x.device)
            noise = self(x, steps, ids)
            if guidance != 1.0:
                unguided = self(x, steps, empty)
                noise = unguided + guidance * (noise - unguided)
            x = self._step_back(x, noise, step)
            if step > 0:
                fresh = torch.randn(x.shape, **options).to(x)
                before = self.kept[step - 1]
                variance = self.beta[step] * (1 - before) / (1 - self.kept[step])
                x = x + variance.sqrt() * fresh
        return x

    def _step_back(self, x: Tensor, noise: Tensor, step: int) -> Tensor:
        """The mean of the picture one step earlier. Ho et al., 2020, eq. (7)."""
        kept, beta = self.kept[step], self.beta[step]
        before = self.kept[step - 1] if step > 0 else torch.ones_like(kept)
        clean = (x - (1 - kept).sqrt() * noise) / kept.sqrt()
        clean = clean.clamp(-1.0, 1.0)  # no picture lies outside
        from_clean = before.sqrt() * beta / (1 - kept)
        from_x = (1 - beta).sqrt() * (1 - before) / (1 - kept)
        return from_clean * clean + from_x * x


def _places(table: nn.Embedding, ids: Tensor) -> Tensor:
    """The vectors of the places 0, …, T - 1."""
    if ids.shape[1] > table.num_embeddings:
        raise ValueError(
            f"the text has {ids.shape[1]} tokens, expected at most "
            f"{table.num_embeddings}"
        )
    return table.weight[: ids.shape[1]]
