"""Passes: how a runtime turns the ops of a graph into kernels. Each takes a graph and gives a graph.

A pass groups ops (`kernel` of an Op is the label of its group), adds what a runtime does beside them, or takes them
apart. Anything with this signature is a pass. What code that is written out runs is in `eager.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from modelmeter.graph.equations import Tensor
from modelmeter.graph.forms import BACKWARD_POINTWISE
from modelmeter.graph.graph import Graph
from modelmeter.graph.ops import Composite, Op, Ref, build
from modelmeter.sizes import minimum, substituted

Pass = Callable[[Graph], Graph]
WHOLE_STAGE = "whole stage"
_RIDES = frozenset({"pointwise", "norm", "softmax", "copy"})


def attention_kernel(graph: Graph) -> Graph:
    """Attention is one kernel: its scores stay on chip."""
    return graph.with_ops(
        op._replace(kernel=op.composite.name) if op.composite and op.composite.kind == "attention" else op
        for op in graph.ops
    )


def contiguous(graph: Graph) -> Graph:
    """torch's copies around an attention kernel: its result in the order that the projection reads, and the
    operands where batch and heads are merged into one axis (free for a batch of 1)."""
    after: dict[int, list[Op]] = {}
    for core in composites(graph, "attention").values():
        first, last = graph.ops[core[0]], graph.ops[core[-1]]
        made = {t.name for i in core for t in graph.ops[i].equation.outputs}
        read = [pair for op in (first, last) for pair in zip(op.equation.factors, op.reads, strict=False)]
        operands = {t.name: (t, r) for t, r in read if t.name not in made}
        if first.composite and first.composite.merged:
            names = {r.name for _, r in operands.values()}
            beside = (i for i, op in enumerate(graph.ops) if op.node.serial == first.node.serial and i not in core)
            index = max(i for i in beside if any(w.name in names for w in graph.ops[i].writes))
            after.setdefault(index, []).append(_merged(first, [t for t, _ in operands.values()]))
        after.setdefault(core[-1], []).append(build("copy", f"{last.output} = {last.output}", last.n))
    return graph.with_ops(made for i, op in enumerate(graph.ops) for made in (op, *after.get(i, ())))


def composites(graph: Graph, kind: str) -> dict[str, list[int]]:
    """The ops of each composite of a kind, by its name."""
    found: dict[str, list[int]] = {}
    for index, op in enumerate(graph.ops):
        if op.composite and op.composite.kind == kind:
            found.setdefault(op.composite.name, []).append(index)
    return found


def _merged(first: Op, tensors: list[Tensor]) -> Op:
    """The copies of q, k and v."""
    text = " ".join(f"copied_{t}" for t in tensors) + " = " + " * ".join(map(str, tensors))
    assert first.composite is not None
    again = minimum(first.n.elements((first.composite.merged,)) - 1, 1)
    composite = Composite("copies", f"{first.composite.name}:copies")
    return build("copy", text, first.n)._replace(again=again, composite=composite)


def merge_projections(graph: Graph) -> Graph:
    """Matmuls of one layer that read the same tensor become one kernel that reads it once."""
    groups: dict[tuple[int, str, int], list[int]] = {}
    for index, (op, reads) in enumerate(zip(graph.ops, graph.reads(), strict=True)):
        weights = [r for r in op.reads if r.role == "weight"]
        if op.kind == "matmul" and weights and not op.kernel and op.reads[0].role == "activation":
            groups.setdefault((op.node.serial, reads[0].ref.name, reads[0].writer), []).append(index)
    first = {group[0]: group for group in groups.values() if len(group) > 1}
    moved = {index for group in first.values() for index in group}
    ops: list[Op] = []
    for index, op in enumerate(graph.ops):
        if index in first:
            label = f"{op.node.serial}:projections:{op.output.name}"
            ops += [graph.ops[i]._replace(kernel=label) for i in first[index]]
        elif index not in moved:
            ops.append(op)
    return graph.with_ops(ops)


def last_logits(graph: Graph) -> Graph:
    """Logits of the last position alone, as serving engines compute them."""
    return graph.with_ops(made for op in graph.ops for made in _of_last_position(op))


def _of_last_position(op: Op) -> Iterator[Op]:
    if op.composite and op.composite.kind == "logits":
        x, s = op.equation.factors[0], str(op.n.s)
        to, of = (" ".join(last if a == "s" else a for a in x.stored) for last in ("l", "s:l"))
        yield build("copy", f"{x.name}[{to}] = {x.name}[{of}]", op.n.bind(l=1))
        n = op.n.bind(**{axis: substituted(size, s, 1) for axis, size in op.n.axes.items()} | {"s": 1})
        one = build(op.kind, op.equation.text, n, op.form, op.over, op.row, op.grad)
        op = one._replace(composite=op.composite, kernel=op.kernel)
    yield op


def without_dead_copies(graph: Graph) -> Graph:
    """Copies that nothing reads are not made."""
    read = {r.name for op in graph.ops for r in op.reads}

    def dead(op: Op) -> bool:
        return bool(op.composite and op.composite.kind == "copies") and not any(w.name in read for w in op.writes)

    return graph.with_ops(op for op in graph.ops if not dead(op))


def ride(graph: Graph) -> Graph:
    """Pointwise ops, norms and copies join the kernel that made their latest operand, within one repetition."""
    ops: list[Op] = []
    for index, (op, reads) in enumerate(zip(graph.ops, graph.reads(), strict=True)):
        made = max((read.writer for read in reads), default=-1)
        label = op.kernel or f"#{index}"
        if not op.kernel and op.kind in _RIDES and made >= 0 and ops[made].node.loop == op.node.loop:
            label = ops[made].kernel
        ops.append(op._replace(kernel=label))
    return graph.with_ops(ops)


def whole_stage(graph: Graph) -> Graph:
    """The stage is one kernel: the least traffic that any fusion could reach."""
    return graph.with_ops(op._replace(kernel=WHOLE_STAGE) for op in graph.ops)


def backward(graph: Graph) -> Graph:
    """The backward pass, last op first: gradients of every factor and weight, nothing recomputed.

    A product y = a * b gives da = dy * b and db = a * dy: the same loop nest, once an operand.
    Elsewhere each scalar operation costs its derivative times the incoming gradient. What a kernel of several
    ops kept on chip it keeps there again.
    """
    return Graph(tuple(_backward(graph)), graph.inputs, graph.root)


def _backward(graph: Graph) -> Iterator[Op]:
    inside = on_chip(graph)
    for op, reads in reversed(list(zip(graph.ops, graph.reads(), strict=True))):
        if not op.grad or op.kind == "unused":
            continue
        kept = tuple(r for r, writer in reads if (r.name, writer) not in inside)
        missing = tuple(_gradient(r) for r, writer in reads)
        gradients = tuple(_gradient(r) for r in op.writes)
        label = f"{op.kernel}.grad" if op.kernel else ""
        plain = op._replace(composite=None, kernel=label)
        if op.kind not in ("matmul", "conv2d"):
            weights = kept if op.kind != "lookup" else ()
            yield plain._replace(reads=gradients + weights, writes=missing, cuda=op.cuda * BACKWARD_POINTWISE)
            continue
        factors = len(op.equation.factors)
        for place in range(factors):
            others = tuple(r for i, r in enumerate(op.reads[:factors]) if i != place and r in kept)
            yield plain._replace(reads=gradients + others, writes=(missing[place],), cuda=0)
        if op.equation.addends:
            yield plain._replace(reads=gradients, writes=missing[factors:], tensor=0)


def _gradient(r: Ref) -> Ref:
    """The gradient of a tensor, as large as it; that of the KV cache is no cache."""
    return r._replace(name=f"grad.{r.name}", role="activation" if r.role == "kv" else r.role)


def on_chip(graph: Graph) -> frozenset[tuple[str, int]]:
    """The tensors (name, writer) that one composite's kernel makes and nothing outside it reads."""
    users: dict[tuple[str, int], set[str]] = {}
    for op, reads in zip(graph.ops, graph.reads(), strict=True):
        for r, writer in reads:
            users.setdefault((r.name, writer), set()).add(op.composite.name if op.composite and op.kernel else "")
    found = set()
    for index, op in enumerate(graph.ops):
        if op.composite and op.kernel:
            inside = {op.composite.name}
            found |= {(w.name, index) for w in op.writes if users.get((w.name, index)) == inside and w.role != "kv"}
    return frozenset(found)


PASSES: dict[str, Pass] = {
    f.__name__: f
    for f in (
        attention_kernel, contiguous, merge_projections, last_logits, without_dead_copies, ride, whole_stage,
    )
}  # fmt: skip
"""Passes by the names that configs/runtime/*.yaml use."""
