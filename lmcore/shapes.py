"""Small pictures of coloured shapes, with captions: data for chapter 17.

A picture shows one shape of a colour in one corner, on black, and its caption says so:
"a red circle top left". Everything is drawn by formula from a generator, so that the
data needs no file and never ends.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from . import require

COLOURS = {
    "red": (1.0, 0.1, 0.1),
    "green": (0.1, 0.8, 0.2),
    "blue": (0.2, 0.3, 1.0),
    "yellow": (1.0, 0.9, 0.1),
}
KINDS = ("circle", "square", "cross")
PLACES = ("top left", "top right", "bottom left", "bottom right")
WORDS = ("<pad>", "<start>", "<end>", "a", *COLOURS, *KINDS)
WORDS += ("top", "bottom", "left", "right")


@dataclass(frozen=True)
class Shapes:
    """Pictures and what they show.

    >>> Shapes(torch.zeros(1, 3, 16, 16), ["a red circle top left"]).captions[0]
    'a red circle top left'
    """

    images: Tensor  # (B, 3, size, size), from 0 to 1
    captions: list[str]


def draw_shape(
    kind: str, colour: str, place: str, size: int = 16, jitter: tuple[int, int] = (0, 0)
) -> Tensor:
    """Draw one picture.

    Args:
        kind: one of `KINDS`
        colour: one of `COLOURS`
        place: one of `PLACES`
        size: pixels per side, at least 8
        jitter: how far the shape is moved down and to the right, in pixels

    Returns:
        (3, size, size), from 0 to 1.

    Raises:
        ValueError: if a name is unknown or the picture too small.

    >>> draw_shape("square", "red", "top left").shape
    torch.Size([3, 16, 16])
    """
    require.one_of("kind", kind, KINDS)
    require.one_of("colour", colour, COLOURS)
    require.one_of("place", place, PLACES)
    if size < 8:
        raise ValueError(f"size={size} must be at least 8")
    row, column = divmod(PLACES.index(place), 2)
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    y = y - (size * (1 + 2 * row) / 4 - 0.5 + jitter[0])  # from the shape's middle
    x = x - (size * (1 + 2 * column) / 4 - 0.5 + jitter[1])
    radius = size / 5
    if kind == "circle":
        inside = x**2 + y**2 <= radius**2
    elif kind == "square":
        inside = (x.abs() <= radius * 0.85) & (y.abs() <= radius * 0.85)
    else:
        thin = radius / 3
        inside = (x.abs() <= thin) & (y.abs() <= radius)
        inside = inside | ((y.abs() <= thin) & (x.abs() <= radius))
    return torch.tensor(COLOURS[colour])[:, None, None] * inside  # (3, size, size)


def draw_shapes(n_images: int, generator: torch.Generator, size: int = 16) -> Shapes:
    """Draw pictures at random, each with its caption.

    Args:
        n_images: B
        generator: draws what is shown
        size: pixels per side

    Returns:
        The pictures, on the CPU, and their captions.

    Raises:
        ValueError: if ``n_images`` is less than 1 or the pictures are too small.

    >>> dice = torch.Generator().manual_seed(1)
    >>> draw_shapes(2, dice).images.shape
    torch.Size([2, 3, 16, 16])
    """
    require.at_least_one(n_images=n_images)
    names = tuple(COLOURS)

    def draw(n: int) -> int:
        place = generator.device
        return int(torch.randint(n, (), generator=generator, device=place))

    images, captions = [], []
    for _ in range(n_images):
        kind, colour = KINDS[draw(len(KINDS))], names[draw(len(names))]
        place = PLACES[draw(len(PLACES))]
        jitter = (draw(3) - 1, draw(3) - 1)
        images.append(draw_shape(kind, colour, place, size, jitter))
        captions.append(f"a {colour} {kind} {place}")
    return Shapes(torch.stack(images), captions)


def encode_captions(captions: list[str]) -> Tensor:
    """Turn captions into ids, with a start and an end, padded to the longest.

    Args:
        captions: of the words in `WORDS`

    Returns:
        (B, T) ids; 0 is padding, 1 the start and 2 the end.

    Raises:
        ValueError: if a word is unknown or there are no captions.

    >>> encode_captions(["a red circle"])
    tensor([[1, 3, 4, 8, 2]])
    """
    if not captions:
        raise ValueError("there are 0 captions: expected at least one")
    rows = []
    for caption in captions:
        unknown = [word for word in caption.split() if word not in WORDS]
        if unknown:
            raise ValueError(f"{unknown[0]!r} is none of the words {WORDS[3:]}")
        rows.append([1, *(WORDS.index(word) for word in caption.split()), 2])
    longest = max(map(len, rows))
    return torch.tensor([row + [0] * (longest - len(row)) for row in rows])


def decode_caption(ids: Tensor) -> str:
    """Turn ids back into words, up to the end.

    Args:
        ids: (T,)

    Returns:
        The words between start and end.

    >>> decode_caption(torch.tensor([1, 3, 4, 8, 2, 0]))
    'a red circle'
    """
    words = []
    for token in ids.tolist():
        if token == 2:
            break
        if token > 2:
            words.append(WORDS[token])
    return " ".join(words)
