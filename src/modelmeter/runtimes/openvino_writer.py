"""How OpenVINO's compiler for CPUs turns the ops of a graph into primitives, one rule a kind of op.

Each rule is what the executed graphs of several architectures show (docs/engine-openvino.md). Next: `openvino.py`, the
passes that use it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import groupby

from modelmeter.errors import InputError
from modelmeter.graph.equations import Tensor
from modelmeter.graph.forms import CENTERED_NORM, COMBINES, GATHERS, LAYER_NORM, LAYER_NORM_2D, MUL, SCATTER, TOP_K
from modelmeter.graph.graph import Graph
from modelmeter.graph.ops import COLLECTIVES, SILENT, Composite, Op, Ref, build
from modelmeter.runtimes.ggml import casts, places
from modelmeter.sizes import ratio

MASK = "openvino.mask"
"""The name of the mask."""
_OTHERS = {"copy": "Transpose", "matmul": "MatMul", "softmax": "Softmax", "lookup": "Gather", "pointwise": "Eltwise"}
"""Primitives of ops that no rule knows."""


@dataclass
class Writer:
    """The ops of a graph, rewritten one by one.

    By a tensor's name: `other` are what stands for it, `fused` the primitives that an op on it alone joins, `kept` ops
    that wait for the primitive that runs them. `rowwise` lie token by token, `cut` are parts of what one product made,
    `flat` have one axis of tokens, which a view takes apart; `normed` are without weight and bias, by what they are of.
    """

    graph: Graph
    other: dict[str, Ref] = field(default_factory=dict)
    fused: dict[str, str] = field(default_factory=dict)
    kept: dict[str, Op] = field(default_factory=dict)
    rowwise: set[str] = field(default_factory=set)
    flat: set[str] = field(default_factory=set)
    cut: set[str] = field(default_factory=set)
    normed: dict[tuple[str, int], Ref] = field(default_factory=dict)
    made: int = 0

    def __post_init__(self) -> None:
        if any(op.kind in COLLECTIVES for op in self.graph.ops):
            raise InputError("OpenVINO's way to several devices is not modelled; parallel needs another runtime")
        cores = [op for op in self.graph.ops if _attends(op)]
        self.end = {op.composite: op for op in cores}
        self.begin = {op.composite: op for op in reversed(cores)}
        self.cached = {op.composite for op in cores if any(r.role == "kv" for r in op.reads)}
        self.of = {op.node.serial: op.composite for op in cores}
        for op in (op for op in cores if op.composite in self.cached and "t" not in op.n.axes):
            raise InputError(f"{op.node.layer}: how OpenVINO runs it, on a cache of another sequence, is not modelled")
        users = self.graph.users(range(len(self.graph.ops)))
        self.lonely = {made for made, indices in users.items() if len(indices) == 1}

    def ops(self) -> Iterator[Op]:
        """The ops in the engine's order."""
        masked = next((op for op in self.graph.ops if op.composite in self.cached), None)
        for together, group in groupby(enumerate(self.graph.ops), lambda pair: _together(pair[1])):
            if together:
                yield from self._projected([self._known(op) for _, op in group])
                continue
            for index, op in group:
                yield from self._op(index, self._known(op))
                if masked is not None and op.writes:
                    yield from self._mask(op, masked)
                    masked = None

    def one(self, primitive: str, *ops: Op) -> Iterator[Op]:
        """Ops that one primitive runs."""
        self.made += 1
        label = f"{primitive}#{self.made}"
        for op in ops:
            known = self._known(op)
            for w in op.writes:
                self.other.pop(w.name, None)
            yield known._replace(kernel=label)

    def copied(self, primitive: str, tensor: Tensor, op: Op) -> Iterator[Op]:
        """A tensor of an op in another order."""
        yield from self.one(primitive, build("copy", f"{_whole(tensor)} = {_whole(tensor)}", op.n))

    def _known(self, op: Op) -> Op:
        return op._replace(reads=tuple(self.other.get(r.name, r) for r in op.reads))

    def _mask(self, at: Op, first: Op) -> Iterator[Op]:
        """The mask of all layers, selected once."""
        mask = Ref(MASK, "", False, "activation", 32, *[first.n.elements(("b", "s", "t"))] * 2)
        yield from self.one("Eltwise", at._replace(kind="pointwise", reads=(), writes=(mask,), tensor=0, cuda=0))

    def _op(self, index: int, op: Op) -> Iterator[Op]:
        rules: tuple[tuple[bool, Callable[[Op], Iterator[Op]]], ...] = (
            (op.kind in SILENT, lambda op: iter((op,))),
            (op.kind == "norm", lambda op: self._norm(index, op)),
            (_angles(op), self._angles),
            (_table(op), self._tables),
            (places(op), self._rotated),
            (bool(op.writes) and op.writes[0].role == "kv", self._cached),
            (_attends(op), self._attention),
            (op.kind == "copy", self._copy),
            (op.kind == "conv2d", self._convolution),
            (op.kind == "matmul", self._matmul),
            (op.kind == "pointwise", lambda op: self._pointwise(index, op)),
        )
        for name in (w.name for w in op.writes if op.kind != "pointwise"):
            self.fused.pop(name, None)
        rule = next((rule for fits, rule in rules if fits), lambda op: self.one(_OTHERS[op.kind], op))
        yield from rule(op)

    def _norm(self, index: int, op: Op) -> Iterator[Op]:
        """RMS is one primitive. LayerNorm is two, of which norms of one tensor share the first."""
        if op.form is CENTERED_NORM:
            raise InputError(f"{op.node.layer}: how OpenVINO runs this norm, as several primitives, is not modelled")
        if op.form not in (LAYER_NORM, LAYER_NORM_2D):
            yield from self.one("RMS", op)
            return
        read, out, weights = self.graph.reads[index][0], op.output, op.equation.operands[1:]
        each = op.n.elements(out.touched) * len(weights)
        normed = build("norm", f"_normed{_axes(out)} = {op.equation.operands[0]}", op.n)
        if (read.ref.name, read.writer) not in self.normed:
            made = normed._replace(reads=op.reads[:1], cuda=op.cuda - each)
            self.normed[read.ref.name, read.writer] = made.writes[0]
            yield from self.one("MVN", made)
        parts = " * ".join(map(str, (normed.output, *weights)))
        scaled = build("pointwise", f"{out} = {parts}", op.n, MUL)
        known = self.normed[read.ref.name, read.writer]
        yield from self.one("Eltwise", scaled._replace(cuda=each, reads=(known, *scaled.reads[1:])))

    def _angles(self, op: Op) -> Iterator[Op]:
        """Positions become numbers, their angles a product in another order."""
        pos = op.equation.factors[1]
        at = build("copy", f"_at:32{_axes(pos)} = {pos}", op.n)
        yield from self.one("Convert", at)
        yield from self.one("MatMul", op._replace(reads=(op.reads[0], at.writes[0])))
        yield from self.copied("Transpose", op.output, op)

    def _tables(self, op: Op) -> Iterator[Op]:
        """Both halves of the angles side by side, their cos and their sin."""
        whole = build("copy", f"_both:32{_axes(op.output)} = {op.equation.factors[0]}", op.n)
        yield from self.one("Concatenation", whole)
        for w in op.writes:
            yield from self.one("Math", op._replace(reads=whole.writes, writes=(w,), cuda=ratio(op.cuda, 2)))

    def _rotated(self, op: Op) -> Iterator[Op]:
        """One primitive, which leaves heads apart; what was cut is laid apart before."""
        name = op.reads[0].name
        if name in self.cut:
            yield from self.copied("Transpose", op.equation.factors[0], op)
        self.rowwise.discard(name)
        yield from self.one("RoPE", op)

    def _projected(self, ops: list[Op]) -> Iterator[Op]:
        """Projections that are one matrix, then cut apart; those of experts are not one here."""
        if _routed(ops[0]):
            for op in ops:
                yield from self._matmul(op)
            return
        yield from self.one("FullyConnected", *ops)
        yield from self.one("Split", *(build("copy", f"{op.output} = {op.output}", op.n) for op in ops))
        made = {op.writes[0].name for op in ops}
        self.rowwise, self.cut = self.rowwise | made, self.cut | made

    def _matmul(self, op: Op) -> Iterator[Op]:
        weighs = any(r.role == "weight" for r in op.reads)
        primitive = "GatherMatmul" if _routed(op) else "FullyConnected" if weighs else "MatMul"
        yield from self.one(primitive, op)
        if op.node.serial in self.of:
            self.rowwise.add(op.writes[0].name)
        if not _routed(op):
            self.fused[op.writes[0].name] = f"{primitive}#{self.made}"

    def _pointwise(self, index: int, op: Op) -> Iterator[Op]:
        """What works on one result alone joins its primitive; a second operand joins one that is element by element."""
        first, alone = op.reads[0], len(op.reads) == 1
        if op.form is TOP_K:
            yield from self.one("TopK", op)
        elif alone and first.stored != op.writes[0].stored:
            self.flat |= {op.writes[0].name} if op.form in COMBINES else set()
            yield from self.one("Reduce", op)
        elif alone and op.output.name == "_g" and "k" in op.output.stored:
            self.kept[first.name] = op  # runs with the product
        elif op.equation.factors[-1].stored[-1:] == ("k",) and not alone and "d" in op.output.stored:
            yield from self._weighted(op)
        else:
            yield from self._elementwise(index, op)

    def _weighted(self, op: Op) -> Iterator[Op]:
        """The results of experts, each by its weight, which is cut out and turned round."""
        for primitive in ("StridedSlice", "Transpose"):
            yield from self.copied(primitive, op.equation.factors[-1], op)
        yield from self.one("Eltwise", op)

    def _elementwise(self, index: int, op: Op) -> Iterator[Op]:
        alone = len(op.reads) == 1
        lonely = (r.name for r, writer in self.graph.reads[index] if (r.name, writer) in self.lonely)
        labels = [self.fused[name] for name in lonely if name in self.fused]
        label = next((label for label in labels if alone or label.startswith("Eltwise")), "")
        if label:
            yield op._replace(kernel=label)
        else:
            waited = [self.kept.pop(op.reads[0].name)] if op.reads[0].name in self.kept else []
            yield from self.one("Eltwise", *waited, op)
            label = f"Eltwise#{self.made}"
        self.fused.pop(op.writes[0].name, None)
        if not self.flat & {r.name for r in op.reads} and not (alone and label.startswith("Eltwise")):
            self.fused[op.writes[0].name] = label

    def _copy(self, op: Op) -> Iterator[Op]:
        if op.form in (*GATHERS, SCATTER) or casts(op):
            self.other[op.writes[0].name] = op.reads[0]
        elif any(t.name == "W_class" for t in op.equation.factors):
            yield from self._with_class(op)
        else:
            part = any(t.touched != t.stored for t in op.equation.factors)
            yield from self.one("StridedSlice" if part else "Transpose", op)

    def _with_class(self, op: Op) -> Iterator[Op]:
        """A learnt token, once for each picture, before those of the picture."""
        features, token = op.equation.factors
        ones = build("copy", f"_ones[b] = {token}", op.n)._replace(reads=())
        yield from self.one("Broadcast", ones)
        each = build("pointwise", f"_class[b d] = _ones[b] * {token}", op.n, MUL)
        yield from self.one("Eltwise", each._replace(cuda=0))
        joined = build("copy", f"{op.output} = {features} * _class[b d]", op.n)
        yield from self.one("Concatenation", joined._replace(reads=(op.reads[0], each.writes[0])))

    def _convolution(self, op: Op) -> Iterator[Op]:
        """Channels come last for a convolution, then first again, then tokens are rows."""
        yield from self.copied("Reorder", op.equation.factors[0], op)
        yield from self.one("Convolution", op)
        yield from self.copied("Reorder", op.output, op)
        yield from self.copied("Transpose", op.output, op)

    def _cached(self, op: Op) -> Iterator[Op]:
        """New keys or values, heads apart, are put into the cache by the primitive of attention."""
        yield from self.apart(op)
        yield op._replace(kernel=core(self.of[op.node.serial]))

    def _attention(self, op: Op) -> Iterator[Op]:
        """The one primitive of a stateful model; without a cache a generated kernel, its keys scaled and transposed."""
        begins, ends = (op.equation is end[op.composite].equation for end in (self.begin, self.end))
        if op.composite not in self.cached:
            if begins:
                yield from self.scaled(op, _whole(op.equation.factors[1]))
            yield op._replace(kernel=core(op.composite, "Subgraph"))
            return
        if begins:
            yield from self.apart(op)
        yield self.masked(op)._replace(kernel=core(op.composite))
        if ends:
            yield from self.copied("Transpose", op.output, op)

    def apart(self, op: Op) -> Iterator[Op]:
        """What an op reads first, head by head."""
        if op.reads[0].name in self.rowwise:
            yield from self.copied("Transpose", op.equation.factors[0], op)

    def masked(self, op: Op) -> Op:
        """An op of attention, of which the softmax reads the mask."""
        size = op.n.elements(("b", "s", "t")) if op.kind == "softmax" else 0
        mask = Ref(MASK, "", False, "activation", 32, size, size)
        return op._replace(reads=(*op.reads, mask)) if op.kind == "softmax" else op

    def scaled(self, op: Op, keys: str) -> Iterator[Op]:
        """Keys are scaled and transposed."""
        yield from self.one("Eltwise", build("pointwise", f"{keys} = {keys}", op.n, MUL)._replace(cuda=0))
        yield from self.one("Transpose", build("copy", f"{keys} = {keys}", op.n))


def core(composite: Composite | None, primitive: str = "ScaledDotProductAttention") -> str:
    """The label of the primitive that runs attention."""
    return f"{primitive}#{composite.name if composite else ''}"


def _together(op: Op) -> str:
    """The name of the one matrix that an op is a part of."""
    return op.composite.name if op.composite and op.composite.kind == "projections" else ""


def _attends(op: Op) -> bool:
    return bool(op.composite and op.composite.kind == "attention")


def _routed(op: Op) -> bool:
    """Whether an op reads the weights of some experts of all."""
    return any(r.role == "weight" and r.stored != r.touched for r in op.reads)


def _angles(op: Op) -> bool:
    """Whether an op makes the angles of positions."""
    return [t.name for t in op.equation.factors] == ["freq", "pos"] and op.output.stored == ("b", "s", "H")


def _table(op: Op) -> bool:
    """Whether an op makes full tables of cos and sin of angles."""
    operands = [t.stored for t in op.equation.operands]
    return (
        len(op.writes) == 2
        and op.equation.outputs[1].name == "sin"
        and operands == [("b", "s", "H")]
        and "e" in op.output.stored
    )


def _axes(tensor: Tensor) -> str:
    return f"[{' '.join(tensor.stored)}]"


def _whole(tensor: Tensor) -> str:
    """A tensor of an equation, all of it."""
    return f"{tensor.name}{f':{tensor.bits}' if tensor.bits else ''}{_axes(tensor)}"
