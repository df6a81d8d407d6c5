"""What moves between memory and chip, and what is alive, while a list of ops runs.

Four executions: `eager` (every op is a kernel), `flash` (attention scores stay on chip), `fused`
(pointwise ops, norms and copies join the kernel before them), `compulsory` (each weight once, the
stage's inputs and outputs, the KV cache). Sums are made in `cost.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from modelmeter.ops import Op, Ref
from modelmeter.sizes import Tally, Term, maximum, product

EXECUTIONS = ("eager", "flash", "fused", "compulsory")
COMPILED = ("fused", "compulsory")
_RIDES = frozenset({"pointwise", "norm", "softmax", "copy"})


def without_dead_copies(ops: Sequence[Op]) -> list[Op]:
    """A compiled graph drops what only eager code has: held inputs, temporaries that nothing reads."""
    read = {ref.name for op in ops for ref in op.reads}
    ops = [op for op in ops if op.kind != "hold"]
    return [op for op in ops if not op.writes or any(not w.temporary or w.name in read for w in op.writes)]


def _in_memory(refs: Iterable[Ref], execution: str) -> Iterator[Ref]:
    """The tensors that leave the chip."""
    hidden = ("always",) if execution == "eager" else ("always", "flash")
    return (r for r in refs if r.on_chip not in hidden)


def traffic(ops: Sequence[Op], execution: str) -> Iterator[tuple[int, str, Term]]:
    """(op index, role, bytes) of everything that crosses between memory and chip.

    Repetitions are multiplied in, but for the stage's own inputs and outputs in `compulsory`.
    """
    if execution == "compulsory":
        yield from _compulsory(ops)
        return
    moved = _fused(ops) if execution == "fused" else _kernel_by_kernel(ops, execution)
    for index, ref in moved:
        yield index, ref.role, ref.touched.times(ops[index].times)


def _kernel_by_kernel(ops: Sequence[Op], execution: str) -> Iterator[tuple[int, Ref]]:
    for index, op in enumerate(ops):
        for ref in {ref.name: ref for ref in _in_memory(op.reads, execution)}.values():
            yield index, ref
        for ref in _in_memory(op.writes, execution):
            yield index, ref


def _versions(ops: Sequence[Op]) -> Iterator[tuple[list[tuple[Ref, int]], list[tuple[Ref, int]]]]:
    """For each op its reads and writes, each with the index of the op that wrote it (-1: an input)."""
    written: dict[str, int] = {}
    for index, op in enumerate(ops):
        reads = [(ref, written.get(ref.name, -1)) for ref in op.reads]
        for ref in op.writes:
            written[ref.name] = index
        yield reads, [(ref, index) for ref in op.writes]


def _fused(ops: Sequence[Op]) -> Iterator[tuple[int, Ref]]:
    """Pointwise ops, norms and copies join the kernel that made their latest operand."""
    kernel: list[int] = []
    first_of_group: dict[int, int] = {}
    users: dict[tuple[str, int], set[int]] = {}
    versions = list(_versions(ops))
    for index, (op, (reads, _)) in enumerate(zip(ops, versions, strict=True)):
        home = index
        if op.group:
            home = first_of_group.setdefault(op.group, index)
        elif op.kind in _RIDES:
            made = max((at for _, at in reads), default=-1)
            if made >= 0 and ops[made].n.loop == op.n.loop:
                home = kernel[made]
        kernel.append(home)
        for ref, made in reads:
            users.setdefault((ref.name, made), set()).add(home)
    seen: set[tuple[int, str, int]] = set()
    for index, (reads, writes) in enumerate(versions):
        home = kernel[index]
        for ref, made in reads:
            outside = made < 0 or kernel[made] != home
            if outside and (home, ref.name, made) not in seen:
                seen.add((home, ref.name, made))
                yield index, ref
        for ref, _ in writes:
            if users.get((ref.name, index), set()) != {home} or ref.role == "kv":
                yield index, ref


def _compulsory(ops: Sequence[Op]) -> Iterator[tuple[int, str, Term]]:
    """Weights once, at the most that any op touches of them, stage inputs and outputs, and KV."""
    inputs: dict[str, tuple[int, str, Term]] = {}
    versions = list(_versions(ops))
    read = {(ref.name, made) for reads, _ in versions for ref, made in reads}
    for index, (reads, writes) in enumerate(versions):
        times = ops[index].times
        for ref, made in reads:
            if ref.role == "kv":
                yield index, ref.role, ref.touched.times(times)
            elif made < 0:
                moved = ref.touched.times(times) if ref.role == "weight" else ref.touched
                at, _, known = inputs.get(ref.name, (index, ref.role, moved))
                if known.key != moved.key or known.number != moved.number:
                    moved = product((maximum(known.value(), moved.value()),))
                inputs[ref.name] = (at, ref.role, moved)
        for ref, _ in writes:
            if ref.role == "kv":
                yield index, ref.role, ref.touched.times(times)
            elif (ref.name, index) not in read:
                yield index, ref.role, ref.touched
    yield from inputs.values()


def live_sets(ops: Sequence[Op], execution: str) -> Iterator[Tally]:
    """The bytes of activations alive while each op runs, its results included.

    Eager and flash follow Python: a name holds its tensor until it is rebound or the layer that
    owns it returns; an expression temporary (leading underscore) goes at its last read. A compiled
    graph (fused, compulsory) frees at the last read. The caller always holds the stage's inputs.
    """
    compiled = execution in COMPILED
    last: dict[tuple[str, int], int] = {}
    inputs: dict[str, Term] = {}
    for index, (reads, _) in enumerate(_versions(ops)):
        for ref, made in reads:
            if ref.role == "activation":
                last[ref.name, made] = index
                if made < 0:
                    inputs[ref.name] = ref.stored
    dead: dict[int, list[str]] = {}
    for (name, made), index in last.items():
        if made >= 0:
            dead.setdefault(index, []).append(name)
    total = Tally()
    for term in inputs.values():
        total.add(term)
    live: dict[str, Ref] = {}
    previous = ""
    for index, op in enumerate(ops):
        if op.path != previous:
            previous = op.path
            for name in [n for n, ref in live.items() if not _within(previous, ref.frame)]:
                total.subtract(live.pop(name).stored)
        writes = [r for r in _in_memory(op.writes, execution) if r.role == "activation"]
        for ref in writes:
            total.add(ref.stored)
        yield Tally(total.sums)
        for name in dead.get(index, ()):
            if name in live and (compiled or live[name].temporary):
                total.subtract(live.pop(name).stored)
        for ref in writes:
            if ref.name in live:
                total.subtract(live[ref.name].stored)
            live[ref.name] = ref


def _within(path: str, frame: str) -> bool:
    return not frame or path == frame or path.startswith(f"{frame}.")
