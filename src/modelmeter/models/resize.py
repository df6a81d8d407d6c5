"""Images at their own resolution: sides rounded to whole tokens, pixels kept within bounds.

Vendor: smart_resize in the image processors of Qwen2-VL, PaddleOCR-VL and GLM-4.6V. Paper: arXiv 2409.12191 (Qwen2-VL).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, floor, isqrt, sqrt
from typing import Any, ClassVar, final

from modelmeter.errors import InputError, choose
from modelmeter.models.planner import Points
from modelmeter.sizes import Size, as_size
from modelmeter.workload import ImagePlan, View

STEEPEST = 200  # the largest ratio of the sides that the vendors' code takes


def _side_by_side(width: int, height: int, factor: int) -> tuple[int, int]:
    if height < factor:
        width, height = round(width * factor / height), factor
    if width < factor:
        width, height = factor, round(height * factor / width)
    return width, height


def _as_a_whole(width: int, height: int, factor: int) -> tuple[int, int]:
    scale = max(factor / height, factor / width)
    return int(width * scale), int(height * scale)


SMALL: dict[str, Callable[[int, int, int], tuple[int, int]]] = {
    "kept": lambda width, height, factor: (width, height),
    "sides": _side_by_side,
    "whole": _as_a_whole,
}
"""What becomes of an image of a side below one token: nothing, one side after the other is enlarged to a token, or
both by one scale, cut off to whole pixels."""


@final
@dataclass(frozen=True)
class SmartResize:
    """One view of about the image's own size: sides of whole tokens, `min_pixels` to `max_pixels` in all.

    `patch` pixels a patch side, `merge` patches a token side; a `small` image, with a side below one token, may be
    enlarged first (SMALL). Sizes may be arrays: many images, each for itself.

    >>> SmartResize(14, 2, 147384, 2822400).plan(None, (1792, 2560), None).describe()
    'native: 1 x 1400x1988 global, 3550 tokens (3550 valid)'
    """

    patch: int
    merge: int
    min_pixels: int
    max_pixels: int
    small: str = "kept"
    modes: tuple[str, ...] = ("native",)
    varies: ClassVar[bool] = True
    batched: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for key in ("patch", "merge", "min_pixels", "max_pixels"):
            as_size(key, getattr(self, key))
        choose("small", self.small, SMALL)
        if not self.factor**2 <= self.max_pixels or not self.min_pixels <= self.max_pixels:
            least = f"min_pixels {self.min_pixels} and one token, {self.factor}x{self.factor} pixels"
            raise InputError(f"max_pixels must be at least {least}, not {self.max_pixels}")

    @property
    def factor(self) -> int:
        """Pixels of a token's side."""
        return self.patch * self.merge

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """Width and height that the image is brought to. Raises InputError for one that is too long."""
        factor = self.factor
        if min(width, height) < factor:
            width, height = SMALL[self.small](width, height, factor)
        if max(width, height) > STEEPEST * min(width, height):
            raise InputError(f"image_size {width}x{height}: one side is more than {STEEPEST} times the other")
        w, h = (round(side / factor) * factor for side in (width, height))
        if w * h > self.max_pixels:
            shrunk = sqrt(height * width / self.max_pixels)
            w, h = (max(factor, floor(side / shrunk / factor) * factor) for side in (width, height))
        elif w * h < self.min_pixels:
            grown = sqrt(self.min_pixels / (height * width))
            w, h = (ceil(side * grown / factor) * factor for side in (width, height))
        return w, h

    def plan(self, mode: str | None, image_size: tuple[Any, Any] | None, grid: tuple[Size, Size] | None) -> ImagePlan:
        """The view and tokens of an image (width, height), or of as many as its arrays have elements."""
        name = self.modes[0] if mode is None else choose("mode", mode, self.modes)
        if grid is not None or image_size is None:
            raise InputError(f"mode {name!r} takes image=FILE or image_size=WIDTHxHEIGHT{', no grid' if grid else ''}")
        width, height = self._resized(*image_size)
        tokens = (width // self.factor) * (height // self.factor)
        return ImagePlan(name, (View("global", 1, height, width, tokens),), tokens, tokens, None, True)

    def _resized(self, width: Any, height: Any) -> tuple[Any, Any]:
        if not hasattr(width, "dtype") and not hasattr(height, "dtype"):
            return self.resized(width, height)
        import numpy as np

        both = np.broadcast_arrays(as_size("width", width), as_size("height", height))
        found = [self.resized(int(w), int(h)) for w, h in zip(*(side.ravel() for side in both), strict=True)]
        widths, heights = np.array(found, dtype=np.float64).T
        return widths, heights

    def has_crops(self, mode: str | None) -> bool:
        return False

    def points(self, mode: str | None, largest: int, own: ImagePlan | None = None) -> Points:
        """Squares from the fewest pixels to the most, at most `largest` of them."""
        least, most = -(-isqrt(self.min_pixels) // self.factor), isqrt(self.max_pixels) // self.factor
        step = max(1, -(-(most - least + 1) // largest))
        sides = (side * self.factor for side in range(most, least - 1, -step))
        sizes = [{"image_size": f"{side}x{side}"} for side in sides][::-1]
        return Points("image sizes" if len(sizes) > 1 else "image size", "image tokens", ("image_size",), sizes)

    def columns(self, plan: ImagePlan) -> dict[str, Any]:
        (view,) = plan.views
        return {"image_size": f"{view.width}x{view.height}"}
