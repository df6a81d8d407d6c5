"""Programs: what a stage costs as exact expressions of a few named sizes, made once and evaluated ever after.

A program is made of a graph that a runtime has lowered. Decode is the exact sum over its steps. One program serves
one point (exact), arrays, formulas (`costs`) and JSON.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, reduce
from typing import Any, NamedTuple

from modelmeter.errors import InputError, choose
from modelmeter.graph.graph import Graph
from modelmeter.graph.ops import Op
from modelmeter.programs.cost import COUNTS, StageCost
from modelmeter.programs.counting import Counting
from modelmeter.programs.kernels import Kernel, groups, kernels_of, linked
from modelmeter.programs.storage import Storage
from modelmeter.runtimes.passes import on_chip
from modelmeter.sizes import Evaluator, Expr, Size, added, as_size, below, maximum, rivals
from modelmeter.sizes.sums import largest, substituted, summed

STEPS = ("first", "steps")
"""The names of the first context and of the number of steps in a program with steps."""
SIZED = ("loops", "tensor_flops", "cuda_flops", "read_bytes", "written_bytes", "unpack_flops", "attention")
"""The fields of a kernel that map names to sizes."""
PEAK, CACHE, FLOWS = "peak_activation_bytes", "kv_cache_bytes", COUNTS[:6]
Part = Callable[[Op], str]
Ledger = Mapping[str, dict[Any, Size]]
"""What a part's counts add up from, each summand by what tells it from the others."""


class Steps(NamedTuple):
    """A stage that runs once for each of a range of contexts: the size that varies, its first and last value."""

    name: str
    first: Size
    last: Size


@dataclass(frozen=True)
class Program:
    """What a stage costs by part, as expressions of `names` (the formulas); see `program_of`."""

    names: tuple[str, ...]
    counting: Counting
    costs: Mapping[str, StageCost]
    graph: Graph
    storage: Storage
    steps: Steps | None = None
    requirements: Mapping[str, Size] = field(default_factory=dict)

    @cached_property
    def _evaluator(self) -> Evaluator:
        counts = [getattr(cost, count) for cost in self.costs.values() for count in COUNTS]
        return Evaluator(self.names, [*counts, *self.requirements.values()])

    @cached_property
    def basis(self) -> str:
        """How it was counted, with the options that layers of it have."""
        return _basis(self.counting, self.graph)

    def __call__(self, **sizes: Size) -> dict[str, StageCost]:
        """The StageCost of each part at these sizes, ints or arrays. Raises InputError for other sizes than `names`."""
        return self.at(_in_order(self.names, sizes))

    def at(self, values: Sequence[Size]) -> dict[str, StageCost]:
        """The same, with the sizes in the order of `names`."""
        basis, width = self.basis, len(COUNTS)
        try:
            found = self._evaluator(values)
        except ZeroDivisionError:
            given = ", ".join(f"{name}={value}" for name, value in zip(self.names, values, strict=True))
            raise InputError(f"there is no cost at {given}: a size that divides another one is zero there") from None
        if self.requirements:
            asked = zip(self.requirements, found[len(self.costs) * width :], strict=True)
            _require(dict(asked), dict(zip(self.names, values, strict=True)))
        return {part: StageCost(*(*found[i * width : (i + 1) * width], basis)) for i, part in enumerate(self.costs)}

    @cached_property
    def _launches(self) -> Evaluator:
        runs = added(kernel.runs for kernel in kernels_of(self.graph, self.storage))
        return Evaluator(self.names, [summed(runs, *self.steps) if self.steps else runs])

    def launches_at(self, values: Sequence[Size]) -> Size:
        """How many kernels run, those of all steps together; sizes in the order of `names`."""
        return self._launches(values)[0]

    @cached_property
    def kernel_names(self) -> tuple[str, ...]:
        """The names of the sizes of its kernels: with steps, those of one step, whose size is named too (`t`)."""
        return (*(n for n in self.names if n not in STEPS), *([self.steps.name] if self.steps else []))

    @cached_property
    def formal_kernels(self) -> tuple[Kernel, ...]:
        """The kernels as expressions of `kernel_names`."""
        return tuple(kernels_of(self.graph, self.storage))

    @cached_property
    def _kernel_sizes(self) -> Evaluator:
        sizes = (v for k in self.formal_kernels for v in (k.runs, *(v for f in SIZED for v in getattr(k, f).values()),
                                                          k.picks, k.link_bytes))  # fmt: skip
        return Evaluator(self.kernel_names, list(sizes))

    @cached_property
    def _kernel_requirements(self) -> Evaluator:
        return Evaluator(self.kernel_names, list(self.graph.root.requirements.values()))

    def require(self, given: Mapping[str, Size]) -> None:
        """Raise InputError for sizes of kernels, by name, that the stage's layers forbid."""
        if asked := self.graph.root.requirements:
            _require(dict(zip(asked, self._kernel_requirements(given), strict=True)), given)

    def kernels(self, **sizes: Size) -> list[Kernel]:
        """The kernels at these sizes; with steps, those of one step, whose size is named too (`t`)."""
        given = dict(zip(self.kernel_names, _in_order(self.kernel_names, sizes), strict=True))
        self.require(given)
        values = iter(self._kernel_sizes(given))
        return [_evaluated(kernel, SIZED, values) for kernel in self.formal_kernels]

    def as_json(self) -> dict[str, Any]:
        """Names, instructions and counts by part as plain data, to be evaluated anywhere."""
        content = self._evaluator.as_json()
        keys = [[part, count] for part in self.costs for count in COUNTS]
        return content | {"basis": self.basis, "counts": keys, "outputs": content["outputs"][: len(keys)]}


def _evaluated(kernel: Kernel, fields: Sequence[str], values: Iterator[Size]) -> Kernel:
    """A kernel with its sizes in place of its expressions, in their order."""
    runs = next(values)
    counts: dict[str, Any] = {f: {key: next(values) for key in getattr(kernel, f)} for f in fields}
    return replace(kernel, runs=runs, **counts, picks=next(values), link_bytes=next(values))


def _basis(counting: Counting, graph: Graph) -> str:
    return ", ".join((counting.basis, *(f"{name} {value}" for name, value in graph.root.chosen.items())))


def _require(asked: Mapping[str, Size], given: Mapping[str, Size]) -> None:
    """Raise InputError, a sentence filled with what is given, for a size that must not be negative and is."""
    for sentence in (sentence for sentence, size in asked.items() if below(size, 0)):
        raise InputError(sentence.format(**given))


def _in_order(names: Sequence[str], given: Mapping[str, Size]) -> list[Size]:
    for name in given:
        choose("size", name, names)
    for name in names:
        if name not in given:
            raise InputError(f"size {name!r} is not given; sizes: {', '.join(names)}")
    return [as_size(name, given[name]) for name in names]


def program_of(
    graph: Graph, names: Sequence[str], counting: Counting, part: Part = lambda op: "", steps: Steps | None = None,
    gradients: bool = False,
) -> Program:  # fmt: skip
    """The program of a stage; `part(op)` names the part that an op belongs to ("": the whole).

    A part's peak is the largest live set of the whole stage while one of its ops runs. A weight that several parts
    read is stored in the first. With `steps` work and traffic are summed over all steps, the peak is that of the
    largest and the KV cache that of the last. Raises InputError for what cannot be summed exactly.
    """
    told = replace(graph, root=replace(graph.root, cached=counting.precision.cached))
    lowered = counting.runtime.lowered(told, logits=counting.logits, gradients=gradients)
    labels = [part(op) for op in lowered.ops]
    ledgers: dict[str, Ledger] = {label: {count: {} for count in COUNTS} for label in labels or [""]}
    storage = Storage(graph, counting.precision)
    _fill([ledgers[label] for label in labels], lowered, counting, storage)
    requirements = dict(_asked(lowered.root.requirements, steps))
    basis = _basis(counting, graph)
    costs = {label: StageCost(**_counts(ledger, steps), basis=basis) for label, ledger in ledgers.items()}
    return Program(tuple(names), counting, costs, lowered, storage, steps, requirements)


def _asked(requirements: Mapping[str, Size], steps: Steps | None) -> Iterator[tuple[str, Size]]:
    """What must not be negative, at the first and the last of the steps. Raises InputError where these do not tell."""
    for text, size in requirements.items():
        if steps is None or not isinstance(size, Expr) or steps.name not in size.names:
            yield text, size
            continue
        for monomial, coefficient in size.terms:
            varying = [atom for atom in monomial if steps.name in atom.names]
            if any(atom.arguments for atom in varying) or len(varying) > (1 if coefficient > 0 else 2):
                raise InputError(f"{text.partition(', not ')[0]}, which cannot be told for every step of a range")
        for value, name in ((steps.first, "{first}"), (steps.last, "{first} + {steps} - 1")):
            told = text.replace(f"{{{steps.name}}}", name)
            yield told if told != text else f"{text} ", substituted(size, steps.name, value)


def _fill(ledgers: Sequence[Ledger], graph: Graph, counting: Counting, storage: Storage) -> None:
    """Enter what each op does, moves, stores and keeps alive into its ledger."""
    for number, (group, move) in enumerate((g, move) for g in groups(graph, storage) for move in g.moves):
        ledgers[move.op][f"{move.role}_io_bytes"][number] = move.bytes * group.times
    stored = set()
    alive = counting.runtime.lifetimes(graph, on_chip(graph), lambda r: r.stored * storage.bytes(r))
    for index, (op, ledger, live) in enumerate(zip(graph.ops, ledgers, alive, strict=True)):
        ledger["tensor_core_flops"][index] = op.tensor * op.times
        ledger["cuda_core_flops"][index] = op.cuda * op.times
        ledger["link_bytes"][index] = linked(op, storage) * op.times
        ledger[PEAK][index] = live
        for r in (*op.reads, *op.writes):
            if r.role == "weight" and r.name not in stored:
                stored.add(r.name)
                ledger["parameters"][r.name] = r.stored * op.times
                ledger["weight_bytes"][r.name] = r.stored * op.times * storage.bytes(r)
            elif r.role == "kv":
                ledger[CACHE][r.name] = r.stored * op.times * storage.bytes(r)


def _counts(ledger: Ledger, steps: Steps | None) -> dict[str, Size]:
    """The sums of a ledger; its peak is the largest."""
    counts = {count: added(ledger[count].values()) for count in COUNTS if count != PEAK}
    peaks = rivals(ledger[PEAK].values())
    if steps is not None:
        counts |= {flow: summed(counts[flow], *steps) for flow in FLOWS}
        counts[CACHE] = substituted(counts[CACHE], steps.name, steps.last)
        peaks = [largest(peak, *steps) for peak in peaks]
    return counts | {PEAK: reduce(maximum, peaks, 0)}
