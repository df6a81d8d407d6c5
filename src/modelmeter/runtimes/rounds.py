"""Each round of a repeated layer by itself: what a compiler sees that fuses across rounds. Next: `inductor.py`.

Every other pass keeps a repeated layer as one node. Names of the first round stay, later ones have a number.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby

from modelmeter.errors import InputError
from modelmeter.graph.graph import Graph
from modelmeter.graph.ops import Op, Ref, unused
from modelmeter.sizes import ratio


def each_round(graph: Graph) -> Graph:
    """A repeated layer is written out, round after round; all weights are stored where it begins.

    A loop inside, as that over the images of a call, stays one in each round.
    """
    return graph.with_ops(_written_out(graph))


def _written_out(graph: Graph) -> Iterator[Op]:
    loops = {op.node.loop for op in graph.ops} - {""}
    outer = {loop: min((one for one in loops if f"{loop}.".startswith(f"{one}.")), key=len) for loop in loops}
    for loop, group in groupby(graph.ops, lambda op: outer.get(op.node.loop, "")):
        ops = list(group)
        if not loop:
            yield from ops
            continue
        first = next(op for op in ops if op.node.loop == loop)
        rounds = first.node.times
        if not isinstance(rounds, int):
            raise InputError(f"{first.node.layer}: a compiler needs a number of rounds, not {rounds}")
        yield from (op._replace(form=None) for op in unused(ops) if op.reads)
        for number in range(rounds):
            yield from (_in_round(op, number, first) for op in ops if op.kind != "unused")


def _in_round(op: Op, number: int, first: Op) -> Op:
    """An op of one round, which reads what the round before left and has a cache of its own.

    One of a loop inside stays in it: `first` is an op of the outer one.
    """
    entering, leaving = first.node.held

    def named(r: Ref) -> Ref:
        if number and r.name == entering:
            return r._replace(name=leaving)
        return r._replace(name=f"{number}.{r.name}") if number and r.role == "kv" else r

    serial = op.node.serial + number * (op.n.root.placed + 1)
    if op.node.loop == first.node.loop:
        node = op.node._replace(times=1, loop="", held=("", ""), again=0, serial=serial)
    else:
        times = ratio(op.node.times, first.node.times)
        node = op.node._replace(times=times, loop=f"{op.node.loop}.{number}", serial=serial)
    composite = op.composite and op.composite._replace(name=f"{op.composite.name}.{number}")
    return op._replace(
        reads=tuple(map(named, op.reads)), writes=tuple(map(named, op.writes)), n=replace(op.n, node=node),
        composite=composite, kernel=f"{op.kernel}.{number}" if op.kernel else "",
    )  # fmt: skip
