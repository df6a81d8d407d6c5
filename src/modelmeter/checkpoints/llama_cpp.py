"""What llama.cpp allocates for a decoder before it runs: weights, cache, the compute buffer; nodes of its graph.

Every number is what the engine itself reports of a file loaded on a CPU (docs/engines.md). Next: `runtimes/ggml.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from itertools import accumulate
from typing import NamedTuple

from modelmeter.checkpoints.gguf import padded
from modelmeter.checkpoints.header import FileTensor
from modelmeter.checkpoints.layout import layout_of
from modelmeter.errors import InputError
from modelmeter.graph.graph import Graph
from modelmeter.graph.ops import Ref
from modelmeter.models.decoders import in_turn
from modelmeter.models.model import BaseModel
from modelmeter.programs.counting import Counting
from modelmeter.programs.policies import of_decoder
from modelmeter.programs.precision import Precision
from modelmeter.programs.storage import Storage
from modelmeter.runtimes.ggml import UBATCH, ggml, nodes
from modelmeter.runtimes.ggml_ops import last, near
from modelmeter.runtimes.passes import on_chip
from modelmeter.runtimes.planner import planned_bytes
from modelmeter.runtimes.runtime import Runtime
from modelmeter.sizes import Size, evaluated

REPACKED = {"q4_0": 8, "q4_k": 8, "iq4_nl": 8}
"""Formats of which a CPU with AVX2 rearranges the rows of matrices, so many together; those of tables it leaves."""
_PLAIN = Precision(kv="fp16")


class Buffers(NamedTuple):
    """Bytes of each buffer: `model` weights as in the file, `repacked` ones, `kv`, `compute`; `nodes` of the graph.

    `near` are those of `kv` that are a cache of its own, of layers with windows.
    """

    model: int
    repacked: int
    kv: int
    near: int
    compute: int
    nodes: int


def buffers(
    model: BaseModel, policy: str, context: int, ubatch: int = 512, *, flash: bool = True,
    keys: str = "fp16", values: str = "fp16", mapped: bool = True, repack: bool = True,
) -> Buffers:  # fmt: skip
    """The buffers of a model's decoder, stored by `policy`, for one sequence of `context` positions.

    `ubatch` tokens are computed at once, no more than the context has; `mapped`: weights are the file in memory;
    `repack`: as the engine does on a CPU with AVX2. Raises InputError.
    """
    for name, value in (("context", context), ("ubatch", ubatch)):
        if not isinstance(value, int) or value < 1:
            raise InputError(f"{name} must be a whole number of at least 1, not {value!r}")
    precision = Precision(kv=keys, overrides={"*C_v": values})
    weights = layout_of(model, policy).tensors
    sizes = {"b": 1, "s": min(ubatch, context), "t": context}
    graph = graph_of(model, flash, precision, sizes["s"])
    return Buffers(*_of_weights(weights, mapped, repack), *_of_graph(graph, Storage(graph, precision), sizes))


def graph_of(model: BaseModel, flash: bool = True, precision: Precision = _PLAIN, ubatch: int = UBATCH) -> Graph:
    """The graph that the engine runs of a model's decoder, its cache in these formats."""
    runtime = Runtime.of("llama_cpp" if flash else "llama_cpp_scores")
    passes = tuple(partial(ggml, ubatch=ubatch) if given is ggml else given for given in runtime.passes)
    graph = _decoder(model)
    told = replace(graph, root=replace(graph.root, cached=precision.cached))
    formats = {last(op): precision.cached(op.writes[0].name) for op in graph.ops if last(op).startswith("C_")}
    if "C_l" in formats and formats["C_l"] != precision.cached("C_v"):
        raise InputError(f"llama.cpp keeps latents in one format, not keys in {formats['C_l']} and values in another")
    return replace(runtime, passes=passes).lowered(told)


def _decoder(model: BaseModel) -> Graph:
    """The graph of a model's decoder, tokens and context apart, its layers in the order in which they run."""
    counting = Counting(latent="absorbed")
    for layer in (stage.layer_of(stage.whole) for stage in model.stages):
        if set(layer.sizes.split()) == {"b", "s", "t"} and of_decoder(
            (graph := in_turn(layer).graph(counting)).tensors()
        ):
            return model.changed(graph)
    raise InputError(f"{model.name} has no decoder that llama.cpp runs")


def _of_weights(tensors: Iterable[FileTensor], mapped: bool, repack: bool) -> tuple[int, int]:
    """Weights as in the file, from the first to the last of these where it is mapped, and the rearranged ones."""
    given = list(tensors)
    ends = list(accumulate(padded(t.bytes) for t in given))
    plain, again = [], 0
    for tensor, end in zip(given, ends, strict=True):
        start = end - padded(tensor.bytes)
        if repack and _rearranged(tensor):
            again += padded(tensor.bytes)
        else:
            plain.append((start, start + tensor.bytes))
    if mapped:
        return plain[-1][1] - plain[0][0], again
    return sum(padded(end - start) for start, end in plain), again


def _rearranged(tensor: FileTensor) -> bool:
    together = REPACKED.get(tensor.format.name)
    return together is not None and tensor.name != "token_embd.weight" and tensor.shape[1] % together == 0


def _of_graph(graph: Graph, storage: Storage, sizes: dict[str, int]) -> tuple[int, int, int, int]:
    """Bytes of the cache, of what is that of windows, and of the compute buffer, and the nodes, at these sizes."""
    stored = {r.stored: 0 for op in graph.ops for r in (*op.reads, *op.writes)}
    known = dict(zip(stored, evaluated(list(stored), sizes), strict=True))
    times = {op.node.times: 0 for op in graph.ops}
    runs = dict(zip(times, evaluated(list(times), sizes), strict=True))

    def size(r: Ref) -> Size:
        return known[r.stored] * storage.bytes(r)

    caches = {r.name: (r, op) for op in graph.ops for r in op.writes if r.role == "kv"}
    kv = [(size(r) * runs[op.node.times], near(op.n)) for r, op in caches.values()]
    compute = planned_bytes(graph, on_chip(graph), lambda r: int(size(r)), lambda op: int(runs[op.node.times]))
    (many,) = evaluated([nodes(graph)], sizes)
    return int(sum(size for size, _ in kv)), int(sum(size for size, ending in kv if ending)), compute, int(many)
