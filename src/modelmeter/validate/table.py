"""Comparisons as the table of `modelmeter validate`."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

import torch

from modelmeter.report.tables import align, si
from modelmeter.validate.case import Case, Comparison

_HEAD = ["layer", "group", "reference class", "measured FLOPs", "theoretical FLOPs", "difference"]
_OTHERS = {"cuda_core_flops": "scalar ops", "parameters": "parameters", "kernel_io_bytes": "kernel bytes"}


def table(results: Sequence[Comparison], device: str) -> str:
    """The comparisons as text, with notes; on a device other than meta their times too."""
    return "\n".join([_table(results, device), "", *_notes(results)])


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
