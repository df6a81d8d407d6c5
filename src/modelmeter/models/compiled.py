"""Compiled models: the summed formulas of all stages as one generated function.

The model runs once on sympy symbols; the sums of its stages, common subexpressions shared, become
Python source that works on ints (exact) and float64 arrays alike. Results equal the uncompiled ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelmeter.cost import COUNTS, StageCost, measure
from modelmeter.errors import InputError, unknown
from modelmeter.sizes import FUNCTIONS, Size, as_size, ratio, whole
from modelmeter.workload import Workload

if TYPE_CHECKING:
    from modelmeter.models.model import Model

CHUNK = 8192
"""Points evaluated at once, so that the intermediate arrays stay in cache."""

SIZES = {"batch": 1, "grid_h": 1, "grid_w": 1, "prompt_tokens": 0, "decode_steps": 1}
"""The sizes that a compiled model takes, each with its least value."""

_FLOWS = COUNTS[:5]


@dataclass(frozen=True)
class Compiled:
    """A function of the workload's sizes (`names`) to a StageCost per stage; `source` is its code.

    Sizes are ints (exact results) or arrays of one length (float64). Raises InputError otherwise.
    """

    names: tuple[str, ...]
    source: str
    basis: str
    function: Callable[..., tuple[Size, ...]]

    def __call__(self, **sizes: Any) -> dict[str, StageCost]:
        if sizes.keys() != set(self.names):
            wrong = [k for k in sizes if k not in self.names]
            missing = [k for k in self.names if k not in sizes]
            raise unknown("size", wrong[0], self.names) if wrong else InputError(f"size {missing[0]!r} is not given")
        values = [as_size(name, sizes[name], least=SIZES[name]) for name in self.names]
        arrays = [v for v in values if hasattr(v, "dtype")]
        counts = _in_chunks(self.function, values) if arrays else tuple(map(whole, self.function(*values)))
        width = len(COUNTS)
        parts = ((*counts[start : start + width], self.basis) for start in (0, width, 2 * width))
        return {stage: StageCost(*part) for stage, part in zip(("vision", "prefill", "decode"), parts, strict=True)}


def _in_chunks(function: Callable[..., tuple[Size, ...]], values: list[Size]) -> tuple[Size, ...]:
    import numpy as np

    if any(v.ndim != 1 for v in values if hasattr(v, "dtype")):
        raise InputError("the arrays must be one-dimensional, all of one length")
    lengths = {len(v) for v in values if hasattr(v, "dtype")}
    if len(lengths) > 1:
        raise InputError(f"the arrays must have one length, not {', '.join(map(str, sorted(lengths)))}")
    points = lengths.pop()
    results: list[Size] = []
    for start in range(0, points, CHUNK):
        piece = function(*(v[start : start + CHUNK] if hasattr(v, "dtype") else v for v in values))
        if not results:
            results = [np.empty(points) if hasattr(p, "dtype") else p for p in piece]
        for result, part in zip(results, piece, strict=True):
            if hasattr(part, "dtype"):
                result[start : start + CHUNK] = part
    return tuple(results)


def compile_model(model: Model, options: Mapping[str, Any]) -> Compiled:
    """Run the model on symbols and generate the function; takes about a second."""
    import sympy

    symbols = {name: sympy.Symbol(name, positive=True, integer=True) for name in SIZES}
    work, names = _symbolic_workload(model, options, symbols)
    context = sympy.Symbol("context", positive=True)
    vision, prefill = model.cost("vision", work), model.cost("prefill", work)
    first, last = work.context_tokens + 1, work.context_tokens + work.decode_steps

    def step(at: Size) -> StageCost:
        return measure(model.ops("decode", work, at), str(work.execution))

    def over_steps(count: Size) -> Size:
        """An affine function of the context, summed over the steps without a fraction in between."""
        count = count.replace(lambda e: e.func.__name__ == "ratio" and e.has(context), lambda e: e.args[0] / e.args[1])
        slope = sympy.diff(count, context)
        rest = sympy.expand(count - slope * context)
        if slope.has(context):
            raise InputError("a decode step whose cost is not affine in the context cannot be summed in closed form")
        steps = symbols["decode_steps"]
        return ratio(steps * (2 * rest + slope * (first + last)), 2) if slope else rest * steps

    middle, end = step(context), step(last)
    summed = {f: over_steps(sympy.sympify(getattr(middle, f))) for f in _FLOWS}
    results = [getattr(cost, f) for cost in (vision, prefill) for f in COUNTS]
    results += [summed[f] if f in _FLOWS else getattr(end, f) for f in COUNTS]
    shared, reduced = sympy.cse([sympy.sympify(r) for r in results], symbols=sympy.numbered_symbols("x"))
    body = [f"    {name} = {expression}" for name, expression in shared]
    outputs = ",\n        ".join(str(expression) for expression in reduced)
    source = f"def evaluate({', '.join(names)}):\n" + "\n".join(body) + f"\n    return (\n        {outputs},\n    )\n"
    scope: dict[str, Any] = dict(FUNCTIONS)
    exec(source, scope)
    return Compiled(names, source, work.basis, scope["evaluate"])


def _symbolic_workload(
    model: Model, options: Mapping[str, Any], symbols: Mapping[str, Any]
) -> tuple[Workload, tuple[str, ...]]:
    """The workload on symbols; without crops in the mode there is no grid to vary."""
    sizes = {k: symbols[k] for k in ("batch", "prompt_tokens", "decode_steps")}
    for name in options:
        if name in SIZES:
            raise InputError(f"{name!r} is a size: give it to the compiled function, not to compile")
    crops = model.has_crops(options.get("mode"))
    grid = (symbols["grid_h"], symbols["grid_w"]) if crops else None
    work = model.workload(grid=grid, **sizes, **options)
    return work, tuple(SIZES) if crops else tuple(sizes)
