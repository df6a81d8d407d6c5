"""One of many devices: tensor, expert and data parallelism as passes. Each takes a graph and gives that of one device.

Axes are split, weights, cache, work and traffic follow, and collectives are put in where a partial or a split tensor
must be whole. Where these are is not written down: `sharding.py` reads it off the equations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from math import lcm, prod
from typing import Any, final

from modelmeter.errors import InputError, choose
from modelmeter.graph.forms import ADD, COMBINE
from modelmeter.graph.graph import Graph
from modelmeter.graph.ops import Op, build, resized
from modelmeter.graph.place import Sizes
from modelmeter.runtimes.passes import Pass
from modelmeter.runtimes.sharding import VOCABULARY, Plan, Walk, divided, expert_axes, layers_of, split_axes
from modelmeter.sizes import Expr, Size, as_size, ceil_div, expected_distinct, ratio, substituted, symbol

ROWS = 64
"""A vocabulary that is split is padded to a multiple of so many rows: vLLM, vocab_parallel_embedding.py, as recalled."""


@final
@dataclass(frozen=True)
class Parallel:
    """How a model is spread: the graph is that of one of `tensor` x `data` devices.

    `tensor` devices share each matrix, `data` such groups share the batch. Experts are shared by `expert` devices: of
    one group, or of whole groups, to which tokens are then sent.

    >>> str(Parallel(tensor=2, data=4, expert=8)), Parallel(tensor=2, data=4).devices, bool(Parallel())
    ('tensor parallel 2, expert parallel 8, data parallel 4', 8, False)
    """

    tensor: int = 1
    expert: int = 1
    data: int = 1

    def __post_init__(self) -> None:
        for f in fields(self):
            value = as_size(f"parallel.{f.name}", getattr(self, f.name))
            if type(value) is not int:
                raise InputError(f"parallel.{f.name} must be one number, not {value!r}")
            object.__setattr__(self, f.name, value)
        one_group, several = _divisors(self.tensor), (self.tensor * n for n in _divisors(self.data))
        valid = sorted({*one_group, *several})
        if self.expert not in valid:
            among = f"the {self.devices} devices of parallel.tensor={self.tensor} x parallel.data={self.data}"
            raise InputError(f"parallel.expert={self.expert} does not divide {among}; valid: {_listed(valid)}")

    @classmethod
    def of(cls, value: Any) -> Parallel:
        """A Parallel itself or a mapping of its fields. Raises InputError for anything else."""
        if isinstance(value, Parallel):
            return value
        if not isinstance(value, Mapping):
            raise InputError(f"parallel must map tensor, expert and data to numbers of devices, not {value!r}")
        for key in value:
            choose("parallel key", str(key), cls.__dataclass_fields__)
        return cls(**value)

    @property
    def devices(self) -> int:
        """How many there are."""
        return self.tensor * self.data

    def __bool__(self) -> bool:
        return self != Parallel()

    def __str__(self) -> str:
        named = ((f.name, getattr(self, f.name)) for f in fields(self))
        return ", ".join(f"{name} parallel {value}" for name, value in named if value > 1)

    def of_one(self, graph: Graph, replicated: bool = False) -> Graph:
        """The graph of one device; one that is `replicated` is split by the batch alone."""
        passes = [data_parallel(self.data)]
        if not replicated:
            passes.append(model_parallel(self.tensor, self.expert))
        for change in passes:
            graph = change(graph)
        return graph


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if not number % n]


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))


def data_parallel(devices: int) -> Pass:
    """The batch is shared by so many devices, rounded up: the graph of the one that has the most."""
    share, known = ceil_div(symbol("b"), devices), dict[Expr, Size]()

    def of(size: Size) -> Size:
        if not isinstance(size, Expr) or "b" not in size.names:
            return size
        if size not in known:
            known[size] = substituted(size, "b", share)
        return known[size]

    def shared(op: Op) -> Op:
        sides = (tuple(r._replace(stored=of(r.stored), touched=of(r.touched)) for r in s) for s in (op.reads, op.writes))
        reads, writes = sides
        n = op.n.bind(**{axis: of(size) for axis, size in op.n.axes.items()})
        n = replace(n, node=op.node._replace(times=of(op.node.times), again=of(op.node.again)), bound=op.n.bound)
        return op._replace(reads=reads, writes=writes, n=n, tensor=of(op.tensor), cuda=of(op.cuda), link=of(op.link))

    def run(graph: Graph) -> Graph:
        return graph.with_ops(map(shared, graph.ops)) if devices > 1 else graph

    return run


def tensor_parallel(devices: int) -> Pass:
    """Each layer is split along its heads, its width or the vocabulary; what is partial is added up where it is read."""
    return model_parallel(devices, 1)


def expert_parallel(devices: int) -> Pass:
    """Experts are shared by devices that each have a batch of their own, to which tokens are sent and come back."""
    return model_parallel(1, devices)


def model_parallel(tensor: int, expert: int) -> Pass:
    """Both: `expert` devices are a part of a group of `tensor` devices, or as many whole groups."""

    def run(graph: Graph) -> Graph:
        return _Splitter(graph, tensor, expert).graph_of_one() if tensor * expert > 1 else graph

    return run


class _Splitter:
    """Makes the graph of one device."""

    def __init__(self, graph: Graph, tensor: int, expert: int) -> None:
        self.graph, self.tensor, self.expert = graph, tensor, expert
        self.groups = max(expert // tensor, 1)  # that share experts
        self.layers = layers_of(graph)
        self.routed = {serial for serial, ops in self.layers.items() if expert_axes(ops)}
        if expert > 1 and not self.routed:
            raise InputError(f"parallel.expert={expert} is for routed experts, and there are none; leave it at 1")
        plans = {serial: self._plan(serial, ops) for serial, ops in self.layers.items()}
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
            raise InputError(f"{layer}: parallel.expert needs experts and active ones as one number each: place it in a mixture")
        if n.E % across:
            valid = _divisors(n.E)
            raise InputError(f"parallel.expert={across} does not divide the {n.E} experts of {layer}; valid: {_listed(valid)}")
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
        n = n.bind(others=ratio(self.tensor - 1, self.tensor), devices=self.tensor)
        source = str(tensor)
        if kind == "all_gather":
            own = {axis: n.elements((axis,)) for axis in split}
            every = {axis: op.n.elements((axis,)) for axis in own}
            if VOCABULARY in own:
                every[VOCABULARY] = own[VOCABULARY] * self.tensor
            n = n.bind(**every, **{f"{axis}_own": size for axis, size in own.items()})
            n = n.bind(others=1 - prod((ratio(own[a], every[a]) for a in own), start=1))
            axes = " ".join(f"{a}:{a}_own" if a in own else a for a in tensor.touched)
            source = f"{str(tensor).partition('[')[0]}[{axes}]"
        form = ADD if kind == "all_reduce" else None
        made = build(kind, f"{tensor} = {source}", n, form, over=" ".join(("others", *tensor.touched)))
        return made._replace(composite=op.composite if _makes_logits(op) else None)

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
        yield build("pointwise", f"{out.name}[home{share} {rest}] = _back[mine many {rest}]", n, COMBINE, over=f"mine K {rest}")
        if self.tensor > 1:
            n = n.bind(others=ratio(self.tensor - 1, self.tensor), devices=self.tensor)
            text = f"{out.name}[home {rest}] = {out.name}[home:mine {rest}]"
            yield build("all_gather", text, n, over=f"others home {rest}")

    def _messages(self, n: Sizes) -> dict[str, Size]:
        """Tokens that a device sends, each to `many` devices, itself among them."""
        reached, mine = ratio(n.b, n.home * self.groups), ratio(n.home, self.tensor)
        many = reached * self.expert
        return {"mine": mine, "many": many, "sent": mine * (many - reached), "devices": self.expert}


def _makes_logits(op: Op) -> bool:
    return op.composite is not None and op.composite.kind == "logits"


def share_reached(experts: int, active: int, devices: int) -> Size:
    """The share of tokens that have one or more of their experts on one of the devices, under uniform routing.

    >>> share_reached(8, 2, 8), share_reached(8, 2, 1), share_reached(4, 2, 2)
    (Fraction(1, 4), 1, Fraction(5, 6))
    """
    others = experts - experts // devices
    missed = prod((Fraction(max(others - i, 0), experts - i) for i in range(active)), start=Fraction(1))
    return ratio(1 - missed, 1)
