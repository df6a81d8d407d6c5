"""What a serving engine with paged attention runs of a decoder, as vLLM's kernels are: one pass a rule.

Only parts with a KV cache are changed: a vision tower runs as its code has it. What each rule is taken from, and what
is not modelled, is told in docs/engine-vllm.md; nothing here was run on the engine.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from modelmeter.graph import forms
from modelmeter.graph.equations import Tensor
from modelmeter.graph.graph import Graph
from modelmeter.graph.ops import Op, Ref, build
from modelmeter.graph.place import Sizes
from modelmeter.sizes import Size, ceil_div, ratio

BLOCK = 16
"""Tokens of a block of the cache."""
_RMS = (forms.RMS_NORM, forms.WIDE_RMS_NORM)
_ROTATIONS = (forms.ROTATE, forms.ROTATE_PART, forms.ROTATE_DIRECT, forms.SPREAD_AND_ROTATE, forms.ROTATE_WIDE)


def paged(graph: Graph) -> Graph:
    """The cache of attention lies in whole blocks of 16 tokens, which its kernel finds by a table of 4 bytes a block.

    New keys and values are written by one kernel, which reads the place of each token, 8 bytes.
    """
    paged = {r.name for op in graph.ops for r in op.reads if r.role == "kv" and _attends(op)}
    return _given(graph, (_in_blocks(op, paged) for op in graph.ops), "block_table", "slots")


def _attends(op: Op) -> bool:
    return op.composite is not None and op.composite.kind == "attention"


def _in_blocks(op: Op, paged: set[str]) -> Op:
    reads = tuple(_blocks(r, t, op.n, paged) for r, t in zip(op.reads, op.equation.operands, strict=False))
    writes = tuple(_blocks(r, t, op.n, paged) for r, t in zip(op.writes, op.equation.outputs, strict=False))
    found = op._replace(reads=(*reads, *op.reads[len(reads) :]), writes=(*writes, *op.writes[len(writes) :]))
    tables = [
        _input("block_table", 32, op.n.b * ceil_div(op.n.elements((t.stored[1],)), BLOCK))
        for r, t in zip(op.reads, op.equation.operands, strict=False)
        if r.name in paged
    ]
    if tables:
        return found._replace(reads=(*found.reads, tables[0]))
    if any(w.name in paged for w in op.writes):
        slots = _input("slots", 64, op.n.b * op.n.s)
        return found._replace(reads=(*found.reads, slots), kernel=op.kernel or f"{op.node.serial}:cache")
    return found


def _blocks(r: Ref, tensor: Tensor, n: Sizes, paged: set[str]) -> Ref:
    if r.name not in paged:
        return r
    batch, positions, *heads = tensor.stored
    return r._replace(stored=ceil_div(n.elements((positions,)), BLOCK) * BLOCK * n.elements((batch, *heads)))


def _input(name: str, bits: int, elements: Size) -> Ref:
    """What the engine brings along for a step."""
    return Ref(name, "", False, "activation", bits, elements, elements)


def _given(graph: Graph, ops: Iterable[Op], *names: str) -> Graph:
    """A graph of other ops, which are given what they read of these names."""
    made = tuple(ops)
    read = {r.name for op in made for r in op.reads}
    return replace(graph, ops=made, inputs=graph.inputs | (read & set(names)))


def rotary_in_place(graph: Graph) -> Graph:
    """Queries and keys are rotated by one kernel, by rows of a table that was made when the model was loaded.

    A row is as wide as what is rotated: half of it cosines, half sines. The position of each token is 8 bytes.
    """
    turns = [op for op in graph.ops if op.form in _ROTATIONS and op.kind == "pointwise"]
    tables = {r.name for op in turns for r in op.reads[1:]}
    makers = {op.node.serial for op in graph.ops if tables & {w.name for w in op.writes}}
    ops = []
    for op in graph.ops:
        if any(op is turn for turn in turns):
            ops.append(_rotated(op))
        elif op.node.serial not in makers:
            ops.append(op)
        elif tables & {w.name for w in op.writes}:
            held = tuple(w._replace(stored=0, touched=0) for w in op.writes)
            ops.append(op._replace(kind="constant", reads=(), writes=held, cuda=0, tensor=0, form=None))
    return _given(graph, ops, "positions")


def _rotated(op: Op) -> Op:
    whole = op.form != forms.ROTATE_DIRECT
    rows = (r._replace(bits=0, touched=ratio(r.touched, 2) if whole else r.touched) for r in op.reads[1:])
    places = _input("positions", 64, op.n.b * op.n.s)
    return op._replace(reads=(op.reads[0], *rows, places), kernel=f"{op.node.serial}:rotary")


def gated_in_one(graph: Graph) -> Graph:
    """The activation of a gate and its product with the other half are one kernel."""
    ops = list(graph.ops)
    for place, (op, reads) in enumerate(zip(graph.ops, graph.reads, strict=True)):
        if op.kind != "pointwise" or op.output.name != "_h" or reads[0].writer < 0:
            continue
        made = ops[reads[0].writer]
        if made.kind == "pointwise" and made.node.serial == op.node.serial:
            label = f"{op.node.serial}:gated"
            ops[reads[0].writer], ops[place] = made._replace(kernel=label), op._replace(kernel=label)
    return graph.with_ops(ops)


def fused_experts(graph: Graph) -> Graph:
    """A mixture by the kernels of fused experts, of which none copies tokens.

    The router's product runs in the format of activations, one kernel chooses, one sorts the choices by expert; gate
    and up are one product of the tokens as they lie, down another, which weights its results; one kernel adds these.
    """
    gathers = {op.node.serial: op for op in graph.ops if op.form in forms.GATHERS}
    weighing = [(op, reads) for op, reads in zip(graph.ops, graph.reads, strict=True) if op.output.name == "wo"]
    told = {reads[1].writer: op for op, reads in weighing}  # the last op of a router, and the experts that it is for
    routers = {graph.ops[place].node.serial for place in told if place >= 0}
    ops: list[Op] = []
    for place, op in enumerate(graph.ops):
        if op.node.serial in gathers:
            ops += _expert(op, gathers[op.node.serial])
        elif op.node.serial in routers:
            ops += _routed(op, told.get(place))
        else:
            ops.append(op)
    return _given(graph, ops, *(_of_choices(op, "ids").name for place, op in told.items() if place < 0))


def _routed(op: Op, experts: Op | None) -> Iterator[Op]:
    """An op of a router; the last one tells the `experts`."""
    if op.kind == "copy" and op.output.name in ("_x", "_w"):
        return
    if op.kind == "matmul":
        text = op.equation.text.replace("_x:32", "x").replace("_w:32", "W_router").replace("_l:32", "_l")
        yield build("matmul", text, op.n)
        return
    reads = tuple(r._replace(bits=0) if r.name.endswith("._l") else r for r in op.reads)
    told = (_of_choices(experts, "ids"),) if experts else ()
    yield op._replace(reads=reads, writes=(*op.writes, *told), kernel=f"{op.node.serial}:top_k")


def _of_choices(experts: Op, name: str) -> Ref:
    """Four bytes a token and expert that it takes."""
    frame, full = experts.n.resolve(name)
    many = experts.n.elements(("b", "s", "k"))
    return Ref(full, frame, False, "activation", 32, many, many)


def _expert(op: Op, gather: Op) -> Iterator[Op]:
    """What an op of the experts is among fused ones; `gather` is the copy of tokens that it reads no more."""
    ids, order, label = _of_choices(gather, "ids"), _of_choices(gather, "order"), f"{op.node.serial}:experts"
    if op is gather:
        made = build("copy", "order:32[b s k] = ids:32[b s k]", op.n)
        yield made._replace(reads=(ids,), writes=(order,))
    elif op.kind == "matmul" and op.reads[0].name == gather.writes[0].name:
        yield op._replace(reads=(gather.reads[0], *op.reads[1:], order), kernel=f"{label}.in")
    elif op.kind == "matmul":
        yield op._replace(reads=(*op.reads, order), kernel=f"{label}.out")
    elif op.output.name == "wo":
        yield op._replace(writes=(op.writes[0]._replace(bits=0),), kernel=f"{label}.out")
    elif op.form in forms.COMBINES:
        frame, name = op.n.resolve("wo")
        yield op._replace(reads=(op.reads[0]._replace(name=name, frame=frame, bits=0),))
    elif op.form != forms.SCATTER:
        yield op


def residual_norms(graph: Graph) -> Graph:
    """What a block adds to the residual is added by the kernel of the norm behind it, which writes both.

    The norm behind a block is that of the next one, so each block ends with it instead of beginning so, and before the
    first one runs the norm that stood behind the last: as many as before, each in the kernel of an add but the first.
    """
    ops = list(graph.ops)
    for place, (op, following) in enumerate(zip(graph.ops, graph.ops[1:], strict=False)):
        if op.node.loop == following.node.loop and _normed(op, following):
            ops[place : place + 2] = _together(op, following)
    spans = _spans(graph)
    if not spans:
        return graph.with_ops(ops)
    first, behind = spans[0][0], spans[-1][1]
    moved = {*(start for start, _ in spans), behind}
    tensor = ops[behind].writes[0]._replace(name="normed", frame="")
    for place, (op, reads) in enumerate(zip(ops, graph.reads, strict=True)):
        named = (r._replace(name="normed", frame="") if writer in moved else r for r, writer in reads)
        ops[place] = op._replace(reads=tuple(named))
    before = _before(ops[first], ops[behind], tensor)
    made, joints = [*ops[:first], before], []
    for start, end in spans:
        added, norm = ops[end - 1], ops[start]
        made += ops[start + 1 : end - 1]
        made += _together(added, norm._replace(reads=(added.writes[0], *norm.reads[1:]), writes=(tensor,)))
        joints.append((len(made), added.writes[0]._replace(stored=0, touched=0)))
    made += ops[behind + 1 :]
    for place, residual in joints:  # it is written for the block behind, which in a loop knows it by another name
        made[place] = made[place]._replace(reads=(*made[place].reads, residual))
    return graph.with_ops(made)


def _before(first: Op, behind: Op, normed: Ref) -> Op:
    """The norm behind the last block as the one before the first, which stands where that block does."""
    at = replace(behind.n, node=behind.node._replace(path=first.path))
    return behind._replace(reads=(first.reads[0], *behind.reads[1:]), writes=(normed,), n=at, kernel="")


def _together(added: Op, norm: Op) -> tuple[Op, Op]:
    label = f"{added.node.serial}:{added.output.name}:norm"
    return added._replace(kernel=label), norm._replace(kernel=label)


def _normed(op: Op, following: Op) -> bool:
    """Whether a sum of two is normalised next, by the root of its mean square."""
    adds = op.kind == "pointwise" and op.form == forms.ADD and len(op.reads) == 2
    return adds and following.form in _RMS and following.reads[0].name == op.writes[0].name


def _spans(graph: Graph) -> list[tuple[int, int]]:
    """The first op of each block with a cache, and the one behind it, if all begin with a norm and stand in a row
    before another one."""
    paths = dict.fromkeys(op.path.rpartition(".")[0] for op in graph.ops if any(w.role == "kv" for w in op.writes))
    found, ops = [], graph.ops
    for path in paths:
        inside = [i for i, op in enumerate(ops) if not path or op.path == path or op.path.startswith(f"{path}.")]
        found.append((inside[0], inside[-1] + 1))
    ends = [end for _, end in found]
    joined = found and ends[:-1] == [start for start, _ in found[1:]] and ends[-1] + 1 < len(ops)
    whole = joined and all(ops[start].form in _RMS for start, _ in found)
    behind = [*(ops[start] for start, _ in found[1:]), ops[ends[-1]]] if whole else []
    return found if whole and all(_normed(ops[end - 1], op) for end, op in zip(ends, behind, strict=True)) else []
