"""Ops: what a layer is made of. One equation over named axes gives work, traffic and storage.

    yield matmul("y[b s f] = x[b s d] * W_up[d f] + W_bias[f]", n)

Names starting with W_ are weights, C_ the KV cache, others activations; a leading underscore marks
an expression temporary, freed at its last read. `W[E:D d f]` stores E and touches D. `x:32[...]`
is held in 32 bits whatever the declared precision. Nothing is summed here: see `cost.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any, NamedTuple

from modelmeter import constants
from modelmeter.axes import AXES
from modelmeter.equations import Tensor, parse
from modelmeter.errors import InputError, choose
from modelmeter.precision import Precision
from modelmeter.sizes import Size, Term, product, ratio

CAUSAL = ("full", "exact")
ROTARY = ("vendor", "transformers")
LOGITS = ("all", "last")
NOTHING = product((0,))
_GROUPS = count(1)


@dataclass(frozen=True)
class Options:
    """Counting options that layers read.

    `causal`: attention pairs counted full or halved exactly; `rotary`: the vendor's or transformers'
    form; `logits`: for all positions or the last one; `precision`: declared bits per element.
    """

    causal: str = "full"
    rotary: str = "vendor"
    logits: str = "all"
    precision: Precision = field(default_factory=Precision)

    def __post_init__(self) -> None:
        choose("causal", self.causal, CAUSAL)
        choose("rotary", self.rotary, ROTARY)
        choose("logits", self.logits, LOGITS)


class Ref(NamedTuple):
    """A tensor as an op sees it. `stored` and `touched` are in bytes, `elements` counts numbers."""

    name: str
    frame: str
    temporary: bool
    role: str
    elements: Term
    stored: Term
    touched: Term
    on_chip: str = ""  # "flash": not in memory unless execution is eager; "always": never


class Op(NamedTuple):
    """One kernel of the unfused graph, `times` over; work in FLOPs."""

    kind: str
    equation: str
    reads: tuple[Ref, ...]
    writes: tuple[Ref, ...]
    tensor: Term | None
    cuda: tuple[Term, ...]
    n: Sizes
    group: int = 0
    grad: bool = True

    @property
    def path(self) -> str:
        return self.n.path

    @property
    def times(self) -> Size:
        return self.n.times


class Sizes:
    """What `ops` receives: axis sizes, options, and the place in the model where the layer stands.

    `n.s` is the size of axis s. `n.bind(Q=...)` adds derived axes; `BaseLayer.at` enters a layer.
    `times` is how often the ops here run, `loop` the path of the innermost repeated layer, `layers` the
    classes of the layers around, the outermost first.
    """

    def __init__(
        self,
        axes: Mapping[str, Size],
        options: Options | None = None,
        *,
        path: str = "",
        names: Mapping[str, tuple[str, str, bool]] | None = None,
        times: Size = 1,
        loop: str = "",
        layers: tuple[str, ...] = (),
    ) -> None:
        self.axes = dict(axes)
        self.options = options or Options()
        self.path = path
        self.names = dict(names or {})
        self.times = times
        self.loop = loop
        self.layers = layers
        self._terms: dict[tuple[str, ...], Term] = {}

    def __getattr__(self, axis: str) -> Size:
        try:
            return self.__dict__["axes"][axis]
        except KeyError:
            if axis.startswith("__"):
                raise AttributeError(axis) from None
            meaning = f" ({AXES[axis]})" if axis in AXES else ""
            raise InputError(f"size {axis!r}{meaning} is not given; given: {', '.join(sorted(self.axes))}") from None

    def bind(self, **axes: Size) -> Sizes:
        """The same place with further axes."""
        here = Sizes(
            self.axes | axes, self.options, path=self.path, times=self.times, loop=self.loop, layers=self.layers
        )
        here.names = self.names
        return here

    def inside(
        self, scope: str, axes: Mapping[str, Size], names: Mapping[str, str], times: Size = 1, layer: str = ""
    ) -> Sizes:
        """A layer placed here under `scope`; `names` maps its tensors to the ones of this place."""
        path = f"{self.path}.{scope}" if self.path else scope
        inner = {local: self.resolve(outer) for local, outer in names.items()}
        once = isinstance(times, int) and times == 1
        return Sizes(
            self.axes | dict(axes),
            self.options,
            path=path,
            names=inner,
            times=self.times if once else product((self.times, times)).value(),
            loop=self.loop if once else path,
            layers=(*self.layers, layer) if layer else self.layers,
        )

    def resolve(self, local: str) -> tuple[str, str, bool]:
        """The owning frame, the full name and whether it is a temporary."""
        known = self.names.get(local)
        if known is None:
            full = f"{self.path}.{local}" if self.path else local
            known = self.names[local] = (self.path, full, local.startswith("_"))
        return known

    def term(self, axes: tuple[str, ...]) -> Term:
        """The product of axes."""
        found = self._terms.get(axes)
        if found is None:
            sizes = self.axes
            found = self._terms[axes] = product([sizes[a] if a in sizes else getattr(self, a) for a in axes])
        return found

    def ref(self, tensor: Tensor, touched: Term | None = None) -> Ref:
        """A tensor of an equation with its bytes at this place."""
        frame, name, temporary = self.resolve(tensor.name)
        role = tensor.role
        width = ratio(tensor.bits, 8) if tensor.bits else self.options.precision.bytes(name, role)
        elements = self.term(tensor.stored)
        stored = elements.times(width)
        if touched is None and tensor.touched == tensor.stored:
            return Ref(name, frame, temporary, role, elements, stored, stored)
        touch = (touched or self.term(tensor.touched)).times(width)
        return Ref(name, frame, temporary, role, elements, stored, touch)


def _op(
    kind: str,
    equation: str,
    n: Sizes,
    *,
    tensor: Term | None = None,
    cuda: tuple[Term, ...] = (),
    touched: Term | None = None,
    grad: bool = True,
) -> Op:
    eq = parse(equation)
    reads = tuple(n.ref(t, touched) for t in eq.factors + eq.addends)
    return Op(kind, equation, reads, tuple(n.ref(t) for t in eq.outputs), tensor, cuda, n, 0, grad)


def matmul(equation: str, n: Sizes, over: str = "", *, grad: bool = True) -> Op:
    """Tensor-core work: 2 FLOPs for each point of the loop nest over the distinct axes.

    `over` names the loops where they are not the product of the distinct axes (causal pairs,
    routed experts). An added tensor is a bias in the same kernel: one CUDA-core FLOP an output.
    """
    eq = parse(equation)
    work = n.term(tuple(over.split()) or eq.loops).times(2)
    bias = tuple(n.term(t.stored) for t in eq.outputs) if eq.addends else ()
    return _op("matmul", equation, n, tensor=work, cuda=bias, grad=grad)


def conv2d(equation: str, n: Sizes) -> Op:
    """A convolution: loops over the output's axes and those of the kernel; padding is not skipped."""
    eq = parse(equation)
    weight = next((t for t in eq.factors if t.name.startswith("W_")), None)
    if weight is None:
        raise InputError(f"the kernel of a convolution must be named W_...: {equation!r}")
    loops = tuple(dict.fromkeys(eq.outputs[0].stored + weight.stored))
    bias = (n.term(eq.outputs[0].stored),) if eq.addends else ()
    return _op("conv2d", equation, n, tensor=n.term(loops).times(2), cuda=bias)


def pointwise(equation: str, flops: Size, n: Sizes, over: str = "") -> Op:
    """Elementwise work: `flops` CUDA-core FLOPs an element of the output (or a point of `over`)."""
    eq = parse(equation)
    work = n.term(tuple(over.split()) or eq.outputs[0].stored).times(flops)
    return _op("pointwise", equation, n, cuda=(work,))


def copy(equation: str, n: Sizes) -> Op:
    """A copy, cast, gather or layout change: bytes move, nothing is computed."""
    return _op("copy", equation, n)


def _rows(kind: str, equation: str, per_row: tuple[int, int], n: Sizes, row: str, over: tuple[str, ...]) -> Op:
    axes = parse(equation).outputs[0].stored
    a, b = per_row
    rest = n.term(tuple(x for x in axes if x not in row.split()))
    return _op(kind, equation, n, cuda=(n.term(over or axes).times(a), rest.times(b)))


def norm(equation: str, per_row: tuple[int, int], n: Sizes, row: str = "d") -> Op:
    """A normalisation of rows of n elements along axis `row`: a n + b FLOPs each."""
    return _rows("norm", equation, per_row, n, row, ())


def softmax(equation: str, n: Sizes, row: str, over: str = "") -> Op:
    """Softmax of rows of T elements: 5 T - 2 FLOPs each; `over` counts pairs instead of s*t."""
    return _rows("softmax", equation, constants.SOFTMAX, n, row, tuple(over.split()))


def lookup(equation: str, n: Sizes) -> Op:
    """A table lookup: stores the whole table, touches as many elements as it returns."""
    eq = parse(equation)
    return _op("lookup", equation, n, touched=n.term(eq.outputs[0].stored))


def unused(ops: Iterable[Op]) -> Iterator[Op]:
    """The weights of ops that a checkpoint holds and this computation never runs."""
    for op in ops:
        weights = tuple(r._replace(touched=NOTHING) for r in op.reads if r.role == "weight")
        yield op._replace(kind="unused", reads=weights, writes=(), tensor=None, cuda=())


def fuse(*ops: Op, keep: str, always: bool = False) -> Iterator[Op]:
    """One kernel: the tensors named in `keep` stay on chip, unless the execution is eager.

    `always` keeps them on chip even then (a layer that has no eager form).
    """
    inside = {ops[0].n.resolve(name)[1] for name in keep.split()}
    where = "always" if always else "flash"
    group = next(_GROUPS)

    def mark(refs: tuple[Ref, ...]) -> tuple[Ref, ...]:
        return tuple(r._replace(on_chip=where) if r.name in inside else r for r in refs)

    for op in ops:
        yield op._replace(reads=mark(op.reads), writes=mark(op.writes), group=group)


def backward(ops: Iterable[Op]) -> Iterator[Op]:
    """The ops of the backward pass, last first: gradients of every factor and weight.

    A product y = a * b gives da = dy * b and db = a * dy: the same loop nest, once an operand.
    Elsewhere each scalar operation costs its derivative times the incoming gradient.
    """
    for op in reversed(list(ops)):
        if not op.grad or op.kind in ("unused", "hold"):
            continue
        eq = parse(op.equation)
        gradients = tuple(_gradient(r) for r in op.writes)
        if op.kind not in ("matmul", "conv2d"):
            cuda = tuple(t.times(constants.BACKWARD_POINTWISE) for t in op.cuda)
            weights = op.reads if op.kind != "lookup" else ()
            yield op._replace(reads=gradients + weights, writes=tuple(map(_gradient, op.reads)), cuda=cuda)
            continue
        factors = op.reads[: len(eq.factors)]
        for index, factor in enumerate(factors):
            others = tuple(f for i, f in enumerate(factors) if i != index)
            yield op._replace(reads=gradients + others, writes=(_gradient(factor),), cuda=())
        if eq.addends:
            yield op._replace(reads=gradients, writes=tuple(map(_gradient, op.reads[len(eq.factors) :])), tensor=None)


def _gradient(ref: Ref) -> Ref:
    """The gradient of a tensor, as large as it; that of the KV cache is no cache."""
    return ref._replace(name=f"grad.{ref.name}", role="activation" if ref.role == "kv" else ref.role)


def require_axes(layer: str, wanted: Iterable[str], given: Mapping[str, Any]) -> None:
    """Raise InputError if workload sizes are missing or not of the layer."""
    names = list(wanted)
    listing = ", ".join(f"{a} ({AXES[a].split(':')[0]})" for a in names)
    for axis in given:
        if axis not in names:
            raise InputError(f"{layer} has no size {axis!r}; its sizes: {listing}")
    missing = [a for a in names if a not in given]
    if missing:
        raise InputError(f"{layer} needs size {missing[0]!r}; its sizes: {listing}")
