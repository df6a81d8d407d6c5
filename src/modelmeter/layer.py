"""BaseLayer: a layer is one method, `ops`; everything a user asks of it is derived here.

Fields that are sizes become axes, fields that are layers are placed with `at`. `Sequence` and
`Repeat` compose layers. Nothing here knows any particular layer: see `layers/`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cache, cached_property
from typing import Any, ClassVar, final, get_args, get_origin, get_type_hints

from modelmeter.cost import StageCost, measure
from modelmeter.errors import InputError
from modelmeter.ops import NOTHING, Op, Options, Sizes, backward, require_axes
from modelmeter.precision import Precision
from modelmeter.sizes import Size, anywhere, as_size, is_symbol, minimum


class BaseLayer(ABC):
    """A layer: hyper-parameters are fields, workload sizes are arguments (`sizes` names them).

    Subclasses are frozen dataclasses that define `ops` alone. Each metric takes the workload sizes
    by axis letter, `execution` (eager, flash, fused, compulsory), and the counting options `causal`,
    `rotary`, `logits`, `precision`; it returns FLOPs, bytes or FLOPs per byte. Unknown or missing sizes and
    options raise InputError.
    """

    sizes: ClassVar[str]
    """The workload axes that the layer needs, letters of docs/glossary.md."""

    @abstractmethod
    def ops(self, n: Sizes) -> Iterator[Op]:
        """The layer's equations, reading `x` and writing `y`."""

    def __post_init__(self) -> None:
        for name, kinds in _field_types(type(self)).items():
            checked = _checked(f"{type(self).__name__}.{name}", getattr(self, name), kinds)
            object.__setattr__(self, name, checked)
        self.check()

    def check(self) -> None:  # noqa: B027 (most layers have nothing to check)
        """Raise InputError where hyper-parameters contradict each other."""

    def require_equal(self, **widths: Size) -> None:
        """Raise InputError unless these sizes, named by the part they belong to, are one (symbols pass)."""
        (first, wanted), *others = widths.items()
        for name, value in others:
            if not is_symbol(value) and not is_symbol(wanted) and anywhere(value != wanted):
                kind, a, b = type(self).__name__, first.replace("_", " "), name.replace("_", " ")
                raise InputError(f"{kind}: {a} is {wanted} and {b} is {value}; they must be equal")

    @cached_property
    def axes(self) -> dict[str, Size]:
        """The fields that are sizes."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]
        return {k: v for k, v in values.items() if not isinstance(v, (BaseLayer, str, bool, tuple, type(None)))}

    @final
    def at(self, n: Sizes, scope: str, *, times: Size = 1, **bound: Any) -> Iterator[Op]:
        """This layer placed under `scope`, `times` over: strings rename tensors, others set sizes."""
        names = {k: v for k, v in bound.items() if isinstance(v, str)}
        sizes = {k: v for k, v in bound.items() if not isinstance(v, str)}
        return self.ops(n.inside(scope, sizes | self.axes, names, times, type(self).__name__))

    @final
    def trace(self, *, options: Options | None = None, **sizes: Any) -> list[Op]:
        """The layer's ops at a workload."""
        require_axes(type(self).__name__, self.sizes.split(), sizes)
        checked = {axis: as_size(axis, value) for axis, value in sizes.items()}
        return list(self.ops(Sizes(checked | self.axes, options)))

    @final
    def cost(self, *, execution: str = "flash", **sizes: Any) -> StageCost:
        """The layer's forward StageCost."""
        return measure(self.trace(**_split(sizes)), execution)

    @final
    def backward_cost(self, *, execution: str = "flash", **sizes: Any) -> StageCost:
        """The StageCost of the backward pass: gradients of inputs and weights, nothing recomputed."""
        return measure(backward(self.trace(**_split(sizes))), execution)

    @final
    def forward_tensor_core_flops(self, **sizes: Any) -> Size:
        """FLOPs of matmuls, convolutions and attention products; 2 a multiply-add."""
        return self.cost(**sizes).tensor_core_flops

    @final
    def forward_cuda_core_flops(self, **sizes: Any) -> Size:
        """FLOPs of all other arithmetic, by the convention of docs/counting.md."""
        return self.cost(**sizes).cuda_core_flops

    @final
    def forward_io_bytes(self, **sizes: Any) -> Size:
        """Bytes between memory and chip."""
        return self.cost(**sizes).io_bytes

    @final
    def forward_arithmetic_intensity(self, **sizes: Any) -> Size:
        """FLOPs per byte of traffic."""
        return self.cost(**sizes).arithmetic_intensity

    @final
    def forward_memory_weight_bytes(self, **sizes: Any) -> Size:
        """Bytes of stored weights."""
        return self.cost(**sizes).weight_bytes

    @final
    def forward_memory_activation_bytes(self, **sizes: Any) -> Size:
        """Bytes of the largest set of activations alive at once."""
        return self.cost(**sizes).peak_activation_bytes

    @final
    def forward_memory_kvcache_bytes(self, **sizes: Any) -> Size:
        """Bytes of the KV cache at the end of the call."""
        return self.cost(**sizes).kv_cache_bytes

    @final
    def backward_tensor_core_flops(self, **sizes: Any) -> Size:
        """Tensor-core FLOPs of the backward pass."""
        return self.backward_cost(**sizes).tensor_core_flops

    @final
    def backward_cuda_core_flops(self, **sizes: Any) -> Size:
        """CUDA-core FLOPs of the backward pass: two a scalar operation of the forward pass, one a bias."""
        return self.backward_cost(**sizes).cuda_core_flops

    @final
    def backward_io_bytes(self, **sizes: Any) -> Size:
        """Bytes between memory and chip in the backward pass."""
        return self.backward_cost(**sizes).io_bytes

    @final
    def backward_arithmetic_intensity(self, **sizes: Any) -> Size:
        """FLOPs per byte of the backward pass."""
        return self.backward_cost(**sizes).arithmetic_intensity


def _split(sizes: dict[str, Any]) -> dict[str, Any]:
    """Counting options and axis sizes apart."""
    chosen: dict[str, Any] = {k: sizes.pop(k) for k in ("causal", "rotary", "logits") if k in sizes}
    if sizes.get("precision") is not None:
        chosen["precision"] = Precision.of(sizes["precision"])
    sizes.pop("precision", None)
    return {"options": Options(**chosen), **sizes}


def repeat(layer: BaseLayer, n: Sizes, scope: str, times: Size) -> Iterator[Op]:
    """`times` copies of a layer from x to y. From the second on, the caller still holds the first x."""
    names = {name: name for name in (*n.names, "x", "y")}
    ops = list(layer.at(n, scope, times=times, **names))
    outer, (frame, name, temporary) = n.resolve("x")[1], n.resolve("y")
    entering = next((ref for op in ops for ref in op.reads if ref.name == outer), None)
    if entering is not None and name != outer:
        later = minimum(times - 1, 1)
        held = entering._replace(
            name=name, frame=frame, temporary=temporary, stored=entering.stored.times(later), touched=NOTHING
        )
        yield Op("hold", "", (), (held,), None, (), n)
    yield from ops


def walk(node: Any) -> Iterator[BaseLayer]:
    """Every layer in a model or layer, the outermost first, a repeated one once."""
    if isinstance(node, tuple):
        for part in node:
            yield from walk(part)
    elif is_dataclass(node) and not isinstance(node, type):
        if isinstance(node, BaseLayer):
            yield node
        for field in fields(node):
            yield from walk(getattr(node, field.name))


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


@final
@dataclass(frozen=True)
class Repeat(BaseLayer):
    """`l` copies of one layer, each with its own weights, the output of one the input of the next.

    y = layer(...layer(x)); counted as l times the cost of one. Axes: those of the layer.
    """

    layer: BaseLayer
    l: Size

    def ops(self, n: Sizes) -> Iterator[Op]:
        yield from repeat(self.layer, n, "each", self.l)

    @property
    def sizes(self) -> str:  # type: ignore[override]
        return self.layer.sizes


@final
@dataclass(frozen=True)
class Sequence(BaseLayer):
    """Layers one after another on the same axes.

    y = last(...first(x)); costs add up. Axes: those of all its layers.
    """

    layers: tuple[BaseLayer, ...]

    def check(self) -> None:
        if not self.layers:
            raise InputError("Sequence.layers must name at least one layer")

    def ops(self, n: Sizes) -> Iterator[Op]:
        for index, layer in enumerate(self.layers):
            names = {name: name for name in (*n.names, "y")} | {"x": "y" if index else "x"}
            yield from layer.at(n, str(index), **names)

    @property
    def sizes(self) -> str:  # type: ignore[override]
        return " ".join(dict.fromkeys(a for layer in self.layers for a in layer.sizes.split()))


def require_divisible(layer: str, what: str, value: Size, by: str, divisor: Size) -> None:
    """Raise InputError unless one hyper-parameter divides another (symbols pass)."""
    if not is_symbol(value) and not is_symbol(divisor) and anywhere(value % divisor):
        raise InputError(f"{layer}: {what} {value} is not divisible by {by} {divisor}")
