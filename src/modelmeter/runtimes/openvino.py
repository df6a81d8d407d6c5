"""What OpenVINO runs on a CPU: the primitives of its executed graph, on activations in 32 bits.

The reference is OpenVINO 2026.4 on a CPU with AVX2, of models as optimum-intel exports them; what each check of the
engine found is told in docs/engine-openvino.md. What works on shapes, positions and masks as integers is left out, and
so are views. Next: `openvino_writer.py`, the rules.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from modelmeter.graph.forms import MUL
from modelmeter.graph.graph import Graph
from modelmeter.graph.ops import SILENT, Op, Ref, build
from modelmeter.runtimes.ggml_ops import wide_op
from modelmeter.runtimes.openvino_writer import MASK, Writer, core
from modelmeter.sizes import Size


def openvino(graph: Graph) -> Graph:
    """The graph of a stateful model: the cache lies in the engine, attention puts new keys and values into it."""
    return graph.with_ops(map(wide_op, _held(Writer(graph).ops())))


def openvino_ports(graph: Graph) -> Graph:
    """The graph of a stateless model: the cache comes in and goes out at every step, a copy of the whole, in 32 bits.

    Attention is no primitive of its own then: heads of keys and values are repeated for the queries of their group,
    keys are scaled and transposed, one generated kernel does the rest.
    """

    def wide(r: Ref) -> Ref:
        return r._replace(bits=32) if r.role == "kv" else r

    made = map(wide_op, _held(_Ports(graph).ops()))
    return graph.with_ops(
        op._replace(reads=tuple(map(wide, op.reads)), writes=tuple(map(wide, op.writes))) for op in made
    )


def _held(ops: Iterable[Op]) -> Iterator[Op]:
    """The ops, of which the last one still holds the mask: no other tensor takes its place."""
    *before, final = ops
    mask = (w._replace(touched=0) for op in before for w in op.writes if w.name == MASK)
    yield from (*before, final._replace(reads=(*final.reads, *mask)))


def primitives(graph: Graph) -> dict[str, Size]:
    """How often a lowered graph runs each type of primitive, as the engine's executed graph calls it."""
    found: dict[str, Size] = {}
    for label, op in {op.kernel: op for op in graph.ops if op.kind not in SILENT}.items():
        primitive = label.partition("#")[0]
        found[primitive] = found.get(primitive, 0) + op.times
    return found


class _Ports(Writer):
    """The ops of a stateless model."""

    def _cached(self, op: Op) -> Iterator[Op]:
        """The cache that came in and what is new go out as one; heads are repeated for the queries of their group."""
        yield from self.apart(op)
        out, n, whole = op.writes[0], op.n, op.writes[0].stored
        past = whole - op.reads[0].touched
        came = out._replace(name=f"past.{out.name}", stored=past, touched=past)
        yield from self.one(
            "Concatenation", op._replace(reads=(*op.reads, came), writes=(out._replace(touched=whole),))
        )
        name, keys = op.output.name, op.output.name == "C_k"
        if n.axes.get("r", 1) == 1 and not keys:
            return
        many = f"_{name}:32[b t g e]"
        made = build("pointwise", f"{many} = {name}[b t g e]", n, MUL)
        if n.axes.get("r", 1) != 1:
            many, ones = f"_{name}:32[b g r t e]", f"_ones_{name}:32[b g r t e]"
            yield from self.one("Broadcast", build("copy", f"{ones} = {ones}", n)._replace(reads=()))
            made = build("pointwise", f"{many} = {ones} * {name}[b t g e]", n, MUL)
        yield from self.one("Eltwise", made._replace(cuda=0))
        if keys:
            yield from self.one("Transpose", build("copy", f"{many} = {many}", n))
        self.other[out.name] = made.writes[0]

    def _attention(self, op: Op) -> Iterator[Op]:
        if op.composite not in self.cached:
            yield from super()._attention(op)
            return
        yield self.masked(op)._replace(kernel=core(op.composite, "Subgraph"))
