"""Answers and tables as text: for the terminal (a page in five lines, then by stage and component), in Markdown."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from modelmeter.device import Device
from modelmeter.models.model import BaseModel
from modelmeter.programs.cost import StageCost
from modelmeter.sweep.findings import Finding
from modelmeter.sweep.registry import findings
from modelmeter.sweep.table import Table
from modelmeter.workload import Workload

MOST = 5
"""Sentences that a reader gets before any table."""
_CONCLUSIONS = ("answered", "answered_best", "bandwidth_bound", "binds")
"""Findings that are told first."""
_PREFIXES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_COLUMNS = {
    "tensor cores": ("tensor_core_flops", "FLOP"), "CUDA cores": ("cuda_core_flops", "FLOP"),
    "weight I/O": ("weight_io_bytes", "B"), "activation I/O": ("activation_io_bytes", "B"),
    "KV I/O": ("kv_io_bytes", "B"), "FLOP/byte": ("arithmetic_intensity", ""),
    "parameters": ("parameters", ""), "weights": ("weight_bytes", "B"),
    "peak activ.": ("peak_activation_bytes", "B"), "KV cache": ("kv_cache_bytes", "B"),
}  # fmt: skip
"""What a table of a page shows of a StageCost, and its unit."""
_FOLDER = PackageLoader("modelmeter.report", "templates")
_TEMPLATES = Environment(loader=_FOLDER, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


def si(value: float, unit: str) -> str:
    """A number with a decimal prefix and at most four significant digits: 1.14 TFLOP, 465.6 MB."""
    scale, prefix = next((found for found in _PREFIXES if abs(float(value)) >= found[0]), (1, ""))
    return f"{float(value) / scale:.4g} {prefix}{unit}".rstrip()


def align(rows: Sequence[Sequence[str]]) -> str:
    """Rows as text, first column to the left, the others to the right."""
    first, *widths = (max(map(len, column)) for column in zip(*rows, strict=True))
    cells = ([row[0].ljust(first), *map(str.rjust, row[1:], widths)] for row in rows)
    return "\n".join("  ".join(line).rstrip() for line in cells)


def markdown(rows: Sequence[Mapping[str, Any]], left: Sequence[str], word: Callable[[str], str] = str) -> str:
    """Rows by heading as a Markdown table, columns to the right but for those of `left`; `word` translates headings.

    The last heading may be empty.
    """
    heads = dict.fromkeys(head for row in rows for head in row)
    lines = [" | ".join(map(word, heads)).rstrip(), *(" | ".join(map(str, row.values())) for row in rows)]
    top, *body = (f"| {line} |" for line in lines)
    return "\n".join([top, "|" + "|".join(" --- " if head in left else " ---: " for head in heads) + "|", *body])


def render(template: str, content: Mapping[str, Any]) -> str:
    """A template of `templates/` filled in; a missing value is an error, runs of blank lines are one."""
    text = _TEMPLATES.get_template(f"{template}.md.j2").render(content)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


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
    kept = {"weights": "weight_bytes", "peak activations": "peak_activation_bytes", "KV cache": "kv_cache_bytes"}
    return {
        "work": {stage: float(cost.flops) for stage, cost in costs.items()},
        "traffic": {stage: float(cost.io_bytes) for stage, cost in costs.items()},
        "memory": {name: float(getattr(page, count)) for name, count in kept.items()},
    }


def split(name: str, parts: Mapping[str, float]) -> str:
    """A whole of `page_parts` in its unit and the shares of its parts: 4 FLOP: a 25.0 %, b 75.0 %."""
    whole = sum(parts.values())
    shares = (f"{part} {100 * value / whole:.1f} %" for part, value in parts.items() if value)
    return f"{si(whole, 'FLOP' if name == 'work' else 'B')}: {', '.join(shares)}"


def memory_bound(cost: StageCost, devices: Iterable[Device]) -> int:
    """On how many devices bandwidth, not one of the compute peaks, is what `cost` takes the most of."""
    shares = (device.shares(cost, 1.0) for device in devices)
    return sum(max(taken, key=lambda name: float(taken[name])) == "memory bandwidth" for taken in shares)


def page_answer(model: BaseModel, work: Workload, devices: Sequence[Device]) -> str:
    """What a page costs and what binds it, in five lines."""
    bound = (
        f"{stage} on {memory_bound(cost, devices)} of {len(devices)} devices"
        f" ({float(cost.arithmetic_intensity):.1f} FLOP/byte)"
        for stage, cost in model.costs(work).items()
        if cost.flops
    )
    lines = [f"{name:9}{split(name, parts)}" for name, parts in page_parts(model, work).items()]
    binds = f"binds    memory bandwidth, not compute: {', '.join(bound)}"
    return "\n".join([f"{model.name}, {work.image.describe()}", *lines, binds])


def stage_title(model: BaseModel, stage: str, work: Workload) -> str:
    """A stage and how often it runs, if it runs step by step."""
    return f"{stage} ({work.decode_steps} steps)" if model.stage(stage).steps else stage


def page_table(model: BaseModel, work: Workload, depth: int = 1, head: str = "") -> str:
    """The costs of one page by stage, component and (depth 2) layer, as text; `head` stands for that of a page."""
    found: list[tuple[str, StageCost]] = []
    for stage, cost in model.costs(work).items():
        parts = model.breakdown(stage, work, depth).items()
        found += [(stage_title(model, stage, work), cost), *((f"  {name}", part) for name, part in parts)]
    columns = _COLUMNS | ({"link": ("link_bytes", "B")} if work.parallel else {})
    rows = [["part", *columns]]
    for name, cost in [*found, ("page", model.request(work))]:
        counts = ((head, float(getattr(cost, count)), unit) for head, (count, unit) in columns.items())
        rows.append([name, *(f"{n:.1f}" if head == "FLOP/byte" else si(n, unit) for head, n, unit in counts)])
    reach = work.context_tokens + work.decode_steps
    beyond = f"context of {reach} tokens, beyond the model's {model.positions} positions\n" * model.is_beyond(reach)
    page = f"{work.prompt_tokens} prompt tokens, batch {work.batch}; {model.basis(work)}\n{beyond}"
    return "\n".join([f"{head + chr(10) if head else page}\n{align(rows)}", *model.notes])
