"""Policies: how llama.cpp stores the tensors of a decoder, by what each is and by its layer. Data: `policies.yaml`.

`tensors_of` gives every tensor of a file: name, shape, format. A weight of ours that stands for many layers has the
exact mean of theirs: `storage.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from fractions import Fraction
from functools import cache
from itertools import chain, groupby
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from modelmeter.errors import InputError, choose
from modelmeter.graph.graph import Graph
from modelmeter.programs.formats import FORMATS, Format
from modelmeter.programs.weights import Weight, weights_of

_DECODER = re.compile(r"(?:W_tok|decoder\.|embedding\.|head\.)")
"""What begins the names of a decoder's tensors."""
_LAYER = re.compile(r"(decoder\.layers\d+\.each)\.(.+)")
LAYERS: dict[str, Callable[[int, int], bool]] = {
    "more": lambda i, n: i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2,
    "eighth": lambda i, n: i < n // 8,
    "sixteenth": lambda i, n: i < n // 16,
    "middle": lambda i, n: n // 8 <= i < 7 * n // 8,
    "four": lambda i, n: i < 4,
    "two": lambda i, n: i < 2,
}
"""Which layers i of n a rule means."""


@cache
def data() -> dict[str, Any]:
    """What `policies.yaml` holds."""
    import yaml

    text = Path(__file__).with_name("policies.yaml").read_bytes()
    found: dict[str, Any] = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return found


POLICIES: Mapping[str, Mapping[str, Any]] = data()["policies"]
"""The policies by name."""


class Slot(NamedTuple):
    """A tensor of a file before its format: its name, its layer (0 outside of layers), columns, rows and matrices.

    `parts` are the elements that weights of ours have in it, by name.
    """

    name: str
    layer: int
    shape: tuple[int, ...]
    parts: Mapping[str, int]

    @property
    def kind(self) -> str:
        """What it is: its name without its layer, and without the ending of a weight."""
        return re.sub(r"^blk\.\d+\.", "", self.name).removesuffix(".weight")

    @property
    def elements(self) -> int:
        """Elements in all."""
        return prod(self.shape)


class Stored(NamedTuple):
    """A tensor of a file and its format."""

    slot: Slot
    format: Format

    @property
    def bytes(self) -> int:
        """Bytes of its data."""
        return int(self.slot.elements * Fraction(self.format.each(self.slot.shape[0])))


def of_decoder(names: Iterable[str]) -> bool:
    """Whether one of these is the name of a decoder's tensor."""
    return any(_DECODER.match(name) for name in names)


def tensors_of(graph: Graph, policy: str) -> list[Stored]:
    """The tensors of a decoder as a policy stores them, as llama.cpp names them. Raises InputError where it cannot."""
    slots = slots_of(graph)
    facts = _Facts.of(slots)
    rules = POLICIES[choose("policy of weights", policy, POLICIES)]
    return [Stored(slot, _format(policy, rules, slot, facts)) for slot in slots]


def slots_of(graph: Graph) -> list[Slot]:
    """The tensors of a decoder as llama.cpp names them. Raises InputError for one that it has no name for."""
    found: list[Slot] = []
    for (together, layers), group in groupby(placed(graph), lambda p: (p.weight.one, p.layers)):
        members = [p for p in group if _name(p)]
        for name, shape, parts in _merged(members) if together else chain.from_iterable(map(_slots, members)):
            found += [Slot(name.format(i), i, shape, parts) for i in layers]
    return found


class Placed(NamedTuple):
    """A weight or a buffer of a decoder, its name inside of its layer, the numbers of its layers ((0,): of none)."""

    weight: Weight
    own: str
    layers: tuple[int, ...]


def placed(graph: Graph) -> list[Placed]:
    """The weights and buffers of a decoder where they stand: layers as the graph says, or one after the other.

    Raises InputError for sizes that are no whole numbers.
    """
    layers: dict[str, tuple[int, ...]] = {"": (0,)}
    following, found = 0, []
    for name, weight in weights_of(graph).items():
        if not _DECODER.match(name):
            continue
        inside = _LAYER.fullmatch(name)
        frame, own = (inside[1], inside[2]) if inside else ("", name)
        if "W_" in own and not all(isinstance(size, int) for size in (*weight.shape, weight.times)):
            raise InputError(f"a policy of weights needs sizes that are whole numbers, and {name} has others")
        if frame not in layers:
            there = tuple(range(following, following + weight.times))
            layers[frame], following = graph.root.places.get(frame, there), following + weight.times
        found.append(Placed(weight, own, layers[frame]))
    return found


_Named = tuple[str, tuple[int, ...], Mapping[str, int]]


def _name(p: Placed) -> str:
    """What a file calls a weight; nothing of a buffer that it does not hold."""
    known = data()["names"]
    if p.own not in known and "W_" in p.own:
        raise InputError(f"llama.cpp has no name here for {p.weight.name!r}, so no policy of its says how it is stored")
    return str(known.get(p.own, ""))


def _slots(p: Placed) -> Iterator[_Named]:
    """The names, shapes and parts of a weight's tensors."""
    for name, axes in re.findall(r"([^\s\[]+)(?:\[([^]]*)\])?", _name(p)):
        shape = tuple(p.weight.n.elements((axis,)) for axis in axes.split()) or p.weight.shape
        yield name, shape, {p.weight.name: prod(shape)}


def _merged(members: Iterable[Placed]) -> Iterator[_Named]:
    """The tensors of weights that are one matrix: their rows one below the other."""
    parts = {p.own: p for p in members}
    for names, to in data()["merged"].items():
        one = [parts.pop(name).weight for name in names.split() if name in parts]
        if one:
            several = {w.name: prod(w.shape) for w in one}
            matrix = len(one[0].shape) > 1
            yield to, (one[0].columns, sum(w.rows for w in one)) if matrix else (sum(several.values()),), several
    yield from chain.from_iterable(map(_slots, parts.values()))


@dataclass(frozen=True)
class _Facts:
    """What rules ask of a model: its layers, its experts, heads that share one of keys, whether the head is tied.

    `downs` are the tensors that lead back to the hidden width, in the order in which they are stored.
    """

    layers: int
    experts: int
    grouped: int
    tied: bool
    downs: tuple[str, ...]

    @classmethod
    def of(cls, slots: Sequence[Slot]) -> _Facts:
        first: dict[str, Slot] = {}
        for slot in slots:
            first.setdefault(slot.kind, slot)
        experts = first["ffn_down_exps"].shape[-1] if "ffn_down_exps" in first else 0
        parts = {name.rpartition(".")[2]: many for slot in first.values() for name, many in slot.parts.items()}
        grouped = parts["W_q"] // parts["W_k"] if parts.keys() >= {"W_q", "W_k"} else 1
        downs = sorted((slot.layer, slot.name) for slot in slots if slot.kind.startswith("ffn_down") and slot.shape[1:])
        layers = max((slot.layer for slot in slots), default=0) + 1
        return cls(layers, experts, grouped, "output" not in first, tuple(name for _, name in downs))


def _format(policy: str, rules: Mapping[str, Any], slot: Slot, facts: _Facts) -> Format:
    """The format of a tensor. Raises InputError for a shape that it forbids."""
    base = FORMATS[rules["base"]]
    if len(slot.shape) < 2 or any(fnmatchcase(slot.name, kept) for kept in data()["kept"].split()):
        return FORMATS["fp32"]
    if base.block == 1:
        return base
    if slot.kind == "output" or (slot.kind == "token_embd" and facts.tied):
        wanted = FORMATS[rules["output"] if base.fits(slot.shape[0]) else "q8_0"]
    else:
        fitting = (rule["to"] for rule in rules.get("rules", ()) if _fits(rule, slot, facts))
        wanted = FORMATS[next(fitting, rules["base"])]
    return _fallback(policy, wanted, slot)


def _fits(rule: Mapping[str, Any], slot: Slot, facts: _Facts) -> bool:
    """Whether a rule is of this tensor."""
    stacked = len(slot.shape) > 2 and slot.shape[2] > 1
    return (
        any(fnmatchcase(slot.kind, kind) for kind in rule["of"].split())
        and rule.get("experts", facts.experts) == facts.experts
        and facts.experts >= rule.get("routed", 0)
        and ("counted" not in rule or LAYERS[rule["counted"]](facts.downs.index(slot.name), facts.layers))
        and facts.grouped >= rule.get("grouped", 0)
        and ("layered" not in rule or (facts.layers == rule["layered"] and facts.grouped > 1))
        and ("layers" not in rule or LAYERS[rule["layers"]](slot.layer, facts.layers))
        and (stacked or not rule.get("stacked"))
    )


def _fallback(policy: str, wanted: Format, slot: Slot) -> Format:
    """What is taken where the columns are no whole blocks."""
    columns = slot.shape[0]
    if wanted.fits(columns):
        return wanted
    if not wanted.fallback:
        raise InputError(
            f"{policy} cannot store {slot.name}: its {columns} columns are no multiple of {wanted.block}, the block of "
            f"{wanted.name}, and llama.cpp has no other format for it"
        )
    other = FORMATS[wanted.fallback]
    return other if other.fits(columns) else FORMATS["fp16"]
