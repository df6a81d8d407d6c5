"""Images as tiles of one size, of the grid that is closest to their aspect, and a thumbnail; all in one call.

Vendor: dynamic_preprocess of InternVL (model cards of OpenGVLab/InternVL2). Paper: arXiv 2404.16821 (InternVL 1.5).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, final

from modelmeter.errors import InputError, choose
from modelmeter.models.planner import Points, closest_grid, grids
from modelmeter.sizes import Size, as_size, minimum
from modelmeter.workload import ImagePlan, View


@final
@dataclass(frozen=True)
class Tiles:
    """Tiles of `side` pixels, at most `most`, and a thumbnail where there are several, as one batch.

    `patch` pixels a patch side, `merge` patches a token side; `fill` is the share of the tiles' area that an image must
    exceed for a larger grid of the same aspect to win.

    >>> Tiles(side=448, patch=14, merge=2, most=12, fill=0.5).plan(None, (1024, 1024), None).describe()
    'tiles: 10 x 448x448 global, grid 3x3, 2560 tokens (2560 valid)'
    """

    side: int
    patch: int
    merge: int
    most: int
    fill: float
    modes: tuple[str, ...] = ("tiles",)
    varies: ClassVar[bool] = False
    batched: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for key in ("side", "patch", "merge", "most"):
            as_size(key, getattr(self, key))
        if self.side % (self.patch * self.merge):
            raise InputError(f"side {self.side} must be a multiple of a token's, {self.patch * self.merge} pixels")

    def plan(self, mode: str | None, image_size: tuple[int, int] | None, grid: tuple[Size, Size] | None) -> ImagePlan:
        """The tiles and tokens of an image (width, height) or of a grid (rows, columns)."""
        name = self.modes[0] if mode is None else choose("mode", mode, self.modes)
        if grid is not None:
            grid = (as_size("grid rows", grid[0]), as_size("grid columns", grid[1]))
        elif image_size is None:
            raise InputError(f"mode {name!r} needs image=FILE, image_size=WIDTHxHEIGHT or grid=ROWSxCOLUMNS")
        else:
            grid = closest_grid(*image_size, self.side, 1, self.most, self.fill)
        tiles = grid[0] * grid[1]
        count = tiles + minimum(tiles - 1, 1)
        each = (self.side // (self.patch * self.merge)) ** 2
        produced = not hasattr(tiles, "dtype") and bool(tiles <= self.most)
        views = (View("global", count, self.side, self.side, count * each),)
        return ImagePlan(name, views, count * each, count * each, grid, produced)

    def has_crops(self, mode: str | None) -> bool:
        return True

    def points(self, mode: str | None, largest: int, own: ImagePlan | None = None) -> Points:
        """All grids of up to `largest` tiles, and the user's own."""
        found: list[Any] = grids(largest, 1)
        if own is not None and own.grid not in found:
            found.append(own.grid)
        return Points("grids", "image tokens (grid of tiles)", ("grid_h", "grid_w"), [{"grid": g} for g in found])

    def columns(self, plan: ImagePlan) -> dict[str, Any]:
        """Tiles and their grid."""
        h, w = plan.grid or (0, 0)
        return {"crops": h * w, "grid_h": h, "grid_w": w}
