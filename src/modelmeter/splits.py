"""Splits: what each place of a placed model holds and does, and what crosses between them, exactly.

Nothing here is a formula: a place has the ops that are at home there, and a tensor crosses that one place writes and
another reads. Image tokens cross from the vision stage, and the next token's number from the head to the embedding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple, final

from modelmeter.errors import InputError, choose
from modelmeter.fits import Fits
from modelmeter.graph.graph import Graph
from modelmeter.graph.ops import Op, Ref
from modelmeter.models.model import BaseModel, Stage
from modelmeter.models.parts import Homes, Part
from modelmeter.placement import Place, Placement, wire_bits
from modelmeter.programs.program import Program
from modelmeter.runtimes.ggml_ops import PROVIDED
from modelmeter.runtimes.places import RECEIVED
from modelmeter.sizes import Evaluator, Size, ratio, summed, whole
from modelmeter.workload import Workload

TOKEN_BITS = 64
"""Of a token's number in torch (torch.long), where a runtime does not say otherwise."""


class Crossing(NamedTuple):
    """A tensor that crosses in a stage: as an equation has it, from where to where, in how many runs; bytes of all."""

    stage: str
    tensor: str
    origin: str
    to: str
    runs: Size
    bytes: Size


@final
@dataclass(frozen=True)
class Split:
    """A model at a placement and a workload, with `overhead` bytes held besides at each place.

    `wire` is the format of what crosses; None: that of the placement, or else as it is stored.

    >>> from modelmeter.config import load_model
    >>> model = load_model("llama_3_2_1b")
    >>> found = Split(model, model.text(1000, decode_steps=24), Placement.of("layers:8+8"))
    >>> [(c.stage, c.tensor, c.bytes) for c in found.crossings if c.to == "device 0"]
    [('decode', 'next token', 192)]
    """

    model: BaseModel
    work: Workload
    placement: Placement
    overhead: int = 0
    wire: str | float | None = None

    def __post_init__(self) -> None:
        wire_bits(self.wire)
        decoder = (self.homes.embedding, *self.homes.stacks, self.homes.head)
        engines = {str(self.works[place].runtime): place for place in decoder}
        if len(engines) > 1:
            told = " and ".join(f"{runtime} at {place!r}" for runtime, place in engines.items())
            raise InputError(f"placement {self.placement.name!r}: one runtime runs a decoder, not {told}")

    @cached_property
    def _placed(self) -> tuple[BaseModel, Homes, dict[str, str]]:
        return self.placement.on(self.model)

    @property
    def homes(self) -> Homes:
        """The place of each op."""
        return self._placed[1]

    @property
    def holds(self) -> dict[str, str]:
        """What each place holds, in words."""
        return self._placed[2]

    @cached_property
    def parts(self) -> dict[str, Part]:
        """What of the model is at each place, a model of its own."""
        whole, homes, _ = self._placed
        return {place.name: Part(whole, homes, place.name) for place in self.placement.places}

    @cached_property
    def works(self) -> dict[str, Workload]:
        """The workload as each place runs it."""
        return {place.name: self._work(place) for place in self.placement.places}

    def _work(self, place: Place) -> Workload:
        precision = replace(self.work.precision, **place.precision)
        if precision.policy and not place.parts.keys() - {"vision"}:  # a policy is of a decoder
            precision = replace(precision, weights=precision.activations)
        return replace(self.work, runtime=place.runtime or self.work.runtime, precision=precision)

    def fits(self, place: str) -> Fits:
        """What a place takes of its memory, and the most that it could: see Fits. Raises InputError for another."""
        choose("place", place, self.parts)
        return Fits(self.parts[place], self.works[place], self.overhead)

    def launches(self, place: str) -> Size:
        """How many kernels a place runs in all stages."""
        part, work = self.parts[place], self.works[place]
        return sum(part.launches(stage.name, work) for stage in part.stages)

    def traffic(self, stage: str) -> Size:
        """Bytes between memory and chip in a stage, of all places."""
        return sum(part.cost(stage, self.works[name]).io_bytes for name, part in self.parts.items())

    @cached_property
    def crossings(self) -> list[Crossing]:
        """What crosses, stage by stage."""
        return [
            crossing
            for stage in self.model.stages
            if stage.structure(self.work) != ()
            for crossing in (*self._given(stage), *self._inside(stage), *self._tokens(stage))
        ]

    def _bytes(self, r: Ref, program: Program) -> Size:
        """Bytes of a tensor on its way, in one run."""
        bits = wire_bits(self.placement.wire if self.wire is None else self.wire)
        return r.stored * (program.storage.bytes(r) if bits is None else whole(bits / 8))

    def _inside(self, stage: Stage) -> Iterator[Crossing]:
        """What is received within a stage."""
        for to, part in self.parts.items():
            program = part.program(stage.name, self.works[to])
            received = ((op, w) for op in program.graph.ops if op.kind == RECEIVED for w in op.writes)
            for op, w in {(_once(w), self.homes(op)): (op, w) for op, w in received}.values():
                once = self._bytes(w, program)
                of_all = summed(once, *program.steps) if program.steps else once
                (crossing,) = Evaluator(program.names, [of_all])(stage.values(self.work, program.names))
                yield Crossing(stage.name, _shown(op, w), self.homes(op), to, self._runs(stage), crossing)

    def _given(self, stage: Stage) -> Iterator[Crossing]:
        """Image tokens, from where vision makes them to where the decoder reads them."""
        for before in (before for before in self.model.stages if before.name in dict(self.homes.stages)):
            origin = dict(self.homes.stages)[before.name]
            if stage is before or before.structure(self.work) == () or stage.steps is not None:
                continue
            program = self.parts[origin].program(before.name, self.works[origin])
            made, y = next((op, w) for op in reversed(program.graph.ops) for w in op.writes if w.name == "y")
            values = before.values(self.work, program.names)
            (crossing,) = Evaluator(program.names, [self._bytes(y, program)])(values)
            for to in (to for to in self._readers(stage) if to != origin):
                yield Crossing(stage.name, f"image tokens {_shown(made, y)}", origin, to, 1, crossing)

    def _readers(self, stage: Stage) -> list[str]:
        """The places that read image tokens: with cross attention those of its layers, else that of the embedding."""
        if not self.model.beside:
            return [self.homes.embedding]
        graphs = {to: part.program(stage.name, self.works[to]).graph for to, part in self.parts.items()}
        return [to for to, graph in graphs.items() if _reads(graph, "features")]

    def _tokens(self, stage: Stage) -> Iterator[Crossing]:
        """The number of the next token, from the head to the embedding."""
        to, origin = self.homes.embedding, self.homes.head
        if stage.steps is None or to == origin:
            return
        graph = self.parts[to].program(stage.name, self.works[to]).graph
        given = (r.bits for op in graph.ops for r in op.reads if r.name == f"{PROVIDED}tokens")
        once = self.work.batch * ratio(next(given, TOKEN_BITS), 8)
        yield Crossing(stage.name, "next token", origin, to, self._runs(stage), once * self._runs(stage))

    def _runs(self, stage: Stage) -> Size:
        return stage.steps(self.work) if stage.steps is not None else 1


def _shown(op: Op, r: Ref) -> str:
    """A tensor by its name, with its axes."""
    name = _once(r).rpartition(".")[2].partition("~")[0]
    stored = [t.stored for t in op.equation.outputs if op.n.resolve(t.name)[1].rpartition(".")[2] == name]
    stored = stored or [t.stored for t in op.equation.outputs if r.stored == op.n.elements(t.stored)]  # renamed
    return f"{name}[{' '.join(stored[0])}]" if stored else name


def _once(r: Ref) -> str:
    """The name of a tensor; a compiler's kernels that make it anew for themselves (NAME^KERNEL) are given the same."""
    return r.name.partition("^")[0]


def _reads(graph: Graph, name: str) -> bool:
    return any(r.name == name for op in graph.ops for r in op.reads)


def split(model: BaseModel, work: Workload, placement: Any = "vision+decoder", **options: Any) -> Split:
    """A model at a placement: one of configs/placement, a text such as layers:6+6, a YAML file or an object.

    Options: `overhead` bytes at each place, `wire`, the format of what crosses. Raises InputError.
    """
    return Split(model, work, Placement.of(placement), **options)
