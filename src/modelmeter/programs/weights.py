"""The weights of a graph as a file holds them: rows of columns, one matrix or one for each expert.

The columns are what a product sums over: quantised blocks lie along them. Next: `storage.py`, `policies.py`.
"""

from __future__ import annotations

from typing import NamedTuple

from modelmeter.graph.equations import Tensor
from modelmeter.graph.graph import Graph
from modelmeter.graph.ops import Op
from modelmeter.graph.place import Sizes
from modelmeter.sizes import Size


class Weight(NamedTuple):
    """A weight or a buffer: its columns, rows and matrices as far as it has them, how often it is there.

    `one` names those that are one matrix with it ("": none), `n` its place.
    """

    name: str
    shape: tuple[Size, ...]
    times: Size
    one: str
    n: Sizes

    @property
    def columns(self) -> Size:
        """Elements of a row."""
        return self.shape[0]

    @property
    def rows(self) -> Size:
        """Rows of a matrix."""
        return self.shape[1] if len(self.shape) > 1 else 1


def weights_of(graph: Graph) -> dict[str, Weight]:
    """The weights and buffers of a graph by name, each as the first op that reads it has it."""
    found: dict[str, Weight] = {}
    for op in graph.ops:
        together = op.composite.name if op.composite and op.composite.kind == "projections" else ""
        for tensor in op.equation.operands:
            name = op.n.resolve(tensor.name)[1]
            if name not in found and (tensor.role == "weight" or name in graph.root.buffers):
                found[name] = Weight(name, _shape(op, tensor), op.times, together, op.n)
    return found


def _shape(op: Op, tensor: Tensor) -> tuple[Size, ...]:
    """Columns, rows and matrices of an operand."""
    axes, out = tensor.stored, {a for t in op.equation.outputs for a in t.stored}
    beside = {a for t in op.equation.operands if t.role != "weight" for a in (*t.stored, *t.touched)}
    if op.kind in ("lookup", "copy"):
        kinds = ["columns" if place == len(axes) - 1 else "rows" for place in range(len(axes))]
    else:
        product = op.kind in ("matmul", "conv2d") and tensor in op.equation.factors
        along = {a for a in axes if a not in out} if product else set(op.row.split()) & set(axes) or set(axes)
        apart = set() if op.kind == "conv2d" else {a for a in axes if a not in out | beside} & {*axes[:1]}
        kinds = ["matrices" if a in apart else "columns" if a in along else "rows" for a in axes]
    wanted = ("columns", "rows", "matrices")
    parts = [tuple(a for a, k in zip(axes, kinds, strict=True) if k == kind) for kind in wanted]
    return (op.n.elements(parts[0]), *(op.n.elements(part) for part in parts[1:] if part))
