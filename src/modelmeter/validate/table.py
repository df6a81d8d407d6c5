"""Comparisons as the table of `modelmeter validate`."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

import torch

from modelmeter.report.tables import align, si
from modelmeter.validate.case import Case, Comparison

_HEAD = ["layer", "group", "reference class", "measured FLOPs", "theoretical FLOPs", "difference"]
_OTHERS = {"cuda_core_flops": "scalar ops", "parameters": "parameters", "kernel_io_bytes": "kernel bytes"}
_NOTES = """\
* torch's counter sees nothing here by nature: scalar operations of the unfused graph instead.
Columns after `difference` are differences too; - is not compared. Counted in: scalar ops and kernel bytes
(operands of matmuls, convolutions and attention) as docs/counting.md says."""


def table(results: Sequence[Comparison], device: str) -> str:
    """The comparisons as text, with notes; on a device other than meta their times too."""
    rows = [[*_HEAD, *_OTHERS.values()] + (["time", "memory"] if device != "meta" else [])]
    for result in results:
        case, main, difference = result.case, result.main, result.difference
        mark = "*" if case.unseen else ""
        counts = [f"{count[main]}{mark}" for count in (result.measured, result.theoretical)]
        differences = (difference.get(quantity) for quantity in (main, *_OTHERS))
        signed = ["-" if value is None else f"{value:+d}" if value else "0" for value in differences]
        real = _real(case, device) if device != "meta" else []
        rows.append([case.layer, case.group, case.reference, *counts, *signed, *real])
    return "\n".join([align(rows), "", _NOTES, *_allowances(results)])


def _allowances(results: Iterable[Comparison]) -> list[str]:
    """Which quantities are compared with an allowance or not at all."""
    layers: dict[str, list[str]] = {}
    for case in (result.case for result in results):
        reasons = [f"{quantity} adjusted: {reason}" for quantity, (_, reason) in case.known.items()]
        for reason in (*reasons, *(f"{quantity} not compared: {reason}" for quantity, reason in case.skip.items())):
            layers.setdefault(reason, []).append(case.layer)
    return [f"{reason} ({', '.join(some)})" for reason, some in layers.items()]


def _real(case: Case, device: str) -> list[str]:
    """Median time of the module on real tensors, and the most memory allocated on a GPU."""
    with torch.device(device):
        module, inputs = case.build()
    cuda, times = device.startswith("cuda"), list[float]()
    with torch.no_grad():
        for _ in range(6 if cuda else 2):
            if cuda:
                torch.cuda.reset_peak_memory_stats(device)
                torch.cuda.synchronize(device)
            start = time.perf_counter()
            case.run(module, *inputs)
            if cuda:
                torch.cuda.synchronize(device)
            times.append(time.perf_counter() - start)
    memory = si(float(torch.cuda.max_memory_allocated(device)), "B") if cuda else "-"
    warm = sorted(times[1:])
    return [f"{warm[len(warm) // 2] * 1e3:.3f} ms", memory]
