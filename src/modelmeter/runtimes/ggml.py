"""What llama.cpp runs: its graph of ggml's ops, views among them, all in 32 bits but for weights and cache.

The reference is llama.cpp as of October 2026, of decoders with causal attention and gated MLPs, dense or routed; what
each check of the engine found is told in docs/engines.md. Next: `planner.py`, where its tensors lie.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby

from modelmeter.graph.equations import parse
from modelmeter.graph.forms import ADD, COMBINE, GATHER, LAYER_NORM, MUL, SCATTER, TOP_K
from modelmeter.graph.graph import Graph
from modelmeter.graph.ops import Op, Ref, build, resized
from modelmeter.graph.place import Sizes
from modelmeter.sizes import Size, ceil_div

CELLS = 256
"""The cache, and what attention sees of it, is a multiple of so many cells."""
_VIEWS = 6
"""Views before attention: queries, keys and values, each cut out of its tensor and permuted."""
_ORDER = {"q": 0, "v": 1, "k": 2}
"""Queries, values and keys are made in this order."""
PROVIDED = "ggml."
"""Before the names of what the engine gives a graph."""
_EMBEDDINGS, _MIXED = f"{PROVIDED}embeddings", "mixed"
"""What stays to the end: no op reads them."""


def ggml(graph: Graph) -> Graph:
    """The graph that llama.cpp makes of a decoder. Attention is one kernel if it was one before.

    Positions are read by the rotations, which make their angles themselves; masks and the places of new tokens in the
    cache are inputs. Attention is computed over whole cells, masked or not: `causal: exact` saves nothing. Beside the
    embeddings of tokens are those of a batch that has embeddings too, which are reserved and not computed.
    """
    ops = list(_Writer(graph).ops())
    if not ops:
        return graph
    given = {r.name: idle(r) for op in ops for r in op.reads if r.name.startswith(PROVIDED)}
    start = ops[0]._replace(kind="constant", reads=(), writes=tuple(given.values()), tensor=0, cuda=0)
    known = {r.name: r for op in ops for r in (*op.reads, *op.writes)}
    held = (_unread(known[name]) for name in (_EMBEDDINGS, _MIXED) if name in known)
    ops[-1] = ops[-1]._replace(reads=(*ops[-1].reads, *held))
    return graph.with_ops(map(wide_op, [start] * bool(given) + ops))


def wide_op(op: Op) -> Op:
    """An op on activations in 32 bits."""

    def wide(r: Ref) -> Ref:
        return r._replace(bits=32) if r.role == "activation" and not r.bits else r

    return op._replace(reads=tuple(map(wide, op.reads)), writes=tuple(map(wide, op.writes)))


def idle(r: Ref) -> Ref:
    """A tensor that is there, without traffic."""
    return r._replace(touched=0)


def _unread(r: Ref) -> Ref:
    """A tensor that is alive."""
    return r._replace(stored=0, touched=0)


def provided(name: str, bits: int, elements: Size) -> Ref:
    """A tensor that the engine gives a graph."""
    return Ref(PROVIDED + name, "", False, "activation", bits, elements, elements)


def views(op: Op, r: Ref, many: int = 1) -> Iterator[Op]:
    """Views of a tensor: nodes that run nothing."""
    for _ in range(many):
        yield op._replace(kind="view", reads=(_unread(r),), writes=(), tensor=0, cuda=0, kernel="", composite=None)


@dataclass
class _Writer:
    """The ops of a graph, rewritten one by one; `other` are the tensors that stand for others, by name."""

    graph: Graph
    other: dict[str, Ref] = field(default_factory=dict)
    saved: dict[str, Size] = field(default_factory=dict)
    """FLOPs that a later op does, by the tensor that it reads."""
    sorted: list[Ref] = field(default_factory=list)
    """The experts of each token, by their scores."""

    def __post_init__(self) -> None:
        cores = [op for op in self.graph.ops if op.composite and op.composite.kind == "attention"]
        self.flash = {op.node.serial: bool(op.kernel) for op in cores}
        self.end = {op.composite: op for op in cores}
        self.begin = {op.composite: op for op in reversed(cores)}
        users = self.graph.users(range(len(self.graph.ops)))
        reads = zip(self.graph.ops, self.graph.reads, strict=True)
        self.shared = {(id(op), r.name) for op, found in reads for r, at in found if len(users[r.name, at]) > 1}

    def ops(self) -> Iterator[Op]:
        """The ops in ggml's order."""
        apart = {r.name for op in self.graph.ops if not places(op) for r in op.reads}
        read = {r.name for op in self.graph.ops if places(op) for r in op.reads} - apart
        made = (op for op in self.graph.ops if op.equation.outputs[-1].name == "sin" and op.writes[-1].name in read)
        tables = {op.node.serial: op.writes[-1].name for op in made}
        for op in (op for op in self.graph.ops if op.node.serial in tables):
            self.saved[tables[op.node.serial]] = self.saved.get(tables[op.node.serial], 0) + op.cuda
        rest = (op for op in self.graph.ops if op.node.serial not in tables)
        for projecting, group in groupby(rest, self._projects):
            for op in sorted(group, key=lambda o: _ORDER[_last(o)]) if projecting else group:
                known = op._replace(reads=tuple(self.other.get(r.name, r) for r in op.reads))
                yield from self._op(op, known)

    def _projects(self, op: Op) -> bool:
        """Whether an op makes queries, keys or values, or works on them before attention."""
        return bool(self.flash) and _last(op) in _ORDER and op.writes[0].role == "activation"

    def _op(self, was: Op, op: Op) -> Iterator[Op]:
        names = [r.name.rpartition(".")[2] for r in op.reads]
        if op.kind == "unused":
            yield op
        elif op.kind == "lookup" and names[0] == "W_tok":
            yield from _embedding(op)
        elif op.kind == "norm":
            yield from _norm(op)
        elif places(op):
            at = provided("positions", 32, op.n.elements(op.equation.factors[-1].stored[:-1]))
            angles = self.saved.get(op.reads[-1].name, 0)
            yield op._replace(kind="pointwise", reads=(op.reads[0], at), cuda=op.cuda + angles)
        elif op.writes and op.writes[0].role == "kv":
            yield from self._cached(op)
        elif op.composite and op.composite.kind == "attention":
            yield from self._attention(was, op)
        elif op.kind == "copy" and (op.form in (GATHER, SCATTER) or casts(op)):
            self.other[op.writes[0].name] = op.reads[0]
        elif op.kind == "copy" and "l" in op.output.stored:
            yield op._replace(reads=(*op.reads, provided("wanted", 32, op.n.elements(("b", "l")))))
        elif op.kind == "matmul":
            yield from self._matmul(op)
        elif op.kind == "pointwise":
            yield from self._pointwise(was, op)
        else:
            yield op

    def _matmul(self, op: Op) -> Iterator[Op]:
        factors, out = op.equation.factors, op.output
        experts = any(t.role == "weight" and t.stored != t.touched for t in factors)
        plain = parse(f"{out} = {' * '.join(map(str, factors))}")
        reads = (*op.reads[: len(factors)], *(self.sorted if experts else ()))
        yield op._replace(equation=plain, reads=reads, cuda=0)
        for addend in op.equation.addends:
            yield build("pointwise", f"{out} = {out} + {addend}", op.n, ADD)
        if op.node.serial in self.flash and out.name in _ORDER:
            yield from views(op, op.writes[0])

    def _pointwise(self, was: Op, op: Op) -> Iterator[Op]:
        alone = len(op.reads) == 1 and op.reads[0].name == op.writes[0].name
        if alone and op.output.name == "_g":  # the activation of a gate runs with the product
            self.saved[op.writes[0].name] = op.cuda
        elif op.reads[0].name in self.saved:
            yield op._replace(kind="apart", cuda=op.cuda + self.saved.pop(op.reads[0].name))
        elif op.form is TOP_K:
            yield from self._chosen(op)
        elif alone and op.form is MUL and self.sorted and op.output.stored[-1:] == ("k",):
            return  # the scale of routed experts, which is 1
        elif op.form is COMBINE:
            yield from _combined(op)
        else:
            parts = sorted(op.reads, key=lambda r: (id(was), r.name) in self.shared)
            yield op._replace(reads=tuple(parts)) if op.form is ADD else op

    def _chosen(self, op: Op) -> Iterator[Op]:
        """The experts of each token: all are sorted, the first are taken."""
        probabilities, out = op.equation.factors[0], op.output
        yield from views(op, op.reads[0])
        order = build("copy", f"_sorted:32{_axes(probabilities.stored)} = {probabilities}", op.n)
        self.sorted = [idle(order.writes[0])]
        yield order._replace(cuda=op.cuda)
        yield from views(op, order.writes[0])
        taken = build("copy", f"{out} = {probabilities}", op.n)
        yield taken._replace(reads=(taken.reads[0]._replace(touched=taken.writes[0].stored), *self.sorted))
        yield from views(op, op.reads[0])

    def _cached(self, op: Op) -> Iterator[Op]:
        """New keys or values are put into the cache, in the format of which it is; their places are given."""
        new, n, flash = op.reads[0], op.n, self.flash.get(op.node.serial, True)
        values = not flash and _last(op) == "C_v"  # lie transposed, so that each element has a place
        yield from views(op, new, 3 if values else 1)
        where = ("values", new.stored) if values else (_last(op), n.elements(("b", "s")))
        yield resized(op, _in_cells(n))._replace(reads=(*op.reads, provided(where[0], 64, where[1])))

    def _attention(self, was: Op, op: Op) -> Iterator[Op]:
        """Scores over whole cells, scaled and masked with the softmax."""
        assert op.composite is not None
        flash, n = self.flash[op.node.serial], _in_cells(op.n)
        cached = n is not op.n
        if was is self.begin[op.composite]:
            yield from (view for r in op.reads[:2] for view in views(op, r, _VIEWS // 2))
        if op.kind == "pointwise" and op.form is MUL:
            self.saved[op.composite.name] = resized(op, n, _all(op.over)).cuda
            return
        made = resized(op, n, _all(op.over))
        if op.kind == "softmax":
            made = made._replace(cuda=made.cuda + self.saved.pop(op.composite.name, 0))
        if op.kind == "softmax" and cached:
            mask = provided("mask", 16 if flash else 32, n.elements(("b", "s", "t")))
            made = made._replace(reads=(*made.reads, mask), cuda=made.cuda + n.elements(made.output.stored))
        if was is not self.end[op.composite]:
            yield made
            return
        query = _unread(self.begin[op.composite].reads[0])
        yield made._replace(reads=(*made.reads, query)) if flash else made
        yield from views(op, op.writes[0])
        if not flash:
            yield build("copy", f"{op.output} = {op.output}", op.n)


def _last(op: Op) -> str:
    return op.writes[0].name.rpartition(".")[2] if op.writes else ""


def _axes(axes: Iterable[str]) -> str:
    return f"[{' '.join(axes)}]"


def _all(over: str) -> str:
    """Loops over all pairs."""
    return over.replace("P", "s t")


def places(op: Op) -> bool:
    """Whether an op rotates positions: x cos + turned(x) sin."""
    return op.kind == "pointwise" and [t.name for t in op.equation.factors[1:]] == ["cos", "sin"]


def casts(op: Op) -> bool:
    """Whether a copy changes nothing but the format."""
    given, made = op.equation.operands[0], op.output
    return len(op.reads) == 1 and given.stored == made.stored and made.bits > given.bits


def _in_cells(n: Sizes) -> Sizes:
    """A place whose context is whole cells; the same where it has no cache."""
    if "t" not in n.axes or "m" not in n.axes:
        return n
    return n.bind(**{axis: ceil_div(n.axes[axis], CELLS) * CELLS for axis in ("t", "m")})


def _embedding(op: Op) -> Iterator[Op]:
    """Rows of the table; beside them what a batch needs that has embeddings, or some of them: reserved, not run."""
    n, out = op.n, op.writes[0]
    many = n.elements(("b", "s"))
    embeddings = provided("embeddings", 32, out.stored)
    yield op._replace(reads=(*op.reads, provided("tokens", 32, many), idle(embeddings)))
    rows, mixed = (idle(out._replace(name=name, frame="")) for name in ("rows", _MIXED))
    reserved = op._replace(kind="reserved", tensor=0, cuda=0)
    yield reserved._replace(reads=(idle(provided("mixed.tokens", 32, many)),), writes=(rows,))
    yield reserved._replace(reads=(idle(provided("mixed.embeddings", 32, out.stored)),), writes=(mixed,))
    yield reserved._replace(reads=(rows, idle(provided("mixed.slots", 64, many))), writes=())


def _norm(op: Op) -> Iterator[Op]:
    """The norm, then its weight and its bias."""
    out, weights = op.output, op.equation.operands[1:]
    each = op.n.elements(out.touched)
    kind = "apart" if op.form is LAYER_NORM else "norm"  # of which ggml runs one in place
    plain = parse(f"{out} = {op.equation.operands[0]}")
    yield op._replace(kind=kind, equation=plain, reads=op.reads[:1], cuda=op.cuda - each * len(weights))
    for weight, form in zip(weights, (MUL, ADD), strict=False):
        yield build("pointwise", f"{out} = {out} * {weight}", op.n, form)


def _combined(op: Op) -> Iterator[Op]:
    """The results of a token's experts, cut out and added one by one: as one op where their number is a symbol."""
    many, out, share = op.n.k, op.writes[0], op.reads[0]._replace(touched=op.writes[0].stored)
    if isinstance(many, int):
        yield from views(op, share, many)
    if many == 1:
        yield op._replace(kind="copy", cuda=0)
        return
    each = out.stored if isinstance(many, int) else out.stored * (many - 1)
    made = op._replace(kind="pointwise", form=ADD, cuda=each, writes=(out._replace(touched=each),))
    yield made._replace(reads=(share._replace(touched=each * 2),))
    for _ in range(many - 2 if isinstance(many, int) else 0):
        yield made._replace(reads=(out, share))


def nodes(graph: Graph) -> Size:
    """The nodes of a graph as the engine counts them: kernels, views and what is reserved, each as often as it runs."""
    kernels = {
        label: op for label, op in zip(graph.labels, graph.ops, strict=True) if op.kind not in ("constant", "unused")
    }
    return sum((op.times for op in kernels.values()), start=0)
