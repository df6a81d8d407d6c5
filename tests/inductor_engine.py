"""What inductor itself makes of a module: its kernels, the ops each holds, the buffers it allocates, in its order.

torch.compile runs down to the code that inductor writes for the CPU, which is read and not compiled: no C++ compiler
is needed. `python tests/inductor_engine.py NAME` shows what is known of a module of tests/inductor_modules.py.
"""

import re
from contextlib import contextmanager
from math import prod
from typing import NamedTuple
from unittest.mock import patch

import torch
from torch import nn
from torch._inductor import config
from torch._inductor.dependencies import MemoryDep
from torch._inductor.graph import GraphLowering


class Loop(NamedTuple):
    """A kernel of the scheduler: one loop nest, or a call of a library, which `extern` names ("": generated).

    `stored` are the elements of each tensor that it stores for others, largest first, `reduces` whether it sums;
    `origins` are operators that it computes.
    """

    extern: str
    buffers: tuple[str, ...]
    origins: frozenset[str]
    stored: tuple[int, ...]
    reduces: bool
    read: dict[str, int]
    written_bytes: int

    @property
    def read_bytes(self) -> int:
        """Bytes that it reads of what others stored."""
        return sum(self.read.values())


class Report(NamedTuple):
    """The loops in the order in which they run, the kernels launched, bytes allocated, of the code `text`."""

    loops: tuple[Loop, ...]
    kernels: tuple[str, ...]
    allocated: int
    peak: int
    text: str


class _Enough(Exception):
    """The code is written."""


def ask(module: nn.Module, *inputs, reorder=True, **named) -> Report:
    """The report of one graph. Raises RuntimeError where dynamo breaks it, or makes none."""
    found: list[Report] = []

    def written(graph, wrapper_code):
        text = wrapper_code.value
        found.append(Report(tuple(_loops(graph)), *_calls(graph, text), text))
        raise _Enough

    torch._dynamo.reset()
    options = {"reorder_for_peak_memory": reorder}
    options |= {"fx_graph_cache": False, "compile_threads": 1, "fx_graph_remote_cache": False}
    with patch.object(GraphLowering, "_compile_to_module_lines", written), config.patch(**options), torch.no_grad():
        try:
            torch.compile(module, dynamic=False, fullgraph=True)(*inputs, **named)
        except Exception as error:
            if not found:
                raise RuntimeError(f"inductor wrote no code: {error}") from error
    return found[0]


def _loops(graph):
    from torch._inductor import ir, scheduler

    for node in graph.scheduler.nodes:
        inner = node.get_nodes()
        if isinstance(node, scheduler.NopKernelSchedulerNode) or isinstance(node.node, ir.MultiOutput):
            continue
        extern = (getattr(node.node, "python_kernel_name", "") or type(node.node).__name__) if node.is_extern() else ""
        names = tuple(name for n in inner for name in n.get_buffer_names())
        origins = frozenset(o for n in inner for o in _origins(n.node))
        own = set(names)
        parts: dict[tuple[str, object], int] = {}
        for dep in (dep for n in inner for dep in n.read_writes.reads if dep.name not in own and not extern):
            part = dep.name, dep.get_offset() if isinstance(dep, MemoryDep) and not dep.is_indirect() else 0
            parts[part] = max(parts.get(part, 0), _bytes(graph, dep))
        read = {name: sum(size for (one, _), size in parts.items() if one == name) for name, _ in parts}
        read = {name: min(size, int(graph.get_numel(name)) * graph.get_dtype(name).itemsize) for name, size in read.items()}
        inside = {n.get_name() for n in inner}
        leaving = [b for n in inner if not extern for b in n.get_outputs() if not {u.get_name() for u in b.users} <= inside]
        sizes = [(prod(b.node.get_size()), prod(b.node.get_size()) * b.node.get_dtype().itemsize) for b in leaving]
        reduces = any(bool(n.group[1][1]) for n in inner) if not extern else False
        stored = tuple(sorted((int(size) for size, _ in sizes), reverse=True))
        yield Loop(extern, names, origins, stored, reduces, read, int(sum(size for _, size in sizes)))


def _bytes(graph, dep):
    """What a read touches: of a table, the rows that are looked up."""
    if isinstance(dep, MemoryDep) and dep.is_indirect():
        return int(prod(dep.size)) * graph.get_dtype(dep.name).itemsize
    return dep.numbytes_hint()


def _origins(node):
    return {str(o.target).removeprefix("aten.").split(".")[0] for o in node.get_origins() if o.op == "call_function"}


DEBUG = False
_NEW = re.compile(r"(\w+) = empty_strided_cpu\(\((.*?)\), \((.*?)\), torch\.(\w+)\)")
_TAKEN = re.compile(r"(\w+) = (?:reinterpret_tensor\((\w+),.*?\)|(\w+)); del (\w+)  # reuse")
_ALIAS = re.compile(r"(\w+) = reinterpret_tensor\((\w+), .*# alias")
_RESULT = re.compile(r"(\w+) = torch\.ops\.(\w+)\.(\w+)\.(\w+)\(")
_ASSERT = re.compile(r"assert_size_stride\((buf\w+), \((.*?)\), \((.*?)\)")
_ITEM = re.compile(r"(\w+) = (\w+)\[(\d+)\]")


def _calls(graph, text):
    body = text.rpartition("def call(")[2].partition("def benchmark")[0]
    kernels = []
    live, total, peak = {}, 0, 0
    for line in body.splitlines():
        line = line.strip()
        if m := _NEW.match(line):
            sizes = [int(x) for x in m[2].split(",") if x.strip()]
            live[m[1]] = prod(sizes) * getattr(torch, m[4]).itemsize
            total += live[m[1]]
        elif m := _TAKEN.match(line):
            live[m[1]] = live.pop(m[4], 0)
        elif m := _ITEM.match(line):
            live[m[1]] = 0
        elif (m := _ASSERT.match(line)) and m[1] in live:
            live[m[1]] = prod(int(x) for x in m[2].split(",") if x.strip()) * graph.get_dtype(m[1]).itemsize
            total += live[m[1]]
        elif m := re.match(r"(cpp_fused_\w+)\(", line):
            kernels.append(m[1])
        elif m := re.match(r"extern_kernels\.(\w+)\(", line):
            kernels.append(m[1])
        elif m := _RESULT.match(line):
            kernels.append(m[3])
            live[m[1]] = 0
        elif m := re.match(r"del (\w+)", line):
            live.pop(m[1], None)
        peak = max(peak, sum(live.values()))
        if DEBUG and "cpp_fused" in line or DEBUG and "extern_kernels" in line or DEBUG and "torch.ops" in line: print("     T", sum(live.values()), line[:50], len(live))
    return tuple(kernels), total, peak
