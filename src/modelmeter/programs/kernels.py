"""Kernels: what a runtime launches, with loops, work, traffic and how often each runs.

Traffic is one law for every runtime: a kernel reads each tensor from outside once, and writes what somebody outside
it reads, what leaves the stage, and the KV cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from modelmeter.graph.graph import Graph, Read
from modelmeter.graph.ops import Op, Ref
from modelmeter.programs.precision import Precision
from modelmeter.runtimes.passes import WHOLE_STAGE
from modelmeter.sizes import Size, maximum, ratio


class Move(NamedTuple):
    """A tensor that crosses between memory and chip in one run of a kernel; `op` is the op that does it."""

    op: int
    ref: Ref
    elements: Size
    writes: bool


class Group(NamedTuple):
    """The ops of one kernel by index, how often it runs, what it moves; `spans` says that it spans repetitions."""

    ops: tuple[int, ...]
    times: Size
    moves: tuple[Move, ...]
    spans: bool


@dataclass(frozen=True)
class Kernel:
    """One kernel of a stage, each count that of one run; `runs` is how often it runs.

    `loops` are m, n, k and batch of its largest product (empty without one); `tensor_flops` and `cuda_flops` are by
    format, `read_bytes` and `written_bytes` by role. `step` counts are those of one evaluation of the stage's graph.
    """

    path: str
    ops: tuple[str, ...]
    runs: Size
    loops: dict[str, Size]
    tensor_flops: dict[str, Size]
    cuda_flops: dict[str, Size]
    read_bytes: dict[str, Size]
    written_bytes: dict[str, Size]

    @property
    def io_bytes(self) -> Size:
        """Bytes of one run."""
        return sum(self.read_bytes.values()) + sum(self.written_bytes.values())

    @property
    def flops(self) -> Size:
        """FLOPs of one run, both engines."""
        return sum(self.tensor_flops.values()) + sum(self.cuda_flops.values())


def groups(graph: Graph) -> list[Group]:
    """The kernels of a graph that a runtime has lowered, in the order of their first ops."""
    labels = [op.kernel or f"#{index}" for index, op in enumerate(graph.ops)]
    members: dict[str, list[int]] = {}
    for index, label in enumerate(labels):
        members.setdefault(label, []).append(index)
    reads = list(graph.reads())
    users: dict[tuple[str, int], set[str]] = {}
    for label, found in zip(labels, reads, strict=True):
        for r, writer in found:
            users.setdefault((r.name, writer), set()).add(label)
    return [_group(graph, label, indices, labels, reads, users) for label, indices in members.items()]


def _group(
    graph: Graph, label: str, indices: list[int], labels: list[str], reads: list[list[Read]],
    users: dict[tuple[str, int], set[str]],
) -> Group:  # fmt: skip
    """A kernel of these ops: it reads what others wrote and the cache, and writes what others read, or nobody."""
    spans = label == WHOLE_STAGE or len({graph.ops[i].node.loop for i in indices}) > 1
    moves: dict[tuple[str, int], Move] = {}
    written = []
    for i in indices:
        op = graph.ops[i]
        often = op.times if spans else 1
        for r, writer in reads[i]:
            if writer < 0 or labels[writer] != label or r.role == "kv":
                move = Move(i, r, r.touched * (1 if r.role == "activation" else often), False)
                known = moves.get((r.name, writer), move)
                moves[r.name, writer] = known._replace(elements=maximum(known.elements, move.elements))
        for w in op.writes:
            if w.role == "kv" or users.get((w.name, i)) != {label}:
                written.append(Move(i, w, w.touched * (1 if w.role == "activation" else often), True))
    return Group(tuple(indices), 1 if spans else graph.ops[indices[0]].times, (*moves.values(), *written), spans)


def kernels_of(graph: Graph, precision: Precision) -> Iterator[Kernel]:
    """The kernels of a lowered graph, counts as expressions; unused weights and constants make none."""
    for group in groups(graph):
        ops = [graph.ops[i] for i in group.ops]
        if all(op.kind in ("unused", "constant") for op in ops):
            continue
        read: dict[str, Size] = {}
        written: dict[str, Size] = {}
        for _, r, elements, writes in group.moves:
            side = written if writes else read
            side[r.role] = side.get(r.role, 0) + elements * bytes_of(r, precision)
        tensor: dict[str, Size] = {}
        cuda: dict[str, Size] = {}
        for op in ops:
            form = precision.format("activation", max((r.bits for r in (*op.reads, *op.writes)), default=0))
            often = op.times if group.spans else 1
            for work, engine in ((op.tensor, tensor), (op.cuda, cuda)):
                if not isinstance(work, int) or work:
                    engine[form] = engine.get(form, 0) + work * often
        main = next((op for op in ops if op.kind in ("matmul", "conv2d")), None)
        texts = tuple(op.equation.text for op in ops)
        yield Kernel(ops[0].path, texts, group.times, loops_of(main) if main else {}, tensor, cuda, read, written)


def bytes_of(r: Ref, precision: Precision) -> Size:
    """Bytes an element of a tensor: its declared bits, or those of its name and role."""
    return ratio(r.bits, 8) if r.bits else precision.bytes(r.name, r.role)


def loops_of(op: Op) -> dict[str, Size]:
    """m, n, k and batch of a product: 2 m n k batch are its FLOPs, attention counted full.

    A convolution is a product of its patches with its kernel; routed experts are a batch of the distinct ones,
    each with its share of the rows.
    """
    n, equation = op.n, op.equation
    out, left, right = equation.outputs[0].stored, equation.factors[0], equation.factors[1]
    if op.kind == "conv2d":
        kernel = right.stored
        axes = {"m": [a for a in out if a not in kernel], "n": [a for a in out if a in kernel]}
        return {k: n.elements(tuple(v)) for k, v in axes.items()} | {
            "k": n.elements(tuple(a for a in kernel if a not in out)), "batch": 1,
        }  # fmt: skip
    a, b = left.touched, right.touched
    stacked = [x for x in b if x not in a and x not in out]  # experts
    batch = n.elements((*(x for x in a if x in b and x in out), *stacked))
    rows = n.elements(tuple(x for x in a if x not in b))
    return {
        "m": ratio(rows, n.elements(tuple(stacked))) if stacked else rows,
        "n": n.elements(tuple(x for x in b if x not in a and x not in stacked)),
        "k": n.elements(tuple(x for x in a if x in b and x not in out)),
        "batch": batch,
    }
