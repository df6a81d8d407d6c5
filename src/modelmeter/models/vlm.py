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
from modelmeter.layers.decoder import CausalLM, crosses, in_steps
from modelmeter.layers.merge import Merger, tokens_of
from modelmeter.layers.mlp import MlpProjector
from modelmeter.layers.navit import NavitTower, kind_names
from modelmeter.models.model import BaseModel, Model, Stage
from modelmeter.models.planner import Planner
from modelmeter.sizes import Size, below, differ, ratio
from modelmeter.workload import View, Workload


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

    A tower at native resolution takes the images of all sizes in one call. Without a projector, or without a join (one
    view, which cross attention reads), nothing is there, no copy either. Omits: that PaddleOCR-VL's code projects the
    images of a call one by one.
    Axes: b pages; of each view its images a page (count), its patches (rows, columns) and its tokens; image tokens
    in all. Vendor: DeepseekOCRForCausalLM in deepseek_ocr.py.

    >>> VisionStage.__name__
    'VisionStage'
    """

    tower: BaseLayer
    projector: MlpProjector | Merger | None
    join: Join | None
    views: tuple[Place, ...]

    @property
    def inputs(self) -> str:  # type: ignore[override]
        return "pixels" if isinstance(self.tower, NavitTower) else " ".join(f"pixels_{view}" for view, *_ in self.views)

    def check(self) -> None:
        if self.join is None and len(self.views) != 1:
            raise InputError(f"VisionStage: without a join there is one view, not {len(self.views)}")

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
            made = "y" if self.join is None else f"projected_{view}"
            seen = made if self.projector is None else f"features_{view}"
            yield from tower.at(n, "", b=b, u=u, v=v, x=f"pixels_{view}", y=seen, **held)
            if self.projector is not None:
                yield from self.projector.at(n, "projector", b=b, s=s, x=seen, y=made)
            patches[f"patches_{view}"] = ratio(b, n.b) * s
        if self.join is None:
            return
        join = replace(self.join, views=tuple(view for view, *_ in self.views))
        projected = {f"of_{view}": f"projected_{view}" for view in join.views}
        yield from join.at(n, "join", y="y", **projected, **patches)

    def _in_one_call(self, n: Sizes, tower: NavitTower) -> Iterator[Op]:
        names, sizes, patches = kind_names(len(self.views)), dict[str, Size](), []
        for (_, *found), of_kind in zip(self._images(n), names, strict=True):
            sizes |= dict(zip(of_kind, found, strict=True))
            patches.append(prod(found))
        made = "y" if self.join is None else "projected"
        seen, s = made if self.projector is None else "features", tokens_of(self.projector, sum(patches))
        yield from tower.of_kinds(len(names)).at(n, "", x="pixels", y=seen, **sizes)
        if self.projector is not None:
            yield from self.projector.at(n, "projector", b=1, s=s, x=seen, y=made)
        if self.join is not None:
            page = {"tokens_global": n.image, "patches_global": ratio(s, n.b)}
            yield from replace(self.join, views=("global",)).at(n, "join", y="y", of_global=made, **page)


@final
@dataclass(frozen=True)
class VLM(BaseModel):
    """A vision-language model from its components; without a join the decoder reads features by cross attention.

    Raises InputError where their widths do not fit.
    """

    name: str
    planner: Planner
    tower: BaseLayer
    projector: MlpProjector | Merger | None
    join: Join | None
    decoder: CausalLM
    positions = property(attrgetter("decoder.positions"))
    beside = property(lambda self: self.join is None)

    def __post_init__(self) -> None:
        tower: Any = self.tower
        if self.beside != crosses(self.decoder):
            raise InputError(f"{self.name}: a decoder with cross attention, and no other, goes without a join")
        entering, leaving = (self.projector.c, self.projector.leaving) if self.projector else (tower.d, tower.d)
        for what, a, b in (
            ("projector inputs and the tower's features", entering, tower.d),
            ("projector outputs and decoder hidden size", leaving, self.decoder.d),
            ("projector outputs and the width of image tokens", leaving, self.join.d if self.join else leaving),
            ("the tower's patch and the planner's", tower.patch, self.planner.patch),
        ):
            if a != b:
                raise InputError(f"{self.name}: {what} must be equal, not {a} and {b}")

    @cached_property
    def stages(self) -> tuple[Stage, ...]:  # type: ignore[override]
        layer = lambda views: VisionStage(self.tower, self.projector, self.join, views)
        vision = Stage(
            "vision", layer, self._vision_sizes, self._views, whole=(("global", None, None, True),), replicated=True
        )
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
            if self.beside and known:
                self._require_features(v)
            varies, one = self.planner.varies, type(v.count) is int and v.count == 1
            sides = (v.height // patch, v.width // patch) if known and not varies else (None, None)
            found.append((v.name, *sides, (known or varies) and one))
        return tuple(found)

    def _require_features(self, v: View) -> None:
        """Raise InputError unless the planner tells of as many tokens as there are features to be read."""
        tower: Any = self.tower
        made = tokens_of(self.projector, tower.features(v.height // self.planner.patch, v.width // self.planner.patch))
        if differ(v.tokens, made * v.count):
            told = f"the planner tells of {v.tokens} tokens"
            raise InputError(f"{self.name}: cross attention reads {made * v.count} features of a view, and {told}")

    def _vision_sizes(self, work: Workload) -> dict[str, Size]:
        sizes: dict[str, Size] = {"b": work.batch, "image": work.image.tokens}
        for v in work.image.views:
            rows, columns = ratio(v.height, self.planner.patch), ratio(v.width, self.planner.patch)
            own = {"tokens": v.tokens, "count": v.count, "rows": rows, "columns": columns}
            sizes |= {f"{key}_{v.name}": size for key, size in own.items()}
        return sizes


def _context(work: Workload) -> Size:
    if below(work.context_tokens, 1):
        where = "no image token enters the decoder's sequence" if work.image.beside else "there is no image"
        raise InputError(f"prompt_tokens must be at least 1 where {where}")
    return work.context_tokens


def _read(cross: bool, work: Workload) -> dict[str, Size]:
    """The sequences, and how many features of each cross attention reads, if the decoder has it."""
    if cross != work.image.beside:
        lacks = "the workload has no image for its" if cross else "its decoder has no"
        raise InputError(f"{lacks} cross attention; make the workload by this model's `workload`")
    return {"b": work.batch, "source": work.image.tokens} if cross else {"b": work.batch}


def language_stages(decoder: BaseLayer) -> tuple[Stage, Stage]:
    """Prefill and decode of a decoder that has the sizes b, s and t, and source if it has cross attention."""
    cross = crosses(decoder)
    return (
        Stage("prefill", decoder, lambda w: _read(cross, w) | {"s": _context(w)}, same={"t": "s"}),
        Stage(
            "decode", in_steps(decoder), lambda w: _read(cross, w) | {"s": 1, "t": w.context_tokens + 1},
            steps=lambda w: w.decode_steps, grows="t", fixed={"s": 1},
        ),
    )  # fmt: skip


def text_model(name: str, decoder: CausalLM, **others: Any) -> Model:
    """A decoder alone, on text; `others` are further fields of a Model."""
    return Model(name, language_stages(decoder), positions=decoder.positions, **others)
