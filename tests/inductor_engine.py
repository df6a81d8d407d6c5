"""What inductor itself makes of a module: the kernels that it launches, what each reads and stores, in its order.

torch.compile runs down to the code that inductor writes for the CPU; the code is read and not compiled. Kernels are in
the order of the program: that they may be put into another one, to save memory, is told beside it.
"""

import re
from collections import Counter
from itertools import groupby
from math import prod
from typing import NamedTuple
from unittest.mock import patch

import torch
from torch._inductor import config, ir, memory, scheduler
from torch._inductor.dependencies import MemoryDep
from torch._inductor.graph import GraphLowering

_OPTIONS = {"fx_graph_cache": False, "fx_graph_remote_cache": False, "compile_threads": 1}


class Kernel(NamedTuple):
    """A kernel of the scheduler: one loop nest, or a call of a library, which `library` names ("": generated).

    `stored` are the elements of each tensor that it stores for others, the largest first, `sums` whether it sums;
    `read` are bytes of others' tensors that a loop reads, by name. Of a library's call these are left out.
    """

    library: str
    made: tuple[str, ...]
    stored: tuple[int, ...]
    sums: bool
    read: dict[str, int]
    written_bytes: int
    operators: frozenset[str]


class Report(NamedTuple):
    """The kernels; calls of functions and of libraries in the code; bytes alive at most in buffers that it makes.

    `reordered` are the calls in the order that inductor prefers.
    """

    kernels: tuple[Kernel, ...]
    calls: tuple[str, ...]
    peak: int
    reordered: int
    text: str


class _Enough(Exception):
    """The code is written."""


def ask(run, *inputs):
    """The report of one graph. Raises RuntimeError where dynamo breaks it, with its reason."""
    found: list[Report] = []
    orders = []

    def written(graph, code):
        report = Report(tuple(_kernels(graph)), *_calls(graph, code.value), _launched(orders[0]), code.value)
        found.append(report)
        raise _Enough

    def kept(nodes, *others, reorder=memory.reorder_for_peak_memory):
        orders.append(reorder(nodes, *others))
        return nodes

    torch._dynamo.reset()
    patches = patch.object(GraphLowering, "_compile_to_module_lines", written)
    with patches, patch.object(memory, "reorder_for_peak_memory", kept), config.patch(**_OPTIONS), torch.no_grad():
        try:
            torch.compile(run, dynamic=False, fullgraph=True)(*inputs)
        except Exception as error:
            if not found:
                raise RuntimeError(f"inductor wrote no code: {error}") from error
    return found[0]


def _kernels(graph):
    for node in graph.scheduler.nodes:
        if _runs(node):
            yield _library(node) if node.is_extern() else _loop(graph, node)


def _runs(node):
    return not isinstance(node, scheduler.NopKernelSchedulerNode) and not isinstance(node.node, ir.MultiOutput)


def _launched(nodes):
    """The calls in an order: generated loops between two calls of libraries are one function."""
    order = [node.is_extern() for node in nodes if _runs(node)]
    return sum(len(list(same)) if library else 1 for library, same in groupby(order))


def _library(node):
    name = getattr(node.node, "python_kernel_name", "") or type(node.node).__name__
    return Kernel(name, tuple(node.get_buffer_names()), (), False, {}, 0, frozenset())


def _loop(graph, node):
    nodes = node.get_nodes()
    own, inside = set(node.get_buffer_names()), {n.get_name() for n in nodes}
    parts = Counter()
    for dep in (dep for n in nodes for dep in n.read_writes.reads if dep.name not in own):
        place = dep.get_offset() if isinstance(dep, MemoryDep) and not dep.is_indirect() else 0
        parts[dep.name, place] = max(parts[dep.name, place], _touched(graph, dep))
    read = Counter()
    for (name, _), size in parts.items():
        read[name] += size
    whole = {name: int(graph.get_numel(name)) * graph.get_dtype(name).itemsize for name in read}
    leaving = [b.node for n in nodes for b in n.get_outputs() if not {u.get_name() for u in b.users} <= inside]
    sizes = [int(prod(b.get_size())) for b in leaving]
    operators = {str(o.target).removeprefix("aten.").partition(".")[0] for n in nodes for o in n.node.get_origins()}
    return Kernel(
        "", tuple(sorted(own)), tuple(sorted(sizes, reverse=True)), any(n.group[1][1] for n in nodes),
        {name: min(size, whole[name]) for name, size in read.items()},
        sum(size * b.get_dtype().itemsize for size, b in zip(sizes, leaving, strict=True)), frozenset(operators),
    )  # fmt: skip


def _touched(graph, dep):
    """Bytes that a read touches: of a table, the rows that are looked up."""
    if isinstance(dep, MemoryDep) and dep.is_indirect():
        return int(prod(dep.size)) * graph.get_dtype(dep.name).itemsize
    return int(dep.numbytes_hint())


_NEW = re.compile(r"(\w+) = empty_strided_cpu\(\((.*?)\), \(.*?\), torch\.(\w+)\)")
_TAKEN = re.compile(r"(\w+) = .*; del (\w+)  # reuse")
_CALLED = re.compile(r"(?:\w+ = )?(cpp_fused_\w+|extern_kernels\.\w+|torch\.ops\.[\w.]+)\(")
_GIVEN = re.compile(r"assert_size_stride\((buf\w+), \((.*?)\),")


def _calls(graph, text):
    """The calls of the code, and the most bytes that its buffers hold, those kept for a later one of their size too."""
    body = text.rpartition("def call(")[2].partition("def benchmark")[0]
    calls, live, peak = [], {}, 0
    for line in map(str.strip, body.splitlines()):
        if found := _NEW.match(line):
            live[found[1]] = _product(found[2]) * getattr(torch, found[3]).itemsize
        elif found := _TAKEN.match(line):
            live[found[1]] = live.pop(found[2], 0)
        elif found := _GIVEN.match(line):  # what a library's call allocated
            live[found[1]] = _product(found[2]) * graph.get_dtype(found[1]).itemsize
        elif found := _CALLED.match(line):
            calls.append(found[1])
        elif line.startswith("del "):
            live.pop(line.removeprefix("del "), None)
        peak = max(peak, sum(live.values()))
    return tuple(calls), peak


def _product(sizes):
    return prod(int(size) for size in sizes.split(",") if size.strip())
