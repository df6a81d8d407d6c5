"""Tables as text: for the terminal (stages, components and layers of one page) and in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from modelmeter.cost import StageCost
from modelmeter.models.model import STAGES, Model
from modelmeter.workload import Workload

_UNITS = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def si(value: float, unit: str) -> str:
    """A number with a decimal prefix and at most four significant digits: 1.14 TFLOP, 465.6 MB."""
    value = float(value)
    for scale, prefix in _UNITS:
        if abs(value) >= scale:
            return f"{value / scale:.4g} {prefix}{unit}".rstrip()
    return f"{value:.4g} {unit}".rstrip()


_COLUMNS = (
    "part", "tensor cores", "CUDA cores", "weight I/O", "activation I/O", "KV I/O", "FLOP/byte",
    "parameters", "weights", "peak activ.", "KV cache",
)  # fmt: skip


def _row(name: str, cost: StageCost) -> list[str]:
    return [
        name,
        si(cost.tensor_core_flops, "FLOP"),
        si(cost.cuda_core_flops, "FLOP"),
        si(cost.weight_io_bytes, "B"),
        si(cost.activation_io_bytes, "B"),
        si(cost.kv_io_bytes, "B"),
        f"{float(cost.arithmetic_intensity):.1f}",
        si(cost.parameters, ""),
        si(cost.weight_bytes, "B"),
        si(cost.peak_activation_bytes, "B"),
        si(cost.kv_cache_bytes, "B"),
    ]


def align(rows: Sequence[Sequence[str]]) -> str:
    """Rows as text, first column to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def markdown(heads: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[bool]) -> str:
    """A Markdown table; `right` says which columns stand to the right. The last heading may be empty."""
    lines = [f"| {' | '.join(heads).rstrip()} |", "|" + "|".join(" ---: " if r else " --- " for r in right) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def page_table(model: Model, work: Workload, depth: int = 1, stages: Iterable[str] = STAGES) -> str:
    """The costs of one page by stage, component and (depth 2) layer, as text."""
    rows = [list(_COLUMNS)]
    for stage in stages:
        steps = f" ({work.decode_steps} steps)" if stage == "decode" else ""
        rows.append(_row(f"{stage}{steps}", model.cost(stage, work)))
        for level in range(1, depth + 1):
            if level == depth:
                rows += [_row(f"  {name}", part) for name, part in model.breakdown(stage, work, level).items()]
    if tuple(stages) == STAGES:
        rows.append(_row("page", model.request(work)))
    head = f"{model.name}, {work.image.describe()}"
    reach = work.context_tokens + work.decode_steps
    if model.is_beyond(reach):
        head += f"\ncontext of {reach} tokens, beyond the model's {model.positions} positions"
    return f"{head}\n{work.prompt_tokens} prompt tokens, batch {work.batch}; {work.basis}\n\n{align(rows)}"
