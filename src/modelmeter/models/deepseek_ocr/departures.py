"""The departures of the published ModelMeter report from the real DeepSeek-OCR, one small function each.

A function changes a stage of the real model (its layers or its sizes), the ops of its graph or the runtime. What each
is, and the evidence for the real count: configs/published/deepseek_ocr/departures.yaml. `published.py` applies them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import yaml

from modelmeter.folders import config_dir
from modelmeter.graph.graph import Graph
from modelmeter.graph.ops import Op, Ref
from modelmeter.layers import BaseLayer, DeepseekV2DecoderLayer, DeepseekV2MoE, MlpProjector
from modelmeter.layers.base import rebuild, walk
from modelmeter.models.model import Stage
from modelmeter.runtimes.lifetimes import Bytes, Hidden
from modelmeter.runtimes.runtime import Runtime
from modelmeter.sizes import Size, ratio
from modelmeter.workload import Workload

_FILE = config_dir() / "published" / "deepseek_ocr" / "departures.yaml"
TOLD: dict[str, Any] = yaml.safe_load(_FILE.read_text(encoding="utf-8"))
"""What the report does: `departures`, `scalars` (CUDA-core FLOPs an output element by "path kind output"; all else
counts 0), the rows of its `layer_table`."""


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


def departure(of: str) -> Callable[[Callable[[Any], Any]], Departure]:
    """The decorated function as a departure of its name."""
    return lambda change: Departure(change.__name__, of, **TOLD["departures"][change.__name__], change=change)


@departure("ops")
def relative_positions(ops: Iterable[Op]) -> Iterator[Op]:
    for op in ops:
        yield op._replace(tensor=ratio(op.tensor, 8)) if op.output.name in ("bh", "bw") else op


@departure("ops")
def projector(ops: Iterable[Op]) -> Iterator[Op]:
    ops = list(ops)
    rows = {op.reads[0].name: op.n.elements(op.output.stored[1:2]) for op in ops if "W_newline" in op.equation.text}
    for op in ops:
        if op.path.partition(".")[0] != "projector" or op.kind == "copy":
            yield op
        elif "W_0[" in op.equation.text:
            two = MlpProjector("mlp_gelu", op.n.c, op.n.d, depth=2)
            yield from _scalars(two.ops(op.n.bind(s=rows.get(op.writes[0].name, op.n.s), **two.axes)))


@departure("stage")
def layer_table(stage: Stage) -> Stage:
    return stage  # the table is made in published.py


@departure("stage")
def mixtures(stage: Stage) -> Stage:
    found = [layer for layer in walk(stage.layer) if isinstance(layer, DeepseekV2MoE)]

    def mixed(layer: BaseLayer) -> BaseLayer:
        return replace(layer, mlp=found[0]) if isinstance(layer, DeepseekV2DecoderLayer) else layer

    return replace(stage, layer=rebuild(stage.layer, mixed)) if found else stage


@departure("stage")
def decode_context(stage: Stage) -> Stage:
    def sizes(work: Workload) -> dict[str, Size]:
        real = stage.sizes(work)
        return {**real, stage.grows: real[stage.grows] - 1}

    return replace(stage, sizes=sizes) if stage.grows else stage


@departure("ops")
def scalar_operations(ops: Iterable[Op]) -> Iterator[Op]:
    for op in _scalars(ops):
        yield op._replace(tensor=0) if op.path.endswith(".rotary") else op


def _scalars(ops: Iterable[Op]) -> Iterator[Op]:
    for op in ops:
        place = f"{op.path} {op.kind} {op.output.name}"
        flops = next((f for pattern, f in TOLD["scalars"].items() if fnmatchcase(place, pattern)), 0)
        yield op._replace(cuda=op.writes[0].stored * flops if flops else 0)


@departure("ops")
def weights(ops: Iterable[Op]) -> Iterator[Op]:
    """Published are three digits, so parts below 0.2 % (CLIP's unused convolution) are undetermined."""
    copies = {"sam": 2, "clip": 2, "embedding": 0, "projector": 0, "join": 0}
    for op in ops:
        held = 0 if op.kind == "unused" else copies.get(op.path.partition(".")[0], 1)
        held = ratio(1, op.n.E) if op.path.endswith(".experts") else held
        reads = (r._replace(stored=r.stored * held) if r.role == "weight" else r for r in op.reads)
        yield op._replace(reads=tuple(reads))


@departure("runtime")
def traffic_and_peak(runtime: Runtime) -> Runtime:
    return replace(runtime, passes=(*runtime.passes, activations_alone), lifetimes=never_freed)


def activations_alone(graph: Graph) -> Graph:
    """Weights and the KV cache do not cross between memory and chip."""

    def moved(refs: tuple[Ref, ...]) -> tuple[Ref, ...]:
        return tuple(r if r.role == "activation" else r._replace(touched=0) for r in refs)

    return graph.with_ops(op._replace(reads=moved(op.reads), writes=moved(op.writes)) for op in graph.ops)


def never_freed(graph: Graph, hidden: Hidden, size: Bytes) -> Iterator[Size]:
    """A rule of lifetimes: all that was written up to an op, each time that it was."""
    given = [read.ref for reads in graph.reads for read in reads if read.writer < 0]
    held: Size = sum({ref.name: size(ref) for ref in given if ref.role == "activation"}.values(), start=0)
    for index, op in enumerate(graph.ops):
        kept = [w for w in op.writes if w.role == "activation" and (w.name, index) not in hidden]
        held = held + sum((size(w) * op.times for w in kept), start=0)
        yield held


DEPARTURES = (
    relative_positions, projector, layer_table, mixtures, decode_context, scalar_operations, weights, traffic_and_peak,
)  # fmt: skip
"""All departures, in the order in which they are applied."""
