"""Kinds of operators and kernels (`kinds.yaml`), and the sizes of an operator from the shapes of what it is given.

A product has m, n, k, its batch among m, an attention kernel queries, keys and the width of a head; anything else the
elements of its largest tensor.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

from modelmeter.folders import read_once

FILE = Path(__file__).with_name("kinds.yaml")
Shape = Sequence[int]
Sizes = tuple[float | None, ...]
"""Sizes of an operator; None stands for one that is not known, () for none."""


@cache
def _table() -> tuple[dict[str, str], list[tuple[str, re.Pattern[str]]]]:
    content = read_once(FILE)
    known = {name: kind for kind, names in content["operators"].items() for name in map(_bare, names.split())}
    known |= {_bare(name): "" for name in content["silent"].split()}
    return known, [(kind, re.compile(pattern, re.I)) for kind, pattern in content["kernels"]]


def _bare(name: str) -> str:
    """An operator's name without its namespace, its overload and what marks a variant."""
    return name.rpartition("::")[2].partition(".")[0].removesuffix("_for_cpu").rstrip("_")


@cache
def kind_of_operator(name: str) -> str | None:
    """The kind of an operator; "" for one that moves nothing, None for one that is not known.

    >>> kind_of_operator("aten::addmm"), kind_of_operator("aten::view"), kind_of_operator("aten::linear")
    ('product', '', None)
    """
    return _table()[0].get(_bare(name))


@cache
def kind_of_kernel(name: str) -> str:
    """The kind of a kernel of a GPU by its name.

    >>> [kind_of_kernel(name) for name in ("ampere_bf16_s16816gemm_bf16_128x64", "flash_fwd_kernel", "Memcpy HtoD")]
    ['product', 'attention', 'transfer']
    """
    return next((kind for kind, pattern in _table()[1] if pattern.search(name)), "other")


def sizes_of_operator(name: str, kind: str, given: Sequence[Any]) -> Sizes:
    """The sizes of an operator that was given tensors of these shapes ([] for what is none)."""
    shapes = [one for one in given if isinstance(one, list) and one and isinstance(one[0], int)]
    name = _bare(name)
    if kind == "product":
        return _product(name, shapes)
    if kind == "attention":
        return _attended(shapes)
    lists = [one for one in given if isinstance(one, list) and one and isinstance(one[0], list)]
    if name == "cat" and lists:
        return (sum(map(_elements, lists[0])),)
    if name in ("embedding", "index_select", "gather", "index") and shapes:
        return _taken(name, shapes, lists)
    return (_broadcast(shapes),) if shapes else ()


def _elements(shape: Shape) -> int:
    return prod(shape) if shape != [0] else 0


def _broadcast(shapes: Sequence[Shape]) -> int:
    """The elements of what these shapes become together, or of the largest one if they do not fit."""
    rank = max(map(len, shapes))
    columns = list(zip(*([1] * (rank - len(shape)) + list(shape) for shape in shapes), strict=True))
    fits = all(len(set(column) - {1}) <= 1 for column in columns)
    return prod(map(max, columns)) if fits else max(map(_elements, shapes))


def _product(name: str, shapes: Sequence[Shape]) -> Sizes:
    """m with the batch, n and k; a convolution's m depends on strides, which are no shapes."""
    added = name.startswith(("add", "badd"))
    if len(shapes) < 2 + added:
        return ()
    left, right = shapes[added : 2 + added]
    if "convolution" in name:
        return (None, right[0], prod(right[1:]))
    n = right[-1] if len(right) > 1 else 1
    if name in ("_linear_pointwise", "mkldnn_linear"):
        n = right[0]
    return (_elements(left) // left[-1] if left[-1] else None, n, left[-1])


def _attended(shapes: Sequence[Shape]) -> Sizes:
    """Queries of all heads, keys, the width of a head, of tensors with batch, heads, positions and width."""
    if len(shapes) < 2 or len(shapes[0]) != 4 or len(shapes[1]) != 4:
        return ()
    query, key = shapes[:2]
    return (prod(query[:3]), key[2], query[3])


def _taken(name: str, shapes: Sequence[Shape], lists: Sequence[Any]) -> Sizes:
    """What is taken of a table: a row for each index."""
    if name == "gather" and len(shapes) > 1:
        return (max(map(_elements, shapes[1:])),)
    if name == "index":
        indices = [one for one in lists[0] if one] if lists else []
        return (_broadcast(indices) * prod(shapes[0][1:]),) if len(indices) == 1 else (None,)
    if name == "index_select":
        return (None,)
    return (_elements(shapes[1]) * prod(shapes[0][1:]),) if len(shapes) > 1 else ()
