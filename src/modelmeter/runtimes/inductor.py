"""What torch.compile runs: inductor's rules of what is stored, what is computed again, and which loops are one kernel.

The reference is torch 2.13 on the CPU, of one graph with static shapes; docs/engine-inductor.md tells what each check
of the engine found. A kernel is what its scheduler makes one loop nest, or one call of a library. Next: `fusion.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import NamedTuple

from modelmeter.graph.forms import ACTIVATIONS, CAP, LAYER_NORM, SOFTPLUS
from modelmeter.graph.graph import Graph
from modelmeter.graph.ops import SILENT, Op, Ref, build
from modelmeter.runtimes.eager import taken_apart
from modelmeter.runtimes.fusion import Loop, fused, sums
from modelmeter.runtimes.rounds import each_round
from modelmeter.sizes import minimum

READS = 4
"""What several ops use is stored if it is computed from more tensors than these (realize_reads_threshold)."""
MOST_READS = 12
"""And what one op uses, if from more than these (realize_cpu_acc_reads_threshold)."""
_HEAVY = (*(ACTIVATIONS[name] for name in ("silu", "sigmoid", "quick_gelu", "gelu_new")), CAP, SOFTPLUS)
"""Forms with an exp, sigmoid, tanh or log, which the CPU does not compute twice."""
_LIBRARY = frozenset({"matmul", "conv2d"})
"""Kinds of ops that a library runs."""
Unit = tuple[Op, ...]
"""An op, or those that are one kernel already."""


def inductor(graph: Graph) -> Graph:
    """The kernels that inductor makes of a stage."""
    apart = taken_apart(graph.with_ops(part for op in _through_copies(graph) for part in _halves(op)))
    units = local(list(_units(distinct(each_round(apart)).ops)))
    return graph.with_ops(fused(_Lowering(units).loops()))


def _through_copies(graph: Graph) -> Iterator[Op]:
    """The ops, those of an attention kernel reading the copies of queries, keys and values that are made for it."""
    copies: dict[str, Ref] = {}
    for op in graph.ops:
        if op.composite and op.composite.kind == "copies" and op.composite.name.endswith("own_"):
            copies |= {r.name: w for r, w in zip(op.reads, op.writes, strict=True)}
            yield op
            continue
        given = (copies[r.name]._replace(touched=r.touched) if r.name in copies else r for r in op.reads)
        yield op._replace(reads=tuple(given)) if op.kernel else op
        for w in op.writes:
            copies.pop(w.name, None)


def distinct(graph: Graph) -> Graph:
    """A name for each tensor that is written: one that is rebound gets a number."""
    last: dict[str, int] = {}
    ops = []

    def named(r: Ref) -> Ref:
        return r._replace(name=f"{r.name}~{last[r.name]}", frame="") if last.get(r.name) else r._replace(frame="")

    for op in graph.ops:
        reads = tuple(named(r) for r in op.reads)
        for w in op.writes:
            last[w.name] = last.get(w.name, -1) + 1
        ops.append(op._replace(reads=reads, writes=tuple(named(w) for w in op.writes)))
    return graph.with_ops(ops)


def _halves(op: Op) -> Iterator[Op]:
    """A norm or softmax that torch has as one operator: its statistics, then what is made of them."""
    if op.kernel or not (op.form is LAYER_NORM or op.kind == "softmax"):
        yield op
        return
    x, out = op.equation.factors[0], op.output
    rest = " ".join(axis for axis in out.touched if axis not in op.row.split())
    yield build("pointwise", f"_stats:32[{rest}] = {x}", op.n)._replace(grad=op.grad)
    made = build("pointwise", f"{out} = {x} * _stats:32[{rest}]", op.n)
    yield op._replace(kind="pointwise", form=None, reads=(op.reads[0], made.reads[1], *op.reads[1:]))


def _units(ops: Iterable[Op]) -> Iterator[Unit]:
    for _, group in groupby(enumerate(ops), lambda pair: pair[1].kernel or pair[0]):
        yield tuple(op for _, op in group)


def _read(unit: Unit) -> dict[str, Ref]:
    """What a unit reads that it does not make."""
    made = {w.name for op in unit for w in op.writes}
    return {r.name: r for op in unit for r in op.reads if r.name not in made or r.role == "kv"}


def local(units: list[Unit]) -> list[Unit]:
    """Each unit right before the first that uses it, as torch orders a graph (reorder_for_locality)."""
    maker = {w.name: at for at, unit in enumerate(units) for op in unit for w in op.writes}
    reads = [[maker[name] for name in _read(unit) if name in maker] for unit in units]
    users: list[set[int]] = [set() for _ in units]
    for at, made in enumerate(reads):
        for one in made:
            users[one].add(at)
    before = {at: at - 1 for at in range(len(units))}
    after = {at: at + 1 for at in range(-1, len(units))}
    seen, at = set(), len(units) - 1
    while at >= 0:
        seen.add(at)
        for one in reads[at]:
            if one not in seen and users[one] <= seen:
                _move(one, at, before, after)
        at = before[at]
    order, at = [], after[-1]
    while at < len(units):
        order.append(units[at])
        at = after[at]
    return order


def _move(one: int, at: int, before: dict[int, int], after: dict[int, int]) -> None:
    """Put one right before another in a list of neighbours."""
    left, right = before[one], after[one]
    after[left], before[right] = right, left
    left = before[at]
    after[left], before[one], after[one], before[at] = one, left, at, one


class _Value(NamedTuple):
    """A tensor that is computed where it is used: the ops that do, and what they read, each with what of it."""

    ops: tuple[Op, ...]
    loads: frozenset[tuple[str, object]]


@dataclass
class _Lowering:
    """Tells which tensors are stored; `parts` are those that lie side by side in another one."""

    units: list[Unit]
    values: dict[str, _Value] = field(default_factory=dict)
    parts: dict[str, tuple[Ref, ...]] = field(default_factory=dict)
    found: list[Loop] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.users: dict[str, list[Unit]] = {}
        for unit in self.units:
            for name in _read(unit):
                self.users.setdefault(name, []).append(unit)

    def loops(self) -> list[Loop]:
        """The loops in the order in which they are stored."""
        for unit in self.units:
            op = unit[0]
            if op.kind in SILENT:
                self.found.append(Loop(unit, "silent", frozenset()))
            elif op.kernel or op.kind in _LIBRARY or _sorts(op):
                self._stored(_read(unit))
                self.found.append(Loop(tuple(map(self._resolved, unit)), "library", frozenset()))
                self._turned(unit)
            elif op.writes[0].role == "kv":
                self._cached(op)
            elif _concatenates(op):
                given = sorted(op.reads, key=lambda r: not self._whole(r))  # what is computed comes first
                self.parts[op.writes[0].name] = tuple(self._part(op, r) for r in given)
            else:
                self._computed(op)
        self._stored([name for name in self.values if name not in self.users])
        return self.found

    def _turned(self, unit: Unit) -> None:
        """Attention of queries that were put together head by head gives heads, which are copied to positions."""
        first, last = unit[0], unit[-1]
        if not (first.kernel and first.reads and first.reads[0].name in self.parts):
            return
        out = last.writes[0]
        many = minimum(last.n.elements((last.output.stored[1],)) - 1, 1)
        copied = build("copy", f"{last.output} = {last.output}", last.n)
        turned = out._replace(name=f"{out.name}.turned")
        self.found.append(Loop((copied._replace(reads=(out,), writes=(turned,), again=many),), "loop", frozenset()))
        self.parts[out.name] = (turned,)

    def _resolved(self, op: Op) -> Op:
        """An op that reads the parts of a tensor that has some."""
        return op._replace(reads=tuple(part for r in op.reads for part in self.parts.get(r.name, (r,))))

    def _computed(self, op: Op) -> None:
        """An op that a loop runs: it is stored at once, or where it is used."""
        name = op.writes[0].name
        users = self.users.get(name, [])
        library = any(unit[0].kernel or unit[0].kind in _LIBRARY for unit in users)
        (first, *_) = op.reads
        if library and op.kind == "copy" and first.touched != first.stored:  # a library reads a part in its place
            self._stored([first.name])
            self.parts[name] = (first,)
            return
        value = self._value(op)
        self.values |= {w.name: value for w in op.writes}
        often = len(users) > 1 and (library or len(value.loads) > READS or any(op.form is form for form in _HEAVY))
        if sums(op) or often or len(value.loads) > MOST_READS:
            self._stored([name])

    def _value(self, op: Op) -> _Value:
        """An op with those before it that are computed with it."""
        op = self._resolved(op)
        ops: dict[int, Op] = {}
        loads: set[tuple[str, object]] = {("indices", op.n.node.serial)} if op.kind == "lookup" else set()
        for r in op.reads:
            if r.name in self.values:
                ops |= {id(one): one for one in self.values[r.name].ops}
                loads |= self.values[r.name].loads
            elif r.role == "weight":  # of its own in each round
                loads.add((r.name, op.n.node.serial))
            else:  # another part of a tensor is another load
                loads.add((r.name, id(op) if op.kind != "lookup" and r.touched != r.stored else 0))
        return _Value((*ops.values(), op), frozenset(loads))

    def _stored(self, names: Iterable[str]) -> None:
        """Store what is not."""
        whole = ([part.name for part in self.parts[name]] if name in self.parts else [name] for name in names)
        for one in [one for found in whole for one in found]:
            value = self.values.pop(one, None)
            if value:
                self.found.append(Loop(value.ops, "loop", value.loads))

    def _whole(self, r: Ref) -> bool:
        """Whether a tensor is computed where it is used, and all of it is used."""
        return r.name in self.values and r.touched == r.stored

    def _part(self, op: Op, r: Ref) -> Ref:
        """A part of a tensor: what is computed is written there, what is stored is copied."""
        if self._whole(r):
            self._stored([r.name])
            return r
        whole = op.writes[0]
        part = whole._replace(name=f"{whole.name}.{r.name}", stored=r.touched, touched=r.touched)
        value = self._value(op._replace(kind="copy", reads=(r,), writes=(part,)))
        self.found.append(Loop(value.ops, "loop", value.loads))
        return part

    def _cached(self, op: Op) -> None:
        """New keys or values behind a copy of the old ones; on an empty cache they are the cache."""
        new, cache = op.reads[0], op.writes[0]
        old = cache._replace(touched=cache.stored - cache.touched)
        axes = zip(op.output.stored, op.output.touched, strict=True)
        grown = [op.n.elements((a,)) - op.n.elements((b,)) for a, b in axes if a != b]
        again = minimum(grown[0], 1) if grown else 0
        self.found.append(Loop((op._replace(reads=(old,), writes=(old,), again=again),), "loop", frozenset()))
        value = self._value(op)
        if self.values.pop(new.name, None):
            self.found.append(Loop(value.ops, "loop", value.loads))
            return
        known = op._replace(kind="constant", reads=(), writes=(cache._replace(touched=0),))
        self.found.append(Loop((known,), "silent", frozenset()))
        self.found.append(Loop((self._resolved(op)._replace(again=again),), "loop", value.loads))


def _concatenates(op: Op) -> bool:
    """Whether an op puts tensors side by side: what it reads is as much as what it makes."""
    several = op.kind == "copy" and len(op.reads) > 1 and all(r.bits != 64 and r.role == "activation" for r in op.reads)
    return several and sum((r.touched for r in op.reads), start=0) == op.writes[0].touched


def _sorts(op: Op) -> bool:
    """Whether torch has a kernel of its library for an op: the largest ones, sorting, a histogram and its sums."""
    numbers = len(op.writes) > 1 and any(w.bits == 64 for w in op.writes)
    return numbers or (bool(op.writes) and op.output.name in ("counts", "ends"))
