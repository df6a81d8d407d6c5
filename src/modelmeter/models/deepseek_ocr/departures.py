"""The departures of the published ModelMeter report from the real DeepSeek-OCR, one small function each.

A function changes a stage of the real model (its layers or its sizes), the ops of its graph or the runtime. DEPARTURES
names them with the evidence for the real count. `published.py` applies them; configs/published has the tables.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from modelmeter.graph.graph import Graph
from modelmeter.graph.ops import Op, Ref
from modelmeter.layers import BaseLayer, DeepseekV2DecoderLayer, DeepseekV2MoE, MlpProjector
from modelmeter.layers.base import rebuild, walk
from modelmeter.models.model import Stage
from modelmeter.runtimes.lifetimes import Bytes, Hidden
from modelmeter.runtimes.runtime import Runtime
from modelmeter.sizes import Size, ratio
from modelmeter.workload import Workload

PUBLISHED_SCALARS = {
    "sam*mlp pointwise h": 4,  # gelu
    "sam.neck*norm norm y": 5,  # LayerNorm2d
    "clip*mlp pointwise h": 5,  # quick-gelu
    "clip.norm norm y": 5,  # the one LayerNorm outside the blocks
    "projector.mlp pointwise x": 8,  # gelu of the two-layer projector
    "decoder.layers*mlp* pointwise _g": 4,  # silu and the product with the other half
    "decoder.layers*gate softmax _p": 6,  # the whole router, by expert and token
    "decoder.layers*norm? norm y": 3,  # RMSNorm; the final one is left out
}
"""CUDA-core FLOPs an output element by "path kind output"; all else counts 0 in the published tables."""


@dataclass(frozen=True)
class Departure:
    """One way in which the published counts differ from the real ones.

    `what` the report does, `evidence` why the real count is right; `change` turns the real thing into the published
    one: a stage, the ops of its graph or the runtime (`of`).
    """

    name: str
    of: str
    what: str
    evidence: str
    change: Callable[[Any], Any]


def departure(of: str, what: str, evidence: str) -> Callable[[Callable[[Any], Any]], Departure]:
    """The decorated function as a departure of its name."""
    return lambda change: Departure(change.__name__, of, what, evidence, change)


@departure(
    "ops",
    "SAM's relative-position einsums count an eighth of their FLOPs.",
    "Attention in deepencoder/sam_vary_sdpa.py runs both einsums over every head, query and key row, "
    "and FlopCounterMode on that module counts them in full.",
)
def relative_positions(ops: Iterable[Op]) -> Iterator[Op]:
    for op in ops:
        yield op._replace(tensor=ratio(op.tensor, 8)) if op.output.name in ("bh", "bw") else op


@departure(
    "ops",
    "The projector has two layers, sees newlines as tokens and runs over all crops once a crop.",
    "The checkpoint's config.json says projector_type linear, and deepseek_ocr.py adds newlines after "
    "projecting the patch tokens of each crop once, so that cost is linear in the crops.",
)
def projector(ops: Iterable[Op]) -> Iterator[Op]:
    ops = list(ops)
    rows = {op.reads[0].name: op.n.elements(op.output.stored[1:2]) for op in ops if "W_newline" in op.equation.text}
    for op in ops:
        if op.path.partition(".")[0] != "projector" or op.kind == "copy":
            yield op
        elif "W_0[" in op.equation.text:
            two = MlpProjector("mlp_gelu", op.n.c, op.n.d, depth=2)
            yield from _scalars(two.ops(op.n.bind(s=rows.get(op.writes[0].name, op.n.s), **two.axes)))


@departure(
    "stage",
    "The layer table adds CUDA-core FLOPs to its theory alone, and cuts some layers down on one side or both.",
    "FlopCounterMode sees matmuls and convolutions only: tensor-core FLOPs of whole layers equal it exactly.",
)
def layer_table(stage: Stage) -> Stage:
    return stage  # the table is made in published.py


@departure(
    "stage",
    "The first decoder layer is a mixture of experts like the others.",
    "The checkpoint's config.json says first_k_dense_replace 1, and its layer 0 holds one MLP of width 6848.",
)
def mixtures(stage: Stage) -> Stage:
    found = [layer for layer in walk(stage.layer) if isinstance(layer, DeepseekV2MoE)]

    def mixed(layer: BaseLayer) -> BaseLayer:
        return replace(layer, mlp=found[0]) if isinstance(layer, DeepseekV2DecoderLayer) else layer

    return replace(stage, layer=rebuild(stage.layer, mixed)) if found else stage


@departure(
    "stage",
    "A decoded token attends to the tokens before it and not to itself.",
    "LlamaAttention appends the new key and value to the cache before it multiplies, so S + t + 1 "
    "positions are read at step t = 0, 1, ...",
)
def decode_context(stage: Stage) -> Stage:
    def sizes(work: Workload) -> dict[str, Size]:
        real = stage.sizes(work)
        return {**real, stage.grows: real[stage.grows] - 1}

    return replace(stage, sizes=sizes) if stage.grows else stage


@departure(
    "ops",
    "Softmax, most norms, residuals, biases and rotary positions count nothing, activations by other constants.",
    "The unfused graph of the vendor's modules runs each of them as kernels of its own; counting its "
    "operations one by one gives docs/counting.md, and FlopCounterMode sees the rotary matmul.",
)
def scalar_operations(ops: Iterable[Op]) -> Iterator[Op]:
    for op in _scalars(ops):
        yield op._replace(tensor=0) if op.path.endswith(".rotary") else op


def _scalars(ops: Iterable[Op]) -> Iterator[Op]:
    for op in ops:
        place = f"{op.path} {op.kind} {op.output.name}"
        flops = next((f for pattern, f in PUBLISHED_SCALARS.items() if fnmatchcase(place, pattern)), 0)
        yield op._replace(cuda=op.writes[0].stored * flops if flops else 0)


@departure(
    "ops",
    "The vision towers are stored twice, one routed expert a layer, no embedding table; GiB are called GB.",
    "The parameters of the real modules add up to the size of the public checkpoint, 64 experts a mixture.",
)
def weights(ops: Iterable[Op]) -> Iterator[Op]:
    """Published are three digits, so parts below 0.2 % (CLIP's unused convolution) are undetermined."""
    copies = {"sam": 2, "clip": 2, "embedding": 0, "projector": 0, "join": 0}
    for op in ops:
        held = 0 if op.kind == "unused" else copies.get(op.path.partition(".")[0], 1)
        held = ratio(1, op.n.E) if op.path.endswith(".experts") else held
        reads = (r._replace(stored=r.stored * held) if r.role == "weight" else r for r in op.reads)
        yield op._replace(reads=tuple(reads))


@departure(
    "runtime",
    "Traffic is activations alone, and peak memory the sum of all that all layers write.",
    "A decoded token reads every active weight and the whole KV cache, and torch frees a layer's "
    "tensors when it returns, as tracking live storages on the modules shows.",
)
def traffic_and_peak(runtime: Runtime) -> Runtime:
    return replace(runtime, passes=(*runtime.passes, activations_alone), lifetimes=never_freed)


def activations_alone(graph: Graph) -> Graph:
    """Weights and the KV cache do not cross between memory and chip."""

    def moved(refs: tuple[Ref, ...]) -> tuple[Ref, ...]:
        return tuple(r if r.role == "activation" else r._replace(touched=0) for r in refs)

    return graph.with_ops(op._replace(reads=moved(op.reads), writes=moved(op.writes)) for op in graph.ops)


def never_freed(graph: Graph, hidden: Hidden, size: Bytes) -> Iterator[Size]:
    """A rule of lifetimes: all that was written up to an op, each time that it was."""
    given = [read.ref for reads in graph.reads() for read in reads if read.writer < 0]
    held: Size = sum({ref.name: size(ref) for ref in given if ref.role == "activation"}.values(), start=0)
    for index, op in enumerate(graph.ops):
        kept = [w for w in op.writes if w.role == "activation" and (w.name, index) not in hidden]
        held = held + sum((size(w) * op.times for w in kept), start=0)
        yield held


DEPARTURES = (
    relative_positions, projector, layer_table, mixtures, decode_context, scalar_operations, weights, traffic_and_peak,
)  # fmt: skip
"""All departures, in the order in which they are applied."""
