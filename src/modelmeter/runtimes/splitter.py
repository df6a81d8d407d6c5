"""The graph of one device of several that share tensors: ops resized, collectives put in, tokens sent to experts.

Axes are split; weights, cache, work and traffic follow, since each op is made again at its own share. Where a partial
or a split tensor must be whole is read off the equations by `sharding.py`; only how tokens reach the experts of other
devices is written down here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from fractions import Fraction
from math import lcm, prod

from modelmeter.errors import InputError
from modelmeter.graph.forms import ADD, COMBINE
from modelmeter.graph.graph import Graph
from modelmeter.graph.ops import Op, build, resized
from modelmeter.graph.place import Sizes
from modelmeter.runtimes.sharding import VOCABULARY, Plan, Walk, divided, expert_axes, layers_of, split_axes
from modelmeter.sizes import Size, ceil_div, expected_distinct, ratio

ROWS = 64
"""A vocabulary that is split is padded to a multiple of so many rows: vocab_parallel_embedding.py of vLLM, recalled."""

_FORMED = ("pointwise", "norm", "softmax")
"""Kinds of ops that have a form where a layer made them."""


def divisors(number: int) -> list[int]:
    """All numbers that divide one."""
    return [n for n in range(1, number + 1) if not number % n]


class Splitter:
    """Makes the graph of one device."""

    def __init__(self, graph: Graph, tensor: int, expert: int) -> None:
        self.graph, self.tensor, self.expert = graph, tensor, expert
        self.groups = max(expert // tensor, 1)  # that share experts
        self.layers = layers_of(graph)
        self.routed = {serial for serial, ops in self.layers.items() if expert_axes(ops)}
        if expert > 1 and not self.routed:
            raise InputError(f"parallel.expert={expert} is for routed experts, and there are none; leave it at 1")
        for op in (op for op in graph.ops if op.kind in _FORMED and op.form is None):
            raise InputError(f"{op.node.layer}: {op.equation.text!r} was traced, and cannot be split among devices")
        plans = {serial: self._plan(serial, ops) for serial, ops in self.layers.items()}
        if tensor > 1 and not any(plan.split for plan in plans.values()):
            raise InputError(
                f"{graph.ops[0].node.layer} has nothing to split among devices; leave parallel.tensor at 1"
            )
        last = {op.node.serial: index for index, op in enumerate(graph.ops)}
        sent = frozenset(last[serial] for serial in self.routed) if self.groups > 1 else frozenset()
        self.walk = Walk(graph, plans, sent)

    def graph_of_one(self) -> Graph:
        ops = [made for index, op in enumerate(self.graph.ops) for made in self._ops(index, op)]
        return replace(self.graph, ops=tuple(ops))

    def _plan(self, serial: int, ops: list[Op]) -> Plan:
        first, n = ops[0], ops[0].n
        if any(op.composite and op.composite.kind == "scan" for op in ops) and self.tensor > 1:
            raise InputError(f"{first.node.layer} cannot be split among devices here; leave parallel.tensor at 1")
        if serial in self.routed:
            return self._plan_of_experts(ops)
        if first.kind == "lookup" or (first.composite and first.composite.kind == "logits"):
            if VOCABULARY not in n.axes or self.tensor == 1:
                return Plan()
            rows = lcm(ROWS, self.tensor)
            own = ceil_div(n.elements((VOCABULARY,)), rows) * (rows // self.tensor)
            return Plan({VOCABULARY: own}, frozenset({VOCABULARY}))
        axes = split_axes(ops) if self.tensor > 1 else []
        return Plan(divided(first.node.layer, n, axes, self.tensor), frozenset(axes)) if axes else Plan()

    def _plan_of_experts(self, ops: list[Op]) -> Plan:
        """Some experts, and of the tokens those that have one of them among theirs."""
        n, layer, across = next(op.n for op in ops if "D" in op.n.axes), ops[0].node.layer, self.expert
        axes = split_axes(ops)
        within = divided(layer, n, axes, max(self.tensor // across, 1)) if axes else {}
        split = frozenset(axes) if self.tensor > across else frozenset[str]()
        if across == 1:
            return Plan(within, split) if self.tensor > 1 else Plan()
        if any(type(size) is not int for size in (n.E, n.k)):
            raise InputError(
                f"{layer}: parallel.expert needs experts and active ones as one number each: place it in a mixture"
            )
        if n.E % across:
            valid = ", ".join(map(str, divisors(n.E)))
            raise InputError(f"parallel.expert={across} does not divide the {n.E} experts of {layer}; valid: {valid}")
        reached, tokens = share_reached(n.E, n.k, across), n.b * self.groups
        k = ratio(n.k, across * reached)
        found = {"E": n.E // across, "D": ratio(expected_distinct(n.E, n.k, tokens * n.s), across)}
        return Plan({**within, **found, "b": tokens * reached, "k": k, "K": k - 1}, split | {"E", "D", "k"})

    def _ops(self, index: int, op: Op) -> Iterator[Op]:
        plan = {**self.walk.plan(op).sizes, **self.walk.scaled.get(index, {})}
        parted = op.node.serial in self.routed and self.expert > 1
        if parted and op is self.layers[op.node.serial][0]:
            yield from self._dispatched(op, op.n.bind(**plan, home=op.n.b))
        elif parted and op is self.layers[op.node.serial][-1]:
            yield from self._combined(op, op.n.bind(**plan, home=op.n.b))
        else:
            yield self._resized(op, plan) if plan else op
        if index in self.walk.whole:
            own = {axis: size for axis, size in plan.items() if axis in self.walk.plan(op).split}
            yield self._whole(op, self.walk.whole[index], op.n.bind(**own))

    @staticmethod
    def _resized(op: Op, plan: Mapping[str, Size]) -> Op:
        """An op with what one device has of some axes."""
        if op.kind == "unused":
            own = {r.name: r for r in build(op.kind, op.equation.text, op.n.bind(**plan)).reads}
            return op._replace(reads=tuple(own[r.name]._replace(touched=0) for r in op.reads), n=op.n.bind(**plan))
        same = resized(op, op.n)
        if (same.tensor, same.cuda, same.reads) != (op.tensor, op.cuda, op.reads):
            raise InputError(f"{op.node.layer}: {op.equation.text!r} was changed by its model, and cannot be split")
        return resized(op, op.n.bind(**plan))

    def _whole(self, op: Op, kind: str, n: Sizes) -> Op:
        """The collective that makes the result of an op whole."""
        tensor, split = op.output, self.walk.plan(op).split & {*op.output.touched}
        n, source = n.bind(others=ratio(self.tensor - 1, self.tensor), devices=self.tensor), str(tensor)
        if kind == "all_gather":
            own = {axis: n.elements((axis,)) for axis in split}
            every = {axis: own[axis] * self.tensor if axis == VOCABULARY else op.n.elements((axis,)) for axis in split}
            n = n.bind(**every, **{f"{axis}_own": size for axis, size in own.items()})
            n = n.bind(others=1 - prod((ratio(own[a], every[a]) for a in own), start=1))
            axes = tuple(f"{a}_own" if a in own else a for a in tensor.touched)
            source = str(tensor._replace(stored=tensor.touched, touched=axes))
        form = ADD if kind == "all_reduce" else None
        made = build(kind, f"{tensor} = {source}", n, form, over=" ".join(("others", *tensor.touched)))
        logits = op.composite is not None and op.composite.kind == "logits"
        return made._replace(composite=op.composite if logits else None)

    def _dispatched(self, op: Op, n: Sizes) -> Iterator[Op]:
        """Tokens in the order of their experts; before, if other groups have some of these, they are sent there."""
        out, tokens = op.output, op.equation.factors[0]
        rest, source = " ".join(tokens.touched[1:]), tokens.name
        if self.groups > 1:
            n = n.bind(**self._messages(n))
            text = f"_arrived[b {rest}] = {source}[home {rest}]"
            yield build("all_to_all", text, n, over=f"sent {rest}")
            yield build("copy", f"{out} = _arrived[b {rest}]", n, op.form)
        else:
            yield build("copy", f"{out} = {source}[home:b {rest}]", n, op.form)

    def _combined(self, op: Op, n: Sizes) -> Iterator[Op]:
        """What experts make of a token added up: on this device, then, if they are of several groups, where it is."""
        out, operand = op.output, op.equation.factors[0]
        rest = " ".join(out.touched[1:])
        if self.groups == 1:
            yield build("pointwise", f"{out.name}[home {rest}] = {operand}", n, op.form, over=op.over)
            return
        yield build("pointwise", f"_own[b {rest}] = {operand}", n, op.form, over=op.over)
        n = n.bind(**self._messages(n))
        yield build("all_to_all", f"_back[mine many {rest}] = _own[b {rest}]", n, over=f"sent {rest}")
        share = ":mine" if self.tensor > 1 else ""
        n = n.bind(K=n.many - 1)
        yield build(
            "pointwise", f"{out.name}[home{share} {rest}] = _back[mine many {rest}]", n, COMBINE, over=f"mine K {rest}"
        )
        if self.tensor > 1:
            n = n.bind(others=ratio(self.tensor - 1, self.tensor), devices=self.tensor)
            text = f"{out.name}[home {rest}] = {out.name}[home:mine {rest}]"
            yield build("all_gather", text, n, over=f"others home {rest}")

    def _messages(self, n: Sizes) -> dict[str, Size]:
        """Tokens that a device sends, each to `many` devices, itself among them."""
        reached, mine = ratio(n.b, n.home * self.groups), ratio(n.home, self.tensor)
        many = reached * self.expert
        return {"mine": mine, "many": many, "sent": mine * (many - reached), "devices": self.expert}


def share_reached(experts: int, active: int, devices: int) -> Size:
    """The share of tokens that have one or more of their experts on one of the devices, under uniform routing.

    >>> share_reached(8, 2, 8), share_reached(8, 2, 1), share_reached(4, 2, 2)
    (Fraction(1, 4), 1, Fraction(5, 6))
    """
    others = experts - experts // devices
    missed = prod((Fraction(max(others - i, 0), experts - i) for i in range(active)), start=Fraction(1))
    return ratio(1 - missed, 1)
