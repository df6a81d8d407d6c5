"""Which axes of a layer are split among devices, and what each tensor then is on one of them, read off the equations.

A layer is split along the axes that a product with weights bears and another one sums over, if nothing between mixes
them: heads, the width of an MLP. The vocabulary is split where rows of a table are looked up and where logits are made.
What is summed over a split axis is partial: it adds up, but nothing else may read it. Next: `parallel.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import NamedTuple

from modelmeter.errors import InputError
from modelmeter.graph.equations import Tensor
from modelmeter.graph.forms import ADD, COMBINES, MUL
from modelmeter.graph.graph import Graph
from modelmeter.graph.ops import Op
from modelmeter.graph.place import Sizes
from modelmeter.sizes import Size, ratio


class Plan(NamedTuple):
    """What one device has of the axes of a layer: their `sizes`, by axis, and those that are `split` among devices."""

    sizes: Mapping[str, Size] = {}
    split: frozenset[str] = frozenset()


VOCABULARY = "V"
_PRODUCTS = ("matmul", "conv2d")


def layers_of(graph: Graph) -> dict[int, list[Op]]:
    """The ops of each placed layer, without those of the layers in it, by its number."""
    found: dict[int, list[Op]] = {}
    for op in graph.ops:
        found.setdefault(op.node.serial, []).append(op)
    return found


def split_axes(ops: Sequence[Op]) -> list[str]:
    """The axes along which a layer can be split among devices, the outermost first.

    >>> from modelmeter.layers import CausalAttention, GatedMLP
    >>> [split_axes(layer.graph().ops) for layer in (GatedMLP(d=8, f=16), CausalAttention(8, 1, 2, 4))]
    [['f'], ['g', 'r']]
    """
    born: dict[str, None] = {}
    summed, barred = set[str](), set[str]()
    for op in ops:
        weights = {a for t in op.equation.factors if t.role == "weight" for a in t.stored}
        given = {a for t in op.equation.factors if t.role != "weight" for a in t.touched}
        made = {a for t in op.equation.outputs for a in t.touched}
        tensors = (*op.equation.operands, *op.equation.outputs)
        barred |= {
            a for t in tensors for pair in zip(t.stored, t.touched, strict=True) if len({*pair}) > 1 for a in pair
        }
        barred |= {*op.row.split()}
        if op.kind in (*_PRODUCTS, "unused") and weights:
            summed |= (weights & given) - made
            born |= dict.fromkeys(a for a in op.output.stored if a in weights - given - summed)
        else:
            barred |= (given - made) | (made - given - weights)
    return [axis for axis in born if axis in summed - barred]


def expert_axes(ops: Sequence[Op]) -> tuple[str, str] | None:
    """The axes of the experts that a layer stores and of those that it touches, if it has some of its own."""
    weights = (t for op in ops if op.kind == "matmul" for t in op.equation.factors if t.role == "weight")
    pairs = (pair for t in weights for pair in zip(t.stored, t.touched, strict=True))
    return next(((stored, touched) for stored, touched in pairs if stored == "E" and touched == "D"), None)


def divided(layer: str, n: Sizes, axes: Sequence[str], devices: int) -> dict[str, Size]:
    """What one of the devices has of the axes: whole parts of the first, then of the next where that is too short.

    Raises InputError where devices and axes do not divide, with the numbers that do.
    """
    sizes = [n.elements((axis,)) for axis in axes]
    if any(type(size) is not int for size in sizes):
        raise InputError(f"{layer}: parallel.tensor needs {' and '.join(axes)} as one number each, not {sizes}")
    found = _divided(sizes, devices)
    if found is None:
        valid = ", ".join(str(many) for many in range(1, prod(sizes) + 1) if _divided(sizes, many))
        named = " x ".join(f"{axis}={size}" for axis, size in zip(axes, sizes, strict=True))
        raise InputError(f"parallel.tensor={devices} does not divide {named} of {layer}; valid there: {valid}")
    return dict(zip(axes, found, strict=True))


def _divided(sizes: Sequence[int], devices: int) -> list[int] | None:
    """Each size divided by as much of the devices as it takes; one that is too short is on several of them."""
    found, left = [], devices
    for size in sizes:
        if size % left and left % size:
            return None
        found.append(max(size // left, 1))
        left = max(left // size, 1)
    return found if left == 1 else None


class Held(NamedTuple):
    """What one device has of a tensor: a partial sum or not, a `share` of its elements, split along `axes`.

    `tensor` and `n` are those of the layer whose plan split it.
    """

    partial: bool
    axes: frozenset[str]
    share: Size
    tensor: Tensor
    n: Sizes


@dataclass
class Walk:
    """What devices hold of each tensor, op by op; `whole` are the ops whose results are made whole, and how.

    `exchanged` are those whose partial sums go to other devices by themselves. Reading what must not be read adds to
    `whole`; then all is walked again, until nothing is added. `scaled` are the axes of ops of other layers that work
    on a tensor part by part.
    """

    graph: Graph
    plans: Mapping[int, Plan]
    exchanged: frozenset[int] = frozenset()
    whole: dict[int, str] = field(default_factory=dict)
    scaled: dict[int, dict[str, Size]] = field(default_factory=dict)
    held: dict[int, dict[str, Held]] = field(default_factory=dict)
    """What each op leaves, by name."""

    def __post_init__(self) -> None:
        before = -1
        while len(self.whole) > before:
            before = len(self.whole)
            self.scaled.clear()
            self.held.clear()
            for index, op in enumerate(self.graph.ops):
                self._run(index, op)
            self._leave()

    def plan(self, op: Op) -> Plan:
        """The plan of an op's layer."""
        return self.plans.get(op.node.serial, Plan())

    def _run(self, index: int, op: Op) -> None:
        given = [(writer, self.held[writer][r.name]) for r, writer in self.graph.reads[index] if writer >= 0]
        partial = [writer for writer, held in given if held.partial]
        waits = bool(partial) and self._adds_up(op, partial)
        if not waits:
            self._make_whole(partial, "all_reduce")
        axes = {a for t in (*op.equation.operands, *op.equation.outputs) for a in (*t.stored, *t.touched)}
        split = self.plan(op).split & axes
        elsewhere = {} if split else {writer: held for writer, held in given if held.axes}
        followed = next(iter(elsewhere.values())) if self._follows(index, op, elsewhere) else None
        sums = waits or (index not in self.exchanged and _sums(op, split))
        self.held[index] = {}
        for w, tensor in zip(op.writes, op.equation.outputs, strict=False):
            kept = split & {*tensor.touched}
            share = prod((ratio(self.plan(op).sizes[a], op.n.elements((a,))) for a in kept), start=1)
            made = followed or Held(sums, kept, share, tensor, op.n)
            self.held[index][w.name] = made
        if index in self.whole:
            self._make_whole([index], self.whole[index])

    def _make_whole(self, writers: Iterable[int], kind: str) -> None:
        """The results of these ops are whole from now on."""
        for index in writers:
            self.whole[index] = kind
            held = self.held[index].items()
            self.held[index] = {name: one._replace(partial=False, axes=frozenset(), share=1) for name, one in held}

    def _adds_up(self, op: Op, partial: Sequence[int]) -> bool:
        """Whether partial sums may wait: what is linear makes a partial sum of them, within a round."""
        if any(self.graph.ops[writer].node.loop != op.node.loop for writer in partial):
            return False
        if op.kind == "copy" or op.form is ADD or op.form in COMBINES:
            return len(partial) == len(op.reads)
        return op.form is MUL and len(partial) == 1  # equal forms are told apart as objects: EXP is not linear

    def _follows(self, index: int, op: Op, held: Mapping[int, Held]) -> bool:
        """Whether an op of another layer works on a split tensor part by part; if not, that is made whole."""
        if not held:
            return False
        one, row, inner = next(iter(held.values())), op.n.elements(tuple(op.row.split())), 1
        outer, free = list(one.tensor.stored), [axis for axis in op.output.stored if axis not in op.row.split()]
        while outer and inner != row:
            inner = inner * one.n.elements((outer.pop(),))
        if op.row and one.axes <= {*outer} and free:
            self.scaled[index] = {free[-1]: op.n.elements((free[-1],)) * one.share}
            return True
        self._make_whole(held, "all_gather")
        return False

    def _leave(self) -> None:
        """What enters the next round of a repeated layer, or leaves the stage, is made whole."""
        ops, users = self.graph.ops, self.graph.users(range(len(self.graph.ops)))
        last = {(op.node.loop, w.name): index for index, op in enumerate(ops) for w in op.writes}
        for index, op in enumerate(ops):
            for w in (w for w in op.writes if w.role == "activation"):
                held = self.held[index][w.name]
                enters = w.name == op.node.held[1] and last[op.node.loop, w.name] == index
                if (held.partial or held.axes) and (enters or (w.name, index) not in users):
                    self.whole[index] = "all_reduce" if held.partial else "all_gather"


def _sums(op: Op, split: frozenset[str]) -> bool:
    """Whether an op sums over a split axis."""
    made = {a for t in op.equation.outputs for a in t.touched}
    given = {a for t in op.equation.factors for a in (t.stored if op.kind == "lookup" else t.touched)}
    loops = {*(op.over.split() or op.equation.loops)} if op.kind in _PRODUCTS else given
    return bool(split & given & loops - made)
