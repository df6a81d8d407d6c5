"""Model: what every model offers, whatever its architecture. Stages, components, parameters.

A model says how an image becomes views (`plan`) and which ops a stage runs (`ops`); costs, their
breakdown and the sum over decode steps are derived here. `compile` is in `compiled.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, final

from modelmeter.cost import StageCost, measure, measure_parts
from modelmeter.errors import InputError, choose, unknown
from modelmeter.ops import Op, Sizes
from modelmeter.precision import Precision
from modelmeter.sizes import Size, is_symbol, ratio
from modelmeter.workload import NO_IMAGE, ImagePlan, Workload, parse_pair, read_image_size

if TYPE_CHECKING:
    from modelmeter.models.compiled import Compiled

STAGES = ("vision", "prefill", "decode")


class Model(ABC):
    """A vision-language model as three stages: vision, prefill and decode."""

    name: str

    @abstractmethod
    def plan(
        self, *, mode: str | None, image_size: tuple[int, int] | None, grid: tuple[Size, Size] | None
    ) -> ImagePlan:
        """Views and tokens of an image of (width, height) pixels, a grid of crops or a mode alone."""

    @abstractmethod
    def vision(self, n: Sizes, image: ImagePlan) -> Iterator[Op]:
        """The ops from pixels to image tokens; n has the batch b."""

    @abstractmethod
    def language(self, n: Sizes) -> Iterator[Op]:
        """The ops from s tokens with a context of t to logits; n has b, s and t."""

    @abstractmethod
    def grids(self, largest: int) -> list[tuple[int, int]]:
        """All (rows, columns) of crops with rows <= columns and at most `largest` crops."""

    @abstractmethod
    def has_crops(self, mode: str | None) -> bool:
        """Whether images are cut into crops in this mode (None: the model's default)."""

    @property
    @abstractmethod
    def modes(self) -> tuple[str, ...]:
        """The names of its resolution modes."""

    @property
    @abstractmethod
    def positions(self) -> Size | None:
        """Positions that the decoder was made for; None: it has no limit."""

    @final
    def is_beyond(self, tokens: Size) -> bool:
        """Whether a context of so many tokens exceeds the decoder's positions: counted, but never trained."""
        return self.positions is not None and bool(tokens > self.positions)

    @final
    def text(self, tokens: Size, **options: Any) -> Workload:
        """A workload without an image: `tokens` of text, then decode steps; other keywords are those of Workload."""
        _require_known(options)
        return Workload(NO_IMAGE, prompt_tokens=tokens, **options)

    @final
    def workload(
        self,
        *,
        image: str | None = None,
        image_size: Any = None,
        grid: Any = None,
        mode: str | None = None,
        **options: Any,
    ) -> Workload:
        """A workload from an image file, a size "WxH" in pixels, a crop grid "HxW" or a mode.

        A grid may also be two arrays, rows and columns. Other keywords are those of Workload.
        Raises InputError for contradictory or impossible input.
        """
        given = [k for k, v in (("image", image), ("image_size", image_size), ("grid", grid)) if v is not None]
        if len(given) > 1:
            raise InputError(f"give only one of image, image_size and grid, not {' and '.join(given)}")
        size = parse_pair("image_size", image_size, "WIDTHxHEIGHT in pixels") if image_size is not None else None
        if image is not None:
            size = read_image_size(image)
        if grid is not None and not _is_sizes(grid):
            grid = parse_pair("grid", grid, "ROWSxCOLUMNS")
        _require_known(options, "image_size", "grid", "mode")
        return Workload(self.plan(mode=mode, image_size=size, grid=grid), **options)

    @final
    def ops(self, stage: str, work: Workload, context: Size | None = None) -> list[Op]:
        """The ops of one stage; for decode those of one step, at `context` (default: its first)."""
        choose("stage", stage, STAGES)
        if stage == "vision" and not work.image.views:
            return []
        if stage == "vision":
            return list(self.vision(Sizes({"b": work.batch}, work.options), work.image))
        if stage == "prefill":
            s: Size = work.context_tokens
            return list(self.language(Sizes({"b": work.batch, "s": s, "t": s}, work.options)))
        t = work.context_tokens + 1 if context is None else context
        return list(self.language(Sizes({"b": work.batch, "s": 1, "t": t}, work.options)))

    @final
    def cost(self, stage: str, work: Workload) -> StageCost:
        """The StageCost of a stage; decode is the exact sum over its K steps."""
        return self.breakdown(stage, work, depth=0).get("", StageCost(basis=work.basis))

    @final
    def breakdown(self, stage: str, work: Workload, depth: int = 1) -> dict[str, StageCost]:
        """The stage's costs by part: depth 1 gives components (sam, decoder...), 2 their layers.

        Depth 0 is the stage as a whole, greater depths go into the layers. A part's peak is the stage's
        largest live set while it runs.
        """

        if not isinstance(depth, int) or isinstance(depth, bool) or depth < 0:
            raise InputError(f"depth must be a whole number of at least 0, not {depth!r}")

        def part(op: Op) -> str:
            if not depth:
                return ""
            name = ".".join(op.path.split(".")[:depth])
            repeated = depth > 1 and isinstance(op.times, int) and op.times > 1
            return f"{name} x{op.times}" if repeated else name

        def cost(ops: list[Op], **which: bool) -> dict[str, StageCost]:
            return measure_parts(ops, str(work.execution), part, work.basis, **which)

        if stage != "decode":
            return cost(self.ops(stage, work))
        first, last = work.context_tokens + 1, work.context_tokens + work.decode_steps
        # Step costs are affine in the context, so K times the middle step is their exact sum.
        middle = cost(self.ops(stage, work, ratio(first + last, 2)), storage=False)
        end = cost(self.ops(stage, work, last), flows=False)
        return {name: middle[name].over_steps(work.decode_steps, end[name]) for name in end}

    @final
    def compile(self, **options: Any) -> Compiled:
        """All stages turned once into one function of the workload's sizes, for callers that need speed.

        `options` are those of `workload` that are not sizes (mode, attention, logits, causal...).
        """
        from modelmeter.models.compiled import compile_model

        return compile_model(self, options)

    @final
    def request(self, work: Workload) -> StageCost:
        """Vision, prefill and decode together, the decoder's weights and KV stored once."""
        vision, prefill, decode = (self.cost(stage, work) for stage in STAGES)
        stored = self.storage(work)
        return replace(
            vision + prefill + decode,
            parameters=stored.parameters,
            weight_bytes=stored.weight_bytes,
            kv_cache_bytes=decode.kv_cache_bytes,
        )

    @final
    def require_tensors(self, precision: Any) -> None:
        """Raise InputError for a precision override that matches no tensor of the model."""
        work = Workload(self.plan(mode=None, image_size=(1000, 1000), grid=None), precision=Precision.of(precision))
        if not work.precision.overrides:
            return
        ops = [*self.ops("vision", work), *self.ops("prefill", work)]
        names = dict.fromkeys(ref.name for op in ops for ref in (*op.reads, *op.writes))
        weights = [name for name in names if ".W_" in name]
        for pattern in work.precision.overrides:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise InputError(f"precision override {pattern!r} matches no tensor; a name is {weights[-1]!r}")

    @final
    def storage(self, work: Workload | None = None) -> StageCost:
        """Parameters and weight bytes of the whole model, each weight once; the rest is 0."""
        work = work or Workload(self.plan(mode=None, image_size=(1000, 1000), grid=None))
        both = measure([*self.ops("vision", work), *self.ops("prefill", work)], "flash")
        return StageCost(parameters=both.parameters, weight_bytes=both.weight_bytes)


def _require_known(options: Iterable[str], *others: str) -> None:
    """Raise InputError for a key that no workload has."""
    valid = tuple(Workload.__dataclass_fields__)
    for key in options:
        if key not in valid:
            raise unknown("workload key", key, (*valid, *others))


def _is_sizes(grid: Any) -> bool:
    """Whether a grid is a pair of arrays or symbols rather than something to parse."""
    pair = isinstance(grid, (tuple, list)) and len(grid) == 2
    return pair and any((hasattr(g, "ndim") and g.ndim) or is_symbol(g) for g in grid)
