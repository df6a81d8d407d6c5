"""What PyTorch does when it runs on the CPU: kernels that a dispatch mode sees, and what torch.profiler records.

A module runs twice: under the mode, which tells operands; then under the profiler, which tells the operators in order
and every block of the CPU allocator, the mode out of the way.
"""

from collections import Counter
from functools import cache
from typing import NamedTuple

import torch
from operators import Operand, Operators
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils._python_dispatch import TorchDispatchMode

ATTENTION = "_scaled_dot_product_flash_attention_for_cpu"
RUN = "the module runs"


class RealOperators(Operators):
    """Every kernel, attention among them, which runs: `logsumexp` is what its kernels write for a backward pass.

    Mean and deviation of a layer norm are in its own format on a CPU, in fp32 elsewhere: they are counted as fp32.
    """

    def __init__(self, inputs):
        super().__init__(inputs)
        self.logsumexp = 0

    def __enter__(self):
        TorchDispatchMode.__enter__(self)
        return self

    def __exit__(self, *error):
        TorchDispatchMode.__exit__(self, *error)

    def _record(self, name, needs, out, *sides):
        if name == ATTENTION:
            self.logsumexp += sides[1].pop().bytes
        if name == "native_layer_norm":
            sides[1][1:] = [Operand(side.shape, torch.float32) for side in sides[1][1:]]
        super()._record(name, needs, out, *sides)


class Block(NamedTuple):
    """A block of the CPU allocator: its bytes, when it is taken and given back, and the operator (its number) that
    took it, -1 for what the module is given and -2 for what it takes outside of operators. `inside`: room that the
    operator works in, given back before it ends, and what attention leaves beside its result (`logsumexp`).
    """

    bytes: int
    start: float
    end: float
    operator: int
    inside: bool


class Recorded:
    """What the profiler saw of a module: its operators in order, what each ran inside, the blocks in order."""

    def __init__(self, make, run):
        with torch.no_grad(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
            given = make()
            with record_function(RUN):
                run(*given)
        self.operators, self.inside, self.start, self._taken, self._blocks = [], [], 0, {}, []
        self._visit_all(seen.profiler.kineto_results.experimental_event_tree(), -1)
        self.blocks = list(self._found())

    def _found(self):
        results = set()
        for size, start, end, by, over in self._blocks:
            beside = by in results and self.operators[by] == ATTENTION
            results |= {by} if by >= 0 else set()
            yield Block(size, start, end, max(by, -2), by >= 0 and (end <= over or beside))

    def peak(self, inside=True):
        """The most bytes that are held at once while the module runs, with or without room inside operators."""
        blocks = [b for b in self.blocks if inside or not b.inside]
        steps = sorted([(b.start, 1, b.bytes) for b in blocks] + [(b.end, 0, -b.bytes) for b in blocks])
        now = peak = 0
        for time, _, change in steps:
            now += change
            peak = max(peak, now) if time >= self.start else now
        return peak

    def _visit_all(self, events, by):
        for event in sorted(events, key=lambda event: event.start_time_ns):
            kind = event.typed[0].name
            if kind == "Allocation":
                self._allocated(event, by)
            elif by == -2 and _computes(event):
                self._operator(event)
            else:
                if by >= 0 and _computes(event):
                    self.inside[by][event.name[6:]] += 1
                self.start = event.start_time_ns if event.name == RUN else self.start
                self._visit_all(event.children, -2 if event.name == RUN else by)

    def _allocated(self, event, by):
        block, end = event.typed[1], event.start_time_ns
        if block.alloc_size > 0:
            self._taken[block.ptr] = len(self._blocks)
            self._blocks.append([block.alloc_size, end, float("inf"), by, 0])
        elif block.ptr in self._taken:
            self._blocks[self._taken.pop(block.ptr)][2] = end

    def _operator(self, event):
        """An operator that writes memory: its blocks, and what it ran inside."""
        number, first = len(self.operators), len(self._blocks)
        self.operators.append(event.name[6:])
        self.inside.append(Counter())
        self._visit_all(event.children, number)
        for block in self._blocks[first:]:
            block[4] = event.end_time_ns
        made = any(block[2] > event.end_time_ns for block in self._blocks[first:])
        if not made and not _mutates(event.name):  # it returned what it was given
            del self.operators[number:], self.inside[number:]


@cache
def _dispatched():
    return frozenset(torch._C._dispatch_get_all_op_names())


@cache
def _schemas(name):
    packet, known = getattr(torch.ops.aten, name.removeprefix("aten::")), _dispatched()
    found = (getattr(packet, overload) for overload in packet.overloads())
    return [op for op in found if op.name() in known and "out" not in op._overloadname]


def _computes(event):
    """Whether an op is no view, no bare allocation, and not made of others that are recorded themselves."""
    name, implicit = event.name, "CompositeImplicitAutograd"
    if not name.startswith("aten::") or "empty" in name or name == "aten::detach_":
        return False
    made = [torch._C._dispatch_has_kernel_for_dispatch_key(op.name(), implicit) for op in _schemas(name)]
    blocks = (child.typed[1].alloc_size for child in event.children if child.typed[0].name == "Allocation")
    own = any(size > 0 for size in blocks)  # an overload that is made of others takes none itself
    return not all(made) and (own or not any(made)) and not any(op.is_view for op in _schemas(name))


def _mutates(name):
    return any(op._schema.is_mutable for op in _schemas(name))
