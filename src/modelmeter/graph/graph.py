"""A checked graph: the ops of a stage in order, each tensor with one shape, each read with a writer.

What breaks a rule is refused with layer, equation and tensor or axis: a wrong count that nobody sees is the worst
fault. Next: `runtimes/`, whose passes turn a graph into kernels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from typing import Any, NamedTuple

from modelmeter.errors import InputError
from modelmeter.graph.equations import Tensor
from modelmeter.graph.ops import Op, Ref
from modelmeter.graph.place import Root
from modelmeter.sizes import Size

_MOVES = {"copy", "lookup", "conv2d", "unused"}
"""Kinds whose outputs may have axes that the layer binds: they move elements to places that it works out."""


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

    @cached_property
    def reads(self) -> list[list[Read]]:
        """What each op reads."""
        written: dict[str, int] = {}
        found = []
        for index, op in enumerate(self.ops):
            found.append([Read(r, written.get(r.name, -1)) for r in op.reads])
            for w in op.writes:
                written[w.name] = index
        return found

    @property
    def labels(self) -> list[str]:
        """The kernel of each op; one that is in none with others is its own."""
        return [op.kernel or f"#{index}" for index, op in enumerate(self.ops)]

    def tensors(self) -> Iterator[str]:
        """The names of all that is read or written."""
        return (r.name for op in self.ops for r in (*op.reads, *op.writes))

    def users(self, labels: Sequence[Any]) -> dict[tuple[str, int], set[Any]]:
        """The labels of the ops that read a tensor, by its name and writer; one label an op."""
        found: dict[tuple[str, int], set[Any]] = {}
        for label, reads in zip(labels, self.reads, strict=True):
            for r, writer in reads:
                found.setdefault((r.name, writer), set()).add(label)
        return found

    def with_ops(self, ops: Iterable[Op]) -> Graph:
        """The same stage with other ops."""
        return replace(self, ops=tuple(ops))

    def require_writers(self, maker: str = "") -> Graph:
        """This graph. Raises InputError, which names `maker`, if an op reads what none wrote and what is no input."""
        inputs = ", ".join(sorted({name.rpartition(".")[2] for name in self.inputs})) or "none"
        for op, reads in zip(self.ops, self.reads, strict=True):
            for r in (r for r, writer in reads if writer < 0 and r.role == "activation" and r.name not in self.inputs):
                raise InputError(
                    f"{maker}{op.node.layer}: equation {op.equation.text!r} reads {r.name.rpartition('.')[2]!r}, "
                    f"which nothing before it writes and which is no input (inputs: {inputs})"
                )
        return self

    def require_order(self, maker: str = "") -> None:
        """Raise InputError, which names `maker`, if two kernels wait for each other."""
        labels = self.labels
        waits: dict[str, set[str]] = {label: set() for label in labels}
        for label, reads in zip(labels, self.reads, strict=True):
            waits[label] |= {labels[writer] for _, writer in reads if writer >= 0} - {label}
        try:
            TopologicalSorter(waits).prepare()
        except CycleError as error:
            ring = " and ".join(map(repr, sorted(set(error.args[1]))))
            raise InputError(f"{maker}kernels wait for each other: {ring}") from None


def checked(ops: Iterable[Op], inputs: Iterable[str], root: Root) -> Graph:
    """The graph of a stage's ops. Raises InputError for axes from nowhere, a read of what nothing wrote, two shapes."""
    kept = tuple(op for op in ops if not isinstance(op.times, int) or op.times)
    known: dict[str, tuple[str, Tensor, Size]] = {}
    for op in kept:
        _check_axes(op)
        for tensor, r in zip(op.equation.operands, op.reads, strict=False) if op.kind != "unused" else ():
            _check_shape(op, tensor, r.stored, *known.setdefault(r.name, (op.path, tensor, r.stored)))
        for tensor, w in zip(op.equation.outputs, op.writes, strict=False):
            if w.role == "kv" and w.name in known:
                _check_shape(op, tensor, w.stored, *known[w.name])
            known[w.name] = (op.path, tensor, w.stored)
    return Graph(kept, frozenset(inputs) | root.buffers, root).require_writers()


def _check_axes(op: Op) -> None:
    """Raise InputError for an axis of an output that nothing on the right has, or a row that is on no output."""
    layer, equation, moves = op.node.layer, f"equation {op.equation.text!r}", op.kind in _MOVES
    for axis in op.equation.new:
        if axis not in op.over.split() and not (moves and axis in op.n.bound):
            where = "to its right, nor bound by the layer" if moves else "to its right"
            raise InputError(f"{layer}: axis {axis!r} of the output of {equation} is on nothing {where}")
    for tensor in (t for t in op.equation.outputs if t.role == "weight"):
        raise InputError(f"{layer}: {equation} writes the weight {tensor.name!r}; weights are only read")
    for axis in op.row.split():
        if axis not in op.output.stored:
            raise InputError(f"{layer}: axis {axis!r} is a row of {equation}, whose output lacks it")


def _check_shape(op: Op, tensor: Tensor, stored: Size, path: str, known: Tensor, size: Size) -> None:
    """Raise InputError unless a tensor has the size that is known, and within a layer the axes, but for bound ones."""
    differing = set(known.stored) ^ set(tensor.stored)  # t for s, s for u v
    if known.bits != tensor.bits and op.path == path:
        bits = " and ".join(str(b) if b else "its role's" for b in (known.bits, tensor.bits))
        raise InputError(
            f"{op.node.layer}: equation {op.equation.text!r} has {tensor.name!r} in two formats: {bits} bits"
        )
    other_axes = path == op.path and differing and op.node.layer and not differing & op.n.bound
    if other_axes or (stored is not size and stored != size):
        raise InputError(
            f"{op.node.layer}: equation {op.equation.text!r} has {tensor.name!r} as [{' '.join(tensor.stored)}] of "
            f"{stored} elements, but it is [{' '.join(known.stored)}] of {size}: a tensor has one shape"
        )
