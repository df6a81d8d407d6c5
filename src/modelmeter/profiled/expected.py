"""What a runtime would run, as what a profiler's record can be held beside: kinds, sizes and seconds, kernel by kernel.

A kernel of a repeated layer stands once; `loops` say which of them come again. Sizes are ranges, as those of decode
grow from step to step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from modelmeter.graph.ops import SILENT
from modelmeter.host import Span
from modelmeter.programs.kernels import Group, Kernel, groups
from modelmeter.seconds.predict import Estimate
from modelmeter.sizes import Size, evaluated
from modelmeter.times import Times, mean

Extent = tuple[float, float]
"""The least and the largest value of a size."""


class Expected(NamedTuple):
    """One kernel of a pass through a stage, which `runs` so often; seconds are those of one run, on average.

    `sizes` are those of `kinds.py`; `bound` is a plain roofline of the kernel as it is.
    """

    path: str
    what: str
    kind: str
    sizes: tuple[Extent, ...]
    runs: float
    span: Span
    bound: float
    binds: str
    law: str


class Loop(NamedTuple):
    """Kernels of a repeated layer, the first and the last of them."""

    first: int
    last: int


@dataclass(frozen=True)
class Program:
    """The kernels of a stage in order, and which of them are run again and again."""

    stage: str
    kernels: tuple[Expected, ...]
    loops: tuple[Loop, ...]


def program_of(times: Times, stage: str) -> Program:
    """What a stage is expected to run on the device of a prediction."""
    found = [
        (group, kernel, estimate)
        for group, (kernel, estimate) in zip(_groups(times, stage), times.stages[stage].kernels, strict=True)
        if mean(kernel.runs)
    ]
    elements = _elements(times, stage, [group for group, *_ in found])
    kernels = tuple(
        _expected(group, kernel, estimate, extent)
        for (group, kernel, estimate), extent in zip(found, elements, strict=True)
    )
    return Program(stage, kernels, tuple(_loops([group for group, *_ in found])))


def _groups(times: Times, stage: str) -> list[Group]:
    """The ops of each kernel, in the order of the kernels."""
    program = times.model.program(stage, times.work)
    every = groups(program.graph, program.storage)
    return [group for group in every if not all(op.kind in SILENT for _, op, _ in group.ops)]


def _elements(times: Times, stage: str, found: Sequence[Group]) -> list[Extent]:
    """The elements of the largest tensor of each kernel, at the first and at the last step."""
    refs = [[r.touched for _, op, _ in group.ops for r in (*op.reads, *op.writes)] for group in found]
    flat: list[Size] = [size for one in refs for size in one]
    ends = [evaluated(flat, sizes) for sizes in times.ends(stage)]
    extents, start = [], 0
    for one in refs:
        stop = start + len(one)
        largest = [max(map(float, values[start:stop]), default=0.0) for values in ends]
        extents.append((min(largest), max(largest)))
        start = stop
    return extents


def _expected(group: Group, kernel: Kernel, estimate: Estimate, elements: Extent) -> Expected:
    texts = kernel.ops[0] + (f" and {len(kernel.ops) - 1} more" if len(kernel.ops) > 1 else "")
    span = Span(*(mean(end) for end in (estimate.low, estimate.seconds, estimate.high)))
    kind, binds = _kind(group, kernel), f"{np.asarray(estimate.binds).reshape(-1)[-1]}"
    sizes = _sizes(group, kernel, kind) or (elements,)
    runs, bound = mean(kernel.runs), mean(estimate.roofline)
    return Expected(kernel.path, texts, kind, sizes, runs, span, bound, binds, estimate.law)


def _kind(group: Group, kernel: Kernel) -> str:
    """The kind that a profiler's record of this kernel has."""
    if kernel.collective:
        return "collective"
    if kernel.attention:
        return "attention"
    if kernel.loops:
        return "product"
    if group.ops[0][1].kind == "lookup":
        return "lookup"
    return "compute" if any(op.form for _, op, _ in group.ops) or kernel.cuda_flops else "copy"


def _sizes(group: Group, kernel: Kernel, kind: str) -> tuple[Extent, ...]:
    """The sizes of a product or an attention kernel, as a profiler's shapes tell them."""
    if kind == "attention":
        shape = {name: np.asarray(size, float) for name, size in kernel.attention.items()}
        queries = shape["batch"] * shape["heads"] * shape["s"]
        return tuple(map(_extent, (queries, shape["t"], shape["width"])))
    if kind != "product":
        return ()
    m, n, k, batch = (np.asarray(kernel.loops[x], float) for x in ("m", "n", "k", "batch"))
    flops = sum(np.asarray(work, float) for work in kernel.tensor_flops.values())
    merged = sum(op.kind == "matmul" for _, op, _ in group.ops) > 1
    return tuple(map(_extent, (m * batch, flops / (2 * m * k * batch) if merged else n, k)))


def _extent(values: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> Extent:
    return float(np.min(values)), float(np.max(values))


def _loops(found: Sequence[Group]) -> Iterator[Loop]:
    """Where repeated layers begin and end, inner ones before those around them."""
    paths = [group.ops[0][1].path for group in found]
    repeated = {op.node.loop for group in found for _, op, _ in group.ops} - {""}
    for loop in sorted(repeated, key=len, reverse=True):
        inside = [i for i, path in enumerate(paths) if path == loop or path.startswith(f"{loop}.")]
        if inside:
            yield Loop(inside[0], inside[-1])
