"""Answers and tables as text: for the terminal (a page in five lines, then by stage and component), in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from modelmeter.device import Device
from modelmeter.models.model import BaseModel
from modelmeter.programs.cost import StageCost
from modelmeter.sweep.findings import Finding
from modelmeter.sweep.registry import findings
from modelmeter.sweep.table import Table
from modelmeter.workload import Workload

MOST = 5
"""Sentences that a reader gets before any table."""
_CONCLUSIONS = ("bandwidth_bound", "binds")
"""Findings that are told first."""

_UNITS = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def si(value: float, unit: str) -> str:
    """A number with a decimal prefix and at most four significant digits: 1.14 TFLOP, 465.6 MB."""
    value = float(value)
    for scale, prefix in _UNITS:
        if abs(value) >= scale:
            return f"{value / scale:.4g} {prefix}{unit}".rstrip()
    return f"{value:.4g} {unit}".rstrip()


_COLUMNS = {
    "tensor cores": ("tensor_core_flops", "FLOP"), "CUDA cores": ("cuda_core_flops", "FLOP"),
    "weight I/O": ("weight_io_bytes", "B"), "activation I/O": ("activation_io_bytes", "B"),
    "KV I/O": ("kv_io_bytes", "B"), "FLOP/byte": ("arithmetic_intensity", ""),
    "parameters": ("parameters", ""), "weights": ("weight_bytes", "B"),
    "peak activ.": ("peak_activation_bytes", "B"), "KV cache": ("kv_cache_bytes", "B"),
}  # fmt: skip
"""What a table of a page shows of a StageCost, and its unit."""


def _row(name: str, cost: StageCost) -> list[str]:
    counts = ((head, float(getattr(cost, count)), unit) for head, (count, unit) in _COLUMNS.items())
    return [name, *(f"{value:.1f}" if head == "FLOP/byte" else si(value, unit) for head, value, unit in counts)]


def align(rows: Sequence[Sequence[str]]) -> str:
    """Rows as text, first column to the left, the others to the right."""
    first, *widths = (max(map(len, column)) for column in zip(*rows, strict=True))
    cells = ([row[0].ljust(first), *map(str.rjust, row[1:], widths)] for row in rows)
    return "\n".join("  ".join(line).rstrip() for line in cells)


def markdown(heads: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[bool]) -> str:
    """A Markdown table; `right` says which columns stand to the right. The last heading may be empty."""
    lines = [f"| {' | '.join(heads).rstrip()} |", "|" + "|".join(" ---: " if r else " --- " for r in right) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def answer(tables: Iterable[Table]) -> list[Finding]:
    """What tables say in short, at most MOST findings: conclusions, the first of each table, and what is next."""
    told = [
        (finding[0] not in _CONCLUSIONS, place, index, finding)
        for place, table in enumerate(tables)
        for index, finding in enumerate(f for f in findings(table) if f[0] != "spoken")
        if finding[1].get("kind", table.kind) == table.kind
    ]
    chosen = sorted(told, key=lambda item: (item[0], item[2] > 0))[:MOST]
    return [finding for *_, finding in sorted(chosen, key=lambda item: item[:3])]


def page_parts(model: BaseModel, work: Workload) -> dict[str, dict[str, float]]:
    """What a page takes, by part: `work` (FLOPs) and `traffic` (bytes) by stage, `memory` (bytes) by what it holds."""
    costs, page = model.costs(work), model.request(work)
    held = {
        "weights": page.weight_bytes,
        "peak activations": page.peak_activation_bytes,
        "KV cache": page.kv_cache_bytes,
    }
    return {
        "work": {stage: float(cost.flops) for stage, cost in costs.items()},
        "traffic": {stage: float(cost.io_bytes) for stage, cost in costs.items()},
        "memory": {name: float(size) for name, size in held.items()},
    }


def split(parts: Mapping[str, float], unit: str) -> str:
    """A whole and the shares of its parts: 4 FLOP: a 25.0 %, b 75.0 %."""
    whole = sum(parts.values())
    shares = (f"{name} {100 * part / whole:.1f} %" for name, part in parts.items() if part)
    return f"{si(whole, unit)}: {', '.join(shares)}"


def memory_bound(cost: StageCost, devices: Iterable[Device]) -> int:
    """On how many devices bandwidth, not one of the compute peaks, is what `cost` takes the most of."""
    shares = (device.shares(cost, 1.0) for device in devices)
    return sum(max(taken, key=lambda name: float(taken[name])) == "memory bandwidth" for taken in shares)


def page_answer(model: BaseModel, work: Workload, devices: Sequence[Device]) -> str:
    """What a page costs and what binds it, in five lines."""
    parts = page_parts(model, work)
    bound = (
        f"{stage} on {memory_bound(cost, devices)} of {len(devices)} devices"
        f" ({float(cost.arithmetic_intensity):.1f} FLOP/byte)"
        for stage, cost in model.costs(work).items()
        if cost.flops
    )
    lines = [f"{name:9}{split(values, 'FLOP' if name == 'work' else 'B')}" for name, values in parts.items()]
    binds = f"binds    memory bandwidth, not compute: {', '.join(bound)}"
    return "\n".join([f"{model.name}, {work.image.describe()}", *lines, binds])


def page_table(model: BaseModel, work: Workload, depth: int = 1) -> str:
    """The costs of one page by stage, component and (depth 2) layer, as text."""
    rows = [["part", *_COLUMNS]]
    for stage, cost in model.costs(work).items():
        steps = f" ({work.decode_steps} steps)" if model.stage(stage).steps else ""
        rows.append(_row(f"{stage}{steps}", cost))
        rows += [_row(f"  {name}", part) for name, part in model.breakdown(stage, work, depth).items()]
    rows.append(_row("page", model.request(work)))
    reach = work.context_tokens + work.decode_steps
    beyond = f"context of {reach} tokens, beyond the model's {model.positions} positions\n" * model.is_beyond(reach)
    return f"{work.prompt_tokens} prompt tokens, batch {work.batch}; {work.basis}\n{beyond}\n{align(rows)}"
