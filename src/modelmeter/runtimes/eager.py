"""What code that is written out runs: forms taken apart, copies for torch's layouts, a cache that is concatenated.

The reference is transformers 5 with eager attention and grouped experts, kernel by kernel; tests hold every operator
of its modules beside it. Constants of the shape (masks, interpolated tables, index arithmetic) are left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from modelmeter.graph.equations import Tensor
from modelmeter.graph.graph import Graph
from modelmeter.graph.ops import Composite, Op, Ref, build, ref
from modelmeter.runtimes.passes import Pass
from modelmeter.sizes import Size, minimum


def taken_apart(graph: Graph) -> Graph:
    """Each form that is written out becomes its steps."""
    return graph.with_ops(part for op in graph.ops for part in (_steps(op) if op.form and op.form.steps else [_grouped(op)]))


def _grouped(op: Op) -> Op:
    """A product over experts reads where the rows of each end."""
    if op.kind != "matmul" or not any(
        t.role == "weight" and t.stored != t.touched for t in op.equation.factors
    ):
        return op
    return op._replace(reads=(*op.reads, ref(op.n, Tensor("ends", "activation", 32, ("E",), ("E",)))))


def _steps(op: Op) -> Iterator[Op]:
    """The kernels of a form; they do the op's FLOPs, what pairs or rows leave over in the last that computes."""
    assert op.form is not None
    names, left = _names(op), op.cuda
    weights = {r.name: r for r in op.reads if r.role == "weight"}
    computing = [step for step in op.form.steps if step.flops]
    for step in op.form.steps:
        kind = "pointwise" if step.flops else "copy"
        made = build(kind, step.equation.format(**names), op.n, over=step.over.format(**names), loose=True)
        work: Size = 0
        if step.flops:
            work = made.n.elements(made.over or made.output.stored) * step.flops
            work = left if step is computing[-1] else work
            left = left - work
        again = op.n.elements((step.when,)) if step.when else 1
        known = {r.name: r for r in op.writes}
        writes = tuple(r._replace(frame=known[r.name].frame) if r.name in known else r for r in made.writes)
        if step.rebinds:
            writes = (*writes, op.reads[0]._replace(stored=0, touched=0))
        reads = tuple(weights.get(r.name, r) for r in made.reads)
        yield made._replace(reads=reads, writes=writes, cuda=work, composite=op.composite, kernel=op.kernel, again=again, grad=op.grad)


def _names(op: Op) -> dict[str, str]:
    """What the placeholders of a form's steps stand for (see graph/forms.py)."""
    eq = op.equation
    out = eq.outputs[0].stored
    x = eq.factors[0]
    found = {"x": str(x), "y": str(eq.outputs[0]), "z": str(eq.outputs[-1]), "all": " ".join(out)}
    found |= dict(zip(("w", "v"), map(str, eq.factors[1:]), strict=False))
    found |= {"b": str(eq.addends[0])} if eq.addends else {}
    half = " ".join((*out[:-1], "H"))
    halved = x._replace(touched=(*x.touched[:-1], "H"))
    rest = " ".join(a for a in out if a not in op.row)
    as_y = f"{x.name}[{' '.join(out)}]"
    return found | {"rest": rest, "half": half, "half_x": str(halved), "of": " ".join(x.stored), "x_as_y": as_y}


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


def torch_attention(graph: Graph) -> Graph:
    """Attention as torch's eager functions run it: clones where axes do not merge, repeated KV heads, masks."""
    return graph.with_ops(_attention(graph))


def _attention(graph: Graph) -> Iterator[Op]:
    cores: dict[str, list[Op]] = {}
    for op in graph.ops:
        if op.composite and op.composite.kind == "attention" and not op.composite.always:
            cores.setdefault(op.composite.name, []).append(op)
    merged = {core[0].node.serial: core for core in cores.values() if core[0].composite and core[0].composite.merged}
    masks = _masks(core for core in cores.values() if core[0].composite and core[0].composite.mask)
    made: set[str] = set()
    for op in graph.ops:
        component = _component(op)
        for maker in ("", component):
            if maker in masks and maker not in made:
                made.add(maker)
                yield masks[maker]._replace(n=op.n)
        if op.node.serial in merged:
            yield from _over_grid(op, merged[op.node.serial])
        elif op.composite and op.composite.name in cores:
            yield from _over_sequence(op, cores[op.composite.name], masks.get(component))
        else:
            yield op


def _masks(cores: Iterable[list[Op]]) -> dict[str, Op]:
    """The mask of each component, a constant that its code makes once and holds until it returns."""
    found: dict[str, Op] = {}
    for (op, *_) in cores:
        component = _component(op)
        assert op.composite is not None
        mask = build("constant", f"{op.composite.mask} = {op.composite.mask}", op.n, loose=True)
        held = mask.writes[0]._replace(name=f"{component}.mask", frame=component, touched=0)
        found.setdefault(component, mask._replace(reads=(), writes=(held,)))
    return found


def _component(op: Op) -> str:
    """The component that an op of a layer inside it belongs to; "" for a layer alone, whose caller it is."""
    return op.path.partition(".")[0] if "." in op.path else ""


def _more(size: Size) -> Size:
    """1 where a size is larger than 1, else 0."""
    return minimum(size - 1, 1)


def _clone(tensor: str, op: Op, again: Size, to: str = "") -> Op:
    """A copy of a tensor into a name (its own, if no other)."""
    copied = build("copy", f"{to or tensor} = {tensor}", op.n, loose=True)
    return copied._replace(again=again, composite=Composite("clones", op.composite.name if op.composite else ""))


def _over_sequence(op: Op, core: list[Op], mask: Op | None) -> Iterator[Op]:
    """b, s and heads (h, or g r) of a sequence; keys and values from a cache or not."""
    q, k = (t for t in core[0].equation.factors)
    v = core[-1].equation.factors[1]
    axes = [a for a in q.stored if a not in ("b", "s", "e")]
    heads = op.n.elements(tuple(axes))
    apart = _more(op.n.b) * _more(op.n.s) * _more(heads)
    cached = k.role == "kv"
    if op is core[0]:
        if cached:
            yield from (_repeated_heads(op, t) for t in (k, v))
        yield _clone(str(q), op, apart, f"_own_{q}")
        if not cached:
            yield _clone(str(k), op, apart, f"_own_{k}")
        yield _reading_heads(op, k) if cached else op
    elif op.kind == "softmax":
        scores = op.equation.factors[0]
        if mask is not None and op.composite and op.composite.mask:
            added = build("copy", f"{scores} = {scores} * {op.composite.mask}", op.n, loose=True)
            one = added.reads[1]._replace(name=mask.writes[0].name)
            yield added._replace(reads=(added.reads[0], one), composite=op.composite)
        yield _kept(op)
    elif op is core[-1]:
        if not cached:
            yield _clone(str(v), op, apart, f"_own_{v}")
        yield _reading_heads(op, v) if cached else op
        o = str(op.output)
        yield _clone(o, op, _more(op.n.s) * _more(heads))
    else:
        yield op


def _repeated_heads(op: Op, tensor: Tensor) -> Op:
    """The heads of keys or values, once for each of their query heads: a copy where there are several."""
    n = op.n
    again = _more(n.r) * _more(n.b * n.g)
    return _clone(f"{tensor.name}[b t g e]", op, again, f"wide_{tensor.name}[b t g r e]")


def _reading_heads(op: Op, tensor: Tensor) -> Op:
    """A product that reads the repeated heads, if they were copied."""
    n = op.n
    wide = 1 + (n.r - 1) * _more(n.b * n.g)
    reads = tuple(
        r._replace(touched=r.touched * wide) if r.name == ref(n, tensor).name else r for r in op.reads
    )
    held = ref(n, Tensor(f"wide_{tensor.name}", "activation", 0, ("b",), ("b",)))._replace(touched=0)
    return op._replace(reads=(*reads, held))


def _kept(op: Op) -> Op:
    """The weights of attention are returned: the caller's frame holds them."""
    outer = op.path.rpartition(".")[0]

    def held(r: Ref) -> Ref:
        return r._replace(frame=outer)

    return op._replace(writes=tuple(map(held, op.writes)))


def _over_grid(op: Op, core: list[Op]) -> Iterator[Op]:
    """Patches u x v of b images or windows: q, k and v cloned as one, the scale on q, the bias cloned too."""
    n = op.n
    b, h, u, v = n.b, n.h, n.u, n.v
    q = core[0].equation.factors[0]
    output = op.output.name
    if output == "v":  # the last of the three projections
        yield op
        yield _three(op)._replace(again=_more(b) * _more(h))
    elif op is core[0]:
        scaled = build("pointwise", f"_scaled_{q} = {q}", n, loose=True)
        yield scaled._replace(cuda=core[1].cuda, composite=op.composite)
        yield op._replace(reads=(scaled.writes[0], *op.reads[1:]))
    elif op is core[1]:
        return
    elif output == "bh":
        yield _clone(str(q), op, _more(b * h) * _more(u), f"_rows_{q}")
        yield _freed(op)
    elif output == "bw":
        yield _clone(str(q), op, (1 - _more(b)) * _more(h) * _more(v), f"_columns_{q}")
        yield _freed(op)
    elif output == "bias":
        yield op
        yield _clone(str(op.output), op, _more(b * h) * _more(u))
    elif op.kind == "softmax":
        yield _kept(op)
    elif op is core[-1]:
        yield op
        yield _clone(str(op.output), op, _more(h))
    else:
        yield op


def _three(op: Op) -> Op:
    """A copy of q, k and v."""
    axes = "[b u v h e]"
    text = " ".join(f"own_{name}{axes}" for name in "qkv") + " = " + " * ".join(f"{name}{axes}" for name in "qkv")
    return build("copy", text, op.n)._replace(composite=Composite("clones", f"{op.node.serial}:qkv"))


def _freed(op: Op) -> Op:
    """An op of a function that returns before its result is read again: no name holds it."""
    return op._replace(writes=tuple(r._replace(temporary=True) for r in op.writes))


EAGER: dict[str, Pass] = {f.__name__: f for f in (concatenated_cache, torch_attention, taken_apart)}
