"""Which of ggml's ops the backends of llama.cpp run as one kernel on a GPU: one pass a backend. After `ggml`.

A backend looks at the nodes in order and takes the first of its patterns that begins there, of nodes that follow one
another and whose results nobody else reads; views are passed over. `#N` is pull request N of
https://github.com/ggml-org/llama.cpp, with the day that it was opened on, or merged. All are on unless a user switches
them off (GGML_CUDA_DISABLE_FUSION and the like).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from modelmeter.graph.forms import ADD, CENTERED_NORM, LAYER_NORM, MUL, SIGMOID
from modelmeter.graph.graph import Graph
from modelmeter.graph.ops import SILENT, Composite, Op
from modelmeter.runtimes.ggml import places
from modelmeter.runtimes.ggml_ops import last
from modelmeter.runtimes.passes import STORED
from modelmeter.sizes import maximum, minimum

VECTOR = 8
"""Tokens up to which experts have the vector kernel of CUDA, MMVQ_MAX_BATCH_SIZE; of some formats it is 5 or 7."""


class Fusion(NamedTuple):
    """Ops that are one kernel, by letters (`_letter`). Only for so `few` tokens (0: any number), only for a number of
    experts that is a power of two (`powers`)."""

    pattern: str
    few: int = 0
    powers: bool = False


CUDA = (  # ggml_cuda_try_fuse of ggml-cuda.cu, in its order; HIP compiles the same
    Fusion("XC{1,14}"),  # weights of experts and their sum: #16857 (2025-10-30), #25952 (2026-07-21) up to 15 experts
    Fusion("[ZP]A?OT(UKD)?|OTZ", powers=True),  # routing: #16130 (2025-09-20), #16649 (2025-10-18)
    Fusion("RS"),  # positions of keys, which go to the cache: #16884 (2025-10-31)
    Fusion("A{2,8}|C{2,8}"),  # #15631 (2025-08-29, b6316)
    Fusion("MMG|MAMAG", few=1),  # gate, up and what joins them: #16715 (2025-10-26, b6845 is of that day)
    Fusion("EEG|EAEAG", few=VECTOR),  # likewise, of experts; of one token alone before #27621 (2026-08)
    Fusion("MA", few=1),  # a product and its bias or the residual: #16715
    Fusion("EA", few=VECTOR),  # likewise
    Fusion("NWRS?"),  # norms of heads before their positions: #26767 (2026-08-08)
    Fusion("NWA?"),  # #14800 (2025-07-21), with a residual #15631
    Fusion("Q{3}"),  # capped logits: #14907 (2025-07-29)
)
VULKAN = (  # ggml_backend_vk_graph_compute of ggml-vulkan.cpp, in its order
    Fusion("[CA]{2,9}"),  # #15252 (2025-08-11)
    Fusion("MAA?", few=1),  # #16868 (2025-10-30), #17287 (2025-11-15)
    Fusion("EA?X", few=1),  # likewise
    Fusion("EA", few=VECTOR),  # likewise
    Fusion("NWRS?"),  # #16977 (2025-11-08)
    Fusion("NWA?"),  # #14366 (2025-06), with a residual #28024 (2026-08-30)
    Fusion("RS"),  # #16769 (2025-10-25)
    Fusion("[ZP]A?OT(UKD)?|OTZ"),  # #16656 (2025-10-18), #18295 (2025-12-22)
)
METAL = (  # the table of ggml-metal-fusion.cpp: no product is in it
    Fusion("XC{1,7}"),  # #28948 (2026-09-15)
    Fusion("ZOT(UKD)?"),  # likewise
    Fusion("[NL]WA?"),  # #14596 (2025-07-09), #16220 (2025-09-24)
    Fusion("A{2,7}|C{2,7}"),  # #14596
)


def cuda_kernels(graph: Graph) -> Graph:
    """What the CUDA and HIP backends fuse: norms, routing, sums, keys on their way, and around the product of a vector.

    Gate and up are one product for one token, which joins their results too; so does the product before a bias or a
    residual. For several tokens these run apart. Taken as fused: routing, however many tokens; gate and up of two
    formats. Left out: chains of adds behind a product of several tokens in one step of decode.
    """
    return _fused(graph, CUDA)


def vulkan_kernels(graph: Graph) -> Graph:
    """What the Vulkan backend fuses: as CUDA, but gate and up stay apart, and the weights of experts join them."""
    return _fused(graph, VULKAN)


def metal_kernels(graph: Graph) -> Graph:
    """What the Metal backend fuses: norms, chains of adds, routing and the sum of experts; no product with anything."""
    return _fused(graph, METAL)


def _fused(graph: Graph, fusions: Sequence[Fusion]) -> Graph:
    ops = list(graph.ops)
    there = [i for i, op in enumerate(ops) if op.kind not in SILENT]
    letters = "".join(_letter(ops[i]) for i in there)
    silent, at = set(range(len(ops))) - {*there}, 0
    users = {written: readers - silent for written, readers in graph.users(range(len(ops))).items()}
    while at < len(there):
        ends = ((one, match.end()) for one in fusions if (match := re.compile(one.pattern).match(letters, at)))
        found = ((one, there[at:end]) for one, end in ends)
        one, taken = next((pair for pair in found if _fits(graph, *pair, users)), (None, there[at : at + 1]))
        if one is not None:
            for place, op in _for_few(graph, taken, one.few) if one.few else _together(graph, taken):
                ops[place] = op
        at += len(taken)
    return graph.with_ops(ops)


def _fits(graph: Graph, one: Fusion, taken: Sequence[int], users: dict[tuple[str, int], set[int]]) -> bool:
    """Whether ops run together as often as each other, and nobody else reads what they give to one another.

    What routing chose is read by the experts too; a product is that of a vector only where one position runs.
    """
    ops = [graph.ops[i] for i in taken]
    alike = all((op.node.loop, op.times) == (ops[0].node.loop, ops[0].times) for op in ops)
    inside = ((w.name, i) for i, op in zip(taken[:-1], ops, strict=False) if _letter(op) != "O" for w in op.writes)
    alone = all(users.get(written, set()) <= {*taken} for written in inside)
    axes = ops[0].n.axes
    experts = axes["E"] if one.powers else 1
    whole = not isinstance(experts, int) or experts & (experts - 1) == 0
    return alike and alone and whole and (not one.few or axes.get("s") == 1)


def _together(graph: Graph, taken: Sequence[int]) -> Iterator[tuple[int, Op]]:
    """Ops as one kernel, views between them too; results keep their places in the buffer, planned for all nodes."""
    label = f"fused {taken[0]}"
    for place in range(taken[0], taken[-1] + 1):
        yield place, graph.ops[place]._replace(kernel=label, composite=Composite(STORED, label))


def _for_few(graph: Graph, taken: Sequence[int], most: int) -> Iterator[tuple[int, Op]]:
    """A product that does the work of the ops behind it where it has no more than `most` rows.

    Their FLOPs and what they read from outside are its own then, its result stands for theirs, and they do not run;
    for more rows it does not change, and they run. Both ways are one graph, as the number of sequences is a size.
    """
    first, *others = (graph.ops[i] for i in taken)
    apart = minimum(maximum(first.n.elements(("b", "s")) - most, 0), 1)
    here = 1 - apart
    known = {(r.name, writer) for r, writer in graph.reads[taken[0]]}
    reads = [
        r._replace(touched=r.touched * here)
        for i in taken[1:]
        for r, writer in graph.reads[i]
        if writer not in taken and (r.name, writer) not in known
    ]
    work = {side: getattr(first, side) + here * sum(getattr(op, side) for op in others) for side in ("tensor", "cuda")}
    yield taken[0], first._replace(reads=(*first.reads, *reads), **work)
    for place, op in zip(taken[1:], others, strict=True):
        yield place, op._replace(n=replace(op.n, node=op.node._replace(times=op.node.times * apart)))


def _letter(op: Op) -> str:
    """What a node is.

    M a product with weights, E one with experts, G what joins gate and up; N and L norms, W their weights; R positions,
    S into the cache; A an add, Q a scale; X the weights of experts, C one of their adds; of a router Z softmax, P
    sigmoid, O the order, T the scores that are taken, U their sum, K its bound, D their shares.
    """
    if op.kernel:  # of attention, which is one kernel already
        return "."
    if op.kind == "matmul" and any(r.role == "weight" for r in op.reads):
        return "E" if _of_experts(op) else "M"
    if op.kind == "copy":
        return _moved(op)
    if op.kind in ("norm", "apart", "softmax"):
        return _of_rows(op)
    return _pointwise(op) if op.kind == "pointwise" else "."


def _of_experts(op: Op) -> bool:
    return any(t.role == "weight" and t.stored[:1] == ("E",) != t.touched[:1] for t in op.equation.factors)


def _moved(op: Op) -> str:
    if last(op) == "_sorted":
        return "O"
    chosen = any(r.name.endswith("_sorted") for r in op.reads)
    return "S" if any(w.role == "kv" for w in op.writes) else "T" if chosen else "."


def _of_rows(op: Op) -> str:
    if op.kind == "softmax":
        return "Z"
    if op.form in (LAYER_NORM, CENTERED_NORM):
        return "L"
    return "N" if op.kind == "norm" else {"_h": "G", "_sum": "U"}.get(op.output.name, ".")


def _pointwise(op: Op) -> str:
    alone, made = len(op.equation.operands) == 1, op.output.name
    if places(op):
        return "R"
    if made in ("_sum", "wo"):
        return "K" if made == "_sum" else "X"
    if op.equation.factors[0].name == "_r":
        return "C"
    if op.form is ADD and not alone:
        return "A"
    if any(r.name.endswith("_sum") for r in op.reads):
        return "D"
    if op.form is MUL:
        return "Q" if alone else "W" if op.reads[1].role == "weight" else "."
    return "P" if op.form is SIGMOID and "E" in op.n.axes else "."
