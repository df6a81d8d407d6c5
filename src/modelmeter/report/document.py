"""The reports of a model in each language: templates filled with tables, findings and figures.

The same template and the same data make every language; sentences come from `language.py`, numbers from
the rows. Nothing here knows a model: its own prose and page are given as `settings`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import modelmeter
from modelmeter.models.model import BaseModel
from modelmeter.programs.cost import StageCost
from modelmeter.report.files import markdown_table
from modelmeter.report.formulas import summary_of
from modelmeter.report.inventory import formulas_of, inventory, vendor_of
from modelmeter.report.language import LANGUAGES, Language, catalogue
from modelmeter.report.tables import answer, markdown, page_parts
from modelmeter.sweep.columns import MEASURES, significant
from modelmeter.sweep.registry import findings
from modelmeter.sweep.table import Chart, Table
from modelmeter.workload import Workload

TABLES = "performance-tables"
PAGES = ("architecture", "performance", TABLES)


@dataclass(frozen=True)
class Report:
    """What a report is made of.

    `settings` has the title and the prose by language, `tables` the tables of each sweep, `dims` the model's numbers
    with their sources, `validation` rows of `validate.run.comparison_rows` (None: left out).
    """

    model: BaseModel
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
            content = (
                self._common(Language(code)) | self._architecture(Language(code)) | self._performance(Language(code))
            )
            (other,) = (language for language in LANGUAGES if language != code)
            for page in PAGES:
                found[page_name(page, code)] = render(f"{page}.md.j2", content | {"other": page_name(page, other)})
        return found

    def _common(self, t: Language) -> dict[str, Any]:
        stored = self.model.storage(self.work)
        flops, moved, _ = (_parts(parts, t, share=True) for parts in page_parts(self.model, self.work).values())
        return {
            "t": t, "title": self.settings["title"], "prose": self.settings["prose"][t.code], "basis": self.work.basis,
            "command": self.command, "version": modelmeter.__version__,
            "parameters": f"{stored.parameters:,}", "weight_bytes": f"{stored.weight_bytes:,}",
            "page": self._page(), "stages": self._stages(t), "shares": {"work": flops, "traffic": moved},
        }  # fmt: skip

    def _page(self) -> dict[str, Any]:
        work, image = self.work, self.work.image
        return {
            "size": self.settings["page"]["image_size"], "mode": image.mode,
            "views": " + ".join(f"{view.count} x {view.width}x{view.height}" for view in image.views),
            "tokens": image.tokens, "valid": image.valid_tokens, "prompt": work.prompt_tokens,
            "steps": work.decode_steps, "batch": work.batch,
        }  # fmt: skip

    def _stages(self, t: Language) -> str:
        rows = []
        for stage, cost in self.model.costs(self.work).items():
            parts = {t.word("total"): cost} | self.model.breakdown(stage, self.work)
            rows += [[t.word(stage), name, *_costs(part)] for name, part in parts.items()]
        rows.append([t.word("page"), t.word("total"), *_costs(self.model.request(self.work))])
        return grid(map(t.word, ("stage", "component", *_COSTS)), rows)

    def _architecture(self, t: Language) -> dict[str, Any]:
        found = inventory(self.model, self.work)
        heads = map(t.word, ("stage", "layer", *list(_COSTS)[:_WORK], "share %"))
        rows = [[t.word(i.stage), i.layer, *_costs(i.cost)[:_WORK], significant(100 * i.share)] for i in found]
        layers = [_layer(name, t) for name in dict.fromkeys(item.layer for item in found)]
        dims = grid(map(t.word, ("number", "value", "source (confidence)")), self.dims)
        return {"layer_costs": grid(heads, rows), "layers": layers, "dims": dims}

    def _performance(self, t: Language) -> dict[str, Any]:
        page, named = self.settings["page"], ((sweep, t) for sweep, tables in self.tables.items() for t in tables)
        return {
            "answer": self._answer(t),
            "sections": [_section(sweep, table, page, t) for sweep, table in named],
            "validation": _validation(self.validation, t) if self.validation else None,
            "tables_page": page_name(TABLES, t.code),
            "performance_page": page_name(PAGES[1], t.code),
        }

    def _answer(self, t: Language) -> list[str]:
        """What the page costs and what binds it: the first lines of the report."""
        lines = [t.say("page_example", **self._page())]
        for name, parts in page_parts(self.model, self.work).items():
            unit = 1e12 if name == "work" else 1e9
            total = significant(sum(parts.values()) / unit)
            lines.append(t.say(f"answer_{name}", total=total, parts=_parts(parts, t, unit)))
        headlines = (table.headline for tables in self.tables.values() for table in tables if table.headline)
        return [*lines, *map(t.finding, headlines)]


def page_name(page: str, code: str) -> str:
    """The file of a page in a language; English has no suffix."""
    return f"{page}.md" if code == LANGUAGES[0] else f"{page}.{code}.md"


def render(template: str, content: Mapping[str, Any]) -> str:
    """A template of `templates/` filled in; a missing value is an error, runs of blank lines are one."""
    text = _environment().get_template(template).render(content)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


@cache
def _environment() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("modelmeter.report", "templates")
    return Environment(loader=loader, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


def grid(heads: Iterable[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table: numbers to the right, words to the left."""
    heads, rows = list(heads), [[str(cell) for cell in row] for row in rows]
    numeric = [all(re.match(r"^[-+~]?[\d.,]+\S*$|^$", row[i]) for row in rows) for i in range(len(heads))]
    return markdown(heads, rows, numeric)


_COSTS = {
    "tensor-core TFLOP": ("tensor_core_flops", 1e12, 7), "CUDA-core TFLOP": ("cuda_core_flops", 1e12, 5),
    "I/O GB": ("io_bytes", 1e9, 5), "FLOP/byte": ("arithmetic_intensity", 1, 4), "parameters": ("parameters", 1, 0),
    "weights MB": ("weight_bytes", 1e6, 5), "peak activations GB": ("peak_activation_bytes", 1e9, 4),
    "KV cache GB": ("kv_cache_bytes", 1e9, 4),
}  # fmt: skip
"""What a table shows of a StageCost: the count, its unit, significant digits (0: all)."""
_WORK = 6
"""How many of these are work and storage of a layer; a peak is that of a stage."""


def _costs(cost: StageCost) -> list[str]:
    values = ((getattr(cost, count), unit, digits) for count, unit, digits in _COSTS.values())
    return [significant(float(value) / unit, digits) if digits else f"{value:,}" for value, unit, digits in values]


def _parts(parts: Mapping[str, float], t: Language, unit: float = 1, share: bool = False) -> str:
    """Parts in words, each over `unit`, or as its share in percent."""
    whole = sum(parts.values())
    shown = ((name, f"{100 * v / whole:.1f} %" if share else significant(v / unit)) for name, v in parts.items())
    return t.word(", ").join(f"{t.word(name)} {value}" for name, value in shown)


def _layer(name: str, t: Language) -> dict[str, Any]:
    found = formulas_of(name)
    rows = [[f"{t.say(key)}, `{form}`" if form else t.say(key), f"${text}$"] for key, form, text in found]
    table = grid(map(t.word, ("quantity", "formula")), rows) if rows else ""
    summary = catalogue(t.code).get("layers", {}).get(name, summary_of(name))
    return {"name": name, "summary": summary, "vendor": vendor_of(name), "formulas": table}


def _section(sweep: str, table: Table, page: Mapping[str, Any], t: Language) -> dict[str, Any]:
    own = "".join(f" {key}={value}" for key, value in page.items() if key in table.settings)
    command = f"modelmeter sweep {sweep}{own}"
    several = table.headline is not None  # what binds depends on the execution
    shown = [row for row in table.shown if several or row["execution"] == table.kind]
    part = ("ranges_shown" if several else "rows_shown") if len(shown) < len(table.rows) else ""
    intro, told = f"{sweep}_intro", answer([table])
    return {
        "name": table.name,
        "intro": intro if intro in catalogue(t.code)["sentences"] else "",
        "findings": told,
        "more": [finding for finding in findings(table) if finding not in told],
        "charts": [{"name": c.name, "caption": f"{t.say('h_' + table.name)}: {_caption(c, t)}"} for c in table.charts],
        "table": markdown_table(shown, t),
        "shown": t.say(part, shown=len(shown), rows=len(table.rows), command=command) if part else "",
        "extrapolated": any(row.get("extrapolated") for row in shown),
    }


def _caption(chart: Chart, t: Language) -> str:
    words = [MEASURES[chart.measures[0]].label, *(["by component"] if chart.by == ("component",) else [])]
    return ", ".join(map(t.word, words))


def _validation(rows: Sequence[Mapping[str, Any]], t: Language) -> dict[str, Any]:
    heads = map(t.word, ("layer", "group", "reference class", "measured", "theoretical", "difference"))
    cells = []
    for row in rows:
        measured, theoretical, star = (
            row["measured"],
            row["theoretical"],
            "*" * (row["quantity"] != "tensor_core_flops"),
        )
        counts = (f"{measured:,}{star}", f"{theoretical:,}", f"{measured - theoretical:,}")
        cells.append([row["layer"], row["group"], f"`{row['reference']}`", *counts])
    return {
        "table": grid(heads, cells),
        "counts": {"rows": len(rows), "equal": sum(row["equal"] for row in rows)},
    }
