"""`modelmeter validate`: every layer and stage beside its reference module, as a table."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from importlib import import_module
from typing import Any

import torch

from modelmeter.config import load_model
from modelmeter.errors import InputError
from modelmeter.report.tables import align, si
from modelmeter.validate.case import Case, Comparison, compare
from modelmeter.validate.vendor import vendor_cases

_HEAD = ["layer", "group", "reference class", "measured FLOPs", "theoretical FLOPs", "difference"]
_OTHERS = {"cuda_core_flops": "scalar ops", "parameters": "parameters", "kernel_io_bytes": "kernel bytes"}


def run(name: str, *, vendor: str | None = None, device: str = "meta", layers_only: bool = False) -> tuple[str, bool]:
    """The table of a model as text, and whether every count is equal.

    `vendor` is a folder with the vendor's own Python files; `device` cpu or cuda also runs real
    tensors. Raises InputError for a device that torch does not have or a folder that is none.
    """
    if device not in ("meta", "cpu") and not (device.startswith("cuda") and torch.cuda.is_available()):
        raise InputError(f"--device {device!r} is not available; valid: meta, cpu, cuda on a machine that has it")
    cases = reference_cases(name, layers_only)
    results = [compare(case) for case in cases]
    lacking: list[str] = []
    if vendor is not None:
        recipes = list(import_module(f"modelmeter.validate.{name}_vendor").vendor_recipes())
        found, lacking = vendor_cases(vendor, recipes)
        named = {recipe.name for recipe in recipes}
        others = dict.fromkeys(case.layer.partition(" (")[0] for case in cases if case.group != "stage")
        lacking.append("no class of the vendor's files: " + ", ".join(o for o in others if o not in named))
        results += _those_that_run(found, lacking)
    text = [_table(results, device), "", *_notes(results), *lacking]
    unequal = sum(not result.equal for result in results)
    text.append(f"{len(results)} rows, " + (f"{unequal} NOT EQUAL" if unequal else "all equal"))
    return "\n".join(text), not unequal


def reference_cases(name: str, layers_only: bool = False) -> list[Case]:
    """Every layer of a model, and its stages at full size, beside the reference modules."""
    reference = import_module(f"modelmeter.validate.{name}")
    cases: list[Case] = list(reference.layer_cases())
    if layers_only:
        return cases
    model = load_model(name, reference.REFERENCE)
    return [*cases, *import_module(f"modelmeter.validate.{name}_stages").stage_cases(model)]


def comparison_rows(name: str) -> list[dict[str, Any]]:
    """The comparison of every layer and stage as data; `differences` is by quantity, all 0 where equal."""
    found = []
    for result in map(compare, reference_cases(name)):
        main = result.main
        found.append(
            {
                "layer": result.case.layer,
                "group": result.case.group,
                "reference": result.case.reference,
                "quantity": main,
                "measured": result.measured[main],
                "theoretical": result.theoretical[main],
                "compared": len(result.measured),
                "equal": result.equal,
            }
        )
    return found


def _those_that_run(cases: Iterable[Case], lacking: list[str]) -> Iterator[Comparison]:
    """Comparisons of vendor classes; one that cannot run here is listed instead."""
    for case in cases:
        try:
            yield compare(case)
        except Exception as error:  # whatever a stranger's class raises is for the user to read
            lacking.append(f"vendor class {case.layer}: cannot be run here ({type(error).__name__}: {error})")


def _table(results: Iterable[Comparison], device: str) -> str:
    head = [*_HEAD, *_OTHERS.values()] + (["time", "memory"] if device != "meta" else [])
    rows = [head]
    for result in results:
        main, difference = result.main, result.difference
        mark = "*" if result.case.unseen else ""
        row = [
            result.case.layer,
            result.case.group,
            result.case.reference,
            f"{result.measured[main]}{mark}",
            f"{result.theoretical[main]}{mark}",
            _difference(difference[main]),
        ]
        row += [_difference(difference.get(quantity)) for quantity in _OTHERS]
        rows.append(row + (_real(result.case, device) if device != "meta" else []))
    return align(rows)


def _difference(value: int | None) -> str:
    if value is None:
        return "-"
    return f"{value:+d}" if value else "0"


def _notes(results: Iterable[Comparison]) -> list[str]:
    """What the marks mean and which quantities are compared with an allowance or not at all."""
    lines = [
        "* torch's counter sees nothing here by nature: scalar operations of the unfused graph instead.",
        "Columns after `difference` are differences too; - is not compared. Counted in: scalar ops and kernel bytes",
        "(operands of matmuls, convolutions and attention) as docs/counting.md says.",
    ]
    allowed: dict[str, list[str]] = {}
    for result in results:
        for quantity, (_, reason) in result.case.known.items():
            allowed.setdefault(f"{quantity} adjusted: {reason}", []).append(result.case.layer)
        for quantity, reason in result.case.skip.items():
            allowed.setdefault(f"{quantity} not compared: {reason}", []).append(result.case.layer)
    return [*lines, *(f"{reason} ({', '.join(layers)})" for reason, layers in allowed.items())]


def _real(case: Case, device: str) -> list[str]:
    """Median time of the module on real tensors, and the most memory allocated on a GPU."""
    with torch.device(device):
        module, inputs = case.build()
    cuda = device.startswith("cuda")
    times: list[float] = []
    with torch.no_grad():
        for attempt in range(6 if cuda else 2):
            if cuda:
                torch.cuda.reset_peak_memory_stats(device)
                torch.cuda.synchronize(device)
            start = time.perf_counter()
            case.run(module, *inputs)
            if cuda:
                torch.cuda.synchronize(device)
            if attempt:  # the first run warms up
                times.append(time.perf_counter() - start)
    memory = si(float(torch.cuda.max_memory_allocated(device)), "B") if cuda else "-"
    return [f"{sorted(times)[len(times) // 2] * 1e3:.3f} ms", memory]
