"""Workloads: an image as the model's preprocessor sees it, a prompt, decode steps, how all is counted.

How an image becomes views and tokens is the model's own rule (`models/planner.py`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelmeter.errors import InputError
from modelmeter.programs.counting import OPTIONS, Counting
from modelmeter.sizes import Size, as_size


@dataclass(frozen=True)
class View:
    """`count` images of height x width pixels in one call of the vision tower; `tokens` is what all give the prompt."""

    name: str
    count: Size
    height: Size
    width: Size
    tokens: Size


@dataclass(frozen=True)
class ImagePlan:
    """What the preprocessor makes of one image: `tokens` for the decoder, `valid_tokens` of them carry no padding.

    They enter its sequence, or stand `beside` it, where cross attention reads them.
    `grid` is rows x columns of crops, if there are any; `produced` says whether the preprocessor could make it.
    """

    mode: str
    views: tuple[View, ...]
    tokens: Size
    valid_tokens: Size
    grid: tuple[Size, Size] | None
    produced: bool
    beside: bool = False

    @property
    def crops(self) -> Size:
        """Number of crops beside the global view."""
        return self.grid[0] * self.grid[1] if self.grid else 0

    def describe(self) -> str:
        """One line: mode, views, crops and tokens."""
        if not self.views:
            return "text alone"
        views = " + ".join(f"{v.count} x {v.width}x{v.height} {v.name}" for v in self.views)
        grid = f", grid {self.grid[0]}x{self.grid[1]}" if self.grid else ""
        made = "" if self.produced else ", which the preprocessor never produces"
        read = " for cross attention" if self.beside else ""
        return f"{self.mode}: {views}{grid}, {self.tokens} tokens{read} ({self.valid_tokens} valid){made}"


NO_IMAGE = ImagePlan("text", (), 0, 0, None, True)
"""Text alone: nothing for the vision stage to do."""


@dataclass(frozen=True)
class Workload(Counting):
    """A page, a prompt and K decode steps, for `batch` pages at once, all pages alike; and how it is counted.

    Raises InputError for sizes that are none and for unknown choices.
    """

    image: ImagePlan
    batch: Size = 1
    prompt_tokens: Size = 10
    decode_steps: Size = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("batch", 1), ("prompt_tokens", 0), ("decode_steps", 1)):
            value = getattr(self, name)
            if type(value) is not int or value < least:
                object.__setattr__(self, name, as_size(name, value, least=least))

    @property
    def counting(self) -> Counting:
        """How it is counted, alone."""
        return Counting(**dict(zip((name for name, *_ in OPTIONS), self.key, strict=True)))

    @property
    def attention(self) -> str:
        """How attention runs: eager or flash."""
        return str(self.runtime.attention)

    @property
    def execution(self) -> str:
        """The name of the runtime."""
        return str(self.runtime.name)

    @property
    def context_tokens(self) -> Size:
        """Tokens of the prefill: those of the image that enter the decoder's sequence, and the prompt."""
        return self.prompt_tokens if self.image.beside else self.kept_tokens

    @property
    def kept_tokens(self) -> Size:
        """Tokens whose keys and values the decoder has kept after the prefill: image and prompt."""
        return self.image.tokens + self.prompt_tokens


def read_image_size(path: str | Path) -> tuple[int, int]:
    """Width and height in pixels of an image file, turned upright as its EXIF data says.

    Raises InputError if the file is missing, empty or no image.
    """
    from PIL import Image, UnidentifiedImageError

    if not isinstance(path, (str, Path)):
        raise InputError(f"image must be the path of a picture file, not {path!r}")
    try:
        with Image.open(path) as image:
            width, height = image.size
            sideways = image.getexif().get(0x0112, 1) >= 5  # EXIF orientation: 5 to 8 swap the sides
            image.load()  # a truncated file has a size too
    except FileNotFoundError:
        raise InputError(f"image {str(path)!r} does not exist; give the path of a picture file") from None
    except (Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        unread = "not a picture that Pillow can read" if isinstance(error, UnidentifiedImageError) else error
        told = "it is a folder" if isinstance(error, IsADirectoryError) else unread
        raise InputError(f"image {str(path)!r} cannot be read: {told}") from None
    return (height, width) if sideways else (width, height)


def several(given: Any) -> list[Any]:
    """The images of a list, or the one that is given; two whole numbers are one size.

    >>> several(["640x480", (1024, 768)]), several((640, 480))
    (['640x480', (1024, 768)], [(640, 480)])
    """
    listed = isinstance(given, (list, tuple)) and any(isinstance(one, (str, Path, list, tuple)) for one in given)
    return list(given) if listed else [given]


def parse_pair(key: str, value: Any, order: str) -> tuple[int, int]:
    """Two whole numbers of at least 1 from "1700x2200" or a pair; `order` names them in the error."""
    try:
        if isinstance(value, str):
            found = re.fullmatch(r"\s*(\d+)\s*[xX]\s*(\d+)\s*", value)
            first, second = map(int, found.groups() if found else ())
        else:
            first, second = (as_size(key, part) for part in value)
    except (TypeError, ValueError):
        first = second = 0
    if not all(isinstance(side, int) and 0 < side <= 10**9 for side in (first, second)):
        raise InputError(f"{key} must be {order}, two whole numbers from 1 to 10**9, not {value!r}")
    return first, second
