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


def each_round(graph: Graph) -> Graph:
    """A repeated layer is written out, round after round; all weights are stored where it begins."""
    return graph.with_ops(_written_out(graph))


def _written_out(graph: Graph) -> Iterator[Op]:
    loops = {op.node.loop for op in graph.ops} - {""}
    for inner in (a for a in loops if any(a.startswith(f"{b}.") for b in loops)):
        raise InputError(f"{inner}: a compiler writes out repeated layers, and none inside another")
    for loop, group in groupby(graph.ops, lambda op: op.node.loop):
        ops = list(group)
        if not loop:
            yield from ops
            continue
        rounds = ops[0].node.times
        if not isinstance(rounds, int):
            raise InputError(f"{ops[0].node.layer}: a compiler needs a number of rounds, not {rounds}")
        yield from (op._replace(form=None) for op in unused(ops) if op.reads)
        for number in range(rounds):
            yield from (_in_round(op, number) for op in ops if op.kind != "unused")


def _in_round(op: Op, number: int) -> Op:
    """An op of one round, which reads what the round before left and has a cache of its own."""
    entering, leaving = op.node.held

    def named(r: Ref) -> Ref:
        if number and r.name == entering:
            return r._replace(name=leaving)
        return r._replace(name=f"{number}.{r.name}") if number and r.role == "kv" else r

    node = op.node._replace(
        times=1, loop="", held=("", ""), again=0, serial=op.node.serial + number * (op.n.root.placed + 1)
    )
    composite = op.composite and op.composite._replace(name=f"{op.composite.name}.{number}")
    return op._replace(
        reads=tuple(map(named, op.reads)), writes=tuple(map(named, op.writes)), n=replace(op.n, node=node),
        composite=composite, kernel=f"{op.kernel}.{number}" if op.kernel else "",
    )  # fmt: skip
