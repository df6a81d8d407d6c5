"""A checked graph: the ops of a stage in order, each tensor with one shape, each read with a writer.

What breaks a rule is refused with layer, equation and tensor or axis: a wrong count that nobody sees is the worst
fault. Next: `runtimes/`, whose passes turn a graph into kernels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from modelmeter.errors import InputError
from modelmeter.graph.equations import Tensor
from modelmeter.graph.ops import Op, Ref
from modelmeter.graph.place import Root
from modelmeter.sizes import Expr, Size


class Read(NamedTuple):
    """A tensor that an op reads and the index of the op that wrote it (-1: an input of the stage)."""

    ref: Ref
    writer: int


@dataclass(frozen=True)
class Graph:
    """The ops of a stage; `inputs` are the tensors that it is given, by full name."""

    ops: tuple[Op, ...]
    inputs: frozenset[str]
    root: Root = field(default_factory=Root)

    def reads(self) -> Iterator[list[Read]]:
        """What each op reads."""
        written: dict[str, int] = {}
        for index, op in enumerate(self.ops):
            yield [Read(r, written.get(r.name, -1)) for r in op.reads]
            for w in op.writes:
                written[w.name] = index

    def with_ops(self, ops: Iterable[Op]) -> Graph:
        """The same stage with other ops."""
        return Graph(tuple(ops), self.inputs, self.root)

    def require_writers(self, maker: str = "") -> Graph:
        """This graph. Raises InputError, which names `maker`, if an op reads what none wrote and what is no input."""
        for op, reads in zip(self.ops, self.reads(), strict=True):
            for r, writer in reads:
                if writer < 0 and r.role == "activation" and r.name not in self.inputs:
                    inputs = ", ".join(sorted({name.rpartition(".")[2] for name in self.inputs})) or "none"
                    raise InputError(
                        f"{maker}{op.node.layer}: equation {op.equation.text!r} reads {r.name.rpartition('.')[2]!r}, "
                        f"which nothing before it writes and which is no input (inputs: {inputs})"
                    )
        return self


class _Written(NamedTuple):
    frame: str
    axes: tuple[str, ...]
    stored: Size


def checked(ops: Iterable[Op], inputs: Iterable[str], root: Root) -> Graph:
    """The graph of a stage's ops. Raises InputError for a read of what nothing wrote, or in another shape."""
    kept = tuple(op for op in ops if not (isinstance(op.times, int) and op.times == 0))
    known: dict[str, _Written] = {}
    for op in kept:
        for tensor, r in zip(op.equation.operands, op.reads, strict=False) if op.kind != "unused" else ():
            _check_shape(op, tensor, r, known.setdefault(r.name, _Written(op.path, tensor.stored, r.stored)))
        for tensor, w in zip(op.equation.outputs, op.writes, strict=False):
            if w.role == "kv" and w.name in known:
                _check_shape(op, tensor, w, known[w.name])
            known[w.name] = _Written(op.path, tensor.stored, w.stored)
    return Graph(kept, frozenset(inputs) | root.buffers, root).require_writers()


def _check_shape(op: Op, tensor: Tensor, r: Ref, found: _Written) -> None:
    if found.stored is r.stored and found.axes == tensor.stored:
        return
    same_size = found.stored is r.stored or _equal(found.stored, r.stored)
    if same_size and (found.frame != op.path or set(found.axes) == set(tensor.stored) or _renamed(op, found, tensor)):
        return
    raise InputError(
        f"{op.node.layer}: equation {op.equation.text!r} has {tensor.name!r} as [{' '.join(tensor.stored)}], but "
        f"it is [{' '.join(found.axes)}]: a tensor has one shape"
    )


def _renamed(op: Op, found: _Written, tensor: Tensor) -> bool:
    """Whether axes differ only by names that the layer binds (t for s, s for u v)."""
    differing = set(found.axes) ^ set(tensor.stored)
    return bool(differing & op.n.bound) or op.node.layer == ""


def _equal(a: Size, b: Size) -> bool:
    return not isinstance(a, Expr) and not isinstance(b, Expr) and bool(a == b)
