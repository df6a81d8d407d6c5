"""The GGUF file of a model's decoder, predicted: its tensors, its size, and a table of what it holds by part.

What is not of the decoder (vision tower, projector) stays in its own format, in a file of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from math import prod
from pathlib import Path
from typing import Any, NamedTuple, cast

from modelmeter.checkpoints.gguf import file_bytes
from modelmeter.checkpoints.header import FileTensor
from modelmeter.checkpoints.split import parts_bytes
from modelmeter.errors import InputError
from modelmeter.graph.graph import Graph
from modelmeter.models.model import BaseModel
from modelmeter.programs.counting import Counting
from modelmeter.programs.formats import FORMATS
from modelmeter.programs.policies import Slot, of_decoder, tensors_of
from modelmeter.programs.weights import weights_of
from modelmeter.report.tables import align, si

_APART = ("projector", "join")
"""Components beside the decoder that are no part of the vision tower."""
DENSE = ("fp32", "fp16")
"""The formats that a table compares with: every element in one of them."""


@cache
def names() -> dict[str, Any]:
    """The table of `names.yaml`."""
    import yaml

    text = Path(__file__).with_name("names.yaml").read_bytes()
    found: dict[str, Any] = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return found


class Row(NamedTuple):
    """A part of a model: its elements, its bytes as stored, its formats."""

    part: str
    elements: int
    bytes: int
    formats: tuple[str, ...]

    @property
    def bits(self) -> float:
        """Bits an element."""
        return self.bytes * 8 / self.elements

    @property
    def saved(self) -> dict[str, float]:
        """The share that it saves of what it would have in a format of DENSE."""
        return {name: 1 - self.bytes / float(self.elements * FORMATS[name].bytes) for name in DENSE}


@dataclass(frozen=True)
class Layout:
    """A decoder as a policy stores it: `tensors` of the file, `others` the model's other components by name."""

    model: str
    policy: str
    tensors: tuple[FileTensor, ...]
    others: tuple[Row, ...]

    def rows(self) -> list[Row]:
        """The parts of the decoder, then all of them."""
        found = {part: _row(part, members) for part, members in self._parts().items() if members}
        return [*found.values(), _row("decoder", self.tensors)]

    def _parts(self) -> dict[str, list[FileTensor]]:
        parts: dict[str, list[FileTensor]] = {part: [] for part in names()["parts"]}
        for tensor in self.tensors:
            kind = Slot(tensor.name, 0, (), {}).kind
            fits = (p for p, kinds in names()["parts"].items() if any(fnmatchcase(kind, k) for k in kinds.split()))
            parts.setdefault(next(fits, kind), []).append(tensor)
        return parts

    def hybrid(self) -> Row:
        """The decoder in its file, the other components beside it."""
        return _sum("all, decoder as GGUF", [*self.others, _row("decoder", self.tensors)])

    def file(self, metadata_bytes: int) -> tuple[int, int]:
        """Bytes of the header and of the file, with so many of metadata."""
        return file_bytes(self.tensors, metadata_bytes)


def _row(part: str, tensors: Iterable[FileTensor]) -> Row:
    given = list(tensors)
    formats = tuple(dict.fromkeys(tensor.format.name for tensor in given))
    return Row(part, sum(t.elements for t in given), sum(t.bytes for t in given), formats)


def _sum(part: str, rows: Iterable[Row]) -> Row:
    given = list(rows)
    return Row(part, sum(row.elements for row in given), sum(row.bytes for row in given), ())


def graphs_of(model: BaseModel) -> list[Graph]:
    """The graphs of a model's whole stages."""
    made = model.once("graphs", lambda: [model.changed(s.graph(s.whole, Counting())[0]) for s in model.stages])
    return cast(list[Graph], made)


def decoder_of(model: BaseModel) -> Graph:
    """The graph of the stage that has the decoder. Raises InputError if there is none."""
    found = next((graph for graph in graphs_of(model) if of_decoder(graph.tensors())), None)
    if found is None:
        raise InputError(f"{model.name} has no decoder that llama.cpp has names for")
    return found


def layout_of(model: BaseModel, policy: str, others: str = "fp16") -> Layout:
    """The file of a model's decoder under a policy, its other components in the format `others`. Raises InputError."""
    fields = getattr(model, "config", None) or {}
    other = names()["other"].get(str(fields.get("model_type")), {})
    found = [*_frequencies(fields)]
    for slot, form in tensors_of(decoder_of(model), policy):
        name = slot.name.replace(slot.kind, other.get(slot.kind, slot.kind))
        found.append(FileTensor(name, slot.shape, form, int(slot.elements * form.each(slot.shape[0]))))
    return Layout(model.name, policy, tuple(found), _others(model, others))


def _frequencies(fields: Mapping[str, Any]) -> Iterable[FileTensor]:
    """The factors of rotary frequencies that a file has where they are scaled as in Llama 3."""
    scaling = fields.get("rope_scaling") or fields.get("rope_parameters") or {}
    if "llama3" in (scaling.get("rope_type"), scaling.get("type")):
        width = fields.get("head_dim") or fields["hidden_size"] // fields["num_attention_heads"]
        yield FileTensor("rope_freqs.weight", (width // 2,), FORMATS["fp32"], width // 2 * 4)


def _others(model: BaseModel, form: str) -> tuple[Row, ...]:
    """The components beside the decoder, each in one format."""
    elements: dict[str, dict[str, int]] = {}
    for graph in graphs_of(model):
        for name, weight in weights_of(graph).items():
            if "W_" in name and not of_decoder([name]):
                first = name.partition(".")[0]
                part = first if first in _APART else "vision tower"
                elements.setdefault(part, {})[name] = prod(weight.shape) * weight.times
    each = FORMATS[form].bytes
    counted = {part: sum(found.values()) for part, found in elements.items()}
    return tuple(Row(part, many, int(many * each), (form,)) for part, many in counted.items())


def layout_text(layout: Layout, metadata_bytes: int | None = None, every: bool = False, most: int | None = None) -> str:
    """The layout as text: a table by part, the file's size, what is not predicted.

    `every` lists the tensors, `most` the files of at most so many bytes of them.
    """
    rows = [*layout.rows(), *layout.others]
    rows += [layout.hybrid()] * bool(layout.others)
    heads = ["part", "parameters", *DENSE, layout.policy, "bits", *(f"below {name}" for name in DENSE), "formats"]
    cells = [heads]
    for row in rows:
        dense = (si(float(row.elements * FORMATS[name].bytes), "B") for name in DENSE)
        saved = (f"{100 * share:.1f} %" for share in row.saved.values())
        cells.append([row.part, f"{row.elements:,}", *dense, si(row.bytes, "B"), f"{row.bits:.4g}", *saved,
                      " ".join(row.formats)])  # fmt: skip
    header, size = layout.file(metadata_bytes or 0)
    told = (
        "without metadata: the tokenizer's are some MB, --metadata-bytes N adds them"
        if metadata_bytes is None
        else f"{metadata_bytes:,} of metadata"
    )
    lines = [f"{layout.model} as {layout.policy}, the decoder as llama.cpp stores it", "", align(cells), ""]
    lines.append(f"file of {size:,} bytes: {len(layout.tensors)} tensors, a header of {header:,} bytes ({told})")
    if most is not None:
        parts = parts_bytes(layout.tensors, metadata_bytes or 0, most)
        lines.append(f"in {len(parts)} parts of at most {si(most, 'B')} of tensors:")
        lines += [f"  {i + 1}: {many} tensors, {size:,} bytes" for i, (many, size) in enumerate(parts)]
    if every:
        listed = [[t.name, "x".join(map(str, t.shape)), t.format.name, f"{t.bytes:,}"] for t in layout.tensors]
        lines += ["", align([["tensor", "columns x rows", "format", "bytes"], *listed])]
    return "\n".join(lines)
