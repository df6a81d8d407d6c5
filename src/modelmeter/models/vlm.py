"""A vision-language model: planner, tower, projector, join and decoder, any of each whose widths fit.

Vision turns pixels into tokens, view by view; prefill and decode are the decoder's. A decoder alone is a text model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from operator import attrgetter
from typing import Any, final

from modelmeter.errors import InputError
from modelmeter.graph.ops import Op, copy
from modelmeter.graph.place import Sizes
from modelmeter.layers.base import BaseLayer
from modelmeter.layers.decoder import CausalLM
from modelmeter.layers.merge import Merger, tokens_of
from modelmeter.layers.mlp import MlpProjector
from modelmeter.layers.navit import NavitTower, kind_names
from modelmeter.layers.scan import in_steps
from modelmeter.models.model import BaseModel, Model, Stage
from modelmeter.models.planner import Planner
from modelmeter.sizes import Size, below, ratio
from modelmeter.workload import Workload


@dataclass(frozen=True)
class Join(BaseLayer):
    """The tokens of all views in one sequence. y = [tokens of each view].

    Vendor: torch.cat. Axes: b pages, image (tokens of the sequence), d width; the tokens of each view.

    >>> Join(d=4, views=("global",)).forward_io_bytes(b=1, image=3, tokens_global=3, patches_global=3)
    48
    """

    d: Size
    views: tuple[str, ...] = ("global",)
    inputs = property(lambda self: " ".join(f"of_{view}" for view in self.views))
    sizes = property(lambda self: " ".join(("b image", *(f"tokens_{view} patches_{view}" for view in self.views))))

    def ops(self, n: Sizes) -> Iterator[Op]:
        parts = " * ".join(f"of_{view}[b patches_{view}:tokens_{view} d]" for view in self.views)
        yield copy(f"y[b image d] = {parts}", n)


@final
class RowsJoin(Join):
    """The image's tokens in reading order: a newline after each row, one separator at the end.

    Vendor: DeepseekOCRForCausalLM._pixel_values_to_embedding in deepseek_ocr.py. Axes: as Join.

    >>> RowsJoin(d=4, views=("global",)).cost(b=1, image=7, tokens_global=6, patches_global=4).parameters
    8
    """

    def ops(self, n: Sizes) -> Iterator[Op]:
        for view in self.views:
            given = f"of_{view}[b patches_{view}:tokens_{view} d]"
            yield copy(f"rows_{view}[b tokens_{view} d] = {given} * W_newline[d]", n)
        parts = " * ".join(f"rows_{view}[b tokens_{view} d]" for view in self.views)
        yield copy(f"y[b image d] = {parts} * W_separator[d]", n)


@final
class SeparatedJoin(Join):
    """The tokens of all views in one sequence, one separator at the end; a view has as many as its tower makes.

    Vendor: DeepseekOcr2Model.get_image_features in transformers. Axes: as Join.

    >>> SeparatedJoin(d=4, views=("global",)).cost(b=1, image=4, tokens_global=3, patches_global=3).parameters
    4
    """

    def ops(self, n: Sizes) -> Iterator[Op]:
        for view in self.views:
            wanted, made = (getattr(n, f"{what}_{view}") for what in ("tokens", "patches"))
            planned = f"of view {view!r} than the {{tokens_{view}}} that the planner counts"
            n.require(made - wanted, f"the tower makes fewer tokens {planned}")
            n.require(wanted - made, f"the tower makes more tokens {planned}")
        (joined,) = super().ops(n)
        yield copy(f"{joined.equation.text} * W_separator[d]", n)


SIDES = ("rows", "columns")
Place = tuple[str, Size | None, Size | None, bool]
"""A view: name, rows and columns of patches (None: they vary), whether it is one image a page."""


@final
@dataclass(frozen=True)
class VisionStage(BaseLayer):
    """Each view through tower and projector, then all of them joined; images of all pages share the batch axis.

    A tower at native resolution takes the images of all sizes in one call. Omits: that PaddleOCR-VL's code projects
    them one by one.
    Axes: b pages; of each view its images a page (count), its patches (rows, columns) and its tokens; image tokens
    in all. Vendor: DeepseekOCRForCausalLM in deepseek_ocr.py.

    >>> VisionStage.__name__
    'VisionStage'
    """

    tower: BaseLayer
    projector: MlpProjector | Merger
    join: Join
    views: tuple[Place, ...]

    @property
    def inputs(self) -> str:  # type: ignore[override]
        return "pixels" if isinstance(self.tower, NavitTower) else " ".join(f"pixels_{view}" for view, *_ in self.views)

    @property
    def sizes(self) -> str:  # type: ignore[override]
        found = ["b image"]
        for view, u, _, one in self.views:
            found += [f"tokens_{view}"] + [f"count_{view}"] * (not one)
            found += [f"rows_{view} columns_{view}"] * (u is None)
        return " ".join(found)

    def _images(self, n: Sizes) -> Iterator[tuple[str, Size, Size, Size]]:
        """Each view, its images in all pages, their rows and columns of patches."""
        for view, u, v, one in self.views:
            count = 1 if one else getattr(n, f"count_{view}")
            sides = (u, v) if u is not None and v is not None else (getattr(n, f"{s}_{view}") for s in SIDES)
            yield (view, n.b * count, *sides)

    def ops(self, n: Sizes) -> Iterator[Op]:
        yield from self._in_one_call(n, self.tower) if isinstance(self.tower, NavitTower) else self._one_by_one(n)

    def _one_by_one(self, n: Sizes) -> Iterator[Op]:
        tower: Any = self.tower
        patches = {}
        for view, b, u, v in self._images(n):
            s = tokens_of(self.projector, tower.features(u, v))
            held = {name: f"{name}_{view}" for name in f"{tower.keeps} {tower.buffers}".split()}
            yield from tower.at(n, "", b=b, u=u, v=v, x=f"pixels_{view}", y=f"features_{view}", **held)
            yield from self.projector.at(n, "projector", b=b, s=s, x=f"features_{view}", y=f"projected_{view}")
            patches[f"patches_{view}"] = ratio(b, n.b) * s
        join = replace(self.join, views=tuple(view for view, *_ in self.views))
        projected = {f"of_{view}": f"projected_{view}" for view in join.views}
        yield from join.at(n, "join", y="y", **projected, **patches)

    def _in_one_call(self, n: Sizes, tower: NavitTower) -> Iterator[Op]:
        names, sizes, patches = kind_names(len(self.views)), dict[str, Size](), []
        for (_, *found), of_kind in zip(self._images(n), names, strict=True):
            sizes |= dict(zip(of_kind, found, strict=True))
            patches.append(prod(found))
        yield from tower.of_kinds(len(names)).at(n, "", x="pixels", y="features", **sizes)
        s = tokens_of(self.projector, sum(patches))
        yield from self.projector.at(n, "projector", b=1, s=s, x="features", y="projected")
        page = {"tokens_global": n.image, "patches_global": ratio(s, n.b)}
        yield from replace(self.join, views=("global",)).at(n, "join", y="y", of_global="projected", **page)


@final
@dataclass(frozen=True)
class VLM(BaseModel):
    """A vision-language model from its components. Raises InputError where their widths do not fit."""

    name: str
    planner: Planner
    tower: BaseLayer
    projector: MlpProjector | Merger
    join: Join
    decoder: CausalLM
    positions = property(attrgetter("decoder.positions"))

    def __post_init__(self) -> None:
        tower: Any = self.tower
        leaving = self.projector.leaving
        for what, a, b in (
            ("projector inputs and the tower's features", self.projector.c, tower.d),
            ("projector outputs and decoder hidden size", leaving, self.decoder.d),
            ("projector outputs and the width of image tokens", leaving, self.join.d),
            ("the tower's patch and the planner's", tower.patch, self.planner.patch),
        ):
            if a != b:
                raise InputError(f"{self.name}: {what} must be equal, not {a} and {b}")

    @cached_property
    def stages(self) -> tuple[Stage, ...]:  # type: ignore[override]
        layer = lambda views: VisionStage(self.tower, self.projector, self.join, views)
        vision = Stage("vision", layer, self._vision_sizes, self._views, whole=(("global", None, None, True),))
        return (vision, *language_stages(self.decoder))

    def _views(self, work: Workload) -> tuple[Place, ...]:
        patch, found = self.planner.patch, []
        for v in work.image.views:
            known = type(v.height) is int and type(v.width) is int
            if known and (v.height % patch or v.width % patch):
                raise InputError(
                    f"{self.name}: a view of {v.width}x{v.height} pixels has no whole patches of {patch}; "
                    f"make the workload with this model"
                )
            varies, one = self.planner.varies, type(v.count) is int and v.count == 1
            sides = (v.height // patch, v.width // patch) if known and not varies else (None, None)
            found.append((v.name, *sides, (known or varies) and one))
        return tuple(found)

    def _vision_sizes(self, work: Workload) -> dict[str, Size]:
        sizes: dict[str, Size] = {"b": work.batch, "image": work.image.tokens}
        for v in work.image.views:
            rows, columns = ratio(v.height, self.planner.patch), ratio(v.width, self.planner.patch)
            own = {"tokens": v.tokens, "count": v.count, "rows": rows, "columns": columns}
            sizes |= {f"{key}_{v.name}": size for key, size in own.items()}
        return sizes


def _context(work: Workload) -> Size:
    if below(work.context_tokens, 1):
        raise InputError("prompt_tokens must be at least 1 where there is no image")
    return work.context_tokens


def language_stages(decoder: BaseLayer) -> tuple[Stage, Stage]:
    """Prefill and decode of a decoder that has the sizes b, s and t."""
    return (
        Stage("prefill", decoder, lambda w: {"b": w.batch, "s": _context(w)}, same={"t": "s"}),
        Stage(
            "decode", in_steps(decoder), lambda w: {"b": w.batch, "s": 1, "t": w.context_tokens + 1},
            steps=lambda w: w.decode_steps, grows="t", fixed={"s": 1},
        ),
    )  # fmt: skip


def text_model(name: str, decoder: CausalLM, **others: Any) -> Model:
    """A decoder alone, on text; `others` are further fields of a Model."""
    return Model(name, language_stages(decoder), positions=decoder.positions, **others)
