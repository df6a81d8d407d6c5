"""How DeepSeek-OCR and DeepSeek-OCR 2 cut an image: modes, the crop grid, tokens with newlines and separator.

Vendor: dynamic_preprocess and find_closest_aspect_ratio in process/image_process.py; infer in
modeling_deepseekocr.py for the valid tokens. Paper: arXiv 2510.18234, section 3.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from modelmeter.errors import InputError, choose
from modelmeter.models.planner import Points, closest_grid, grids
from modelmeter.sizes import Size, as_size, below, ceil_div
from modelmeter.workload import ImagePlan, View

MOST_CROPS = 4096  # the largest grid that a sweep may ask for
SEPARATOR = 1  # one view separator an image


@dataclass(frozen=True)
class Mode:
    """A named resolution: the side of the global view and of the crops (None: no crops), in pixels.

    `padded` says whether the global view keeps the image's aspect by padding (else it is resized).
    """

    base: int
    tile: int | None = None
    padded: bool = True


@dataclass(frozen=True)
class CropRule:
    """The vendor's preprocessor: `patch` pixels a patch side, `downsample` patches a token side.

    Crops are from `min_crops` to `max_crops`; images within `uncropped` pixels each way are not cropped; `fill` is the
    share of the tiles' area that an image must exceed for a larger grid of the same aspect to win. Where tokens are
    learnt `queries`, no newline ends their rows, and none of them is padding.
    """

    modes: Mapping[str, Any]
    default_mode: str
    patch: int
    downsample: int
    min_crops: int
    max_crops: int
    uncropped: int
    fill: float
    queries: bool = False
    varies: ClassVar[bool] = False
    batched: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for key in ("patch", "downsample", "min_crops", "max_crops", "uncropped"):
            as_size(key, getattr(self, key))
        modes = {str(k): m if isinstance(m, Mode) else Mode(**m) for k, m in self.modes.items()}
        object.__setattr__(self, "modes", modes)
        choose("mode", self.default_mode, modes)
        for name, mode in modes.items():
            for key, side in (("base", mode.base), ("tile", mode.tile)):
                if side is not None and as_size(f"modes.{name}.{key}", side) % self.patch:
                    raise InputError(f"modes.{name}.{key} {side} must be a multiple of the patch, {self.patch} pixels")
        if not isinstance(self.fill, (int, float)) or isinstance(self.fill, bool) or not self.fill >= 0:
            raise InputError(f"fill must be a number of at least 0, not {self.fill!r}")
        if not self.min_crops <= self.max_crops <= MOST_CROPS:
            bound = f"most {MOST_CROPS}" if self.max_crops > MOST_CROPS else f"least min_crops = {self.min_crops}"
            raise InputError(f"max_crops must be at {bound}, not {self.max_crops}")

    def mode(self, name: str | None) -> tuple[str, Mode]:
        """A mode by name (None: the default one)."""
        name = choose("mode", self.default_mode if name is None else name, self.modes)
        return name, self.modes[name]

    def side(self, pixels: int) -> int:
        """Tokens along one side of a square view: 640 -> 10, 1024 -> 16."""
        return int(ceil_div(pixels // self.patch, self.downsample))

    def view(self, name: str, side: int, rows: Size = 1, columns: Size = 1) -> View:
        """Images of `side` pixels beside each other: q * rows rows of q * columns tokens and a newline each, if any."""
        q = self.side(side)
        return View(name, rows * columns, side, side, q * rows * (q * columns + (not self.queries)))

    def choose_grid(self, width: int, height: int, tile: int) -> tuple[int, int] | None:
        """The vendor's grid (rows, columns) for an image, None if it is not cropped."""
        if width <= self.uncropped and height <= self.uncropped:
            return None
        return closest_grid(width, height, tile, self.min_crops, self.max_crops, self.fill)

    def plan(self, mode: str | None, image_size: tuple[int, int] | None, grid: tuple[Size, Size] | None) -> ImagePlan:
        """Views and tokens of an image (width, height), of a grid (rows, columns) or of a mode."""
        name, kind = self.mode(mode)
        if kind.tile is None and grid is not None:
            tiled = ", ".join(k for k, m in self.modes.items() if m.tile)
            raise InputError(f"mode {name!r} has no crops, so no grid; modes with crops: {tiled}")
        if grid is not None:
            grid = (as_size("grid rows", grid[0]), as_size("grid columns", grid[1]))
        elif kind.tile is not None and image_size is not None:
            grid = self.choose_grid(*image_size, kind.tile)
        elif kind.tile is not None:
            raise InputError(f"mode {name!r} needs image=FILE, image_size=WIDTHxHEIGHT or grid=ROWSxCOLUMNS")
        views, valid, produced = [self.view("global", kind.base)], self.side(kind.base) ** 2, True
        if kind.padded and image_size is not None and not self.queries:
            short, long = sorted(image_size)
            valid = int(valid * (1 - (long - short) / long))  # as the vendor's code rounds: int, not ceil
        if grid is not None and kind.tile is not None:
            views.insert(0, self.view("crops", kind.tile, *grid))
            crops = views[0].count
            valid = valid + crops * self.side(kind.tile) ** 2
            produced = not below(crops, self.min_crops) and not below(self.max_crops, crops)
        tokens = sum((view.tokens for view in views), start=SEPARATOR)
        return ImagePlan(name, tuple(views), tokens, valid, grid, produced)

    def has_crops(self, mode: str | None) -> bool:
        """Whether images are cut into crops in this mode (None: the default one)."""
        return self.mode(mode)[1].tile is not None

    def grids(self, largest: int) -> list[tuple[int, int]]:
        """All (rows, columns) of crops with rows <= columns and at most `largest` crops."""
        if largest > MOST_CROPS:
            raise InputError(f"largest must be at most {MOST_CROPS} crops, not {largest}")
        return grids(largest, self.min_crops)

    def points(self, mode: str | None, largest: int, own: ImagePlan | None = None) -> Points:
        """All crop grids of up to `largest` crops, and the user's own."""
        grids: list[Any] = self.grids(largest)
        if not grids:
            raise InputError(f"largest must be at least min_crops = {self.min_crops}, not {largest}")
        self.plan(mode, None, grids[0])  # refuses a mode without crops
        if own is not None and own.grid is not None and own.grid not in grids:
            grids.append(own.grid)
        noun, axis = "crop grid" + "s" * (len(grids) > 1), "image tokens (grid of crops written rows x columns)"
        return Points(noun, axis, ("grid_h", "grid_w"), [{"grid": grid} for grid in grids])

    def columns(self, plan: ImagePlan) -> dict[str, Any]:
        """Crops and their grid; 0 without crops."""
        h, w = plan.grid or (0, 0)
        return {"crops": h * w, "grid_h": h, "grid_w": w}
