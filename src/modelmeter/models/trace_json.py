"""The JSON of a traced module, read and checked: it is data, and nothing of it is ever executed.

Every field has its type, every index its table, every name is a plain one, every function one that sizes have. What
stands in a trace is told in docs/tracing.md; what is made of it: `traced.py`.
"""

from __future__ import annotations

import json
import keyword
import re
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from functools import reduce
from operator import add, mul
from pathlib import Path
from typing import Any

from modelmeter.errors import InputError, choose
from modelmeter.graph.equations import parse
from modelmeter.sizes import BUILDERS, Expr, Size, symbol

FORMAT, VERSION = "modelmeter-trace", 1
KINDS = ("matmul", "conv2d", "pointwise", "norm", "softmax", "copy", "lookup", "constant", "unused")
ROLES = ("weight", "activation", "kv")
_FUNCTIONS = frozenset(BUILDERS)
_NAME = re.compile(r"[A-Za-z_]\w{0,31}", re.ASCII)
_TENSOR_NAME = re.compile(r"[\w.-]{1,400}", re.ASCII)
_DEEPEST = 200


def is_trace(path: str | Path) -> bool:
    """Whether a file is the JSON of a trace; False too if it cannot be read."""
    try:
        with Path(path).open(encoding="utf-8") as file:
            return f'"format": "{FORMAT}"' in file.read(400)
    except (OSError, ValueError):
        return False


def read_trace(path: str | Path) -> dict[str, Any]:
    """The content of a trace's file. Raises InputError if it cannot be read or is none."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {str(path)!r}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{str(path)!r} is no JSON, or cut short: {error}") from None
    try:
        return checked_trace(found)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def checked_trace(content: Any) -> dict[str, Any]:
    """The content of a trace, as it is. Raises InputError where a field is missing or of another type."""
    top = _fields("the trace", content, {"format": str, "version": int, "name": str, "stages": list, "notes": list})
    choose("format", top["format"], (FORMAT,))
    if top["version"] != VERSION:
        raise InputError(f"version must be {VERSION}, not {top['version']}; trace the module again")
    if not top["stages"] or not all(isinstance(note, str) for note in top["notes"]):
        raise InputError("stages must name one stage at least, and notes be texts")
    for stage in top["stages"]:
        _fields("a stage", stage, {"name": str, "sizes": list, "pieces": list})
        names = [_name("size", name) for name in stage["sizes"]]
        if len(set(names)) < len(names) or not stage["pieces"]:
            raise InputError(f"stage {stage['name']!r} needs sizes that differ and one piece at least")
        for piece in stage["pieces"]:
            _check_piece(piece, names)
    return top


def _fields(what: str, value: Any, kinds: Mapping[str, type]) -> dict[str, Any]:
    """A mapping with these fields of these types."""
    if not isinstance(value, dict):
        raise InputError(f"{what} must be a mapping, not {type(value).__name__}")
    for key in value:
        choose(f"field of {what}:", str(key), kinds)
    for key, kind in kinds.items():
        if key not in value:
            raise InputError(f"{what} lacks {key!r}")
        if not isinstance(value[key], kind) or (kind is int and isinstance(value[key], bool)):
            raise InputError(f"{key} of {what} must be of type {kind.__name__}, not {value[key]!r:.60}")
    return value


def _name(what: str, name: Any) -> str:
    """A plain name. Raises InputError for anything else."""
    if not isinstance(name, str) or not _NAME.fullmatch(name) or keyword.iskeyword(name) or name in _FUNCTIONS:
        raise InputError(f"{what} must be a plain name of letters and digits, not {name!r:.60}")
    return name


_PIECE: dict[str, type] = {
    "sizes": list, "domain": list, "modules": list, "tensors": list, "inputs": list, "buffers": list, "ops": list,
}  # fmt: skip
_MANDATORY = {"kind": str, "module": int, "equation": str, "axes": dict, "reads": list, "writes": list}
_OPTIONAL = {"tensor": int, "cuda": int, "over": str, "composite": str, "grad": bool}


def _check_piece(piece: Any, names: Sequence[str]) -> None:
    """Raise InputError for a piece of a stage that is not what it should be."""
    _fields("a piece", piece, _PIECE)
    sizes, tensors = len(piece["sizes"]), len(piece["tensors"])
    for size in piece["sizes"]:
        size_of(size, names)
    for entry in piece["domain"]:
        _row("domain", entry, (str, int))
        _within("size", entry[1], sizes)
    for entry in piece["modules"]:
        _row("module", entry, (str, str, int, str, (list, type(None))))
        for tensor in entry[4] or ():
            _within("tensor", tensor if tensor is not None else 0, tensors)
        if entry[2] < 1:
            raise InputError(f"module {entry[0]!r} runs {entry[2]} times")
    for entry in piece["tensors"]:
        _row("tensor", entry, (str, str, int, int, str, bool))
        choose("role", entry[1], ROLES)
        _within("size", entry[3], sizes)
        if not _TENSOR_NAME.fullmatch(entry[0]) or entry[2] not in (0, 8, 16, 32, 64, 128):
            raise InputError(f"tensor {entry[0]!r:.60} of {entry[2]} bits cannot be")
    for index in (*piece["inputs"], *piece["buffers"]):
        _within("tensor", index, tensors)
    for op in piece["ops"]:
        _check_op(op, sizes, tensors, len(piece["modules"]))


def _row(what: str, entry: Any, kinds: Sequence[Any]) -> None:
    right = isinstance(entry, list) and len(entry) == len(kinds)
    if not right or not all(isinstance(value, kind) for value, kind in zip(entry, kinds, strict=True)):
        raise InputError(f"a {what} is {entry!r:.80}, which is not of its form")


def _within(what: str, index: Any, many: int) -> None:
    if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < many:
        raise InputError(f"{what} {index!r:.40} is not in its table of {many}")


def _check_op(op: Any, sizes: int, tensors: int, modules: int) -> None:
    """Raise InputError for an operator that is not what it should be."""
    given = {key: kind for key, kind in _OPTIONAL.items() if isinstance(op, dict) and key in op}
    _fields("an operator", op, _MANDATORY | given)
    choose("kind", op["kind"], KINDS)
    _within("module", op["module"], modules)
    equation = parse(op["equation"])
    for axis, size in op["axes"].items():
        _name("axis", axis)
        _within("size", size, sizes)
    known = {a for t in (*equation.operands, *equation.outputs) for a in (*t.stored, *t.touched)}
    for axis in sorted((known | set(op.get("over", "").split())) - op["axes"].keys()):
        raise InputError(f"axis {axis!r} of {op['equation']!r} has no size")
    for tensor, touched in (pair if _pair(pair) else (-1, -1) for pair in (*op["reads"], *op["writes"])):
        _within("tensor", tensor, tensors)
        _within("size", touched, sizes)
    for key in ("tensor", "cuda"):
        _within("size", op.get(key, 0), sizes)


def _pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2


def size_of(tree: Any, names: Iterable[str], depth: int = 0) -> Size:
    """The size that nested lists say (see tracing/written.py). Raises InputError for what is none."""
    if depth > _DEEPEST:
        raise InputError("a size is nested too deeply")
    if isinstance(tree, int) and not isinstance(tree, bool):
        return tree
    if isinstance(tree, str):
        return symbol(choose("size", tree, names))
    if not isinstance(tree, list) or len(tree) < 2 or not isinstance(tree[0], str):
        raise InputError(f"{tree!r:.60} is no size")
    function, *arguments = tree
    if function == "/":
        whole = all(type(a) is int for a in arguments)
        if len(arguments) != 2 or not whole or not arguments[1]:
            raise InputError(f"{tree!r:.60} is no fraction")
        return Fraction(*arguments)
    choose("function of sizes", function, ("+", "*", *_FUNCTIONS))
    found = [size_of(argument, names, depth + 1) for argument in arguments]
    if function in ("+", "*"):
        return reduce(add if function == "+" else mul, found)
    try:
        return BUILDERS[function](*found)
    except (TypeError, ZeroDivisionError):
        raise InputError(f"{tree!r:.60} is no size") from None


def names_of(size: Size) -> set[str]:
    """The named sizes that a size depends on."""
    return set(size.names) if isinstance(size, Expr) else set()
