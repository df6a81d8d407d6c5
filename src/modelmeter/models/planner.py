"""Planners: how an image becomes views and tokens, and over which pages a sweep can go. Here is the plainest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, ClassVar, Protocol, final

from modelmeter.errors import InputError, choose
from modelmeter.sizes import Size, as_size
from modelmeter.workload import ImagePlan, View


@dataclass(frozen=True)
class Points:
    """Pages to sweep over: `noun` names them, `axis` labels an axis of their image tokens.

    `keys` are the columns that tell them apart, `places` keywords of `model.workload`.
    """

    noun: str
    axis: str
    keys: tuple[str, ...]
    places: Sequence[Mapping[str, Any]]


def grids(most: int, least: int) -> list[tuple[int, int]]:
    """All (rows, columns) with rows <= columns, from `least` to `most` crops."""
    found = [(h, w) for h in range(1, most + 1) for w in range(h, most // h + 1)]
    return sorted((grid for grid in found if prod(grid) >= least), key=prod)


def closest_grid(width: int, height: int, tile: int, least: int, most: int, fill: float) -> tuple[int, int]:
    """The grid (rows, columns) of `least` to `most` tiles whose aspect is closest to an image's; of two alike the
    larger one wins if the image's area exceeds the share `fill` of that of its tiles.

    Vendor: find_closest_aspect_ratio of InternVL and DeepSeek-OCR.
    """
    candidates = [(h, w) for w in range(1, most + 1) for h in range(1, most // w + 1) if w * h >= least]
    best, best_gap = (1, 1), float("inf")
    for h, w in sorted(candidates, key=prod):
        gap = abs(width / height - w / h)
        if gap < best_gap or (gap == best_gap and width * height > fill * tile * tile * w * h):
            best, best_gap = (h, w), gap
    return best


class Planner(Protocol):
    """What a model asks of the rule that turns images into views."""

    varies: ClassVar[bool]
    """Whether views have as many sizes as images; one program then serves them all."""
    batched: ClassVar[bool]
    """Whether views of one size, of several images of a prompt, share a call of the tower."""

    @property
    def patch(self) -> int:
        """Side of a patch in pixels."""

    @property
    def modes(self) -> Collection[str]:
        """The names of its resolution modes."""

    def plan(self, mode: str | None, image_size: tuple[int, int] | None, grid: tuple[Size, Size] | None) -> ImagePlan:
        """Views and tokens of an image of (width, height) pixels, of a grid of crops or of a mode alone."""

    def has_crops(self, mode: str | None) -> bool:
        """Whether images are cut into crops in this mode (None: the default one)."""

    def points(self, mode: str | None, largest: int, own: ImagePlan | None = None) -> Points:
        """The pages to sweep over, of at most `largest` crops; the user's `own` is one more where it fits in."""

    def columns(self, plan: ImagePlan) -> dict[str, Any]:
        """The columns that describe a page in a table."""


def together(plans: Sequence[ImagePlan], batched: bool) -> ImagePlan:
    """What becomes of several images of one prompt; the views of one size are one, if they share a call.

    >>> rule = FixedSize(side=336, patch=14)
    >>> together([rule.plan(None, (640, 480), None)] * 2, batched=True).describe()
    'fixed: 2 x 336x336 global, 1152 tokens (1152 valid)'
    """
    if len(plans) == 1:
        return plans[0]
    calls: dict[Any, list[View]] = {}
    first: dict[Any, int] = {}
    for number, view in ((number, view) for number, plan in enumerate(plans, 1) for view in plan.views):
        key = (view.name, view.height, view.width) if batched else (view.name, number)
        calls.setdefault(key, []).append(view)
        first.setdefault(key, number)
    alone = {name for name, many in Counter(name for name, *_ in calls).items() if many == 1}
    views = tuple(_call(calls[key], "" if key[0] in alone else f"_{first[key]}") for key in calls)
    tokens, valid = (sum(getattr(plan, count) for plan in plans) for count in ("tokens", "valid_tokens"))
    modes = " + ".join(dict.fromkeys(plan.mode for plan in plans))
    return ImagePlan(modes, views, tokens, valid, None, all(plan.produced for plan in plans))


def _call(views: Sequence[View], number: str) -> View:
    """The views of one size as one, with the number of the first image that has it where there are others."""
    count, tokens = sum(view.count for view in views), sum(view.tokens for view in views)
    return replace(views[0], name=views[0].name + number, count=count, tokens=tokens)


@final
@dataclass(frozen=True)
class FixedSize:
    """One view of fixed pixels, whatever the image: CLIP and SigLIP towers, LLaVA 1.5.

    `side` pixels (`height` another if it is no square) and `patch` pixels a patch side; `class_token` says whether one
    more token leaves the tower; `merge` patches of a side become one of a token's; a prompt may have several `images`.

    >>> FixedSize(side=336, patch=14).plan(None, (1700, 2200), None).describe()
    'fixed: 1 x 336x336 global, 576 tokens (576 valid)'
    """

    side: int
    patch: int
    class_token: bool = False
    merge: int = 1
    images: int = 1
    height: int | None = None
    modes: tuple[str, ...] = ("fixed",)
    varies: ClassVar[bool] = False
    batched: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for key in ("patch", "merge", "images"):
            as_size(key, getattr(self, key))
        for key, side in (("side", self.side), ("height", self.tall)):
            if as_size(key, side) % self.patch:
                raise InputError(f"{key} {side} must be a multiple of the patch, {self.patch} pixels")
            if side % (self.patch * self.merge):
                raise InputError(f"{key} {side} must be a multiple of a token's, {self.patch * self.merge} pixels")

    @property
    def tall(self) -> int:
        """The height in pixels."""
        return self.side if self.height is None else self.height

    def plan(self, mode: str | None, image_size: tuple[int, int] | None, grid: tuple[Size, Size] | None) -> ImagePlan:
        name = self.modes[0] if mode is None else choose("mode", mode, self.modes)
        if grid is not None:
            given = "image=FILE, image_size=WIDTHxHEIGHT or none"
            raise InputError(f"mode {name!r} has no crops, so no grid; give {given}")
        rows, columns = (side // self.patch // self.merge for side in (self.tall, self.side))
        tokens = (rows * columns + self.class_token) * self.images
        return ImagePlan(name, (View("global", self.images, self.tall, self.side, tokens),), tokens, tokens, None, True)

    def has_crops(self, mode: str | None) -> bool:
        return False

    def points(self, mode: str | None, largest: int, own: ImagePlan | None = None) -> Points:
        return Points("page", "image tokens", ("image_size",), [{}])

    def columns(self, plan: ImagePlan) -> dict[str, Any]:
        return {"image_size": f"{self.side}x{self.tall}"}
