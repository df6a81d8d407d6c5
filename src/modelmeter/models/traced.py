"""A traced module as a layer and as a model: what `trace` wrote, made a graph again. Nothing here imports torch.

A traced formula holds in its domain; outside of it a cost is refused with the condition that is broken.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, final

from modelmeter.errors import InputError, choose
from modelmeter.graph.equations import parse
from modelmeter.graph.ops import Composite, Op, Ref
from modelmeter.graph.place import Node, Sizes
from modelmeter.layers.base import BaseLayer
from modelmeter.models.model import BaseModel, Stage
from modelmeter.models.trace_json import names_of, read_trace, size_of
from modelmeter.sizes import Size, as_size, evaluated, minimum, never_negative
from modelmeter.workload import Workload

CAUSAL_LM = ("prefill", "decode")
"""The stages of a causal language model, whose sizes are those of a workload."""


@final
@dataclass(frozen=True)
class TracedLayer(BaseLayer):
    """A stage of a traced module at any sizes of its domain; `content` is a stage of the JSON.

    Costs, formulas and kernels are those of any layer. Axes: those that the trace names.
    """

    content: Any = field(hash=False)
    number: Any = 0
    axes = property(lambda self: {})
    sizes = property(lambda self: " ".join(self.content["sizes"]))
    inputs = property(lambda self: " ".join(self._names("inputs")))
    buffers = property(lambda self: " ".join(self._names("buffers")))
    outputs = ""

    def __post_init__(self) -> None:
        """The content was checked as it was read."""

    @property
    def piece(self) -> dict[str, Any]:
        found: dict[str, Any] = self.content["pieces"][self.number]
        return found

    def _names(self, kind: str) -> list[str]:
        return [self.piece["tensors"][index][0] for index in self.piece[kind]]

    def ops(self, n: Sizes) -> Iterator[Op]:
        yield from _Reader(self.piece, n, self.content["sizes"]).ops()


class _Reader:
    """Makes ops of a piece at a place."""

    def __init__(self, piece: Mapping[str, Any], n: Sizes, names: Sequence[str]) -> None:
        self.piece, self.n = piece, n
        trees = [size_of(tree, names) for tree in piece["sizes"]]
        self.sizes: Sequence[Size] = evaluated(trees, {name: n.axes[name] for name in names})
        parents = list(dict.fromkeys(entry[0].rpartition(".")[0] for entry in piece["modules"]))
        self.nodes = [self._node(entry, parents) for entry in piece["modules"]]
        self.bound = frozenset(axis for op in piece["ops"] for axis in op["axes"])
        for text, index in piece["domain"]:
            self._require(text, self.sizes[index])

    def _require(self, text: str, size: Size) -> None:
        """Refuse workloads outside of the domain, with the condition and the sizes that were asked for."""
        if never_negative(size):
            return
        given = ", ".join(f"{name}={{{name}}}" for name in sorted(names_of(size)) if name[0] != "~")
        condition = text.replace("{", "{{").replace("}", "}}")
        of = f", not {given}" if given else ""
        self.n.root.requirements[f"{self.n.node.layer}: the trace holds only where {condition}{of}"] = size

    def _node(self, entry: Sequence[Any], parents: list[str]) -> Node:
        path, kind, times, loop, held = entry
        names = tuple(self.piece["tensors"][t][0] if t is not None else "" for t in held) if held else ("", "")
        outer = self.n.node
        often, serial = outer.times * times, parents.index(path.rpartition(".")[0]) + 1
        ends, again = (names[0], names[1]), minimum(times - 1, 1)
        return Node(path, kind or outer.layer, often, loop, ends, again, serial, (outer.layer,))

    def _ref(self, pair: Sequence[int]) -> Ref:
        name, role, bits, elements, frame, temporary = self.piece["tensors"][pair[0]]
        return Ref(name, frame, temporary, role, bits, self.sizes[elements], self.sizes[pair[1]])

    def ops(self) -> Iterator[Op]:
        """The ops, in order."""
        for entry in self.piece["ops"]:
            equation, node = parse(entry["equation"]), self.nodes[entry["module"]]
            reads, writes = (tuple(map(self._ref, entry[side])) for side in ("reads", "writes"))
            names = {t.name: (r.frame, r.name) for t, r in zip(equation.operands, reads, strict=False)}
            names |= {t.name: (r.frame, r.name) for t, r in zip(equation.outputs, writes, strict=False)}
            axes = {axis: self.sizes[size] for axis, size in entry["axes"].items()}
            n = Sizes(axes, node, self.n.root, self.bound, names)
            label = entry.get("composite", "")
            kind = label.partition(":")[0]
            tensor, cuda = (self.sizes[entry[key]] if key in entry else 0 for key in ("tensor", "cuda"))
            over = entry.get("over") or " ".join(equation.new)
            yield Op(
                entry["kind"], equation, reads, writes, n, tensor, cuda, over=over, grad=entry.get("grad", True),
                composite=Composite(kind, label) if label else None, kernel=label if kind == "sdpa" else "",
            )  # fmt: skip


@final
@dataclass(frozen=True)
class TracedModel(BaseModel):
    """A model of traced stages."""

    name: str
    content: Any = field(hash=False)
    given: Mapping[str, Size] | None = field(default=None, hash=False)
    planner = None
    positions = None

    @property
    def notes(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(self.content["notes"])

    @property
    def sizes(self) -> tuple[str, ...]:
        """The named sizes of a module that is no language model; () for one that is."""
        stages = {stage["name"]: tuple(stage["sizes"]) for stage in self.content["stages"]}
        return () if stages.keys() <= set(CAUSAL_LM) else next(iter(stages.values()))

    def domain(self) -> list[str]:
        """Where the formulas of each stage hold, as text."""
        pieces = ((stage["name"], piece["domain"]) for stage in self.content["stages"] for piece in stage["pieces"])
        found = ((name, " and ".join(text for text, _ in domain)) for name, domain in pieces)
        return [f"{name}: holds where {conditions or 'sizes are any'}" for name, conditions in found]

    def fixed(self) -> dict[str, int]:
        """The named sizes that the code turned into numbers, in whatever stage."""
        texts = (text for stage in self.content["stages"] for piece in stage["pieces"] for text, _ in piece["domain"])
        return {found[1]: int(found[2]) for text in texts if (found := re.fullmatch(r"(\w+) == (\d+)", text))}

    def layer(self, stage: str = "forward") -> TracedLayer:
        """A stage as a layer: costs, formulas and kernels at its own sizes. Raises InputError if there is none."""
        contents = {content["name"]: content for content in self.content["stages"]}
        return TracedLayer(contents[choose("stage", stage, contents)])

    def at(self, **sizes: Size) -> TracedModel:
        """The model at these sizes of its own. Raises InputError for others, or one that is missing."""
        for name in sizes:
            choose("size", name, self.sizes)
        for name in self.sizes:
            if name not in sizes:
                raise InputError(f"size {name!r} is not given; sizes: {', '.join(self.sizes)}")
        return replace(self, given={name: as_size(name, size) for name, size in sizes.items()})

    @cached_property
    def stages(self) -> tuple[Stage, ...]:  # type: ignore[override]
        return tuple(self._stage(stage) for stage in self.content["stages"])

    def _stage(self, content: Mapping[str, Any]) -> Stage:
        name, layers = content["name"], [TracedLayer(content, i) for i in range(len(content["pieces"]))]
        layer = lambda number: layers[number]
        if name == "decode":
            return Stage(
                name, layer, lambda w: {"b": w.batch, "t": w.context_tokens + 1}, lambda w: 0,
                steps=lambda w: w.decode_steps, grows="t", whole=0,
            )  # fmt: skip
        if name == "prefill":
            return Stage(name, layer, lambda w: {"b": w.batch, "s": _context(w)}, lambda w: 0, whole=0)
        wanted = ", ".join(content["sizes"])

        def given(work: Workload) -> Mapping[str, Size]:
            if self.given is None:
                raise InputError(f"{self.name} is traced for the sizes {wanted}: give each of them")
            return self.given

        return Stage(name, layer, given, lambda w: 0, whole=0)


def _context(work: Workload) -> Size:
    if isinstance(work.context_tokens, int) and work.context_tokens < 1:
        raise InputError("prompt_tokens must be at least 1")
    return work.context_tokens


def traced_model(path: str | Path) -> TracedModel:
    """The model of a trace's file. Raises InputError for one that is none."""
    content = read_trace(path)
    return TracedModel(content["name"], content)
