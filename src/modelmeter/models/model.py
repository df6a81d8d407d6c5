"""Model: stages, each with a layer and its sizes, and what follows from them: costs, parts, parameters, kernels.

A stage's program is made once for a model, a runtime and a structure of the workload, and evaluated ever after.
What a vision-language model is made of: `vlm.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, cast, final

from modelmeter.errors import InputError, choose, unknown
from modelmeter.graph.graph import Graph, checked
from modelmeter.graph.ops import Op
from modelmeter.graph.place import Node, Sizes
from modelmeter.layers.base import BaseLayer, symbols_of
from modelmeter.models.planner import Planner, together
from modelmeter.programs.cost import StageCost
from modelmeter.programs.counting import Counting
from modelmeter.programs.kernels import Kernel
from modelmeter.programs.precision import Precision
from modelmeter.programs.program import STEPS, Program, Steps, program_of
from modelmeter.programs.storage import Storage
from modelmeter.sizes import Expr, Size, added, as_size, below, evaluated, symbol
from modelmeter.workload import NO_IMAGE, Workload, parse_pair, read_image_size, several


@final
@dataclass(frozen=True)
class Stage:
    """What a model does in one go. `layer` runs at `sizes` of a workload, by axis.

    `layer` may depend on the `structure` of a workload (what is no number: views; (): nothing to do); `whole` is one
    that has all weights; a weight that two stages name alike is one. A stage with `steps` runs that often, and the axis
    `grows` is one longer each time. Axes in `fixed` have these sizes always, those in `same` the sizes of others.
    One that is `replicated` runs whole on each of the devices that share the tensors of other stages.
    """

    name: str
    layer: BaseLayer | Callable[[Any], BaseLayer]
    sizes: Callable[[Workload], Mapping[str, Size]]
    structure: Callable[[Workload], Hashable] = lambda work: None
    steps: Callable[[Workload], Size] | None = None
    grows: str = ""
    fixed: Mapping[str, int] = field(default_factory=dict)
    same: Mapping[str, str] = field(default_factory=dict)
    whole: Hashable = None
    replicated: bool = False

    def layer_of(self, structure: Any) -> BaseLayer:
        """The layer that runs at a structure."""
        return self.layer if isinstance(self.layer, BaseLayer) else self.layer(structure)

    def graph(self, structure: Any, counting: Counting) -> tuple[Graph, tuple[str, ...]]:
        """The stage's checked graph and the names of its sizes."""
        layer, root = self.layer_of(structure), counting.root(self.steps is not None)
        names = tuple(a for a in layer.sizes.split() if a not in self.fixed and a not in self.same)
        sizes = symbols_of(layer, names) | dict(self.fixed)
        sizes |= {axis: sizes[other] for axis, other in self.same.items()}
        inputs = layer.inputs.split()
        ops = layer.at(Sizes(sizes, Node("", self.name), root), "", **{name: name for name in (*inputs, "y")})
        return checked(ops, inputs, root), names

    def values(self, work: Workload, names: Iterable[str]) -> list[Size]:
        """The sizes of the stage's program by name."""
        sizes = dict(self.sizes(work))
        if self.steps is not None:
            sizes |= dict(zip(STEPS, (sizes[self.grows], self.steps(work)), strict=True))
        return [sizes[name] for name in names]


class BaseModel:
    """A model as a tuple of stages, what it does in order."""

    name: str
    stages: tuple[Stage, ...]
    planner: Planner | None
    """How an image becomes views; None: the model takes none."""
    positions: Size | None
    """Positions that the decoder was made for; None: it has no limit."""
    beside: bool = False
    """Whether image tokens stand beside the decoder's sequence, where cross attention reads them."""
    notes: tuple[str, ...] = ()
    """What a reader of its results should know of where its numbers come from."""

    def changed(self, graph: Graph) -> Graph:
        """The graph of a stage as this model counts it."""
        return graph

    def counted(self, counting: Counting) -> Counting:
        """How this model counts where a workload asks for so."""
        return counting

    def holds(self, op: Op) -> bool:
        """Whether the weights of an op are this model's."""
        return True

    @final
    def stage(self, name: str) -> Stage:
        """The stage of this name. Raises InputError if there is none."""
        found = next((stage for stage in self.stages if stage.name == name), None)
        return found or self.stage(choose("stage", name, [stage.name for stage in self.stages]))

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
        self, *, image: str | Sequence[str] | None = None, image_size: Any = None, grid: Any = None,
        mode: str | None = None, **options: Any,
    ) -> Workload:  # fmt: skip
        """A workload from an image file, a size "WxH" in pixels, a crop grid "HxW" (or two arrays) or a mode.

        A list of files or sizes is as many images of one prompt. Other keywords are those of Workload. Raises
        InputError for contradictory or impossible input.
        """
        _require_known(options, "image_size", "grid", "mode")
        given = [k for k, v in (("image", image), ("image_size", image_size), ("grid", grid)) if v is not None]
        if self.planner is None:
            if given or mode is not None:
                raise InputError(f"{self.name} takes no image, so no {(*given, 'mode')[0]}")
            return Workload(NO_IMAGE, **options)
        if len(given) > 1:
            raise InputError(f"give only one of image, image_size and grid, not {' and '.join(given)}")
        sizes: list[tuple[int, int] | None] = [*map(read_image_size, several(image))] if image is not None else [None]
        if image_size is not None:
            sizes = [parse_pair("image_size", size, "WIDTHxHEIGHT in pixels") for size in several(image_size)]
        pair = grid if isinstance(grid, (tuple, list)) and len(grid) == 2 else ()
        if grid is not None and not any(isinstance(side, Expr) or getattr(side, "ndim", 0) for side in pair):
            grid = parse_pair("grid", grid, "ROWSxCOLUMNS")
        plans = [self.planner.plan(mode, size, grid) for size in sizes]
        if self.beside and len(plans) > 1:
            raise InputError(f"{self.name} reads one image, not {len(plans)}")
        return Workload(replace(together(plans, self.planner.batched), beside=self.beside), **options)

    @cached_property
    def _made(self) -> dict[Any, Any]:
        """Programs, and the graphs of whole stages, each made once."""
        return {}

    @final
    def once(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """What `make` makes, made once for this model and key."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    @final
    def program(self, name: str, work: Workload, depth: int = 0) -> Program:
        """The program of a stage for all workloads of this structure and counting; parts as in `breakdown`."""
        stage = self.stage(name)
        if self.planner is None and work.image.views:
            raise InputError(f"{self.name} takes no image, and the workload has one")
        key = (name, stage.structure(work), work.key, depth)
        made = self.once(key, lambda: self._program(stage, key[1], self.counted(work.counting), depth))
        return cast(Program, made)

    def _program(self, stage: Stage, structure: Any, counting: Counting, depth: int) -> Program:
        self.require_tensors(counting.precision)
        graph, names = self._graph(stage, structure, counting)
        steps = None
        if stage.steps is not None:
            first, many = map(symbol, STEPS)
            steps = Steps(stage.grows, first, first + many - 1)
            names = (*(n for n in names if n != stage.grows), *STEPS)
        return program_of(graph, names, counting, lambda op: _part(op, depth), steps)

    def _graph(self, stage: Stage, structure: Any, counting: Counting) -> tuple[Graph, tuple[str, ...]]:
        """The graph of a stage and its sizes, made once for all runtimes and precisions."""
        key = (stage.name, structure, counting.causal, counting.parallel, *counting.choices.items())

        def make() -> tuple[Graph, tuple[str, ...]]:
            graph, names = stage.graph(structure, counting)
            return counting.parallel.of_one(self.changed(graph), stage.replicated), names

        return cast("tuple[Graph, tuple[str, ...]]", self.once(key, make))

    @final
    def cost(self, stage: str, work: Workload) -> StageCost:
        """The StageCost of a stage; decode is the exact sum over its K steps."""
        found = self.breakdown(stage, work, 0)
        return found[""] if found else StageCost(basis=work.basis)

    @final
    def breakdown(self, stage: str, work: Workload, depth: int = 1) -> dict[str, StageCost]:
        """The stage's costs by part: depth 1 gives components (sam, decoder...), 2 their layers.

        Depth 0 is the whole stage, greater depths go into layers. A part's peak is the stage's largest live set in it.
        """
        if not isinstance(depth, int) or isinstance(depth, bool) or depth < 0:
            raise InputError(f"depth must be a whole number of at least 0, not {depth!r}")
        found = self.stage(stage)
        if found.structure(work) == ():
            return {}
        program = self.program(stage, work, depth)
        return program.at(found.values(work, program.names))

    @final
    def launches(self, stage: str, work: Workload) -> Size:
        """How many kernels a stage runs, all its steps together."""
        found = self.stage(stage)
        if found.structure(work) == ():
            return 0
        program = self.program(stage, work)
        return program.launches_at(found.values(work, program.names))

    @final
    def kernels(self, stage: str, work: Workload, step: int = 1) -> list[Kernel]:
        """The kernels of a stage; of one that runs step by step those of one step, the first if not said."""
        found, program = self.stage(stage), self.program(stage, work)
        sizes = {axis: s for axis, s in found.sizes(work).items() if axis in (*program.names, found.grows)}
        if found.steps is not None:
            if below(as_size("step", step) - 1, 0) or below(found.steps(work), step):
                raise InputError(f"step must be one of the {found.steps(work)} of {stage}, not {step}")
            sizes[found.grows] = sizes[found.grows] + step - 1
        return program.kernels(**sizes)

    @final
    def basis(self, work: Workload) -> str:
        """How results of this workload are counted, in words."""
        stated = [cost.basis for cost in self.costs(work).values()]
        return max(stated, key=len)

    @final
    def costs(self, work: Workload) -> dict[str, StageCost]:
        """The StageCost of every stage."""
        return {stage.name: self.cost(stage.name, work) for stage in self.stages}

    @final
    def request(self, work: Workload) -> StageCost:
        """All stages together, weights stored once, the KV cache that of the last."""
        costs = list(self.costs(work).values())
        kept = replace(self.storage(work), kv_cache_bytes=costs[-1].kv_cache_bytes)
        names = ("parameters", "weight_bytes", "kv_cache_bytes")
        return replace(sum(costs, start=StageCost()), **{name: getattr(kept, name) for name in names})

    def _weights(self, counting: Counting, work: Workload | None = None) -> dict[str, tuple[Size, Size]]:
        """Elements and bytes of every weight by name; of the stages that a workload has, or of all."""
        found: dict[str, tuple[Size, Size]] = {}
        for stage in self.stages:
            structure = stage.structure(work) if work else stage.whole
            if structure == ():
                continue
            graph = self._graph(stage, structure, counting)[0]
            storage = Storage(graph, counting.precision)
            for op in filter(self.holds, graph.ops):
                for r in (r for r in op.reads if r.role == "weight"):
                    stored = r.stored * op.times
                    known, _ = found.setdefault(r.name, (stored, stored * storage.bytes(r)))
                    if known != stored:
                        raise InputError(f"{self.name}: two stages have a weight {r.name!r}, of {known} and {stored}")
        return found

    @final
    def require_tensors(self, precision: Any) -> None:
        """Raise InputError for a precision that names tensors which the model has not."""
        precision = Precision.of(precision)
        if not precision.names_tensors:
            return
        graphs = [self._graph(stage, stage.whole, Counting())[0] for stage in self.stages]
        precision.require(name for graph in graphs for name in graph.tensors())

    @final
    def storage(self, work: Workload | None = None, whole: bool = False) -> StageCost:
        """Parameters and weight bytes of the model, each weight once; the rest is 0.

        They are those of the stages that a workload has, or counted like it but of the `whole` model.
        """
        counting = work.counting if work else Counting()
        found = self._weights(counting, None if whole else work).values()
        parameters, weight_bytes = evaluated([added(pair[i] for pair in found) for i in (0, 1)], {})
        return StageCost(parameters=parameters, weight_bytes=weight_bytes)


@final
@dataclass(frozen=True)
class Model(BaseModel):
    """A model from its stages."""

    name: str
    stages: tuple[Stage, ...]
    planner: Planner | None = None
    positions: Size | None = None
    notes: tuple[str, ...] = ()
    config: Mapping[str, Any] | None = field(default=None, hash=False, repr=False)
    """The fields of the config.json that it was made of."""


def _part(op: Op, depth: int) -> str:
    if not depth:
        return ""
    name = ".".join(op.path.split(".")[:depth]) or op.node.layer  # an op of the stage's own layer
    repeated = depth > 1 and isinstance(op.times, int) and op.times > 1
    return f"{name} x{op.times}" if repeated else name


def _require_known(options: Iterable[str], *others: str) -> None:
    """Raise InputError for a key that no workload has."""
    valid = Workload.__dataclass_fields__
    for key in options:
        if key not in valid:
            raise unknown("workload key", key, (*valid, *others))
