"""Ops that llama.cpp's graphs are made of: what the engine gives them, views, norms, what a token's experts give.

All in 32 bits but for weights and cache. Next: `ggml.py`, which rewrites a decoder with these.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from modelmeter.graph.equations import parse
from modelmeter.graph.forms import ADD, CAP, CENTERED_NORM, LAYER_NORM, MUL
from modelmeter.graph.ops import Op, Ref, build
from modelmeter.graph.place import Sizes
from modelmeter.sizes import Size, ceil_div, maximum, minimum, ratio

CELLS = 256
"""The cache, and what attention sees of it, is a multiple of so many cells."""
PROVIDED = "ggml."
"""Before the names of what the engine gives a graph."""
EMBEDDINGS, MIXED = f"{PROVIDED}embeddings", "mixed"
"""What stays to the end: no op reads them."""
_NEAR = ".near"
"""Ends the names of what layers with windows have of their own."""


def wide_op(op: Op) -> Op:
    """An op on activations in 32 bits."""

    def wide(r: Ref) -> Ref:
        return r._replace(bits=32) if r.role == "activation" and not r.bits else r

    return op._replace(reads=tuple(map(wide, op.reads)), writes=tuple(map(wide, op.writes)))


def idle(r: Ref) -> Ref:
    """A tensor that is there, without traffic."""
    return r._replace(touched=0)


def unread(r: Ref) -> Ref:
    """A tensor that is alive."""
    return r._replace(stored=0, touched=0)


def provided(name: str, bits: int, elements: Size) -> Ref:
    """A tensor that the engine gives a graph."""
    return Ref(PROVIDED + name, "", False, "activation", bits, elements, elements)


def views(op: Op, r: Ref, many: int = 1) -> Iterator[Op]:
    """Views of a tensor: nodes that run nothing."""
    for _ in range(many):
        yield op._replace(kind="view", reads=(unread(r),), writes=(), tensor=0, cuda=0, kernel="", composite=None)


def cells(positions: Size) -> Size:
    """Positions as whole cells."""
    return ceil_div(positions, CELLS) * CELLS


def in_cells(n: Sizes, ubatch: Size) -> Sizes:
    """A place whose context is whole cells; the same where it has no cache.

    A cache of windows holds a window and what is computed at once, unless the context is shorter.
    """
    if "t" not in n.axes or not {"m", "z"} & n.axes.keys():
        return n
    if "window" not in n.axes:
        return n.bind(**{axis: cells(n.axes[axis]) for axis in ("t", "m") if axis in n.axes})
    most = cells(minimum(n.axes["context"], cells(n.axes["window"] + maximum(n.s, ubatch))))
    return n.bind(t=most, m=most, w=n.s)


def near(n: Sizes) -> str:
    """The ending of names of what attention in windows has of its own."""
    return _NEAR if "window" in n.axes else ""


def capped(op: Op) -> Iterator[Op]:
    """c tanh(x / c): three ops."""
    for _ in range(CAP.element):
        yield op._replace(form=MUL, cuda=ratio(op.cuda, CAP.element))


def embedding(op: Op) -> Iterator[Op]:
    """Rows of the table; beside them what a batch needs that has embeddings, or some of them: reserved, not run."""
    n, out = op.n, op.writes[0]
    many = n.elements(("b", "s"))
    embeddings = provided("embeddings", 32, out.stored)
    yield op._replace(reads=(*op.reads, provided("tokens", 32, many), idle(embeddings)))
    rows, mixed = (idle(out._replace(name=name, frame="")) for name in ("rows", MIXED))
    reserved = op._replace(kind="reserved", tensor=0, cuda=0)
    yield reserved._replace(reads=(idle(provided("mixed.tokens", 32, many)),), writes=(rows,))
    yield reserved._replace(reads=(idle(provided("mixed.embeddings", 32, out.stored)),), writes=(mixed,))
    yield reserved._replace(reads=(rows, idle(provided("mixed.slots", 64, many))), writes=())


def norm(op: Op) -> Iterator[Op]:
    """The norm, then its weight and its bias."""
    out, weights = op.output, op.equation.operands[1:]
    each = op.n.elements(out.touched)
    kind = "apart" if op.form in (LAYER_NORM, CENTERED_NORM) else "norm"  # of which ggml runs one in place
    plain = parse(f"{out} = {op.equation.operands[0]}")
    yield op._replace(kind=kind, equation=plain, reads=op.reads[:1], cuda=op.cuda - each * len(weights))
    for weight, form in zip(weights, (MUL, ADD), strict=False):
        yield build("pointwise", f"{out} = {out} * {weight}", op.n, form)


def combined(op: Op) -> Iterator[Op]:
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


def last(op: Op) -> str:
    """What an op writes, by the layer's own name."""
    return op.writes[0].name.rpartition(".")[2] if op.writes else ""


def listed(axes: Iterable[str]) -> str:
    return f"[{' '.join(axes)}]"


def all_pairs(over: str) -> str:
    """Loops over all pairs."""
    return over.replace("P", "s t")
