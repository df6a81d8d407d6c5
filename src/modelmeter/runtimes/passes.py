"""Passes: how a runtime turns the ops of a graph into kernels. Each takes a graph and gives a graph.

A pass groups ops (`kernel` of an Op is the label of its group), adds what a runtime does beside them, or takes them
apart. Anything with this signature is a pass. What torch's code runs is in `eager.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import replace

from modelmeter.errors import InputError
from modelmeter.graph.forms import BACKWARD_POINTWISE
from modelmeter.graph.graph import Graph
from modelmeter.graph.ops import COLLECTIVES, Op, Ref, build, resized, unused
from modelmeter.sizes import Size, substituted

Pass = Callable[[Graph], Graph]
WHOLE_STAGE = "whole stage"
STORED = "stored"
"""The kind of a composite whose kernel stores what it makes, though nothing else reads it."""
_RIDES = frozenset({"pointwise", "norm", "softmax", "copy"})


def attention_kernel(graph: Graph) -> Graph:
    """Attention is one kernel, its scores stay on chip; so does the state of a scan."""
    kinds = ("attention", "scan")
    return graph.with_ops(
        op._replace(kernel=op.composite.name)
        if op.composite and op.composite.kind in kinds and op.kind != "unused"
        else op
        for op in graph.ops
    )


def merge_projections(graph: Graph) -> Graph:
    """Matmuls of one layer that read the same tensor become one kernel that reads it once.

    It runs where the first of them stands, so those that wait for another op, or whose result would take the place of a
    tensor that is still in use, stay where they are.
    """
    groups: dict[Hashable, list[int]] = {}
    for index, (op, reads) in enumerate(zip(graph.ops, graph.reads, strict=True)):
        weighs = op.kind == "matmul" and not op.kernel and any(r.role == "weight" for r in op.reads)
        shared = weighs and op.reads[0].role == "activation"
        key = (op.node.serial, reads[0].ref.name, reads[0].writer) if shared else index
        first = groups.get(key, [index])[0]
        between = {r.name for other in graph.ops[first:index] for r in (*other.reads, *other.writes)}
        ready = all(writer < first for _, writer in reads) and not any(w.name in between for w in op.writes)
        groups.setdefault(key if ready else index, []).append(index)
    ops = graph.ops
    return graph.with_ops(
        ops[i]._replace(kernel=f"{ops[i].node.serial}:projections:{ops[group[0]].output.name}") if group[1:] else ops[i]
        for group in groups.values()
        for i in group
    )


def last_logits(graph: Graph) -> Graph:
    """Logits of the last position alone, as serving engines compute them."""
    return graph.with_ops(_of_last_position(graph))


def _of_last_position(graph: Graph) -> Iterator[Op]:
    made: dict[str, str] = {}  # what heads make, by name
    for op in graph.ops:
        if op.composite and op.composite.kind == "logits":
            x = op.equation.factors[0]
            if op.reads[0].name not in made:
                to, of = (" ".join(last if a == "s" else a for a in x.stored) for last in ("l", "s:l"))
                yield build("copy", f"{x.name}[{to}] = {x.name}[{of}]", op.n.bind(l=1))
            yield _of_one(op)
            made |= {w.name: op.node.layer for w in op.writes}
            continue
        for name in (r.name for r in op.reads if r.name in made):
            raise InputError(
                f"{op.node.layer}: {op.equation.text!r} reads the logits {name!r} of {made[name]}, of which only the "
                f"last position is computed; make it a part of their composite"
            )
        yield op


def last_layer(graph: Graph) -> Graph:
    """Behind the attention of the last layer only the last position runs, where only its logits are wanted.

    So the last round of a repeated layer stands apart from the others. After `last_logits`.
    """
    ops = graph.ops
    wanted = next((i for i, op in enumerate(ops) if op.kind == "copy" and "l" in op.output.stored), 0)
    core = next((op for op in reversed(ops[:wanted]) if op.composite and op.composite.kind == "attention"), None)
    if core is None or not isinstance(core.node.times, int):
        return graph
    path = core.path.rpartition(".")[0]
    inside = [i for i, op in enumerate(ops) if op.path == path or op.path.startswith(f"{path}.")]
    start, end = inside[0], inside[-1] + 1
    cut = next(i for i in range(end, start, -1) if ops[i - 1].path == core.path)
    rounds = [_in_round(op, core.node.times - 1) for op in ops[start:end]] if core.node.times > 1 else []
    last = [_in_last_round(op) for op in ops[start:end]]
    before, after = last[: cut - start], [*last[cut - start :], *ops[end:wanted]]
    stored = (_placed(op, op.node.times) for op in unused(ops[start:end]) if op.reads)
    return graph.with_ops(
        (*ops[:start], *stored, *rounds, *before, *_of_last_positions(before, after), *ops[wanted + 1 :])
    )


def _in_round(op: Op, rounds: int) -> Op:
    node = op.node._replace(times=rounds, again=min(rounds - 1, 1))
    return op._replace(n=replace(op.n, node=node)) if rounds > 1 else _placed(op, 1)


def _placed(op: Op, times: Size) -> Op:
    """An op outside of any loop."""
    return op._replace(n=replace(op.n, node=op.node._replace(times=times, loop="", held=("", ""), again=0)))


def _in_last_round(op: Op) -> Op:
    """An op of the last round: it reads what the round before left, and has a cache of its own."""
    entering, leaving = op.node.held if op.node.times != 1 else ("", "")

    def named(r: Ref) -> Ref:
        return r._replace(name=leaving if r.name == entering else f"last.{r.name}" if r.role == "kv" else r.name)

    composite = op.composite and op.composite._replace(name=f"{op.composite.name}.last")
    moved = _placed(op, 1)
    return moved._replace(
        reads=tuple(map(named, op.reads)), writes=tuple(map(named, op.writes)), composite=composite,
        n=replace(moved.n, node=moved.node._replace(serial=-op.node.serial)),
        kernel=composite.name if composite and op.kernel else "",
    )  # fmt: skip


def _of_one(op: Op) -> Op:
    """An op for one position."""
    sizes = {axis: substituted(size, str(op.n.s), 1) for axis, size in op.n.axes.items()}
    return resized(op, op.n.bind(**sizes | {"s": 1}))


def _of_last_positions(before: list[Op], after: list[Op]) -> Iterator[Op]:
    """Ops for one position; before the first that reads it that of each tensor is taken, of two the latest first."""
    latest = [w.name for op in before for w in op.writes]
    made: set[str] = set()
    for op in after:
        found: dict[str, Op] = {}
        for tensor, r in zip(op.equation.operands, op.reads, strict=False):
            if r.name not in made and "s" in tensor.stored:
                to, of = (" ".join(last if a == "s" else a for a in tensor.stored) for last in ("l", "s:l"))
                copy = build("copy", f"{tensor.name}[{to}] = {tensor.name}[{of}]", op.n.bind(l=1))
                read, written = (side[0]._replace(name=r.name) for side in (copy.reads, copy.writes))
                found.setdefault(r.name, copy._replace(reads=(read,), writes=(written,)))
        yield from (found[name] for name in sorted(found, key=lambda name: name not in latest))
        yield _of_one(op)
        made |= {*found, *(w.name for w in op.writes)}


def without_dead_copies(graph: Graph) -> Graph:
    """Copies that nothing reads are not made."""
    read = {r.name for op in graph.ops for r in op.reads}
    copies = (op.composite is not None and op.composite.kind == "copies" for op in graph.ops)
    return graph.with_ops(
        op for op, copied in zip(graph.ops, copies, strict=True) if not copied or any(w.name in read for w in op.writes)
    )


def ride(graph: Graph) -> Graph:
    """Pointwise ops, norms and copies join the kernel that made their latest operand, within one repetition.

    None joins what sends to other devices.
    """
    ops: list[Op] = []
    for op, label, reads in zip(graph.ops, graph.labels, graph.reads, strict=True):
        made = max((read.writer for read in reads), default=-1)
        rides = not op.kernel and op.kind in _RIDES and made >= 0 and ops[made].node.loop == op.node.loop
        rides = rides and ops[made].kind not in COLLECTIVES
        ops.append(op._replace(kernel=ops[made].kernel if rides else label))
    return graph.with_ops(ops)


def whole_stage(graph: Graph) -> Graph:
    """The stage is one kernel: the least traffic that any fusion could reach."""
    return graph.with_ops(op._replace(kernel=WHOLE_STAGE) for op in graph.ops)


def backward(graph: Graph) -> Graph:
    """The backward pass, last op first: gradients of every factor and weight, nothing recomputed.

    A product y = a * b gives da = dy * b and db = a * dy: the same loop nest, once an operand. Elsewhere each scalar
    operation costs its derivative times the incoming gradient. What a kernel of several ops kept on chip it keeps there
    again.
    """
    known = (r for op in graph.ops for r in (*op.reads, *op.writes))
    given = {name for r in known for name in (r.name, _gradient(r).name)}
    return Graph(tuple(_backward(graph)), graph.inputs | given, graph.root)


def _backward(graph: Graph) -> Iterator[Op]:
    inside = on_chip(graph)
    for op, reads in reversed(list(zip(graph.ops, graph.reads, strict=True))):
        if not op.grad or op.kind == "unused":
            continue
        kept = tuple(r for r, writer in reads if (r.name, writer) not in inside)
        missing, gradients = (tuple(_gradient(r) for r in side) for side in (op.reads, op.writes))
        plain = op._replace(composite=None, kernel=f"{op.kernel}.grad" if op.kernel else "")
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
    labels = [op.composite.name if op.composite and op.kernel else "" for op in graph.ops]
    users = graph.users(labels)
    made = ((w, i) for i, op in enumerate(graph.ops) for w in op.writes if labels[i] and w.role != "kv")
    alone = ((w.name, i) for w, i in made if users.get((w.name, i)) == {labels[i]})
    return frozenset(one for one in alone if not (whole := graph.ops[one[1]].composite) or whole.kind != STORED)
