"""The reports of a model in each language: templates filled with tables, findings and figures.

The same template and the same data make every language; sentences come from `language.py`, numbers from
the rows. Nothing here knows a model: its own prose and page are given as `settings`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import modelmeter
from modelmeter import layers
from modelmeter.models.model import BaseModel
from modelmeter.programs.cost import StageCost
from modelmeter.programs.program import program_of
from modelmeter.report.claims import Claim, claims
from modelmeter.report.files import markdown_table
from modelmeter.report.formulas import formulas_of, told_of
from modelmeter.report.language import LANGUAGES, Language
from modelmeter.report.tables import answer, markdown, page_parts, render
from modelmeter.sweep.columns import MEASURES, Row, significant
from modelmeter.sweep.registry import findings
from modelmeter.sweep.table import Chart, Table
from modelmeter.workload import Workload

PAGES = ("architecture", "performance", "performance-tables")
KNOWN = set(layers.__all__) - {"Repeat", "Sequence"}
_COSTS = {
    "tensor-core TFLOP": ("tensor_core_flops", 1e12, 7), "CUDA-core TFLOP": ("cuda_core_flops", 1e12, 5),
    "I/O GB": ("io_bytes", 1e9, 5), "FLOP/byte": ("arithmetic_intensity", 1, 4), "parameters": ("parameters", 1, 0),
    "weights MB": ("weight_bytes", 1e6, 5), "peak activations GB": ("peak_activation_bytes", 1e9, 4),
    "KV cache GB": ("kv_cache_bytes", 1e9, 4),
}  # fmt: skip
"""What a table shows of a StageCost: the count, its unit, significant digits (0: all)."""


class LayerCost(NamedTuple):
    """One layer class in one stage; `share` is that of the stage's FLOPs, inner layers included."""

    stage: str
    layer: str
    cost: StageCost
    share: float


@dataclass(frozen=True)
class Report:
    """What a report is made of; the templates read what stands below, in the language `t`.

    `settings` has the title and the prose by language, `tables` the tables of each sweep, `dims` the model's numbers
    with their sources, `validation` rows of `validate.registry.comparison_rows` (None: left out), `identities` those of
    `validate.symbolic.rows`.
    """

    model: BaseModel
    work: Workload
    command: str
    settings: Mapping[str, Any]
    tables: Mapping[str, Sequence[Table]]
    dims: Sequence[tuple[str, str, str]]
    validation: Sequence[Mapping[str, Any]] | None
    identities: Sequence[Mapping[str, Any]] = ()

    def pages(self) -> dict[str, str]:
        """Every page by file name: `architecture.md`, `architecture.zh.md` and so on."""
        found, told = {}, {"r": self, "version": modelmeter.__version__, "inventory": inventory(self.model, self.work)}
        for t, other in zip(map(Language, LANGUAGES), map(Language, LANGUAGES[::-1]), strict=True):
            for page in (*self.settings.get("pages", PAGES), *(["claims"] if self.claims else [])):
                found[t.file(page)] = render(page, _FUNCTIONS | told | {"t": t, "other": other.file(page)})
        return found

    @cached_property
    def claims(self) -> list[Claim]:
        """What others said of the model, where the settings have it."""
        return claims(self.model, self.settings.get("claims", []))

    def page(self) -> dict[str, Any]:
        """What is told of the page: the workload, pixels and views."""
        views = " + ".join(f"{view.count} x {view.width}x{view.height}" for view in self.work.image.views)
        return {"work": self.work, "size": self.settings["page"]["image_size"], "views": views}

    def answer(self, t: Language) -> list[str]:
        """What the page costs and what binds it: the first lines of the report."""
        lines = [t.say("page_example", **self.page())]
        for name, parts in page_parts(self.model, self.work).items():
            unit = 1e12 if name == "work" else 1e9
            shown = {part: significant(value / unit) for part, value in parts.items()}
            lines.append(t.say(f"answer_{name}", total=significant(sum(parts.values()) / unit), parts=t.listed(shown)))
        headlines = (table.headline for tables in self.tables.values() for table in tables if table.headline)
        return [*lines, *map(t.finding, headlines)]

    def shares(self, t: Language) -> dict[str, str]:
        """The shares of the stages in the page's work and traffic, in words."""
        found = {}
        for name, parts in page_parts(self.model, self.work).items():
            found[name] = t.listed({part: f"{100 * v / sum(parts.values()):.1f} %" for part, v in parts.items()})
        return found

    def stages(self, t: Language) -> str:
        """The costs by stage and component."""
        rows = []
        for stage, cost in self.model.costs(self.work).items():
            parts = {t.word("total"): cost} | self.model.breakdown(stage, self.work)
            rows += [{"stage": t.word(stage), "component": name} | costs(part) for name, part in parts.items()]
        page = {"stage": t.word("page"), "component": t.word("total")} | costs(self.model.request(self.work))
        return markdown([*rows, page], ["stage", "component"], t.word)

    def identity_table(self, t: Language) -> str:
        """Ours less the traced module, layer by layer: what is zero for all sizes, what is not, and why."""
        rows = []
        for of in self.identities:
            others = [f"{t.word(quantity)} `{term}`: {t.word(reason)}" for quantity, term, reason in of["others"]]
            refused = [t.word("no identity") + t.word(", ") + of["refused"]] * bool(of["refused"])
            zero = t.word(", ").join(map(t.word, of["zero"]))
            cells = (of["layer"], zero, "; ".join([*others, *refused]), of["where"])
            rows.append(dict(zip(("layer", "ours - traced = 0", "ours - traced", "for all"), cells, strict=True)))
        return markdown(rows, list(rows[0]), t.word)

    def rows(self, table: Table) -> list[Row]:
        """The rows of a table that are shown: one execution's, or all where what binds depends on the execution."""
        return [row for row in table.shown if table.headline or row["execution"] == table.kind]

    def left_out(self, t: Language, sweep: str, table: Table) -> str:
        """How many rows are not shown and the command that writes them; "" if all are."""
        shown, page = len(self.rows(table)), self.settings["page"]
        own = "".join(f" {key}={value}" for key, value in page.items() if key in table.settings)
        told = {"shown": shown, "rows": len(table.rows), "command": f"modelmeter sweep {sweep}{own}"}
        return t.say("ranges_shown" if table.headline else "rows_shown", **told) if shown < len(table.rows) else ""

    def caption(self, t: Language, table: Table, chart: Chart) -> str:
        """What a figure shows."""
        words = [MEASURES[chart.measures[0]].label, *(["by component"] if chart.by == ("component",) else [])]
        return f"{t.say('h_' + table.name)}: {', '.join(map(t.word, words))}"


def inventory(model: BaseModel, work: Workload) -> list[LayerCost]:
    """Every layer class of every stage, in order of first use; decode is its first step.

    Each op knows the layers that it stands in, so a layer's cost is that of its ops: none is typed here.
    """
    found = []
    for stage in model.stages:
        graph, names = stage.graph(stage.structure(work), work.counting)
        program = program_of(
            model.changed(graph), names, work.counting, lambda op: " ".join((*op.node.around, op.node.layer))
        )
        sizes = stage.sizes(work)
        parts = {tuple(part.split()): cost for part, cost in program.at([sizes[name] for name in names]).items()}
        whole = sum(cost.flops for cost in parts.values())
        for name in dict.fromkeys(name for part in parts for name in part if name in KNOWN):
            cost = sum((cost for part, cost in parts.items() if name in part), start=StageCost())
            found.append(LayerCost(stage.name, name, cost, cost.flops / whole if whole else 0.0))
    return found


def costs(cost: StageCost) -> dict[str, str]:
    """What a table shows of a StageCost, by heading."""
    values = ((head, getattr(cost, count), unit, digits) for head, (count, unit, digits) in _COSTS.items())
    return {head: significant(float(v) / unit, digits) if digits else f"{v:,}" for head, v, unit, digits in values}


_FUNCTIONS: dict[str, Any] = {
    "answer": answer, "findings": findings, "told_of": told_of, "formulas_of": formulas_of, "costs": costs,
    "markdown_table": markdown_table, "significant": significant, "of_layer": list(_COSTS)[:6],
}  # fmt: skip
"""What templates call; of the costs of a layer they show work and storage, a peak is that of a stage."""
