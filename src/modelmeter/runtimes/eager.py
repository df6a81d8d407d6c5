"""What code that is written out runs: forms taken apart, copies for torch's layouts, a cache that is concatenated.

The reference is transformers 5 with eager attention and grouped experts, kernel by kernel; tests hold every operator
of its modules beside it. Constants of the shape (masks, interpolated tables, index arithmetic) are left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import reduce
from operator import mul
from typing import NamedTuple

from modelmeter.errors import InputError
from modelmeter.graph.equations import Tensor
from modelmeter.graph.forms import Step
from modelmeter.graph.graph import Graph
from modelmeter.graph.ops import Composite, Op, build, ref
from modelmeter.sizes import Size, minimum

Axes = tuple[str, ...]
_PARTS = ("half", "turned", "passed")
"""The axes of a part of a tensor, which is stored whole."""


def taken_apart(graph: Graph) -> Graph:
    """Each form that is written out becomes its steps."""
    return graph.with_ops(part for op in graph.ops for part in _steps(op) or [_grouped(op)])


def _steps(op: Op) -> list[Op]:
    """The kernels of a form; they do the op's FLOPs, what pairs or rows leave over in the last that computes."""
    steps = op.form.steps if op.form else []
    left, frames = op.cuda, {r.name: r.frame for r in op.writes}
    weights = {r.name: r for r in op.reads if r.role == "weight"}
    last = max((place for place, step in enumerate(steps) if step.flops), default=-1)
    found = []
    for place, step in enumerate(steps):
        made = build("pointwise" if step.flops else "copy", _equation(op, step), op.n)
        work = left if place == last else op.n.elements(made.equation.loops) * step.flops
        left = left - work
        beside = frames.get(made.writes[0].name)
        held = [r._replace(frame=frames.get(r.name, r.frame if beside is None else beside)) for r in made.writes]
        found.append(made._replace(
            reads=tuple(weights.get(r.name, r) for r in made.reads),
            writes=(*held, *(op.reads[0]._replace(stored=0, touched=0) for _ in step.rebinds)),
            cuda=work, grad=op.grad, composite=op.composite, kernel=op.kernel,
            again=op.n.elements((step.when,)) if step.when else 1,
        ))  # fmt: skip
    return found


def _grouped(op: Op) -> Op:
    """A product over experts reads where the rows of each end."""
    experts = any(t.role == "weight" and t.stored[0] == "E" != t.touched[0] for t in op.equation.factors)
    if op.kind != "matmul" or not experts:
        return op
    return op._replace(reads=(*op.reads, ref(op.n, Tensor("ends", "activation", 32, ("E",), ("E",)))))


def _equation(op: Op, step: Step) -> str:
    """A step's equation with the tensors of the op (see graph/forms.py)."""
    out = op.output.touched
    known = dict(zip("xwv", op.equation.operands, strict=False)) | {"y": op.output, "z": op.equation.outputs[-1]}
    axes = {"all": out, "rest": tuple(a for a in out if a not in op.row.split()), "half": (*out[:-1], "H")}
    axes |= {"turned": (*out[:-1], "e"), "passed": (*out[:-1], "passed")}

    def tensor(found: re.Match[str]) -> str:
        name, bits, own = found.groups()
        if own is None and name in known:
            return str(known[name])
        sizes = axes.get(own or "all") or tuple(own.split())
        given = known.get(name, Tensor(name, "", int(bits or 0), sizes, sizes))
        return str(given._replace(stored=given.stored if own in _PARTS else sizes, touched=sizes))

    return re.sub(r"(\w+)(?::(\d+))?(?:\[(.*?)\])?", tensor, step.equation)


class _Core(NamedTuple):
    """An attention composite, by what the axes of its two products are.

    Queries and keys lie in one order: batch, positions, heads, width. `shared` are heads of queries that keys lack.
    `made` is the last op that makes q, k or v; `whole`: queries are concatenated, so they lie head by head already.
    """

    ops: list[Op]
    first: Op
    last: Op
    made: Op | None
    operands: tuple[Tensor, Tensor, Tensor]
    batch: Axes
    positions: Axes
    keys: Axes
    heads: Axes
    shared: Axes
    whole: bool

    def require_order(self) -> None:
        """Raise InputError unless queries, keys and values lie in the order that torch's code has."""
        q, k, v = self.operands
        own = tuple(a for a in self.heads if a not in self.shared)
        fits = (
            q.stored[:-1] == self.batch + self.positions + self.heads and k.touched[:-1] == self.batch + self.keys + own
        )
        if not fits or v.touched[:-1] != k.touched[:-1]:
            raise InputError(
                f"{self.first.node.layer}: eager attention needs queries, keys and values as batch, positions, heads, "
                f"width, not {q}, {k} and {v}"
            )

    def several(self, *axes: str) -> Size:
        """1 where the product of axes is larger than 1, else 0."""
        return minimum(self.first.n.elements(axes) - 1, 1)


def _cores(graph: Graph) -> Iterator[_Core]:
    """The attention of a graph: composites with two products."""
    parts: dict[Composite, list[Op]] = {}
    for op in graph.ops:
        if op.composite and op.composite.kind == "attention":
            parts.setdefault(op.composite, []).append(op)
    for ops in parts.values():
        products = [op for op in ops if op.kind == "matmul" and len(op.equation.factors) == 2]
        if len(products) < 2:
            continue
        first, last = products[0], products[-1]
        (q, k), v, scores = first.equation.factors, last.equation.factors[1], first.output.stored
        keys = tuple(a for a in k.touched if a in scores and a not in q.touched)
        start = k.touched.index(keys[0]) if keys else 0
        batch, positions, others = q.stored[:start], q.stored[start : start + len(keys)], q.stored[start + len(keys) :]
        heads, names = tuple(a for a in others if a in scores), (q.name, k.name, v.name)
        shared = tuple(a for a in heads if a not in k.touched)
        made = [op for op in graph.ops if op.node.serial == first.node.serial and op.output.name in names]
        whole = any(_concatenates(op) for op in made if op.output.name == q.name)
        maker = made[-1] if made else None
        yield _Core(ops, first, last, maker, (q, k, v), batch, positions, keys, heads, shared, whole)


def _concatenates(op: Op) -> bool:
    """Whether the last kernel of an op puts two tensors side by side."""
    steps = op.form.steps if op.form else []
    return bool(steps) and not steps[-1].flops and " * " in steps[-1].equation


def contiguous(graph: Graph) -> Graph:
    """torch's copies around an attention kernel: its result in the order that the projection reads, and the operands
    where batch and heads are merged into one axis (free for a batch of 1)."""
    copies: list[tuple[Op, Op]] = []  # each behind an op
    for core in _cores(graph):
        merged = core.first.composite.merged if core.first.composite else ""
        if merged and core.made:
            copies.append((core.made, _copy(core.first, core.operands, "copied_", core.several(merged))))
        copies.append((core.last, _copy(core.first, [core.last.output], "", 1)))
    return graph.with_ops(o for op in graph.ops for o in (op, *(made for behind, made in copies if behind is op)))


def around_a_kernel(graph: Graph) -> Graph:
    """What torch copies around its attention kernel, whose result lies as its queries do: those that were concatenated
    lie head by head, and the projection wants positions first. Over a grid, what it copies without the kernel."""
    cores = [core for core in _cores(graph) if core.first.kernel]
    merged = {c.first.node.serial: c for c in cores if c.first.composite and c.first.composite.merged}
    ops: list[Op] = []
    for op in graph.ops:
        ops += _over_grid(op, merged[op.node.serial]) if op.node.serial in merged else [op]
        for core in (core for core in cores if op is core.last and core.whole):
            apart = core.several(*core.positions) * core.several(*core.heads)
            ops.append(_copy(op, [op.output], "", apart))
    return graph.with_ops(ops)


def torch_attention(graph: Graph) -> Graph:
    """Attention as torch's eager functions run it: clones where axes do not merge, repeated KV heads, masks."""
    return graph.with_ops(_attention(graph))


def _attention(graph: Graph) -> Iterator[Op]:
    cores = {core.first.composite: core for core in _cores(graph) if not core.first.kernel}
    for core in cores.values():
        core.require_order()
    merged = {core.first.node.serial: core for c, core in cores.items() if c and c.merged}
    masks = {_component(op): op for op in graph.ops if _mask(op)}
    for op in graph.ops:
        for maker in ("", _component(op)):
            if maker in masks:  # a constant that the code of a component makes once and holds until it returns
                attending = masks.pop(maker)
                made = build("constant", f"{_mask(attending)} = {_mask(attending)}", attending.n)
                held = made.writes[0]._replace(name=f"{maker}.mask", frame=maker, touched=0)
                yield made._replace(reads=(), writes=(held,), n=op.n)
        inside = op.composite if op.composite in cores else None
        if op.kind == "softmax" and inside and inside.returned:  # the weights of attention, which the caller holds
            op = op._replace(writes=tuple(r._replace(frame=r.frame.rpartition(".")[0]) for r in op.writes))
        if op.node.serial in merged:
            yield from _over_grid(op, merged[op.node.serial])
        elif inside:
            yield from _over_sequence(op, cores[inside])
        else:
            yield op


def _component(op: Op) -> str:
    """The component that an op of a layer inside it belongs to; "" for a layer alone, whose caller it is."""
    return op.path.partition(".")[0] if "." in op.path else ""


def _mask(op: Op) -> str:
    """The mask that is added to the scores, if there are scores in memory."""
    return op.composite.mask if op.composite and not op.kernel else ""


def _over_sequence(op: Op, core: _Core) -> Iterator[Op]:
    """Positions of sequences: torch merges batch and heads, which the projections wrote apart."""
    (q, k, v), several = core.operands, core.several
    wide = several(*core.shared) * several(*core.batch, *(a for a in core.heads if a not in core.shared))
    apart = several(*core.batch) * several(*core.heads)
    again = 0 if k.role == "kv" else apart * (1 - wide) * several(*core.keys)
    repeated = (k, v) if core.shared else ()
    if op.kind == "softmax" and _mask(op):
        scores = op.equation.factors[0]
        added = build("copy", f"{scores} = {scores} * {_mask(op)}", op.n)._replace(composite=op.composite)
        yield added._replace(reads=(added.reads[0], added.reads[1]._replace(name=f"{_component(op)}.mask")))
    if op is core.first:
        yield from (_copy(op, [t], "_wide_", wide, core.shared) for t in repeated)
        yield _copy(op, [q], "_own_", 0 if core.whole else apart * several(*core.positions))
        yield _copy(op, [k], "_own_", again)
        yield _holding(_reading(op, core, k, wide), f"_own_{q.name}", f"_own_{k.name}")
    elif op is core.last:
        yield _copy(op, [v], "_own_", again)
        widened = [f"_wide_{t.name}" for t in repeated]
        yield _holding(_reading(op, core, v, wide), f"_own_{v.name}", *widened)
        yield _holding(_copy(op, [op.output], "", several(*core.positions) * several(*core.heads)), *widened)
    else:
        yield op


def _over_grid(op: Op, core: _Core) -> Iterator[Op]:
    """Positions of a grid: q, k and v copied as one, the scale on q, products of q beside the core, a bias."""
    q, inside, several = core.operands[0], op.composite == core.first.composite, core.several
    batch, heads, grid = several(*core.batch), several(*core.heads), several(*core.positions)
    lines = reduce(mul, (several(axis) for axis in core.positions), several(*core.batch, *core.heads))
    alone = (o for o in core.ops if o.kind == "pointwise" and len(o.reads) == 1 and not o.kernel)
    scale = next(alone, None)
    if op is core.first and scale:
        scaled = build("pointwise", f"_scaled_{q} = {q}", op.n)._replace(cuda=scale.cuda, composite=op.composite)
        yield scaled
        yield op._replace(reads=(*scaled.writes, *op.reads[1:]))
    elif not inside and op.kind == "matmul" and op.equation.factors[0].name == q.name:
        columns = core.positions[-1] in op.equation.factors[1].stored
        yield _copy(op, [q], "_lines_", (1 - batch) * heads * grid if columns else lines)
        freed = tuple(r._replace(temporary=True) for r in op.writes)  # its function returns before it is read again
        yield _holding(op._replace(writes=freed), f"_lines_{q.name}")
    elif op is not scale:
        yield op
    if op is core.made:
        yield _copy(op, core.operands, "own_", batch * heads)
    elif op is core.last:
        yield _copy(op, [op.output], "", heads * grid * (batch if op.kernel else 1))
    elif any(op.output.name == t.name for o in core.ops for t in o.equation.addends) and not inside:
        yield _copy(op, [op.output], "", lines)


def _copy(op: Op, tensors: Sequence[Tensor], prefix: str, again: Size, more: Axes = ()) -> Op:
    """A copy of tensors as one kernel, under names with a prefix; `more` axes are repeated."""
    made = [Tensor(prefix + t.name, "", 0, t.touched + more, t.touched + more) for t in tensors]
    text = f"{' '.join(map(str, made))} = {' * '.join(map(str, tensors))}"
    return build("copy", text, op.n)._replace(again=again, composite=Composite("copies", f"{op.node.serial}:{prefix}"))


def _holding(op: Op, *names: str) -> Op:
    """An op while which these copies are alive."""
    copies = (ref(op.n, Tensor(name, "activation", 0, (), ())) for name in names)
    return op._replace(reads=(*op.reads, *(r._replace(stored=0, touched=0) for r in copies)))


def _reading(op: Op, core: _Core, tensor: Tensor, wide: Size) -> Op:
    """A product that reads the repeated heads, if they were copied."""
    more, name = 1 + (op.n.elements(core.shared) - 1) * wide, op.n.resolve(tensor.name)[1]
    return op._replace(reads=tuple(r._replace(touched=r.touched * more) if r.name == name else r for r in op.reads))
