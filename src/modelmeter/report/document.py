"""The reports of a model in each language: templates filled with tables, findings and figures.

The same template and the same data make every language; sentences come from `language.py`, numbers from
the rows. Nothing here knows a model: its own prose and page are given as `settings`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import modelmeter
from modelmeter.cost import StageCost
from modelmeter.models.model import STAGES, Model
from modelmeter.report.files import markdown_table
from modelmeter.report.findings import findings
from modelmeter.report.inventory import formulas_of, inventory, summary_of, vendor_of
from modelmeter.report.language import LANGUAGES, Language, catalogue
from modelmeter.report.measures import MEASURES, significant
from modelmeter.report.tables import answer, markdown, page_parts
from modelmeter.sweep.table import Chart, Table
from modelmeter.workload import Workload

TABLES = "performance-tables"
PAGES = ("architecture", "performance", TABLES)
_INTRO = {
    "device_shares": "targets_intro", "sequence": "sequence_intro", "profiles": "profiles_intro",
    "compression": "compression_intro",
}  # fmt: skip


@dataclass(frozen=True)
class Report:
    """What a report is made of.

    `settings` has the title and the prose by language, `tables` the tables of each sweep, `dims` the
    model's numbers with their sources, `validation` rows of `validate.run.comparison_rows` (None: left out).
    """

    model: Model
    work: Workload
    command: str
    settings: Mapping[str, Any]
    tables: Mapping[str, Sequence[Table]]
    dims: Sequence[tuple[str, str, str]]
    validation: Sequence[Mapping[str, Any]] | None

    def pages(self) -> dict[str, str]:
        """Every page by file name: `architecture.md`, `architecture.zh.md` and so on."""
        found = {}
        for code in LANGUAGES:
            own = {PAGES[0]: self._architecture(Language(code)), PAGES[1]: self._performance(Language(code))}
            for page in PAGES:
                content = self._common(Language(code)) | own.get(page, own[PAGES[1]])
                content["other"] = page_name(page, next(c for c in LANGUAGES if c != code))
                found[page_name(page, code)] = render(f"{page}.md.j2", content)
        return found

    def _common(self, t: Language) -> dict[str, Any]:
        work, costs = self.work, {stage: self.model.cost(stage, self.work) for stage in STAGES}
        stored = self.model.storage(work)
        return {
            "t": t,
            "title": self.settings["title"],
            "command": self.command,
            "version": modelmeter.__version__,
            "basis": work.basis,
            "prose": self.settings["prose"][t.code],
            "parameters": f"{stored.parameters:,}",
            "weight_bytes": f"{stored.weight_bytes:,}",
            "page": self._page(),
            "stages": self._stages(t),
            "shares": _shares(costs),
        }  # fmt: skip

    def _page(self) -> dict[str, Any]:
        work = self.work
        return {
            "size": self.settings["page"]["image_size"],
            "mode": work.image.mode,
            "views": " + ".join(f"{view.count} x {view.width}x{view.height}" for view in work.image.views),
            "tokens": work.image.tokens,
            "valid": work.image.valid_tokens,
            "prompt": work.prompt_tokens,
            "steps": work.decode_steps,
            "batch": work.batch,
        }

    def _stages(self, t: Language) -> str:
        heads = ["stage", "component", *_COST_HEADS]
        rows = []
        for stage in STAGES:
            rows.append([t.word(stage), t.word("total"), *_costs(self.model.cost(stage, self.work))])
            rows += [[t.word(stage), name, *_costs(c)] for name, c in self.model.breakdown(stage, self.work).items()]
        rows.append([t.word("page"), t.word("total"), *_costs(self.model.request(self.work))])
        return grid(map(t.word, heads), rows)

    def _architecture(self, t: Language) -> dict[str, Any]:
        found = inventory(self.model, self.work)
        heads = [t.word(h) for h in ("stage", "layer", *_COST_HEADS[:_WORK], "share %")]
        rows = [[t.word(i.stage), i.layer, *_costs(i.cost)[:_WORK], significant(100 * i.share)] for i in found]
        layers = [_layer(name, t) for name in dict.fromkeys(item.layer for item in found)]
        dims = grid(map(t.word, ("number", "value", "source (confidence)")), self.dims)
        return {"layer_costs": grid(heads, rows), "layers": layers, "dims": dims}

    def _performance(self, t: Language) -> dict[str, Any]:
        named = [(sweep, table) for sweep, tables in self.tables.items() for table in tables]
        sections = [_section(sweep, table, self.settings["page"], t) for sweep, table in named]
        return {
            "answer": self._answer(t),
            "sections": sections,
            "validation": _validation(self.validation, t) if self.validation else None,
            "tables_page": page_name(TABLES, t.code),
            "performance_page": page_name(PAGES[1], t.code),
        }

    def _answer(self, t: Language) -> list[str]:
        """What the page costs and what binds it: the first lines of the report."""
        lines = [t.say("page_example", **self._page())]
        for name, parts in page_parts(self.model, self.work).items():
            key, unit = _ANSWERS[name]
            shown = {part.replace(" ", "_"): significant(value / unit) for part, value in parts.items()}
            lines.append(t.say(key, total=significant(sum(parts.values()) / unit), **shown))
        binding = [_binding(table) for tables in self.tables.values() for table in tables if table.name == _DEVICES]
        return lines + [t.say("answer_binds", **values) for values in binding]


def page_name(page: str, code: str) -> str:
    """The file of a page in a language; English has no suffix."""
    return f"{page}.md" if code == LANGUAGES[0] else f"{page}.{code}.md"


def render(template: str, content: Mapping[str, Any]) -> str:
    """A template of `templates/` filled in; a missing value is an error, runs of blank lines are one."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("modelmeter.report", "templates")
    environment = Environment(loader=loader, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    text = environment.get_template(template).render(content)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def grid(heads: Iterable[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table: numbers to the right, words to the left."""
    heads, rows = list(heads), [[str(cell) for cell in row] for row in rows]
    numeric = [all(re.match(r"^[-+~]?[\d.,]+\S*$|^$", row[i]) for row in rows) for i in range(len(heads))]
    return markdown(heads, rows, numeric)


_DEVICES = "device_shares"
_ANSWERS = {"work": ("answer_work", 1e12), "traffic": ("answer_traffic", 1e9), "memory": ("answer_memory", 1e9)}
_COST_HEADS = (
    "tensor-core TFLOP", "CUDA-core TFLOP", "I/O GB", "FLOP/byte", "parameters", "weights MB",
    "peak activations GB", "KV cache GB",
)  # fmt: skip

_WORK = 6
"""How many of these are work and storage of a layer; a peak is that of a stage."""


def _costs(cost: StageCost) -> list[str]:
    return [
        significant(float(cost.tensor_core_flops) / 1e12, 7),
        significant(float(cost.cuda_core_flops) / 1e12, 5),
        significant(float(cost.io_bytes) / 1e9, 5),
        significant(float(cost.arithmetic_intensity), 4),
        f"{cost.parameters:,}",
        significant(float(cost.weight_bytes) / 1e6, 5),
        significant(float(cost.peak_activation_bytes) / 1e9, 4),
        significant(float(cost.kv_cache_bytes) / 1e9, 4),
    ]


def _shares(costs: Mapping[str, StageCost]) -> dict[str, str]:
    flops, moved = (sum(float(getattr(c, key)) for c in costs.values()) for key in ("flops", "io_bytes"))
    shares = {stage: f"{100 * float(c.flops) / flops:.1f}" for stage, c in costs.items()}
    return shares | {f"{stage}_io": f"{100 * float(c.io_bytes) / moved:.1f}" for stage, c in costs.items()}


def _layer(name: str, t: Language) -> dict[str, Any]:
    found = formulas_of(name)
    rows = [[f"{t.say(key)}, `{form}`" if form else t.say(key), f"${text}$"] for key, form, text in found]
    summaries = catalogue(t.code).get("layers", {})
    heads = map(t.word, ("quantity", "formula"))
    return {
        "name": name,
        "summary": summaries.get(name, summary_of(name)),
        "vendor": vendor_of(name),
        "formulas": grid(heads, rows) if rows else "",
    }


def _section(sweep: str, table: Table, page: Mapping[str, Any], t: Language) -> dict[str, Any]:
    own = "".join(f" {key}={value}" for key, value in page.items() if key in table.settings)
    command = f"modelmeter sweep {sweep}{own}"
    several = table.name == _DEVICES  # what binds depends on the execution
    shown = [row for row in table.shown if several or row["execution"] == table.kind]
    part = ("ranges_shown" if several else "rows_shown") if len(shown) < len(table.rows) else ""
    charts = [{"name": c.name, "caption": f"{t.say('h_' + table.name)}: {_caption(c, t)}"} for c in table.charts]
    return {
        "name": table.name,
        "intro": _INTRO.get(table.name),
        "findings": answer([table]),
        "more": [finding for finding in findings(table) if finding not in answer([table])],
        "charts": charts,
        "table": markdown_table(shown, t),
        "shown": t.say(part, shown=len(shown), rows=len(table.rows), command=command) if part else "",
        "extrapolated": any(row.get("extrapolated") for row in shown),
    }


def _binding(table: Table) -> dict[str, Any]:
    """On how many devices bandwidth binds the page itself, by target; a budget does not change it."""
    own = table.select(marked=True, execution=table.kind)
    found: dict[str, set[str]] = {row["target"]: set() for row in own}
    for row in own:
        found[row["target"]] |= {row["device"]} if row["binds"] == "memory bandwidth" else set()
    devices = len({row["device"] for row in own})
    return {"kind": table.kind, "devices": devices} | {target: len(some) for target, some in found.items()}


def _caption(chart: Chart, t: Language) -> str:
    words = [MEASURES[chart.measures[0]].label, *(["by component"] if chart.by == "component" else [])]
    return ", ".join(map(t.word, words))


def _validation(rows: Sequence[Mapping[str, Any]], t: Language) -> dict[str, Any]:
    heads = map(t.word, ("layer", "group", "reference class", "measured", "theoretical", "difference"))
    cells = [
        [
            row["layer"],
            row["group"],
            f"`{row['reference']}`",
            f"{row['measured']:,}" + ("*" if row["quantity"] != "tensor_core_flops" else ""),
            f"{row['theoretical']:,}",
            f"{row['measured'] - row['theoretical']:,}",
        ]
        for row in rows
    ]
    counts = {"rows": len(rows), "equal": sum(row["equal"] for row in rows)}
    return {"table": grid(heads, cells), "counts": counts}
