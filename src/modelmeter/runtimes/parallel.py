"""One of many devices: tensor, expert and data parallelism as passes. Each takes a graph and gives that of one device.

`Parallel` is how a user says it. What is split and where devices must talk is worked out by `splitter.py` and
`sharding.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, final

from modelmeter.errors import InputError, choose
from modelmeter.graph.graph import Graph
from modelmeter.graph.ops import Op
from modelmeter.runtimes.passes import Pass
from modelmeter.runtimes.splitter import Splitter, divisors
from modelmeter.sizes import Expr, Size, as_size, ceil_div, substituted, symbol


@final
@dataclass(frozen=True)
class Parallel:
    """How a model is spread: the graph is that of one of `tensor` x `data` devices.

    `tensor` devices share each matrix, `data` such groups share the batch. Experts are shared by `expert` devices: of
    one group, or of whole groups, to which tokens are then sent.

    >>> str(Parallel(tensor=2, data=4, expert=8)), Parallel(tensor=2, data=4).devices, bool(Parallel())
    ('tensor parallel 2, expert parallel 8, data parallel 4', 8, False)
    """

    tensor: int = 1
    expert: int = 1
    data: int = 1

    def __post_init__(self) -> None:
        for f in fields(self):
            value = as_size(f"parallel.{f.name}", getattr(self, f.name))
            if type(value) is not int:
                raise InputError(f"parallel.{f.name} must be one number, not {value!r}")
            object.__setattr__(self, f.name, value)
        one_group, several = divisors(self.tensor), (self.tensor * n for n in divisors(self.data))
        valid = sorted({*one_group, *several})
        if self.expert not in valid:
            told = ", ".join(map(str, valid))
            raise InputError(
                f"parallel.expert={self.expert} is no part of a group of parallel.tensor={self.tensor} devices, nor "
                f"several such groups of parallel.data={self.data}; valid: {told}"
            )

    @classmethod
    def of(cls, value: Any) -> Parallel:
        """A Parallel itself or a mapping of its fields. Raises InputError for anything else."""
        if isinstance(value, Parallel):
            return value
        if not isinstance(value, Mapping):
            raise InputError(f"parallel must map tensor, expert and data to numbers of devices, not {value!r}")
        for key in value:
            choose("parallel key", str(key), cls.__dataclass_fields__)
        return cls(**value)

    @property
    def devices(self) -> int:
        """How many there are."""
        return self.tensor * self.data

    def __bool__(self) -> bool:
        return self != Parallel()

    def __str__(self) -> str:
        named = ((f.name, getattr(self, f.name)) for f in fields(self))
        return ", ".join(f"{name} parallel {value}" for name, value in named if value > 1)

    def of_one(self, graph: Graph, replicated: bool = False) -> Graph:
        """The graph of one device; one that is `replicated` is split by the batch alone."""
        passes = [data_parallel(self.data)]
        if not replicated:
            passes.append(model_parallel(self.tensor, self.expert))
        for change in passes:
            graph = change(graph)
        return graph


def data_parallel(devices: int) -> Pass:
    """The batch is shared by so many devices, rounded up: the graph of the one that has the most."""
    share, known = ceil_div(symbol("b"), devices), dict[Expr, Size]()

    def of(size: Size) -> Size:
        if not isinstance(size, Expr) or "b" not in size.names:
            return size
        if size not in known:
            known[size] = substituted(size, "b", share)
        return known[size]

    def shared(op: Op) -> Op:
        sides = (
            tuple(r._replace(stored=of(r.stored), touched=of(r.touched)) for r in s) for s in (op.reads, op.writes)
        )
        reads, writes = sides
        n = op.n.bind(**{axis: of(size) for axis, size in op.n.axes.items()})
        n = replace(n, node=op.node._replace(times=of(op.node.times), again=of(op.node.again)), bound=op.n.bound)
        return op._replace(reads=reads, writes=writes, n=n, tensor=of(op.tensor), cuda=of(op.cuda), link=of(op.link))

    def run(graph: Graph) -> Graph:
        return graph.with_ops(map(shared, graph.ops)) if devices > 1 else graph

    return run


def tensor_parallel(devices: int) -> Pass:
    """Each layer is split along heads, width or the vocabulary; partial sums are added up where they are read."""
    return model_parallel(devices, 1)


def expert_parallel(devices: int) -> Pass:
    """Experts are shared by devices that each have a batch of their own, to which tokens are sent and come back."""
    return model_parallel(1, devices)


def model_parallel(tensor: int, expert: int) -> Pass:
    """Both: `expert` devices are a part of a group of `tensor` devices, or as many whole groups."""

    def run(graph: Graph) -> Graph:
        return Splitter(graph, tensor, expert).graph_of_one() if tensor * expert > 1 else graph

    return run
