"""BaseLayer: a layer is one method, `ops`; everything a user asks of it is derived here.

Fields that are sizes become axes, fields that are layers are placed with `at`. `Sequence` and `Repeat` compose
layers. Nothing here knows any particular layer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cache, cached_property, partialmethod
from operator import attrgetter
from typing import Any, ClassVar, final, get_args, get_origin, get_type_hints

from modelmeter.errors import InputError
from modelmeter.graph.axes import AXES
from modelmeter.graph.graph import Graph, checked
from modelmeter.graph.ops import Op
from modelmeter.graph.place import Node, Sizes
from modelmeter.programs.cost import StageCost
from modelmeter.programs.counting import Counting
from modelmeter.programs.program import Program, program_of
from modelmeter.sizes import Expr, Size, anywhere, as_size, differ, symbol
from modelmeter.sizes.expressions import as_term


class BaseLayer(ABC):
    """A layer: hyper-parameters are fields, workload sizes are arguments (`sizes` names them).

    Subclasses are frozen dataclasses that define `ops` alone. Each metric takes the workload sizes by axis letter and
    the counting options `runtime` (eager, flash, fused, compulsory or a Runtime), `causal`, `logits`, `precision`; it
    returns FLOPs, bytes or FLOPs per byte. Unknown or missing sizes and options raise InputError.
    """

    sizes: ClassVar[str]
    """The workload axes that the layer needs, letters of docs/glossary.md."""
    inputs: ClassVar[str] = "x"
    """The tensors that it is given."""
    outputs: ClassVar[str] = "y"
    """The tensors that it writes."""
    buffers: ClassVar[str] = ""
    """Inputs that the layer brings along: constants that are no parameters."""
    keeps: ClassVar[str] = ""
    """Tensors of its own that the caller holds: it is code of the caller."""

    @abstractmethod
    def ops(self, n: Sizes) -> Iterator[Op]:
        """The layer's equations, reading `x` and writing `y`."""

    def __post_init__(self) -> None:
        for name, kinds in _field_types(type(self)).items():
            if hasattr(BaseLayer, name):
                raise InputError(f"{type(self).__name__}: a field cannot be called {name!r}, as every layer has that")
            object.__setattr__(self, name, _checked(f"{type(self).__name__}.{name}", getattr(self, name), kinds))
        self.check()
        for name in (name for name in self.sizes.split() if name in self.axes):
            raise InputError(f"{type(self).__name__}: {name!r} cannot be both a field and a size of the call")

    def check(self) -> None:  # noqa: B027 (most layers have nothing to check)
        """Raise InputError where hyper-parameters contradict each other."""

    def require_equal(self, **widths: Size | None) -> None:
        """Raise InputError unless these sizes, named by their part, are one (None and expressions pass)."""
        (first, wanted), *others = ((k.replace("_", " "), v) for k, v in widths.items() if v is not None)
        for name, value in others:
            if differ(value, wanted):
                kind = type(self).__name__
                raise InputError(f"{kind}: {first} is {wanted} and {name} is {value}; they must be equal")

    @cached_property
    def axes(self) -> dict[str, Size]:
        """The fields that are sizes."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]
        others = (BaseLayer, str, bool, tuple, type(None))
        return {k: as_term(v) for k, v in values.items() if not isinstance(v, others)}

    @final
    def at(self, n: Sizes, scope: str, *, times: Size = 1, **bound: Any) -> Iterator[Op]:
        """This layer placed under `scope`, `times` over: strings rename tensors, others set sizes.

        Raises InputError for an input that is not named, a size that it lacks or does not have, an unwritten output.
        """
        kind, declared = type(self).__name__, self.sizes.split()
        names = {k: v for k, v in bound.items() if isinstance(v, str)}
        sizes = {a: n.axes[a] for a in declared if a in n.axes} | {k: v for k, v in bound.items() if k not in names}
        for axis in (a for a in sizes if a not in declared):
            raise InputError(f"{kind} under {n.node.layer!r} has no size {axis!r}; its sizes: {self.sizes}")
        for missing in (a for a in declared if a not in sizes):
            raise InputError(f"{kind} under {n.node.layer!r} needs size {missing!r}; its sizes: {self.sizes}")
        for missing in (x for x in self.inputs.split() if x not in names):
            raise InputError(f"{kind} under {n.node.layer!r} needs its input {missing!r} to be named")
        return self._placed(n.inside(scope, kind, sizes, self.axes, names, times), names)

    def _placed(self, n: Sizes, names: Iterable[str] = ()) -> Iterator[Op]:
        """The ops. Raises InputError if they lack an output or a weight of `names`, or cannot be repeated."""
        kind, again = type(self).__name__, n.node.loop == n.node.path and n.node.loop
        n.root.buffers.update(n.resolve(buffer)[1] for buffer in self.buffers.split())
        read: dict[str, Size] = {}
        written: dict[str, Size] = {}
        for op in self.ops(n):
            for r in op.reads:
                read.setdefault(r.name, r.stored)
            written |= {w.name: w.stored for w in op.writes}
            yield op
        for name in (name for name in self.outputs.split() if n.resolve(name)[1] not in written):
            raise InputError(f"{kind}: no equation writes its output {name!r}")
        for name in (name for name in names if name[:2] == "W_" and n.resolve(name)[1] not in read):
            raise InputError(f"{kind} has no weight {name!r} to be named")
        entering, leaving = n.node.held
        if again and entering in read and leaving in written and read[entering] != written[leaving]:
            raise InputError(f"{kind} cannot be repeated: what it writes is not of the size that it reads")

    @final
    def graph(self, counting: Counting | None = None) -> Graph:
        """The layer's checked graph, its workload sizes as symbols."""
        root = (counting or Counting()).root()
        sizes = symbols_of(self, self.sizes.split())
        n = Sizes(sizes | self.axes, Node("", type(self).__name__), root, bound=frozenset(sizes))
        return checked(list(self._placed(n)), self.inputs.split(), root)

    @final
    def program(self, *, gradients: bool = False, **options: Any) -> Program:
        """The layer's program by its counting options, made once; `gradients`: that of the backward pass."""
        programs: dict[Any, Program] = self.__dict__.setdefault("_programs", {})
        key = counting, _ = Counting(**options), gradients
        if key not in programs:
            if gradients and counting.parallel:
                raise InputError(f"the backward pass is counted on one device, not with {counting.parallel}")
            graph = counting.parallel.of_one(self.graph(counting))
            counting.precision.require(graph.tensors())
            programs[key] = program_of(graph, self.sizes.split(), counting, gradients=gradients)
        return programs[key]

    def _cost(self, gradients: bool, given: dict[str, Any]) -> StageCost:
        options = {k: given.pop(k) for k in Counting.__dataclass_fields__ if k in given}
        wanted = self.sizes.split()
        require_axes(type(self).__name__, wanted, given)
        return self.program(gradients=gradients, **options).at([as_size(axis, given[axis]) for axis in wanted])[""]

    @final
    def cost(self, **sizes: Any) -> StageCost:
        """The layer's forward StageCost."""
        return self._cost(False, sizes)

    @final
    def backward_cost(self, **sizes: Any) -> StageCost:
        """The StageCost of the backward pass: gradients of inputs and weights, nothing recomputed."""
        return self._cost(True, sizes)

    def _metric(self, gradients: bool, count: str, /, **sizes: Any) -> Size:
        return getattr(self._cost(gradients, sizes), count)

    forward_tensor_core_flops = partialmethod(_metric, False, "tensor_core_flops")
    """FLOPs of matmuls, convolutions and attention products; 2 a multiply-add."""
    forward_cuda_core_flops = partialmethod(_metric, False, "cuda_core_flops")
    """FLOPs of all other arithmetic, by the convention of docs/counting.md."""
    forward_io_bytes = partialmethod(_metric, False, "io_bytes")
    """Bytes between memory and chip."""
    forward_arithmetic_intensity = partialmethod(_metric, False, "arithmetic_intensity")
    """FLOPs per byte of traffic."""
    forward_memory_weight_bytes = partialmethod(_metric, False, "weight_bytes")
    """Bytes of stored weights."""
    forward_memory_activation_bytes = partialmethod(_metric, False, "peak_activation_bytes")
    """Bytes of the largest set of activations alive at once."""
    forward_memory_kvcache_bytes = partialmethod(_metric, False, "kv_cache_bytes")
    """Bytes of the KV cache at the end of the call."""
    backward_tensor_core_flops = partialmethod(_metric, True, "tensor_core_flops")
    """Tensor-core FLOPs of the backward pass."""
    backward_cuda_core_flops = partialmethod(_metric, True, "cuda_core_flops")
    """CUDA-core FLOPs of the backward pass: two a scalar operation of the forward pass, one a bias."""
    backward_io_bytes = partialmethod(_metric, True, "io_bytes")
    """Bytes between memory and chip in the backward pass."""
    backward_arithmetic_intensity = partialmethod(_metric, True, "arithmetic_intensity")
    """FLOPs per byte of the backward pass."""


def symbols_of(layer: BaseLayer, sizes: Iterable[str]) -> dict[str, Size]:
    """The sizes of a call as symbols. Raises InputError where a field of the layer, or of one in it, is one of them."""
    found = {axis: symbol(axis) for axis in sizes}
    for part in walk(layer):
        for size in (v for v in part.axes.values() if isinstance(v, Expr) and v.names.keys() & found.keys()):
            raise InputError(f"{type(part).__name__}: a field is {size}, which is a size of the call; rename it")
    return found


def width_of(layer: BaseLayer) -> Size | None:
    """The hidden width of a layer that has one."""
    return getattr(layer, "d", None)


def union(names: Iterable[str]) -> str:
    """The names of all these lists of names, each once."""
    return " ".join(dict.fromkeys(" ".join(names).split()))


def walk(node: Any) -> Iterator[BaseLayer]:
    """Every layer in a model or layer, the outermost first, a repeated one once."""
    if isinstance(node, BaseLayer):
        yield node
    if isinstance(node, tuple) or (is_dataclass(node) and not isinstance(node, type)):
        for part in node if isinstance(node, tuple) else (getattr(node, f.name) for f in fields(node)):
            yield from walk(part)


def rebuild(node: Any, change: Callable[[BaseLayer], BaseLayer]) -> Any:
    """A model or layer with every layer in it passed through `change`, the outermost first."""
    if isinstance(node, tuple):
        return tuple(rebuild(part, change) for part in node)
    if isinstance(node, BaseLayer):
        node = change(node)
    if not is_dataclass(node) or isinstance(node, type):
        return node
    parts = {f.name: getattr(node, f.name) for f in fields(node)}
    changed = {name: rebuild(part, change) for name, part in parts.items()}
    return replace(node, **changed) if any(changed[name] is not parts[name] for name in parts) else node


@cache
def _field_types(kind: type[Any]) -> dict[str, tuple[type[Any], ...]]:
    """The classes that each field of a layer may have; none (or None alone) for a size."""
    found = {}
    for name, hint in get_type_hints(kind).items():
        options = (tuple,) if get_origin(hint) is tuple else get_args(hint) or (hint,)
        found[name] = tuple(o for o in options if isinstance(o, type) and o is not Any)
    return {field.name: found[field.name] for field in fields(kind)}


def _checked(key: str, value: Any, kinds: tuple[type[Any], ...]) -> Any:
    """A field's value if it is what the field takes; raises InputError if not."""
    wanted = tuple(kind for kind in kinds if kind is not type(None))
    if value is None and len(wanted) < len(kinds):
        return None
    if not wanted:
        return as_size(key, value)
    if tuple in wanted and isinstance(value, list):
        return tuple(value)
    if not isinstance(value, wanted):
        names = "true or false" if wanted == (bool,) else " or ".join(kind.__name__ for kind in wanted)
        raise InputError(f"{key} must be {names}, not {value!r}")
    return value


@dataclass(frozen=True)
class Repeat(BaseLayer):
    """`l` copies of one layer, each with its own weights, the output of one the input of the next.

    y = layer(...layer(x)); counted as l times the cost of one. Axes: those of the layer.
    """

    layer: BaseLayer
    l: Size
    scope: ClassVar[str] = "each"
    sizes = property(attrgetter("layer.sizes"))
    inputs = property(attrgetter("layer.inputs"))
    d = property(attrgetter("layer.d"))

    def ops(self, n: Sizes) -> Iterator[Op]:
        names = {name: name for name in (*self.inputs.split(), "y")}
        yield from self.layer.at(n, self.scope, times=self.l, **names)


@final
@dataclass(frozen=True)
class Sequence(BaseLayer):
    """Layers one after another on the same axes. y = last(...first(x)); costs add up.

    Axes: those of all its layers.
    """

    layers: tuple[BaseLayer, ...]
    sizes = property(lambda self: union(layer.sizes for layer in self.layers))

    def check(self) -> None:
        if not self.layers:
            raise InputError("Sequence.layers must name at least one layer")

    def ops(self, n: Sizes) -> Iterator[Op]:
        for index, layer in enumerate(self.layers):
            names = {name: name for name in (*layer.inputs.split(), "y")} | {"x": "y" if index else "x"}
            yield from layer.at(n, str(index), **names)

    @property
    def inputs(self) -> str:  # type: ignore[override]
        first, *others = (layer.inputs for layer in self.layers)
        return union((first, *(name for name in union(others).split() if name != "x")))


def require_divisible(layer: str, what: str, value: Size, by: str, divisor: Size) -> None:
    """Raise InputError unless one hyper-parameter divides another (expressions pass)."""
    if not isinstance(value, Expr) and not isinstance(divisor, Expr) and anywhere(value % divisor):
        raise InputError(f"{layer}: {what} {value} is not divisible by {by} {divisor}")


def require_axes(layer: str, wanted: list[str], given: Mapping[str, Any]) -> None:
    """Raise InputError if workload sizes are missing or not of the layer."""
    listing = ", ".join(f"{a} ({AXES[a].split(':')[0]})" if a in AXES else a for a in wanted)
    for axis in (a for a in given if a not in wanted):
        raise InputError(f"{layer} has no size {axis!r}; its sizes: {listing}")
    for axis in (a for a in wanted if a not in given):
        raise InputError(f"{layer} needs size {axis!r}; its sizes: {listing}")
