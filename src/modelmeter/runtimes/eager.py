"""What code that is written out runs: forms taken apart, copies for torch's layouts, a cache that is concatenated.

The reference is transformers 5 with eager attention and grouped experts, kernel by kernel; tests hold every operator
of its modules beside it. Constants of the shape (masks, interpolated tables, index arithmetic) are left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from modelmeter.graph.equations import Tensor
from modelmeter.graph.graph import Graph
from modelmeter.graph.ops import Composite, Op, build, ref
from modelmeter.runtimes.passes import Pass, composites
from modelmeter.sizes import Size, minimum

Axes = tuple[str, ...]


def taken_apart(graph: Graph) -> Graph:
    """Each form that is written out becomes its steps."""
    return graph.with_ops(part for op in graph.ops for part in _steps(op))


def _steps(op: Op) -> Iterator[Op]:
    """The kernels of a form; they do the op's FLOPs, what pairs or rows leave over in the last that computes."""
    if op.form is None or not op.form.steps:
        yield _grouped(op)
        return
    names, left = _names(op), op.cuda
    weights = {r.name: r for r in op.reads if r.role == "weight"}
    frames = {r.name: r.frame for r in op.writes}
    computing = [step for step in op.form.steps if step.flops]
    for step in op.form.steps:
        kind = "pointwise" if step.flops else "copy"
        made = build(kind, step.equation.format(**names), op.n, over=step.over.format(**names), loose=True)
        work: Size = 0
        if step.flops:
            work = left if step is computing[-1] else op.n.elements(made.over or made.output.stored) * step.flops
            left = left - work
        beside = op.writes[0].frame if made.writes[0].name == op.writes[0].name else made.writes[0].frame
        writes = tuple(r._replace(frame=frames.get(r.name, beside)) for r in made.writes)
        if step.rebinds:
            writes = (*writes, op.reads[0]._replace(stored=0, touched=0))
        reads = tuple(weights.get(r.name, r) for r in made.reads)
        again = op.n.elements((step.when,)) if step.when else 1
        yield op._replace(
            kind=kind, equation=made.equation, reads=reads, writes=writes, cuda=work, form=None, over=made.over, row=(),
            again=again,
        )  # fmt: skip


def _grouped(op: Op) -> Op:
    """A product over experts reads where the rows of each end."""
    if op.kind != "matmul" or all(t.role != "weight" or t.stored == t.touched for t in op.equation.factors):
        return op
    return op._replace(reads=(*op.reads, ref(op.n, Tensor("ends", "activation", 32, ("E",), ("E",)))))


def _names(op: Op) -> dict[str, str]:
    """What the placeholders of a form's steps stand for (see graph/forms.py)."""
    outputs, (x, *others) = op.equation.outputs, op.equation.factors
    out = outputs[0].stored
    found = {"x": str(x), "y": str(outputs[0]), "z": str(outputs[-1]), "all": " ".join(out)}
    found |= dict(zip("wv", map(str, others), strict=False)) | {"b": str(t) for t in op.equation.addends}
    return found | {
        "rest": " ".join(a for a in out if a not in op.row),
        "half": " ".join((*out[:-1], "H")),
        "half_x": str(x._replace(touched=(*x.touched[:-1], "H"))),
        "x_as_y": str(x._replace(stored=out, touched=out)),
    }


def concatenated_cache(graph: Graph) -> Graph:
    """New keys and values are concatenated to a copy of the old ones, which are alive beside it."""
    return graph.with_ops(_cached(op) for op in graph.ops)


def _cached(op: Op) -> Op:
    if not op.writes or op.writes[0].role != "kv":
        return op
    new, cache = op.reads[0], op.writes[0]
    old = cache._replace(touched=cache.stored - cache.touched)
    room = old._replace(name=f"{cache.name}.old", role="activation", temporary=True, stored=old.touched, touched=0)
    freed = new._replace(stored=0, touched=0)  # the name now holds the cache
    whole = cache._replace(touched=cache.stored)
    return op._replace(reads=(new, old), writes=(whole, room, freed))


class _Core(NamedTuple):
    """An attention composite, by what the axes of its two products are.

    Queries and keys lie in one order: batch, positions, heads, width. `shared` are heads of queries that keys lack.
    `made` is the last op that makes q, k or v, `scale` multiplies the scores, `biases` are added to them.
    """

    first: Op
    last: Op
    batch: Axes
    positions: Axes
    keys: Axes
    heads: Axes
    shared: Axes
    made: Op | None
    scale: Op | None
    biases: frozenset[str]

    @property
    def operands(self) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v."""
        q, k = self.first.equation.factors
        return q, k, self.last.equation.factors[1]

    def more(self, *axes: str) -> Size:
        """1 where the product of axes is larger than 1, else 0."""
        return minimum(self.first.n.elements(axes) - 1, 1)


def _core(graph: Graph, ops: list[Op]) -> _Core | None:
    """The core of a composite; None if it has not the two products of an attention."""
    products = [op for op in ops if op.kind == "matmul" and len(op.equation.factors) == 2]
    if len(products) < 2:
        return None
    first, last = products[0], products[-1]
    (q, k), scores = first.equation.factors, first.output.stored
    keys = tuple(a for a in k.touched if a in scores and a not in q.touched)
    if not keys:
        return None
    start = k.touched.index(keys[0])
    heads = tuple(a for a in q.stored[start + len(keys) :] if a in scores)
    shared = tuple(a for a in heads if a not in k.touched)
    names = {q.name, k.name, last.equation.factors[1].name}
    beside = [op for op in graph.ops if op.node.serial == first.node.serial and op.writes and op.output.name in names]
    biases = frozenset(t.name for op in ops for t in op.equation.addends)
    places = (q.stored[:start], q.stored[start : start + len(keys)], keys, heads, shared)
    scales = [op for op in ops if op.kind == "pointwise" and len(op.reads) == 1]
    return _Core(first, last, *places, *(found[-1] if found else None for found in (beside, scales)), biases)


def torch_attention(graph: Graph) -> Graph:
    """Attention as torch's eager functions run it: clones where axes do not merge, repeated KV heads, masks."""
    return graph.with_ops(_attention(graph))


def _attention(graph: Graph) -> Iterator[Op]:
    grouped = [[graph.ops[i] for i in indices] for indices in composites(graph, "attention").values()]
    grouped = [ops for ops in grouped if ops[0].composite and not ops[0].composite.always]
    cores = {ops[0].composite: core for ops in grouped if (core := _core(graph, ops))}
    merged = {core.first.node.serial: core for composite, core in cores.items() if composite and composite.merged}
    masks, made = _masks(ops[0] for ops in grouped), set[str]()
    for op in graph.ops:
        component = _component(op)
        for maker in ("", component):
            if maker in masks and maker not in made:
                made.add(maker)
                yield masks[maker]._replace(n=op.n)
        if op.node.serial in merged:
            yield from _over_grid(op, merged[op.node.serial])
        elif op.composite in cores:
            yield from _over_sequence(op, cores[op.composite], masks.get(component))
        else:
            yield op


def _masks(cores: Iterable[Op]) -> dict[str, Op]:
    """The mask of each component, a constant that its code makes once and holds until it returns."""
    found: dict[str, Op] = {}
    for op in cores:
        if op.composite and op.composite.mask:
            component = _component(op)
            mask = build("constant", f"{op.composite.mask} = {op.composite.mask}", op.n, loose=True)
            held = mask.writes[0]._replace(name=f"{component}.mask", frame=component, touched=0)
            found.setdefault(component, mask._replace(reads=(), writes=(held,)))
    return found


def _component(op: Op) -> str:
    """The component that an op of a layer inside it belongs to; "" for a layer alone, whose caller it is."""
    return op.path.partition(".")[0] if "." in op.path else ""


def _clone(op: Op, tensor: Tensor, again: Size, to: str = "") -> Op:
    """A copy of a tensor into a name (its own, if no other)."""
    copied = build("copy", f"{tensor._replace(name=to or tensor.name)} = {tensor}", op.n, loose=True)
    return copied._replace(again=again, composite=Composite("clones", op.composite.name if op.composite else ""))


def _holding(op: Op, *names: str) -> Op:
    """An op while which these temporaries are alive."""
    held = (ref(op.n, Tensor(name, "activation", 0, (), ()))._replace(stored=0, touched=0) for name in names)
    return op._replace(reads=(*op.reads, *held))


def _over_sequence(op: Op, core: _Core, mask: Op | None) -> Iterator[Op]:
    """Positions of sequences: torch merges batch and heads, which the projections wrote apart."""
    q, k, v = core.operands
    wide = core.more(*core.shared) * core.more(*core.batch, *(a for a in core.heads if a not in core.shared))
    apart = core.more(*core.batch) * core.more(*core.heads)
    again = 0 if k.role == "kv" else apart * (1 - wide) * core.more(*core.keys)
    repeated = (k, v) if core.shared else ()
    held = [f"_wide_{t.name}" for t in repeated]
    if op is core.first:
        yield from (_wide(op, core, t, wide) for t in repeated)
        yield _clone(op, q, apart * core.more(*core.positions), f"_own_{q.name}")
        yield _clone(op, k, again, f"_own_{k.name}")
        yield _holding(_reading(op, core, k, wide), f"_own_{q.name}", f"_own_{k.name}")
    elif op.kind == "softmax":
        if mask is not None and op.composite and op.composite.mask:
            yield _masked(op, mask)
        yield _kept(op)
    elif op is core.last:
        yield _clone(op, v, again, f"_own_{v.name}")
        yield _holding(_reading(op, core, v, wide), f"_own_{v.name}", *held)
        yield _holding(_clone(op, op.output, core.more(*core.positions) * core.more(*core.heads)), *held)
    else:
        yield op


def _masked(op: Op, mask: Op) -> Op:
    """The mask added to the scores, before their softmax."""
    assert op.composite is not None
    scores = op.equation.factors[0]
    added = build("copy", f"{scores} = {scores} * {op.composite.mask}", op.n, loose=True)
    shared = added.reads[1]._replace(name=mask.writes[0].name)
    return added._replace(reads=(added.reads[0], shared), composite=op.composite)


def _wide(op: Op, core: _Core, tensor: Tensor, again: Size) -> Op:
    """The heads of keys or values, once for each of their query heads: a copy where there are several."""
    axes = tensor.touched
    whole = tensor._replace(stored=axes)
    wide = whole._replace(name=f"_wide_{tensor.name}", stored=axes + core.shared, touched=axes + core.shared, role="")
    copied = build("copy", f"{wide} = {tensor}", op.n, loose=True)
    composite = Composite("clones", op.composite.name if op.composite else "")
    return copied._replace(again=again, composite=composite)


def _reading(op: Op, core: _Core, tensor: Tensor, wide: Size) -> Op:
    """A product that reads the repeated heads, if they were copied."""
    more = 1 + (op.n.elements(core.shared) - 1) * wide
    name = op.n.resolve(tensor.name)[1]
    return op._replace(reads=tuple(r._replace(touched=r.touched * more) if r.name == name else r for r in op.reads))


def _kept(op: Op) -> Op:
    """The weights of attention are returned: the caller's frame holds them."""
    outer = op.path.rpartition(".")[0]
    return op._replace(writes=tuple(r._replace(frame=outer) for r in op.writes))


def _over_grid(op: Op, core: _Core) -> Iterator[Op]:
    """Positions of a grid: q, k and v copied as one, the scale on q, products of q beside the core, a bias."""
    q, k, v = core.operands
    batch, heads, grid = core.more(*core.batch), core.more(*core.heads), core.more(*core.positions)
    rows = core.more(*core.batch, *core.heads)
    for axis in core.positions:
        rows = rows * core.more(axis)
    inside = op.composite is not None and op.composite == core.first.composite
    if op is core.made:
        yield op
        yield _three(op, (q, k, v))._replace(again=batch * heads)
    elif op is core.first and core.scale:
        scaled = build("pointwise", f"_scaled_{q} = {q}", op.n, loose=True)
        yield scaled._replace(cuda=core.scale.cuda, composite=op.composite)
        yield op._replace(reads=(*scaled.writes, *op.reads[1:]))
    elif op is core.scale:
        return
    elif not inside and op.kind == "matmul" and op.equation.factors[0].name == q.name:
        columns = core.positions[-1] in op.equation.factors[1].stored
        yield _clone(op, q, (1 - batch) * heads * grid if columns else rows, f"_lines_{q.name}")
        freed = tuple(r._replace(temporary=True) for r in op.writes)  # its function returns before it is read again
        yield _holding(op._replace(writes=freed), f"_lines_{q.name}")
    elif op.writes and op.output.name in core.biases:
        yield from (op, _clone(op, op.output, rows))
    elif inside and op.kind == "softmax":
        yield _kept(op)
    elif op is core.last:
        yield from (op, _clone(op, op.output, heads * grid))
    else:
        yield op


def _three(op: Op, tensors: Iterable[Tensor]) -> Op:
    """A copy of q, k and v."""
    found = list(tensors)
    text = " ".join(str(t._replace(name=f"own_{t.name}")) for t in found) + " = " + " * ".join(map(str, found))
    return build("copy", text, op.n, loose=True)._replace(composite=Composite("clones", f"{op.node.serial}:operands"))


EAGER: dict[str, Pass] = {f.__name__: f for f in (concatenated_cache, torch_attention, taken_apart)}
