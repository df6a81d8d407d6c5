"""Kernels: what a runtime launches, with loops, work, traffic and how often each runs.

Traffic is one law for every runtime: a kernel reads each tensor from outside once, and writes what somebody outside
it reads, what leaves the stage, and the KV cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from modelmeter.graph.graph import Graph
from modelmeter.graph.ops import COLLECTIVES, SILENT, Op, Ref
from modelmeter.programs.storage import Storage
from modelmeter.runtimes.passes import WHOLE_STAGE
from modelmeter.sizes import Size, maximum, ratio

PRODUCTS = ("matmul", "conv2d")
"""Kinds of ops that a tensor core runs."""


class Move(NamedTuple):
    """Bytes that cross between memory and chip in one run of a kernel; `op` is the op that does it."""

    op: int
    role: str
    bytes: Size
    writes: bool


class Group(NamedTuple):
    """The ops of one kernel, each with its index and how often one run runs it; how often it runs, what it moves."""

    ops: list[tuple[int, Op, Size]]
    times: Size
    moves: list[Move]


@dataclass(frozen=True)
class Kernel:
    """One kernel of a stage, each count that of one run; `runs` is how often it runs.

    `loops` are m, n, k and batch of its first product (empty without one); FLOPs are by format, bytes by role.
    `unpack_flops` are the CUDA-core operations that take the weights that it reads apart, by their format: what a
    kernel that multiplies in another format does beside its FLOPs, in none of the sums. `attention` is the shape of
    one that is attention as a whole (see `attention_of`), `grouped` says that its products are those of experts, of
    which a token has so many `picks`, `products` how many of different operands it has: with more than one, and no
    attention, it is a bound.
    A `collective` (its kind; "": none) of so many `devices` sends `link_bytes` to others, beside its memory traffic.
    """

    path: str
    ops: tuple[str, ...]
    runs: Size
    loops: dict[str, Size]
    tensor_flops: dict[str, Size]
    cuda_flops: dict[str, Size]
    read_bytes: dict[str, Size]
    written_bytes: dict[str, Size]
    unpack_flops: dict[str, Size]
    attention: dict[str, Size] = field(default_factory=dict)
    grouped: bool = False
    products: int = 0
    picks: Size = field(default=1, kw_only=True)
    link_bytes: Size = field(default=0, kw_only=True)
    collective: str = field(default="", kw_only=True)
    devices: int = field(default=1, kw_only=True)

    @property
    def io_bytes(self) -> Size:
        """Bytes of one run."""
        return sum(self.read_bytes.values()) + sum(self.written_bytes.values())

    @property
    def flops(self) -> Size:
        """FLOPs of one run, both engines."""
        return sum(self.tensor_flops.values()) + sum(self.cuda_flops.values())


def groups(graph: Graph, storage: Storage) -> Iterator[Group]:
    """The kernels of a graph that a runtime has lowered, in the order of their first ops.

    One reads what others wrote and the cache, and writes what others read, or nobody.
    """
    labels = graph.labels
    reads, users = graph.reads, graph.users(labels)
    members: dict[str, list[int]] = {}
    for index, label in enumerate(labels):
        members.setdefault(label, []).append(index)
    for label, indices in members.items():
        spans = label == WHOLE_STAGE or len({graph.ops[i].node.loop for i in indices}) > 1
        ops = [(i, graph.ops[i], graph.ops[i].times if spans else 1) for i in indices]
        read: dict[tuple[str, int], Move] = {}
        written: list[Move] = []
        for i, op, often in ops:
            for r, writer in reads[i]:
                if writer < 0 or labels[writer] != label or r.role == "kv":
                    move = _move(i, r, often, storage)
                    known = read.setdefault((r.name, writer), move)
                    if known.bytes is not move.bytes:
                        read[r.name, writer] = known._replace(bytes=maximum(known.bytes, move.bytes))
            leaving = (w for w in op.writes if w.role == "kv" or users.get((w.name, i)) != {label})
            written += (_move(i, w, often, storage, writes=True) for w in leaving)
        yield Group(ops, 1 if spans else ops[0][1].times, [*read.values(), *written])


def linked(op: Op, storage: Storage) -> Size:
    """Bytes that one run of an op sends to other devices."""
    return op.link * storage.bytes(op.reads[0]) if op.kind in COLLECTIVES else 0


def _move(op: int, r: Ref, often: Size, storage: Storage, writes: bool = False) -> Move:
    elements = r.touched * (1 if r.role == "activation" else often)
    return Move(op, r.role, elements * storage.bytes(r), writes)


def kernels_of(graph: Graph, storage: Storage) -> Iterator[Kernel]:
    """The kernels of a lowered graph, counts as expressions; unused weights and constants make none."""
    for group in groups(graph, storage):
        ops = [op for _, op, _ in group.ops]
        if all(op.kind in SILENT for op in ops):
            continue
        main = next((op for op in ops if op.kind in PRODUCTS), None)
        texts = tuple(op.equation.text for op in ops)
        shape, grouped = attention_of(ops), main is not None and bool(_loop_axes(main)["experts"])
        loops, distinct = loops_of(main) if main else {}, len({op.reads[0].name for op in ops if op.kind in PRODUCTS})
        found = Kernel(ops[0].path, texts, group.times, loops, {}, {}, {}, {}, {}, shape, grouped, distinct)
        if main is not None and grouped:
            found = replace(found, picks=main.n.elements(tuple(x for x in _loop_axes(main)["m"] if x == _PICKED)))
        sends = next((op for op in ops if op.kind in COLLECTIVES), None)
        if sends:
            link = sum((linked(op, storage) * often for _, op, often in group.ops), start=0)
            found = replace(found, link_bytes=link, collective=sends.kind, devices=sends.n.devices)
        for move in group.moves:
            side = found.written_bytes if move.writes else found.read_bytes
            side[move.role] = side.get(move.role, 0) + move.bytes
        for _, op, often in group.ops:
            bits = max((r.bits for r in (*op.reads[:1], *op.writes[:1])), default=0)  # further ones may be indices
            plain = f"fp{bits}" if bits else str(storage.precision.activations)
            product = storage.multiplied(op.reads, plain)
            for form, work, engine in ((product, op.tensor, found.tensor_flops), (plain, op.cuda, found.cuda_flops)):
                if not isinstance(work, int) or work:
                    engine[form] = engine.get(form, 0) + work * often
        _unpack(group, storage, found.unpack_flops)
        yield found


def _unpack(group: Group, storage: Storage, found: dict[str, Size]) -> None:
    """Enter what taking the weights of a kernel apart costs, each once."""
    weights = {r.name: (r, often) for _, op, often in group.ops for r in op.reads if r.role == "weight" and not r.bits}
    for r, often in weights.values():
        for part in storage.shares(r):
            if part.format.work:
                work = r.touched * often * part.share * part.format.work
                found[part.format.name] = found.get(part.format.name, 0) + work


def _loop_axes(op: Op) -> dict[str, list[str]]:
    """The axes of a product's m, n, k and batch, and of its experts."""
    out, left, right = op.equation.outputs[0].stored, *op.equation.factors[:2]
    a, b = left.touched, right.touched
    if op.kind == "conv2d":
        a = tuple(x for x in out + b if (x in out) != (x in b))
    axes: dict[str, list[str]] = {"m": [], "n": [], "k": [], "batch": [], "experts": []}
    for x in dict.fromkeys(a + b):
        reduced = x not in out
        loop = "m" if x not in b else ("k" if reduced else "batch") if x in a else ("experts" if reduced else "n")
        axes[loop].append(x)
    return axes


def loops_of(op: Op) -> dict[str, Size]:
    """m, n, k and batch of a product: 2 m n k batch are its FLOPs, attention counted full.

    A convolution is a product of its patches with its kernel; routed experts are a batch of the distinct ones,
    each with its share of the rows.
    """
    m, n, k, batch, experts = (op.n.elements(tuple(found)) for found in _loop_axes(op).values())
    return {"m": ratio(m, experts), "n": n, "k": k, "batch": batch * experts}


def attention_of(ops: Sequence[Op]) -> dict[str, Size]:
    """The shape of a kernel that is attention as a whole, {} for another: two products with a softmax between.

    s queries of `batch` sequences and `heads` heads look at t keys of `kv_heads`; `width` and `values` are those of a
    head; where `causal` is 1, the queries are the last s of t positions, each with the `window` (0: all) up to its own.
    One with `shared` reads its values with its keys, as parts of them (latents).
    """
    products = [op for op in ops if op.kind in PRODUCTS]
    attended = [op for op in products if op.composite and op.composite.kind == "attention"]
    if len(products) != 2 or len(attended) != 2:
        return {}
    scores, seen = attended
    axes, n = _loop_axes(scores), scores.n
    heads = [x for x in axes["batch"] if x in _HEADS]
    groups = [x for x in axes["m"] if x == "r" or x in _HEADS]  # of latents all heads have one key
    window = n.axes.get("window")
    kv_heads, causal = n.elements(tuple(heads)), "P" in scores.over.split()
    one = {"shared": 1} if scores.reads[1].name == seen.reads[1].name else {}
    return {
        **one,
        "batch": n.elements(tuple(x for x in axes["batch"] if x not in heads)),
        "kv_heads": kv_heads,
        "heads": kv_heads * n.elements(tuple(groups)),
        "s": n.elements(tuple(x for x in axes["m"] if x not in groups)),
        "t": n.elements(tuple(axes["n"])),
        "width": n.elements(tuple(axes["k"])),
        "values": loops_of(seen)["n"],
        "window": 0 if window is None or not causal else window,
        "causal": int(causal),
    }


_PICKED = "k"
"""The axis of the experts of a token, in every mixture."""
_HEADS = frozenset({"g", "h"})
"""Axes that are heads, in every layer."""
