"""Formulas and glossary as Markdown, generated from the layers' own programs. Never typed.

python -m modelmeter.report.formulas writes docs/formulas.md and docs/glossary.md. Formulas are LaTeX
between dollars, which GitHub and the documentation site both show. `latex` is the only place that knows
how an expression of sizes is written; tests/test_formulas.py reads the page back and evaluates it.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import fields
from functools import cache, partial
from importlib.resources import files
from operator import truediv
from pathlib import Path
from typing import Any

import yaml

from modelmeter import layers as of
from modelmeter.graph.axes import AXES
from modelmeter.layers import BaseLayer
from modelmeter.programs.cost import StageCost
from modelmeter.report.tables import render
from modelmeter.sizes import Expr, Size, symbol

QUANTITIES = {
    "tensor-core FLOPs": "tensor_core_flops",
    "CUDA-core FLOPs": "cuda_core_flops",
    "parameters": "parameters",
    "weight I/O, bytes": "weight_io_bytes",
    "activation I/O, bytes": "activation_io_bytes",
    "KV I/O, bytes": "kv_io_bytes",
    "KV cache, bytes": "kv_cache_bytes",
}
WORK = {
    "flops_formula": "tensor_core_flops", "cuda_formula": "cuda_core_flops", "parameters_formula": "parameters",
}  # fmt: skip
"""The counts whose formulas are told with a layer, by the key of their name."""
STACKS = ("BaseLayer", "CausalLM", "DeepEncoder", "ImageEncoderViT", "PatchTower", "Repeat", "Sequence")
"""The layers that are no formulas of single sizes but sums of their parts."""
_WRITTEN = {
    "ceil_div": r"\left\lceil \frac{{{0}}}{{{1}}} \right\rceil",
    "floor_div": r"\left\lfloor \frac{{{0}}}{{{1}}} \right\rfloor",
    "minimum": r"\min\left({0}, {1}\right)",
    "maximum": r"\max\left({0}, {1}\right)",
    "expected_distinct": r"\left(1 - \left(1 - \frac{{{1}}}{{{0}}}\right)^{{{2}}}\right)",  # times E
}
_SHORT = 80
"""Characters of LaTeX up to which the plain form of a formula is kept."""


def forms(n: Callable[[str], Size] = symbol) -> dict[str, BaseLayer]:
    """Every layer of the page by its title, each size `n(name)`: equal names are equal sizes."""
    given = yaml.safe_load(files("modelmeter.report").joinpath("text", "forms.yaml").read_text(encoding="utf-8"))

    def made(title: str, parts: dict[str, Any]) -> Any:
        layer: Any = getattr(of, title.partition(" ")[0])
        sizes: dict[str, Any] = {field.name: field.name for field in fields(layer) if field.type == "Size"}
        return layer(**{name: value(layer, name, part) for name, part in (sizes | parts).items()})

    def value(layer: Any, name: str, part: Any) -> Any:
        if layer.__dataclass_fields__[name].type.startswith("Size"):
            return n(part)
        ((title, parts),) = part.items() if isinstance(part, dict) else ((part, given.get(part, {})),)
        return made(title, parts) if title in of.__all__ else part

    named = {title.partition(" ")[0] for title in given}
    titles = sorted({*given, *of.__all__} - {*STACKS, *(named - given.keys())})
    return {title: made(title, given.get(title, {})) for title in titles}


@cache
def formulas() -> dict[str, StageCost]:
    """The StageCost of each layer of the page in symbols: bf16, flash, causal full."""
    return {title: layer.program().costs[""] for title, layer in forms().items()}


@cache
def latex(value: Size) -> str:
    """An expression of sizes as LaTeX, without the surrounding dollars and without a character that Markdown reads.

    >>> latex(2 * symbol("b") * symbol("side") + 2 * symbol("b"))
    '2 b \\\\left(\\\\mathrm{side} + 1\\\\right)'
    """
    import sympy

    letters = {name: sympy.Symbol(name, positive=True) for name in (value.names if isinstance(value, Expr) else ())}
    names: dict[Any, str] = {s: rf"\mathrm{{{name}}}" for name, s in letters.items() if len(name) > 1}

    def write(expression: Any) -> str:
        return str(sympy.latex(expression, symbol_names=names, order="lex"))

    def call(function: str, *arguments: Any) -> Any:
        """A symbol that prints as the function's notation."""
        text = _WRITTEN[function].format(*map(write, arguments))
        names[found := sympy.Symbol("~" + text, positive=True)] = text  # ~ sorts it behind the letters
        return found

    functions: dict[str, Any] = {function: partial(call, function) for function in _WRITTEN} | {
        "ratio": truediv,
        "place_in": lambda n, chunk: n - chunk * (call("ceil_div", n, chunk) - 1),
        "expected_distinct": lambda E, k, n: E * call("expected_distinct", E, k, n),
    }
    expanded = sympy.expand(sympy.sympify(str(value), locals=functions | letters))
    collected = (sympy.collect(expanded, by) for by in sorted(expanded.free_symbols, key=str))
    whole, *parts = map(sympy.factor_terms, (expanded, *collected))
    shapes = [write(shape) for shape in (whole, sympy.factor(expanded), *parts)]
    return min(shapes if len(shapes[0]) > _SHORT else shapes[:1], key=len)


def told_of(layer: str) -> dict[str, str]:
    """The `summary` of a layer and the `vendor`'s class and file ("": none), from its docstring."""
    text = inspect.getdoc(getattr(of, layer)) or ""
    found = re.search(r"Vendor: ((?:[^(;]|\([^)]*\))+?)(?:;|\. |\.$| Paper:| Omits:)", " ".join(text.split()))
    return {"summary": text.partition("\n")[0], "vendor": found[1] if found else ""}


@cache
def formulas_of(layer: str) -> list[tuple[str, str, str]]:
    """(key of the text catalogue, form, LaTeX) of a layer's work and parameters; nothing for a stack of layers."""
    named = [(title.partition(" with "), cost) for title, cost in formulas().items()]
    counts = ((key, form, getattr(cost, WORK[key])) for (name, _, form), cost in named if name == layer for key in WORK)
    return [(key, form, latex(value)) for key, form, value in counts if value != 0]


def page(name: str) -> str:
    """A generated page of docs/: every layer's own formulas, straight from its equations; one letter an axis."""
    content = {"formulas": formulas(), "quantities": QUANTITIES, "latex": latex, "told_of": told_of, "axes": AXES}
    return render(name, content)


GENERATED = {f"docs/{name}.md": partial(page, name) for name in ("formulas", "glossary")}

if __name__ == "__main__":
    for path, make in GENERATED.items():
        Path(path).write_text(make(), encoding="utf-8")
