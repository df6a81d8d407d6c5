"""What safetensors files call a model's tensors: its decoder's, by layer and expert, and its tower's.

Several tensors of ours may be one of a file: rows one below the other, or a stack of experts. Data: `names.yaml`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate, groupby
from math import prod
from operator import mul
from typing import NamedTuple

from modelmeter.checkpoints.header import FileTensor, Header
from modelmeter.checkpoints.layout import decoder_of, graphs_of, names
from modelmeter.errors import choose
from modelmeter.models.model import BaseModel
from modelmeter.programs.policies import Placed, of_decoder, placed
from modelmeter.programs.weights import weights_of

_BLOCK = re.compile(r"(?P<tower>\w+)\.(?:blocks\d+\.each|transformer\.layers)\.(?P<own>.+)")
_BEGINS = re.compile(r"(embed_tokens|norm|final_layernorm|layers)\.")
Shape = tuple[int, ...]


class Wanted(NamedTuple):
    """A tensor that a file should have: its name, its shape with the columns first."""

    name: str
    shape: Shape


def prefix(header: Header) -> str:
    """What stands before the names of a decoder's tensors in a safetensors file."""
    ending = str(names()["safetensors"]["W_tok"])
    return next((name.removesuffix(ending) for name in header.tensors if name.endswith(ending)), "model.")


def is_decoders(header: Header, name: str) -> bool:
    """Whether a tensor of a safetensors file is of the decoder."""
    begins = name.startswith(prefix(header)) and _BEGINS.match(name.removeprefix(prefix(header)))
    return bool(begins or re.search(r"(^|\.)lm_head\.", name))


def decoders(header: Header, model: BaseModel) -> Iterator[Wanted]:
    """The decoder's tensors as this file calls them; those that it lacks by the first of their names."""
    taken: set[str] = set()
    heads = [name for name in header.tensors if name.endswith("lm_head.weight")]
    known = sorted(placed(decoder_of(model)), key=lambda p: (p.layers, p.own.startswith("norm1")))
    for _, group in groupby(known, lambda p: p.layers):
        members = {p.own: p for p in group}
        if "head.W_head" in members:
            yield Wanted((heads or ["lm_head.weight"])[0], members.pop("head.W_head").weight.shape)
        yield from _fused(header, members)
        for p in members.values():
            yield from _single(header, p, taken)


def _fused(header: Header, members: dict[str, Placed]) -> Iterator[Wanted]:
    """Tensors of the file that are several of ours, which are taken out of the members."""
    for call, joined in names()["fused"].items():
        parts = [members[own] for own in joined.split() if own in members]
        name = prefix(header) + call
        if len(parts) == len(joined.split()) and name.format(parts[0].layers[0]) in header.tensors:
            for own in joined.split():
                del members[own]
            shape = _below([p.weight.shape for p in parts], call.endswith("bias"))
            yield from (Wanted(name.format(i), shape) for i in parts[0].layers)


def _below(shapes: list[Shape], bias: bool) -> Shape:
    """Matrices one below the other; biases one behind the other."""
    first = shapes[0]
    if bias:
        return (sum(s[0] for s in shapes), *first[1:])
    return (first[0], sum(s[1] for s in shapes), *first[2:])


def _single(header: Header, p: Placed, taken: set[str]) -> Iterator[Wanted]:
    table = names()["safetensors"]
    if p.own not in table and "W_" not in p.own:
        return
    calls = [prefix(header) + call for call in choose("tensor", p.own, table) and table[p.own].split()]
    there = (c for c in calls if c.format(p.layers[0], e=0) in header.tensors.keys() - taken)
    call = next(there, calls[0])
    taken.add(call.format(p.layers[0], e=0))
    apart = "{e}" in call and len(p.weight.shape) > 2
    for i in p.layers:
        for e in range(p.weight.shape[2] if apart else 1):
            yield Wanted(call.format(i, e=e), p.weight.shape[:2] if apart else p.weight.shape)


def alike(ours: Shape, its: Shape) -> bool:
    """Whether shapes are the same but for axes of 1.

    >>> alike((4, 8), (8, 4)), alike((4, 1), (4,))
    (False, True)
    """
    return [side for side in ours if side != 1] == [side for side in its if side != 1]


def alike_stacked(ours: Shape, its: Shape) -> bool:
    """The same; a stack of matrices may lie either way.

    >>> alike_stacked((4, 8, 3), (8, 4, 3)), alike_stacked((4, 8), (8, 4))
    (True, False)
    """
    return alike(ours, its) or (len(its) == 3 and alike(ours, (its[1], its[0], its[2])))


def alike_folded(ours: Shape, its: Shape) -> bool:
    """Whether shapes of a tower are the same, where a file keeps the axes of a kernel or a grid of positions apart.

    >>> alike_folded((588, 1152), (14, 14, 3, 1152)), alike_folded((588, 1152), (14, 14, 1152, 3))
    (True, False)
    """
    begins = set(accumulate(its, mul))
    return prod(ours) == prod(its) and (len(ours) < 2 or bool(begins & {*ours} - {prod(ours)}))


def towers(header: Header, model: BaseModel) -> list[Wanted] | None:
    """The tensors beside the decoder as this file calls them; None of a model that has none, or none with known names.

    Blocks of a tower that differ, with windows and without, have those of the file's shapes that they can have.
    """
    blocks: dict[str, dict[str, Counter[Shape]]] = {}
    alone: dict[str, Shape] = {}
    for name, shape, times in _beside(model):
        block = _BLOCK.fullmatch(name)
        if block:
            blocks.setdefault(block["tower"], {}).setdefault(block["own"], Counter())[shape] += times
        else:
            alone[name] = shape
    table = names()["towers"]
    known = {*table["blocks"], *" ".join(table["fused"].values()).split()}
    owns = {own for found in blocks.values() for own in found}
    if not (blocks or alone) or owns - known or any(_alone(name) not in table["alone"] for name in alone):
        return None
    others = [name for name in header.tensors if not is_decoders(header, name)]
    wanted = [w for found in blocks.values() for w in _of_blocks(header, others, found)]
    return wanted + [Wanted(_call(others, table["alone"][_alone(n)].split()), s) for n, s in alone.items()]


def _beside(model: BaseModel) -> Iterator[tuple[str, Shape, int]]:
    found = {}
    for graph in graphs_of(model):
        for name, weight in weights_of(graph).items():
            if "W_" in name and not of_decoder([name]):
                found[name] = (name, weight.shape, weight.times)
    return iter(found.values())


def _alone(name: str) -> str:
    """The name of a tensor outside of blocks, without its tower's."""
    return re.sub(r"^(vit|sam|clip)\.", "", name)


def _call(others: Iterable[str], calls: Iterable[str]) -> str:
    """The name of the file that ends in one of these, else the first of them."""
    given = list(calls)
    ends = ((name, call) for call in given for name in others)
    return next((n for n, call in ends if n == call or n.endswith(f".{call}")), given[0])


def _of_blocks(header: Header, others: list[str], found: dict[str, Counter[Shape]]) -> Iterator[Wanted]:
    """The tensors of a tower's blocks."""
    table = names()["towers"]
    for call, joined in table["fused"].items():
        parts = [found.get(own) for own in joined.split()]
        name = _call(others, [call.format(0)])
        if name in others and all(parts):
            (many,) = {sum(part.values()) for part in parts if part}
            shape = _below([next(iter(part)) for part in parts if part], call.endswith("bias"))
            found = {own: part for own, part in found.items() if own not in joined.split()}
            ending = call.format(0)
            yield from (Wanted(name.removesuffix(ending) + call.format(i), shape) for i in range(many))
    for own, shapes in found.items():
        calls = table["blocks"][own].split()
        name = _call(others, [call.format(0) for call in calls])
        call = next(c for c in calls if name.endswith(c.format(0)))
        every = [name.removesuffix(call.format(0)) + call.format(i) for i in range(sum(shapes.values()))]
        yield from _assigned(header.tensors, every, shapes)


def _assigned(tensors: Mapping[str, FileTensor], every: list[str], shapes: Counter[Shape]) -> Iterator[Wanted]:
    left = Counter(shapes)
    for name in every:
        its = tensors[name].shape if name in tensors else ()
        shape = next((s for s in left if its and alike_folded(s, its)), next(iter(left)))
        left = left - Counter([shape])
        yield Wanted(name, shape)
