"""Ops: what a layer is made of. One equation over named axes gives work, traffic and storage.

    yield matmul("y[b s f] = x[b s d] * W_up[d f] + W_bias[f]", n)

Names starting with W_ are weights, C_ the KV cache, others activations; a leading underscore marks an expression
temporary, which no name holds. `W[E:D d f]` stores E and touches D. `x:32[...]` is held in 32 bits. An op is no
kernel: which ops run as one is told by a runtime. Next: `graph.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from typing import NamedTuple

from modelmeter.errors import InputError
from modelmeter.graph.equations import Equation, Tensor, parse
from modelmeter.graph.forms import COPY, SOFTMAX, Form
from modelmeter.graph.place import Node, Sizes
from modelmeter.sizes import Size


class Ref(NamedTuple):
    """A tensor as an op sees it, in elements: `stored` of it are held, `touched` cross between memory and chip.

    `frame` is the path of the layer that owns the name; `bits` are declared ones (0: those of the role).
    """

    name: str
    frame: str
    temporary: bool
    role: str
    bits: int
    stored: Size
    touched: Size


class Composite(NamedTuple):
    """Several ops that a runtime may run as one kernel; `always`: they are one in every runtime.

    What code does beside attention: `merged` is an axis that it merges with the heads, so that torch copies q, k and v
    where it is longer than 1; `mask` is the tensor that it adds to the scores.
    """

    kind: str
    name: str
    always: bool = False
    merged: str = ""
    mask: str = ""


class Op(NamedTuple):
    """One equation at its place; work in FLOPs of one run. `kernel` is set by a runtime ("": a kernel of its own).

    `over` are its loops where they are not those of the equation, `row` the axes of what a norm or softmax works on;
    `again` is 0 where the op does not run after all.
    """

    kind: str
    equation: Equation
    reads: tuple[Ref, ...]
    writes: tuple[Ref, ...]
    n: Sizes
    tensor: Size = 0
    cuda: Size = 0
    form: Form | None = None
    over: tuple[str, ...] = ()
    row: tuple[str, ...] = ()
    composite: Composite | None = None
    kernel: str = ""
    grad: bool = True
    again: Size = 1

    @property
    def node(self) -> Node:
        return self.n.node

    @property
    def path(self) -> str:
        return self.n.node.path

    @property
    def times(self) -> Size:
        return self.n.node.times * self.again

    @property
    def output(self) -> Tensor:
        return self.equation.outputs[0]


def ref(n: Sizes, tensor: Tensor, equation: str = "") -> Ref:
    """A tensor of an equation at a place."""
    frame, name = n.resolve(tensor.name)
    stored = n.elements(tensor.stored, equation)
    touched = stored if tensor.touched == tensor.stored else n.elements(tensor.touched, equation)
    return Ref(name, frame, tensor.name[0] == "_", tensor.role, tensor.bits, stored, touched)


_FREE = {"copy", "lookup", "conv2d"}
"""Kinds whose outputs may have axes that the layer binds: they move elements to places that it works out."""


def _require_sources(kind: str, equation: Equation, over: tuple[str, ...], row: tuple[str, ...], n: Sizes) -> None:
    """Raise InputError for an axis of an output that nothing on the right has, or a row that is on no output."""
    for axis in _axes_from_nowhere(equation, over):
        if kind not in _FREE or axis not in n.bound:
            bound = ", nor bound by the layer" if kind in _FREE else ""
            raise InputError(
                f"{n.node.layer}: axis {axis!r} of the output of equation {equation.text!r} is on nothing to its "
                f"right{bound}"
            )
    for axis in (a for a in row if a not in equation.outputs[0].stored):
        raise InputError(f"{n.node.layer}: axis {axis!r} is a row of equation {equation.text!r}, whose output lacks it")


@cache
def _axes_from_nowhere(equation: Equation, over: tuple[str, ...]) -> tuple[str, ...]:
    right = {axis for t in equation.operands for axis in t.stored + t.touched} | set(over)
    return tuple(axis for t in equation.outputs for axis in t.touched if axis not in right)


def build(
    kind: str, text: str, n: Sizes, *, form: Form | None = None, over: str = "", row: str = "", grad: bool = True,
    loose: bool = False,
) -> Op:  # fmt: skip
    """An op of any kind; the functions below say what each kind means. Raises InputError for a malformed equation.

    `loose`: a pass makes it, which may move elements to any axes.
    """
    equation, loops = parse(text), tuple(over.split())
    if not loose:
        _require_sources(kind, equation, loops, tuple(row.split()), n)
    out = equation.outputs[0].stored
    tensor: Size = 0
    cuda: Size = 0
    if kind in ("matmul", "conv2d"):
        points = loops or (equation.loops if kind == "matmul" else _convolution(equation))
        tensor = n.elements(points, text) * 2
        cuda = n.elements(out, text) if equation.addends else 0
    elif form is not None:
        cuda = n.elements(loops or out, text) * form.element if form.element else 0
        rest = tuple(x for x in out if x not in row.split())
        cuda = cuda + n.elements(rest, text) * form.row if form.row else cuda
    reads = tuple([ref(n, t, text) for t in equation.operands])
    writes = tuple([ref(n, t, text) for t in equation.outputs])
    if kind == "lookup":
        reads = tuple(r._replace(touched=writes[0].stored) for r in reads)
    return Op(kind, equation, reads, writes, n, tensor, cuda, form, loops, tuple(row.split()), grad=grad)


def rebuilt(op: Op, n: Sizes) -> Op:
    """The same op at another place or with other sizes."""
    made = build(op.kind, op.equation.text, n, form=op.form, over=" ".join(op.over), row=" ".join(op.row), grad=op.grad)
    return made._replace(composite=op.composite, kernel=op.kernel)


def _convolution(equation: Equation) -> tuple[str, ...]:
    """The loops of a convolution: the output's axes and those of the kernel."""
    weight = next((t for t in equation.factors if t.role == "weight"), None)
    if weight is None:
        raise InputError(f"the kernel of a convolution must be named W_...: {equation.text!r}")
    return tuple(dict.fromkeys(equation.outputs[0].stored + weight.stored))


def matmul(equation: str, n: Sizes, over: str = "", *, grad: bool = True) -> Op:
    """Tensor-core work: 2 FLOPs for each point of the loop nest over the distinct axes.

    `over` names the loops where they are not the product of the distinct axes (causal pairs,
    routed experts). An added tensor is a bias in the same kernel: one CUDA-core FLOP an output.
    """
    return build("matmul", equation, n, over=over, grad=grad)


def conv2d(equation: str, n: Sizes) -> Op:
    """A convolution: loops over the output's axes and those of the kernel; padding is not skipped."""
    return build("conv2d", equation, n)


def pointwise(equation: str, form: Form | int, n: Sizes, over: str = "", *, grad: bool = True) -> Op:
    """Elementwise work: CUDA-core FLOPs an element of the output (or a point of `over`), of a form or a number."""
    return build("pointwise", equation, n, form=form if isinstance(form, Form) else Form(form), over=over, grad=grad)


def copy(equation: str, n: Sizes, form: Form = COPY) -> Op:
    """A copy, cast, gather or padding: bytes move, nothing is computed."""
    return build("copy", equation, n, form=form)


def norm(equation: str, form: Form, n: Sizes, row: str = "d") -> Op:
    """A normalisation of rows of n elements along axis `row`."""
    return build("norm", equation, n, form=form, row=row)


def softmax(equation: str, n: Sizes, row: str, over: str = "", form: Form = SOFTMAX) -> Op:
    """Softmax of rows of T elements: 5 T - 2 FLOPs each; `over` counts pairs instead of s*t."""
    return build("softmax", equation, n, form=form, over=over, row=row)


def lookup(equation: str, n: Sizes) -> Op:
    """A table lookup: stores the whole table, touches as many elements as it returns."""
    return build("lookup", equation, n)


def unused(ops: Iterable[Op]) -> Iterator[Op]:
    """The weights of ops that a checkpoint holds and this computation never runs."""
    for op in ops:
        weights = tuple(r._replace(touched=0) for r in op.reads if r.role == "weight")
        yield op._replace(kind="unused", reads=weights, writes=(), tensor=0, cuda=0)


def composite(kind: str, *ops: Op, always: bool = False, merged: str = "", mask: str = "") -> Iterator[Op]:
    """Ops that a runtime may run as one kernel; see Composite."""
    name = Composite(kind, f"{ops[0].node.serial}:{kind}:{ops[0].output.name}", always, merged, mask)
    for op in ops:
        yield op._replace(composite=name)
