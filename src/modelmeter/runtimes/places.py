"""What of a stage runs at one place, where a model is spread over devices or processes: the last pass of a runtime.

Which place an op has is told by whoever places a model (`placement.py`). A tensor that one place writes and another
reads is received there: it takes room and crosses, by no kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import final

from modelmeter.graph.graph import Graph
from modelmeter.graph.ops import Op, Ref

RECEIVED = "received"
"""The kind of an op that stands for one of another place; it writes what is received."""


@final
@dataclass(frozen=True)
class Here:
    """A pass that keeps the ops of one place; `home` tells that of an op.

    What the host gives (masks, positions: ops that are constants) is given to every place that reads it.

    >>> from modelmeter.layers import GatedMLP
    >>> graph = GatedMLP(2, 3).graph()
    >>> there = Here(lambda op: "second" if op.output.name == "y" else "first", "second")(graph)
    >>> [(op.kind, op.output.name) for op in there.ops]
    [('received', '_h'), ('matmul', 'y')]
    """

    home: Callable[[Op], str]
    place: str

    def __call__(self, graph: Graph) -> Graph:
        return graph.with_ops(self._ops(graph))

    def _ops(self, graph: Graph) -> Iterator[Op]:
        homes = [self.home(op) for op in graph.ops]
        foreign = [
            [r for r in reads if r.writer >= 0 and r.ref.role == "activation" and homes[r.writer] != home]
            for home, reads in zip(homes, graph.reads, strict=True)
        ]
        readers: dict[tuple[str, int], set[str]] = {}
        for home, reads in zip(homes, foreign, strict=True):
            for r, writer in (r for r in reads if not _idle(r.ref)):
                readers.setdefault((r.name, writer), set()).add(home)
        for index, (op, home, reads) in enumerate(zip(graph.ops, homes, foreign, strict=True)):
            leaving = tuple(w for w in op.writes if (w.name, index) in readers)
            if home == self.place:
                yield op._replace(reads=tuple(r for r in op.reads if not (_idle(r) and r in (f.ref for f in reads))))
                if leaving and op.kind != "constant":
                    yield _apart(op, "sent", reads=tuple(w._replace(stored=0) for w in leaving))
            elif here := tuple(w for w in leaving if self.place in readers[w.name, index]):
                yield _apart(op, op.kind if op.kind == "constant" else RECEIVED, writes=here)
        held = tuple(r for reads in foreign for r, writer in reads if _idle(r) and homes[writer] == self.place)
        if held:
            yield _apart(graph.ops[-1], "view", reads=held)


def _idle(r: Ref) -> bool:
    """Whether a tensor is only to be alive: nothing of it is read."""
    return isinstance(r.stored, int) and not r.stored


def _apart(op: Op, kind: str, reads: tuple[Ref, ...] = (), writes: tuple[Ref, ...] = ()) -> Op:
    """What stands for an op outside of any loop, without work and traffic, in a kernel of its own."""
    node = op.node._replace(times=1, loop="", held=("", ""), again=0)
    reads, writes = (tuple(r._replace(touched=0) for r in side) for side in (reads, writes))
    label = ":".join((kind, str(op.node.serial), *(r.name for r in (*reads, *writes))))
    return op._replace(
        kind=kind, reads=reads, writes=writes, n=replace(op.n, node=node), tensor=0, cuda=0, composite=None,
        kernel=label, again=1,
    )  # fmt: skip
