"""Planners: how an image becomes views and tokens, and over which pages a sweep can go. Here is the plainest."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, final

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


class Planner(Protocol):
    """What a model asks of the rule that turns images into views."""

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


@final
@dataclass(frozen=True)
class FixedSize:
    """One view of fixed pixels, whatever the image: CLIP and SigLIP towers, LLaVA 1.5.

    `side` pixels and `patch` pixels a patch side; `class_token` says whether one more token leaves the tower.

    >>> FixedSize(side=336, patch=14).plan(None, (1700, 2200), None).describe()
    'fixed: 1 x 336x336 global, 576 tokens (576 valid)'
    """

    side: int
    patch: int
    class_token: bool = False
    modes: tuple[str, ...] = ("fixed",)

    def __post_init__(self) -> None:
        as_size("patch", self.patch)
        if as_size("side", self.side) % self.patch:
            raise InputError(f"side {self.side} must be a multiple of the patch, {self.patch} pixels")

    def plan(self, mode: str | None, image_size: tuple[int, int] | None, grid: tuple[Size, Size] | None) -> ImagePlan:
        name = self.modes[0] if mode is None else choose("mode", mode, self.modes)
        if grid is not None:
            given = "image=FILE, image_size=WIDTHxHEIGHT or none"
            raise InputError(f"mode {name!r} has no crops, so no grid; give {given}")
        tokens = (self.side // self.patch) ** 2 + self.class_token
        return ImagePlan(name, (View("global", 1, self.side, self.side, tokens),), tokens, tokens, None, True)

    def has_crops(self, mode: str | None) -> bool:
        return False

    def points(self, mode: str | None, largest: int, own: ImagePlan | None = None) -> Points:
        return Points("page", "image tokens", ("image_size",), [{}])

    def columns(self, plan: ImagePlan) -> dict[str, Any]:
        return {"image_size": f"{self.side}x{self.side}"}
