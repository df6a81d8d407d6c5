"""Identities: what a layer of ours costs less what its reference module is traced to cost, for all sizes.

A case (`case.py`) states its inputs by named sizes: at numbers it is a comparison, with symbols an identity. Zero is a
proof for every size in the domain of the trace; what is not zero is a term that one of the two has and the other has not.
The table of a model's identities: `symbolic.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils._pytree import tree_flatten, tree_unflatten

from modelmeter.errors import InputError
from modelmeter.models.traced import TracedModel
from modelmeter.runtimes import eager, held
from modelmeter.runtimes.passes import attention_kernel
from modelmeter.runtimes.runtime import Runtime
from modelmeter.sizes import Expr, Size, rounded_down, substituted, symbol
from modelmeter.tracing.api import Input, trace
from modelmeter.validate.case import Case, LayerAt, counts, known

PEAK = "peak_activation_bytes"
PROVEN = ("tensor_core_flops", "cuda_core_flops", "parameters", "kernel_io_bytes", PEAK)
"""What is subtracted."""
AS_IT_RUNS = Runtime("as it runs", (held.concatenated_cache, eager.contiguous, attention_kernel, eager.taken_apart))
"""Code that is written out, its attention one kernel: what torch runs of a module with scaled_dot_product_attention."""


@dataclass(frozen=True)
class Identity:
    """A layer for all sizes: `residuals` by quantity, ours less traced, without those that neither of the two has.

    `reasons` are what those come from that are not zero; `where` are the sizes that it holds for, and `refused` is why
    there is no identity.
    """

    layer: str
    reference: str
    residuals: Mapping[str, Size]
    reasons: Mapping[str, str]
    where: str = ""
    refused: str = ""

    @property
    def unequal(self) -> list[str]:
        """The quantities that are not zero, and for no stated reason."""
        return [q for q, value in self.residuals.items() if not zero(value) and not self.reasons.get(q)]

    @property
    def proven(self) -> bool:
        """Whether there is something to compare, and all of it is zero or has its reason."""
        return bool(self.residuals.keys() & PROVEN[:2]) and not self.unequal


def zero(value: Size) -> bool:
    """Whether a residual is zero whatever the sizes."""
    return not isinstance(value, Expr) and bool(value == 0)


def identity(case: Case) -> Identity:
    """The identity of a case. Nothing is assumed: a layer that cannot be traced has no residuals."""
    try:
        return _identity(case, dict(case.steps))
    except InputError as error:
        return Identity(case.layer, case.reference, {}, {}, refused=str(error))


def _identity(case: Case, steps: Mapping[str, int]) -> Identity:
    if not isinstance(case.ours, LayerAt) or not case.ours.at:
        raise InputError("its inputs are stated by numbers alone")
    meant = {name: _meant(name, value, steps.get(name)) for name, value in case.ours.at.items()}
    if not any(isinstance(size, Expr) for size in meant.values()):
        raise InputError(f"its code makes numbers of all its sizes: {', '.join(meant)}")
    model = _traced(case, meant)
    if fixed := model.fixed():
        return _identity(case, {**steps, **{name.removeprefix("n_"): 0 for name in fixed}})
    ours, theirs = case.ours._replace(at=meant), traced_layer(model)
    found, more = residuals(ours, theirs), known(replace(case, ours=ours))
    exact = {q: case.known[q][1] for q, amount in more.items() if q in found and zero(rounded_down(found[q] + amount))}
    return Identity(case.layer, case.reference, found, {**case.skip, **case.traced, **exact}, where(model, meant))


def _meant(name: str, value: int, step: int | None) -> Size:
    """A size as a symbol, as a number where code makes one of it, or as a multiple of a step and what is left of it."""
    return symbol(name) if step is None else step * symbol(f"n_{name}") + value % step if step else value


def _traced(case: Case, meant: Mapping[str, Size]) -> TracedModel:
    """The reference module of a case, run once with these sizes."""
    leaves, spec = tree_flatten(case.inputs)
    given = [Input(f"x{i}", tuple(one.shape(meant)), one.dtype) for i, one in enumerate(leaves)]
    with torch.device("meta"):
        made = case.make()
    module = torch.nn.Module() if made is None else made.to(torch.bfloat16)

    def run(here: Any, *tensors: torch.Tensor) -> Any:
        return case.run(here if made is not None else None, *tree_unflatten(list(tensors), spec))

    with _format_of(module):
        return trace(module, *given, name=case.reference, method=run)


@contextmanager
def _format_of(module: torch.nn.Module) -> Iterator[None]:
    """Where no parameter says of which format inputs are, bf16."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(before if any(True for _ in module.parameters()) else torch.bfloat16)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def traced_layer(model: TracedModel, stage: str = "forward") -> LayerAt:
    """A stage of a traced model at symbols."""
    layer = model.layer(stage)
    return LayerAt(layer, {name: symbol(name) for name in layer.sizes.split()})


def residuals(ours: LayerAt, theirs: LayerAt, quantities: Iterable[str] = PROVEN) -> dict[str, Size]:
    """Ours less traced by quantity, without what neither has: peaks as the code runs, all else under ours' options."""
    runtime = "eager" if ours.options.get("runtime") == "eager" else AS_IT_RUNS
    plain, run = (
        [counts(one._replace(options=o)) for one in (ours, theirs)] for o in (ours.options, {"runtime": runtime})
    )
    found = {}
    for quantity in quantities:
        mine, traced = (one[quantity] for one in (run if quantity == PEAK else plain))
        if not zero(mine) or not zero(traced):
            found[quantity] = rounded_down(mine - traced)
    return found | {q: _of_two(value, theirs.sizes) for q, value in found.items() if q == PEAK}


def _of_two(peak: Size, names: Iterable[str]) -> Size:
    """A peak of sizes that are two or more, as the symbols of a trace are: which of two is larger may then be certain."""
    for name in names:
        peak = substituted(substituted(peak, name, symbol(name) + 1), name, symbol(name) - 1)
    return peak


def where(model: TracedModel, meant: Mapping[str, Size], stage: str = "forward") -> str:
    """For which sizes an identity holds: the free ones, what the others are, and conditions of the trace."""
    free = [name for name, size in meant.items() if str(size) == name]
    others = [f"{name} = {size}" for name, size in meant.items() if name not in free]
    told = [text for text, _ in model.layer(stage).piece["domain"] if not re.fullmatch(r"\w+ >= 1", text)]
    return "; ".join(filter(None, (", ".join(free), ", ".join(others), ", ".join(told))))
