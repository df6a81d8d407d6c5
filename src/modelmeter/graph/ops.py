"""Ops: what a layer is made of. One equation over named axes gives work, traffic and storage.

    yield matmul("y[b s f] = x[b s d] * W_up[d f] + W_bias[f]", n)

Names starting with W_ are weights, C_ the KV cache, others activations; a leading underscore marks an expression
temporary, which no name holds. An op is no kernel: which ops run as one is told by a runtime. Next: `graph.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import NamedTuple

from modelmeter.errors import InputError
from modelmeter.graph.equations import Equation, Tensor, parse
from modelmeter.graph.forms import SOFTMAX, Form
from modelmeter.graph.place import Node, Sizes
from modelmeter.sizes import Size


class Ref(NamedTuple):
    """A tensor as an op sees it: elements that are `stored`, and `touched`, which cross between memory and chip.

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
    """Several ops that a runtime may run as one kernel, and what code does beside attention.

    Where `merged`, an axis that it merges with the heads, is longer than 1, torch copies q, k and v; the tensor `mask`
    is added to the scores. `returned`: who attends is given the weights too, and holds them.
    """

    kind: str
    name: str
    merged: str = ""
    mask: str = ""
    returned: bool = True


COLLECTIVES = {"all_reduce": 2, "all_gather": 1, "all_to_all": 1}
"""Kinds that send to other devices, and how often each point of their loops is sent: a sum there and back."""
SILENT = frozenset({"unused", "constant", "view", "reserved", "received", "sent"})
"""Kinds that launch nothing: unread weights, inputs, views, what a graph has room for, what goes between places."""


class Op(NamedTuple):
    """One equation at its place; `tensor` and `cuda` FLOPs of one run; `kernel` is set by a runtime ("": its own).

    `over` are its loops where they are not those of the equation, `row` the axes of what a norm or softmax works on;
    `again` is 0 where the op does not run after all. `link` are the elements that it sends to other devices.
    """

    kind: str
    equation: Equation
    reads: tuple[Ref, ...]
    writes: tuple[Ref, ...]
    n: Sizes
    tensor: Size = 0
    cuda: Size = 0
    form: Form | None = None
    over: str = ""
    row: str = ""
    grad: bool = True
    composite: Composite | None = None
    kernel: str = ""
    again: Size = 1
    link: Size = 0

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
    stored, touched = n.elements(tensor.stored, equation), n.elements(tensor.touched, equation)
    return Ref(name, frame, tensor.name[0] == "_", tensor.role, tensor.bits, stored, touched)


def build(
    kind: str, text: str, n: Sizes, form: Form | None = None, over: str = "", row: str = "", grad: bool = True
) -> Op:
    """An op of any kind; what each means is said below. Raises InputError for a malformed equation."""
    equation, loops = parse(text), tuple(over.split())
    out, tensor, cuda = equation.outputs[0].touched, 0, 0
    if kind in ("matmul", "conv2d"):
        kernels = [t.stored for t in equation.factors if t.role == "weight"]
        if kind == "conv2d" and not kernels:
            raise InputError(f"the kernel of a convolution must be named W_...: {text!r}")
        loops = loops or (equation.loops if kind == "matmul" else tuple(dict.fromkeys(out + kernels[0])))
        tensor = n.elements(loops, text) * 2
        cuda = n.elements(out, text) if equation.addends else 0
    elif form is not None:
        rows = tuple(axis for axis in out if axis not in row.split())
        cuda = n.elements(loops or out, text) * form.element + n.elements(rows, text) * form.row
    reads, writes = (tuple(ref(n, t, text) for t in side) for side in (equation.operands, equation.outputs))
    if kind == "lookup":
        reads = tuple(r._replace(touched=writes[0].stored) for r in reads)
    link = n.elements(loops) * COLLECTIVES[kind] if kind in COLLECTIVES else 0
    return Op(kind, equation, reads, writes, n, tensor, cuda, form, over, row, grad, link=link)


def resized(op: Op, n: Sizes, over: str | None = None) -> Op:
    """The same op of the same tensors at other sizes."""
    made = build(op.kind, op.equation.text, n, op.form, op.over if over is None else over, op.row, op.grad)
    sides = ((made.reads, op.reads), (made.writes, op.writes))
    reads, writes = (tuple(r._replace(name=old.name) for r, old in zip(*side, strict=True)) for side in sides)
    return made._replace(reads=reads, writes=writes, composite=op.composite, kernel=op.kernel)


matmul = partial(build, "matmul")
"""Tensor-core work: 2 FLOPs for each point of the loop nest over the distinct axes.

`over` names the loops where they are not that product (causal pairs, routed experts). An added tensor is a bias in the
same kernel: one CUDA-core FLOP an output.
"""
conv2d = partial(build, "conv2d")
"""A convolution: loops over the output's axes and those of the kernel; padding is not skipped."""
copy = partial(build, "copy")
"""A copy, cast, gather or padding: bytes move, nothing is computed."""
softmax = partial(build, "softmax", form=SOFTMAX)
"""Softmax of each `row` of T elements: 5 T - 2 FLOPs; `over` counts pairs instead of s*t."""
lookup = partial(build, "lookup")
"""A table lookup: stores the whole table, touches as many elements as it returns."""


def pointwise(equation: str, form: Form | int, n: Sizes, over: str = "", *, grad: bool = True) -> Op:
    """Elementwise work: CUDA-core FLOPs an element of the output (or a point of `over`), of a form or a number."""
    return build("pointwise", equation, n, form if isinstance(form, Form) else Form(form), over, grad=grad)


def norm(equation: str, form: Form, n: Sizes, row: str = "d") -> Op:
    """A normalisation of rows of n elements along axis `row`."""
    return build("norm", equation, n, form, row=row)


def unused(ops: Iterable[Op]) -> Iterator[Op]:
    """The weights of ops that a checkpoint holds and this computation never runs."""
    for op in ops:
        weights = tuple(r._replace(touched=0) for r in op.reads if r.role == "weight")
        yield op._replace(kind="unused", reads=weights, writes=(), tensor=0, cuda=0, kernel="")


def composite(
    kind: str, *ops: Op, always: bool = False, merged: str = "", mask: str = "", returned: bool = True
) -> Iterator[Op]:
    """Ops that a runtime may run as one kernel (`always`: that are one in every runtime); see Composite."""
    name = f"{ops[0].node.serial}:{kind}:{ops[0].output.name}"
    whole = Composite(kind, name, merged, mask, returned)
    return (op._replace(composite=whole, kernel=name if always else "") for op in ops)
